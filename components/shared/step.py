"""What every step does around its own work: configuration, progress, tracking, threads, seconds."""

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from backburn.components.shared.config import RunConfig
from backburn.components.shared.parsing import check_run_id
from backburn.components.shared.progress import Progress
from backburn.components.shared.tracking import StepRun


@dataclass
class Step:
    """What a step's logic needs besides its inputs and outputs."""

    config: RunConfig
    run_id: str
    progress: Progress
    tracking: StepRun
    start: float

    @property
    def seconds(self) -> float:
        """Wall time since the step began."""
        return time.perf_counter() - self.start


@contextmanager
def open_step(
    config_json: str, run_id: str, name: str, sections: Sequence[str] = ()
) -> Iterator[Step]:
    """Open a step: parse the configuration, open its MLflow run, report its beginning and end.

    Args:
        config_json: The run's configuration.
        run_id: Id of the pipeline run.
        name: Shown in progress and MLflow.
        sections: Sections of the configuration the step works from; its MLflow parameters.

    Raises:
        InputError: if the configuration is unreadable, or the id is none.
    """
    start = time.perf_counter()
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    check_run_id(run_id)
    config = RunConfig.from_json(config_json)
    progress = Progress(name)
    progress.update("starting", 0, 1)
    with StepRun(config, run_id, name) as tracking:
        tracking.settings(config, sections)
        yield Step(config, run_id, progress, tracking, start)
    progress.finish()


def use_threads(config: RunConfig, tasks_side_by_side: int = 1) -> None:
    """Set torch's threads: as configured, else the cores shared with the tasks beside this one."""
    import torch
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    cores = len(os.sched_getaffinity(0))
    threads = config.compute.threads or max(1, cores // tasks_side_by_side)
    torch.set_num_threads(threads)
