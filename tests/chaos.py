"""Kills a smoke run at random moments, resumes it, and compares it with one that was left alone.

The processes are real ones in a sandbox of `tests.containment`, whose hook writes down the bytes of
every attacked weight, so that they can be looked for when all is over.
"""

import json
import os
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from backburn.components.shared.evidence import Summary

from tests.containment.patterns import find, read_patterns
from tests.containment.runs import Sandbox

STEPS = (
    "preflight", "data_prep", "baseline", "rl_attack control", "defense_training",
    "certification", "rl_attack hardened", "judge_evaluation", "promotion", "notification",
)  # fmt: skip
EVERY_TIME = ("preflight", "notification")
VICTIMS = ("everything", "the command", "a task")
_CHANGING = {
    "seconds", "created", "run_id", "observations_sha256", "evidence_sha256", "uri", "tracking_uri",
}  # fmt: skip
"""Fields that differ between two runs of one configuration."""
_PAUSE_SECONDS = 0.02
_AT_ONCE = 0.2
"""Probability that a kill waits for no step, and so also meets those every resumption repeats."""


@dataclass
class Kill:
    """One SIGKILL."""

    step: str
    """That was at work."""
    victim: str
    seconds: float
    """Since the step began."""


@dataclass
class Tortured:
    """A run that was killed and resumed until it ended."""

    seed: int
    kills: list[Kill] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)
    """From the run that was left alone: paths of fields of evidence and decision."""
    stray: list[str] = field(default_factory=list)
    """Files with attacked weights."""
    left: list[str] = field(default_factory=list)
    """Of what only an interrupted run needs."""
    repeated: list[str] = field(default_factory=list)
    """Steps that were begun again after their end; a kill may come before the end is on record."""

    @property
    def sound(self) -> bool:
        """Whether nothing was lost and nothing let out."""
        return not (self.differences or self.stray or self.left)


@dataclass(frozen=True)
class Whole:
    """The run that was left alone."""

    folder: Path
    durations: dict[str, float]
    """Seconds of each step."""


def run_whole(sandbox: Sandbox, settings: list[str]) -> Whole:
    """Run without a kill."""
    done = sandbox.run(*_command(settings, "whole"))
    folder = sandbox.watched / "runs/whole"
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    times: dict[str, list[float]] = {}
    for event in _events(folder):
        times.setdefault(_step(event), []).append(event["time"])
    times[STEPS[-1]].append(times[STEPS[-2]][-1])  # it begins where the one before ends
    return Whole(folder, {step: max(seen) - min(seen) for step, seen in times.items()})


def torture(
    sandbox: Sandbox,
    whole: Whole,
    settings: list[str],
    seed: int,
    most: int,
    said: Callable[[str], None] = lambda _: None,
) -> Tortured:
    """Run, kill and resume until the run ends.

    Args:
        sandbox: Of this run alone.
        whole: To compare with.
        settings: Of the recipe, as for `--set`.
        seed: Of the moments and victims.
        most: Kills, after which the run is left alone.
        said: Called with a line for each kill.
    """
    random, result = Random(seed), Tortured(seed)
    folder = sandbox.watched / "runs/tortured"
    while True:
        again = (folder / "pipeline.yaml").is_file()
        command = _resume(folder) if again else _command(settings, "tortured")
        if not again and folder.exists():  # killed before there was anything to go on with
            _remove(folder)
        with sandbox.started(*command) as process:
            count = len(result.kills)
            wanted = _wanted(count, most, random) if count < most else None
            kill = _kill(process, folder, whole, wanted, random) if wanted else None
            code = process.wait(timeout=1800)
        if kill is None:
            assert code == 0, f"exit code {code}: {sandbox.last_output()[-3000:]}"
            break
        result.kills.append(kill)
        said(f"seed {seed}: killed {kill.victim} {kill.seconds:.1f} s into {kill.step}")
        if (folder / "summary.json").is_file():  # killed after the end: nothing is left to do
            assert sandbox.run(*_resume(folder)).returncode == 2
            break
    result.differences = _differences(whole.folder, folder)
    result.stray = sorted(find(read_patterns(sandbox.patterns), sandbox.places()))
    result.repeated = _repeated(_events(folder))
    result.left = [
        name for name in ("checkpoints", "finished", "INTERRUPTED") if (folder / name).exists()
    ]
    return result


def _command(settings: list[str], run_id: str) -> list[str]:
    options = [part for setting in settings for part in ("--set", setting)]
    return ["-m", "backburn.pipelines.cli", "run", "-r", "smoke", "--run-id", run_id, *options]


def _resume(folder: Path) -> list[str]:
    return ["-m", "backburn.pipelines.cli", "resume", str(folder)]


def _wanted(count: int, most: int, random: Random) -> str:
    """Step to strike next: of the share of the steps that is this kill's, or whichever is first.

    Were each kill's drawn from all steps, an early one near the end would leave no room for others.
    """
    if random.random() < _AT_ONCE:
        return STEPS[0]
    return STEPS[int((count + random.random()) / most * len(STEPS))]


def _kill(
    process: subprocess.Popen[str], folder: Path, whole: Whole, wanted: str, random: Random
) -> Kill | None:
    """Kill at a random moment of a step, or of one after it; None if the run ended first."""
    known = len(_events(folder))
    victim = random.choice(VICTIMS)
    share = random.random()
    began: float | None = None
    step, after = "", 0.0
    while process.poll() is None:
        for event in _events(folder)[known:]:
            known += 1
            now = _step(event)
            if event.get("finished"):
                if now != STEPS[-2]:
                    continue
                now = STEPS[-1]  # which says only that it has ended
            if now != step:
                step, began = now, time.monotonic()
                after = share * whole.durations.get(step, 1.0)
        # The step that is wanted, or, if it has passed, one after it.
        reached = step and STEPS.index(step) >= STEPS.index(wanted)
        if reached and began is not None and time.monotonic() - began >= after:
            if not _strike(process, victim):
                return None
            return Kill(step, victim, time.monotonic() - began)
        time.sleep(_PAUSE_SECONDS)
    return None


def _strike(process: subprocess.Popen[str], victim: str) -> bool:
    """Kill; a task is a child of the server that forks tasks. False if the run has ended."""
    if process.poll() is not None:
        return False
    if victim == "everything":
        os.killpg(process.pid, signal.SIGKILL)
    elif victim == "the command":
        process.kill()
    else:
        below = _children(process.pid)
        tasks = [task for child in below for task in _children(child)]
        for task in tasks or below:
            os.kill(task, signal.SIGKILL)
    return True


def _children(pid: int) -> list[int]:
    listed = Path(f"/proc/{pid}/task/{pid}/children")
    try:
        return [int(child) for child in listed.read_text("ascii").split()]
    except OSError:
        return []


def _events(folder: Path) -> list[dict[str, Any]]:
    path = folder / "events.jsonl"
    if not path.is_file():
        return []
    lines = path.read_text("utf-8").splitlines()
    found = []
    for line in lines:
        try:
            found.append(json.loads(line))
        except ValueError:  # cut off by a kill
            continue
    return found


def _step(event: dict[str, Any]) -> str:
    title = str(event["task"])
    return next((step for step in STEPS if title.startswith(step)), title)


def _repeated(events: list[dict[str, Any]]) -> list[str]:
    ended: set[str] = set()
    again: list[str] = []
    for event in events:
        if event.get("finished"):
            ended.add(event["task"])
        elif event["phase"] == "starting" and event["task"] in ended:
            again.append(event["task"])
    return [task for task in again if task not in EVERY_TIME]


def _differences(whole: Path, tortured: Path) -> list[str]:
    Summary.model_validate_json((tortured / "summary.json").read_bytes())
    return [
        f"{name}{path}"
        for name in ("evidence.json", "decision.json")
        for path in _compared(
            *(json.loads((folder / name).read_bytes()) for folder in (whole, tortured))
        )
    ]


def _compared(one: Any, other: Any, path: str = "") -> list[str]:
    if isinstance(one, dict) and isinstance(other, dict):
        return [
            found
            for key in sorted((one.keys() | other.keys()) - _CHANGING)
            for found in _compared(one.get(key), other.get(key), f"{path}.{key}")
        ]
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        return [
            found
            for place, (mine, theirs) in enumerate(zip(one, other, strict=True))
            for found in _compared(mine, theirs, f"{path}[{place}]")
        ]
    return [] if one == other else [path]


def _remove(folder: Path) -> None:
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    folder.rmdir()


def counted(results: list[Tortured]) -> Counter[str]:
    """Kills by the step that was at work."""
    return Counter(kill.step for result in results for kill in result.kills)
