"""What a step's processes have to do, and how they are started."""

import importlib
import shutil
import signal
import sys
import tempfile
import typing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from backburn.components.shared import errors
from backburn.components.shared.config import RunConfig
from backburn.components.shared.errors import BackburnError, InputError, LostProcessError
from backburn.components.shared.storage import read_json, write_json

WORKER = "backburn.components.shared.scale.worker"
_SECONDS_BETWEEN_LOOKS = 1.0
_LOG_TAIL = 20
_OF_FOLLOWERS = (signal.SIGTERM, signal.SIGALRM)
"""Signals that end the processes whose partner was lost."""


@dataclass(frozen=True)
class Job:
    """A call of a step's `run`."""

    module: str
    """Import path of the step's logic, such as `backburn.components.baseline.step`."""
    arguments: dict[str, Any]
    """Keyword arguments of its `run`; paths as text."""

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read what `write` wrote."""
        return cls(**read_json(path))

    def write(self, path: Path) -> None:
        """Write as JSON, whole or not at all."""
        write_json(path, asdict(self))

    def run(self) -> dict[str, Any]:
        """Make the call in this process; returns the artifact's metadata."""
        step = importlib.import_module(self.module).run
        kinds = typing.get_type_hints(step)
        made: dict[str, Any] = step(
            **{
                name: Path(value) if kinds[name] is Path else value
                for name, value in self.arguments.items()
            }
        )
        return made


def start(
    module: str, config_json: str, *, divides_work: bool = True, **arguments: Any
) -> dict[str, Any]:
    """Run a step: in this process, in `compute.processes`, or on `compute.nodes`.

    Args:
        module: Import path of the step's logic.
        config_json: Configuration of the run.
        divides_work: False: several processes only where they divide the weights.
        arguments: The other arguments of its `run`; paths as text.

    Returns:
        The artifact's metadata.

    Raises:
        InputError: if there are fewer accelerators than processes.
        LostProcessError: if one of the processes was killed or failed.
        BackburnError: that a process raised, as in a step of one process.
    """
    config = RunConfig.from_json(config_json)
    job = Job(module, {"config_json": config_json, **arguments})
    if not divides_work and config.compute.sharding == "none":
        return job.run()
    if config.compute.nodes > 1:
        from backburn.components.shared.scale.trainjob import launch

        return launch(job, config.compute)
    return job.run() if config.compute.processes == 1 else _run_side_by_side(job, config)


def _run_side_by_side(job: Job, config: RunConfig) -> dict[str, Any]:
    """What `torchrun --standalone` does, with an error of one line.

    The first process prints to this one's log, the others to files that stay after a failure.
    """
    import torch
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException, Std
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, launch_agent

    count, found = config.compute.processes, torch.cuda.device_count()
    if config.model.device != "cpu" and 0 < found < count:
        raise InputError(
            f"compute.processes: {count}, but only {found} accelerator(s) are visible here: "
            "lower it, or give the step as many (compute.gpus)"
        )
    folder = Path(tempfile.mkdtemp(prefix="backburn-processes-"))
    job.write(folder / "job.json")
    launch = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        run_id="step",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="localhost",
        max_restarts=0,
        monitor_interval=_SECONDS_BETWEEN_LOOKS,
        signals_to_handle="SIGTERM",
        logs_specs=DefaultLogsSpecs(str(folder), dict.fromkeys(range(1, count), Std.ALL)),
    )
    arguments = ["-m", WORKER, str(folder / "job.json"), str(folder / "result.json")]
    try:
        launch_agent(launch, sys.executable, arguments)
    except ChildFailedError as error:
        raise _cause(job, count, error.failures, folder) from None
    except SignalException as error:
        shutil.rmtree(folder)
        raise SystemExit(128 + error.sigval) from None
    made: dict[str, Any] = read_json(folder / "result.json")
    shutil.rmtree(folder)
    return made


def _cause(job: Job, count: int, failures: dict[int, Any], folder: Path) -> BackburnError:
    """The error of a step whose processes failed: that of the first, the others only followed."""

    def order(rank: int) -> tuple[bool, float]:
        failure = failures[rank]
        told = Path(failure.error_file)
        killed = failure.exitcode < 0 and -failure.exitcode not in _OF_FOLLOWERS
        return not killed, told.stat().st_mtime if told.is_file() else float("inf")

    rank = min(failures, key=order)
    failure = failures[rank]
    if isinstance(failure.message, dict):  # a Python exception
        said = str(failure.message["message"])
        name, _, text = said.partition(": ")
        kind = getattr(errors, name, None)
        if isinstance(kind, type) and issubclass(kind, BackburnError):
            shutil.rmtree(folder)
            return kind(text)
        what, remedy = f"failed: {said.splitlines()[0].rstrip('.')}", "See its traceback"
    elif failure.exitcode < 0:
        what = f"was ended by {failure.signal_name()}"
        remedy = (
            "If memory ran out, give the step more (compute.memory) or lower compute.processes; "
            "then run it again"
        )
    else:
        what, remedy = f"left with exit code {failure.exitcode}", "See its last lines"
    log = next(folder.glob(f"*/*/{rank}/stderr.log"), None)
    if log is not None:
        tail = log.read_text(encoding="utf-8", errors="replace").splitlines()[-_LOG_TAIL:]
        print("\n".join(tail), file=sys.stderr)
    return LostProcessError(
        f"{job.module}: rank {rank} of {count} processes {what}. {remedy}. "
        f"Its log: {log or 'above'}"
    )
