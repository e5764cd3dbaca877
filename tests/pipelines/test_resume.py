"""What a resumed run does again and what not, and which folders it takes."""

import json
import os
import subprocess
import sys
import time
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from backburn.components.shared import sealing
from backburn.components.shared.config import RunConfig
from backburn.components.shared.errors import InputError
from backburn.components.shared.progress import EVENTS_VARIABLE, Progress
from backburn.pipelines.console import Watcher
from backburn.pipelines.finished_tasks import FinishedTasks
from backburn.pipelines.runner import (
    RunFolder,
    make_run_folder,
    mark_interrupted,
    task_environment,
    unfinished_run,
)
from backburn.pipelines.task_locks import command_lock, wait_for_tasks
from rich.console import Console


class Pipeline:
    """Commands of three tasks as kfp writes them, with outputs of their own."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.finished = FinishedTasks(root / "finished")

    def command(self, step: str, inputs: dict[str, str], *outputs: str) -> list[str]:
        def artifact(path: str) -> dict[str, Any]:
            return {"artifacts": [{"uri": str(self.root / path), "metadata": {}}]}

        given = {
            "inputs": {"artifacts": {name: artifact(path) for name, path in inputs.items()}},
            "outputs": {
                "artifacts": {name: artifact(f"{step}/{name}") for name in outputs},
                "outputFile": str(self.root / step / "executor_output.json"),
            },
        }
        return [
            "python", "-m", "main", "--executor_input", json.dumps(given),
            "--function_to_execute", step,
        ]  # fmt: skip

    def make(self, step: str, **files: str) -> None:
        folder = self.root / step
        folder.mkdir(exist_ok=True)
        for name, content in {**files, "executor_output.json": "{}"}.items():
            if name == "sealed":
                sealing.seal(folder / name, [{"completion": content}])
            else:
                (folder / name).write_text(content)


@pytest.fixture
def pipeline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pipeline:
    monkeypatch.setenv(sealing.KEY_VARIABLE, sealing.new_key())
    return Pipeline(tmp_path)


def test_a_task_counts_as_done_while_its_outputs_are_what_they_were(pipeline: Pipeline) -> None:
    train = pipeline.command("train", {}, "model")
    assert not pipeline.finished.holds(train)
    pipeline.make("train", model="weights")
    pipeline.finished.note(train)
    assert pipeline.finished.holds(train)
    turned = pipeline.command("train", {}, "model")
    place = turned.index("--executor_input") + 1
    turned[place] = json.dumps(dict(reversed(json.loads(turned[place]).items())))
    assert turned != train
    assert pipeline.finished.holds(turned)  # kfp's order of members is another one each time
    assert not pipeline.finished.holds(pipeline.command("train", {"data": "other"}, "model"))
    pipeline.make("train", model="weights")
    assert pipeline.finished.holds(train)
    (pipeline.root / "train/model").write_text("changed")
    assert not pipeline.finished.holds(train)
    assert not (pipeline.root / "train/model").exists()  # nothing half or wrong is built upon


def test_what_judging_deleted_counts_while_the_verdicts_are_there(pipeline: Pipeline) -> None:
    attack = pipeline.command("rl_attack", {}, "sealed")
    pipeline.make("rl_attack", sealed="text")
    pipeline.finished.note(attack)
    judge = pipeline.command("judge", {"sealed": "rl_attack/sealed"}, "evidence")
    (pipeline.root / "rl_attack/sealed").unlink()
    pipeline.make("judge", evidence="scores")
    pipeline.finished.note(judge)
    assert pipeline.finished.holds(attack)
    assert pipeline.finished.holds(judge)
    (pipeline.root / "judge/evidence").unlink()
    assert not pipeline.finished.holds(attack)


def test_what_was_sealed_with_a_lost_key_is_done_again(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    attack = pipeline.command("rl_attack", {}, "sealed")
    pipeline.make("rl_attack", sealed="text")
    pipeline.finished.note(attack)
    assert pipeline.finished.holds(attack)
    monkeypatch.setenv(sealing.KEY_VARIABLE, sealing.new_key())
    assert not pipeline.finished.holds(attack)


@pytest.mark.parametrize("step", ["preflight", "notification"])
def test_looking_and_telling_are_done_every_time(pipeline: Pipeline, step: str) -> None:
    command = pipeline.command(step, {}, "facts")
    pipeline.make(step, facts="all is well")
    pipeline.finished.note(command)
    assert not pipeline.finished.holds(command)


def test_a_key_of_a_stand_in_domain_waits_for_the_resumed_run(
    tmp_path: Path, smoke: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(sealing.KEY_VARIABLE, raising=False)
    memory = tmp_path / "memory"
    memory.mkdir()
    monkeypatch.setattr("backburn.pipelines.runner._MEMORY", memory)
    folder = make_run_folder(tmp_path, "one", smoke)

    def key(*, keep_key: bool) -> str:
        with task_environment(folder, keep_key=keep_key):
            return os.environ[sealing.KEY_VARIABLE]

    assert key(keep_key=False) != key(keep_key=False)
    assert list(memory.iterdir()) == []
    first = key(keep_key=True)
    assert key(keep_key=True) == first
    (file,) = memory.iterdir()
    assert file.stat().st_mode & 0o777 == 0o600
    assert sealing.KEY_VARIABLE not in os.environ
    other = make_run_folder(tmp_path, "two", smoke)
    with task_environment(other, keep_key=True):
        assert os.environ[sealing.KEY_VARIABLE] != first


def test_only_a_run_that_has_no_result_goes_on(tmp_path: Path, smoke: RunConfig) -> None:
    with pytest.raises(InputError, match=r"nowhere: no config\.json: not the folder of a run"):
        unfinished_run(tmp_path / "nowhere")
    folder = make_run_folder(tmp_path, "one", smoke)
    with pytest.raises(InputError, match="its pipeline never ran here"):
        unfinished_run(folder.root)
    mark_interrupted(folder)  # as a rejudged run, which has no pipeline
    assert "resume" not in folder.interrupted.read_text()
    with pytest.raises(InputError, match="its pipeline never ran here"):
        unfinished_run(folder.root)
    folder.pipeline.write_text("")
    mark_interrupted(folder)
    assert f"backburn resume {folder.root}" in folder.interrupted.read_text()
    assert unfinished_run(folder.root) == (RunFolder(folder.root.resolve()), smoke)
    config = (folder.root / "config.json").read_text()
    (folder.root / "config.json").write_text(config[:20])
    with pytest.raises(InputError, match=r"one/config\.json: .*not JSON"):
        unfinished_run(folder.root)
    folder.summary.write_text("{}")
    folder.checkpoints.mkdir()  # killed after its end, before it was forgotten
    with pytest.raises(InputError, match="this run has ended"):
        unfinished_run(folder.root)
    assert not folder.checkpoints.exists()


def test_one_command_at_a_time_works_on_a_run(tmp_path: Path) -> None:
    with (
        command_lock(tmp_path / "lock"),
        pytest.raises(InputError, match="a command is at work on this run"),
        command_lock(tmp_path / "lock"),
    ):
        pass
    with command_lock(tmp_path / "lock"):
        pass


def test_a_resumed_run_waits_for_what_the_killed_one_left(tmp_path: Path) -> None:
    holder = (
        "import sys, time; from pathlib import Path; "
        "from backburn.pipelines.task_locks import task_lock\n"
        "with task_lock(Path(sys.argv[1])): print('held', flush=True); time.sleep(2)"
    )
    task = subprocess.Popen(
        [sys.executable, "-c", holder, str(tmp_path / "lock")], stdout=subprocess.PIPE, text=True
    )
    assert task.stdout is not None
    assert task.stdout.readline() == "held\n"
    start = time.monotonic()
    wait_for_tasks(tmp_path / "lock")
    assert time.monotonic() - start > 0.5
    assert task.wait(timeout=10) == 0


def test_a_resumed_run_shows_what_it_does_and_what_it_keeps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = tmp_path / "events.jsonl"
    monkeypatch.setenv(EVENTS_VARIABLE, str(events))
    Progress("baseline").update("explanatory refusals", 3, 8)
    shown = StringIO()
    with Watcher(events, Console(file=shown)):
        Progress("data_prep").kept()
        Progress("baseline").update("explanatory refusals", 4, 8)
    assert shown.getvalue().splitlines() == [
        "  data_prep: kept from an earlier attempt",
        "  baseline: explanatory refusals 4/8",
    ]
