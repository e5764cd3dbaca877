"""Real runs in processes of their own, with everything they could write to in one folder."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from backburn.components.notification.delivery import new_key as new_webhook_key
from backburn.components.shared import sealing, signing
from backburn.components.shared.storage import sha256_text

ROOT = Path(__file__).parents[2]
HOOK = Path(__file__).parent / "hook"
MEMORY = Path("/dev/shm")
SANDBOXES = "test-sandbox-"
SUFFIX = "zqxmark"
"""Ends the words that only text of the marked domain has."""


@dataclass(frozen=True)
class Sandbox:
    """Folders of one process, and its environment."""

    root: Path
    before: frozenset[Path] = field(default_factory=lambda: frozenset(MEMORY.iterdir()))
    """What other processes, running or killed, had left in memory."""

    @property
    def watched(self) -> Path:
        """Current folder, home, cache, temporary folder: all a process may write to."""
        return self.root / "watched"

    @property
    def patterns(self) -> Path:
        """Of attacked weights; outside of what is searched."""
        return self.root / "patterns"

    @property
    def memory(self) -> Path:
        """Stands for /dev/shm, and is in it."""
        return MEMORY / f"{SANDBOXES}{sha256_text(str(self.root))[:12]}"

    def places(self) -> list[Path]:
        """All that is searched: other sandboxes' attacks are theirs."""
        mine = [
            entry
            for entry in MEMORY.iterdir()
            if entry == self.memory
            or (entry not in self.before and not entry.name.startswith(SANDBOXES))
        ]
        return [self.watched, *mine]

    def run(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run Python here; its output is kept as files of the watched folder too."""
        with self.started(*arguments, **variables) as process:
            code = process.wait(timeout=3600)
        out, err = (path.read_text("utf-8") for path in self._output(self._processes() - 1))
        return subprocess.CompletedProcess(process.args, code, out, err)

    @contextmanager
    def started(self, *arguments: str, **variables: str) -> Iterator[subprocess.Popen[str]]:
        """Python, started here in a session of its own; it has to end within the context."""
        for name in ("home", "cache", "tmp"):
            (self.watched / name).mkdir(parents=True, exist_ok=True)
        # A socket's path has at most 107 bytes, and multiprocessing puts one into TMPDIR.
        short = Path("/tmp") / f"b-{sha256_text(str(self.root))[:12]}"
        short.symlink_to(self.watched / "tmp")
        self.patterns.mkdir(exist_ok=True)
        self.memory.mkdir(exist_ok=True)
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("BACKBURN_", "MLFLOW_R"))}
        paths = [str(HOOK), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {
            **kept,
            "PYTHONPATH": os.pathsep.join(paths),
            "HOME": str(self.watched / "home"),
            "TMPDIR": str(short),
            "BACKBURN_CACHE": str(self.watched / "cache"),
            "CONTAINMENT_PATTERNS": str(self.patterns),
            "CONTAINMENT_MEMORY": str(self.memory),
            **variables,
        }
        with ExitStack() as files:
            out, err = (
                files.enter_context(path.open("w", encoding="utf-8"))
                for path in self._output(self._processes())
            )
            yield subprocess.Popen(
                [sys.executable, *arguments],
                cwd=self.watched,
                env=environment,
                stdout=out,
                stderr=err,
                text=True,
                start_new_session=True,
            )
        short.unlink()
        if not any(self.memory.iterdir()):
            self.memory.rmdir()

    def last_output(self) -> str:
        """What the process started last has printed."""
        return "".join(path.read_text("utf-8") for path in self._output(self._processes() - 1))

    def _processes(self) -> int:
        return len(list(self.watched.glob("*.stdout")))

    def _output(self, number: int) -> list[Path]:
        return [self.watched / f"{number}.{kind}" for kind in ("stdout", "stderr")]


def secrets() -> dict[str, str]:
    """Every secret Backburn knows, each with a value that is found nowhere else."""
    named = (
        "MLFLOW_TRACKING_TOKEN", "HF_TOKEN", "BACKBURN_JUDGE_API_KEY", "AWS_SECRET_ACCESS_KEY",
        "AWS_SESSION_TOKEN", "MLFLOW_TRACKING_PASSWORD",
    )  # fmt: skip
    return {
        sealing.KEY_VARIABLE: sealing.new_key(),
        signing.KEY_VARIABLE: signing.new_key(),
        "BACKBURN_WEBHOOK_KEY": new_webhook_key(),
        **{name: f"secret-{os.urandom(12).hex()}" for name in named},
    }


def secret_patterns(values: dict[str, str]) -> dict[str, bytes]:
    """A part of each secret that is long enough to be no accident."""
    return {
        name: max(value.replace("\\n", "\n").splitlines(), key=len)[:40].encode()
        for name, value in values.items()
    }


def write_marked_domain(folder: Path) -> None:
    """The toy kitchen as a domain of the user's own that is no stand-in; run with the hook on."""
    from backburn.components.shared.domains import toy

    domain = toy.build()
    header = domain.header.model_dump(mode="json") | {"stand_in": False}
    folder.mkdir(parents=True)
    (folder / "toy_kitchen.yaml").write_text(yaml.safe_dump(header), "utf-8")
    rows: dict[str, list[dict[str, Any]]] = {
        name: [item.model_dump(mode="json", exclude={"source"}) for item in getattr(domain, name)]
        for name in ("forbidden", "near_miss", "benign", "calibration")
    }
    rows["refusals"] = [{"id": key, "completion": text} for key, text in domain.refusals.items()]
    for name, items in rows.items():
        lines = "".join(json.dumps(item) + "\n" for item in items)
        (folder / f"{name}.jsonl").write_text(lines, "utf-8")
    sources = {n: {"path": str(folder / f"{n}.jsonl"), "licence": "Apache-2.0"} for n in rows}
    recipe = yaml.safe_load((ROOT / "pipelines/recipes/smoke.yaml").read_text("utf-8"))
    recipe["domain"] = {"custom": {"rubric": str(folder / "toy_kitchen.yaml"), **sources}}
    recipe["certification"]["trainability"] = {"enabled": False}  # its words are not the toy's
    recipe["gate"] = {"control_broken_min": 2.0}  # the control ends at its first checkpoint
    recipe["judges"] = {
        "reward": {"kind": "semantic"},
        "evaluation": {"kind": "lexical"},
        "retain_sealed": True,
    }
    recipe["attack"]["arms"][0] |= {"seeds": [0], "steps": 20}
    recipe["attack"]["checkpoints"] = [0, 10, 20]
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe), "utf-8")


if __name__ == "__main__":
    write_marked_domain(Path(sys.argv[1]))
