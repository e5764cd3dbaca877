"""What every step does around its own work: configuration, progress, tracking, threads, seconds."""

import os
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from backburn.components.shared.checkpoints import Checkpoints, open_checkpoints
from backburn.components.shared.config import RunConfig
from backburn.components.shared.domains import is_stand_in
from backburn.components.shared.errors import BackburnError, WithheldError
from backburn.components.shared.memory import limits as memory_limits
from backburn.components.shared.parsing import check_run_id
from backburn.components.shared.progress import Progress
from backburn.components.shared.scale.distributed import is_primary, processes_here
from backburn.components.shared.tracking import StepRun, UntrackedRun
from backburn.components.shared.watchdog import watched


@dataclass
class Step:
    """What a step's logic needs besides its inputs and outputs."""

    config: RunConfig
    run_id: str
    progress: Progress
    tracking: StepRun
    checkpoints: Checkpoints
    start: float

    @property
    def seconds(self) -> float:
        """Wall time since the step began."""
        return time.perf_counter() - self.start


@contextmanager
def open_step(
    config_json: str,
    run_id: str,
    name: str,
    sections: Sequence[str] = (),
    inputs: Sequence[Path] = (),
    *,
    contained: bool = False,
) -> Iterator[Step]:
    """Open a step: parse the configuration, open its MLflow run, report its beginning and end.

    What it keeps in checkpoints is forgotten when it ends well.

    Args:
        config_json: The run's configuration.
        run_id: Id of the pipeline run.
        name: Shown in progress and MLflow.
        sections: Sections of the configuration the step works from; its MLflow parameters.
        inputs: Files and folders it works from.
        contained: Its checkpoints refuse weights.

    Raises:
        InputError: if the configuration is unreadable, or the id is none.
        WithheldError: instead of an error that is none of Backburn's own, where the domain's text
            may not be shown; it names the error's kind and place.
    """
    start = time.perf_counter()
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    check_run_id(run_id)
    config = RunConfig.from_json(config_json)
    progress = Progress(name)
    progress.update("starting", 0, 1)
    try:
        with (
            watched(name, config.compute.hang_minutes),
            StepRun(config, run_id, name) if is_primary() else UntrackedRun() as tracking,
        ):
            tracking.settings(config, sections)
            checkpoints = open_checkpoints(config, run_id, name, inputs, contained=contained)
            yield Step(config, run_id, progress, tracking, checkpoints, start)
            checkpoints.remove()
            for kind, most in memory_limits().items():
                tracking.metrics({f"memory/most at once in a {kind}": float(most)})
    except BackburnError as error:
        if _may_show_text(config):
            raise
        raise error from None  # what caused it may quote text
    except Exception as error:
        if _may_show_text(config):
            raise
        raise WithheldError(_without_message(name, error)) from None
    progress.finish()


def _may_show_text(config: RunConfig) -> bool:
    try:
        return is_stand_in(config.domain)
    except BackburnError:
        return False


def _without_message(step: str, error: Exception) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    places = [f"  {frame.filename}:{frame.lineno} in {frame.name}" for frame in frames]
    return "\n".join(
        [
            f"{step} failed with {type(error).__name__}; what it says is withheld, because the "
            "domain is no stand-in and it may quote its text. It came from:",
            *places,
        ]
    )


def use_threads(config: RunConfig, tasks_side_by_side: int = 1) -> None:
    """Set torch's threads: as configured, else the cores shared with the processes beside it.

    A container's CPU limit counts, not its node's cores.
    """
    import torch
    from joblib import cpu_count
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    threads = config.compute.threads or max(
        1, cpu_count() // (tasks_side_by_side * processes_here())
    )
    torch.set_num_threads(threads)
