"""Which tasks of a local run have ended well, so that a resumed run does not do them again.

A task is known by its command: its code, its parameters, and where its inputs and outputs lie. A
record, written after its end, has the digests of its outputs; it counts only while they are still
what they were. Outputs that a later task deleted, as judging does with sealed text, are on that
task's record and count as long as it does.
"""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from backburn.components.shared.errors import BackburnError
from backburn.components.shared.progress import Progress
from backburn.components.shared.provenance import code_digest
from backburn.components.shared.sealing import open_sealed
from backburn.components.shared.storage import (
    canonical_json,
    digests,
    read_json,
    sha256_text,
    write_json,
)

_EVERY_TIME = ("preflight", "notification")
"""Steps that look at how things are now, or say it."""
_SEALED = "sealed"


class FinishedTasks:
    """The records of one run, in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        """Name the folder."""
        self._folder = folder

    def holds(self, command: Sequence[str]) -> bool:
        """Whether a task has ended well and its outputs are still there.

        If not, what an interrupted attempt left of its outputs is removed.
        """
        task = _Task(command)
        record = self._record(task)
        if record is not None and self._valid(record, self._deleted()):
            Progress(task.step).kept()
            return True
        for path in task.outputs.values():
            shutil.rmtree(path, ignore_errors=True)
            path.unlink(missing_ok=True)
        return False

    def note(self, command: Sequence[str]) -> None:
        """A task has ended well."""
        task = _Task(command)
        if task.step in _EVERY_TIME:
            return
        record = {
            "outputs": {name: [str(p), digests(p)] for name, p in task.outputs.items()},
            "deleted": [str(path) for path in task.inputs if not path.exists()],
        }
        write_json(self._path(task), record)

    def _path(self, task: "_Task") -> Path:
        return self._folder / f"{task.key}.json"

    def _record(self, task: "_Task") -> dict[str, Any] | None:
        try:
            record: dict[str, Any] = read_json(self._path(task))
        except BackburnError:
            return None
        return record

    def _deleted(self) -> set[str]:
        """Files that tasks which have ended well took away."""
        records = [read_json(path) for path in self._folder.glob("*.json")]
        return {
            path
            for record in records
            if record["deleted"] and self._valid(record, set())
            for path in record["deleted"]
        }

    @staticmethod
    def _valid(record: dict[str, Any], deleted: set[str]) -> bool:
        for name, (path, expected) in record["outputs"].items():
            if path in deleted:
                continue
            if digests(Path(path)) != expected or not expected:
                return False
            if name == _SEALED and not _opens(Path(path)):
                return False
        return True


def step_of(command: Sequence[str]) -> str:
    """The step that a command of kfp's executor runs, such as rl_attack."""
    return command[command.index("--function_to_execute") + 1]


class _Task:
    """What a command of kfp's executor says of its task."""

    def __init__(self, command: Sequence[str]) -> None:
        self.step = step_of(command)
        place = command.index("--executor_input") + 1
        given = json.loads(command[place])
        self.inputs = _paths(given.get("inputs", {}))
        outputs = given.get("outputs", {})
        self.outputs = {
            name: Path(item["artifacts"][0]["uri"])
            for name, item in outputs.get("artifacts", {}).items()
        }
        self.outputs["executor output"] = Path(outputs["outputFile"])
        # Parsed: kfp writes the same members in any order.
        told = [*command[:place], given, *command[place + 1 :]]
        self.key = sha256_text(canonical_json([told, code_digest()]))


def _paths(inputs: dict[str, Any]) -> list[Path]:
    return [
        Path(artifact["uri"])
        for item in inputs.get("artifacts", {}).values()
        for artifact in item["artifacts"]
    ]


def _opens(sealed: Path) -> bool:
    """Whether it was sealed with the key of now."""
    try:
        open_sealed(sealed)
    except BackburnError:
        return False
    return True
