"""A TrainJob as processes of this machine, by the SDK's LocalProcess backend.

That backend keeps its jobs in memory, does not wait for what it cancels, looks at a cancellation
only when the job prints a line, and ends a shell without what runs in it. So a supervisor of our
own stands between: it ends the job when a file says so, or when the launcher is gone.
"""

import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from backburn.components.shared.config import ComputeConfig
from kubeflow.trainer import (
    CustomTrainer,
    Runtime,
    RuntimeKind,
    RuntimeTrainer,
    TrainerClient,
    TrainerType,
)
from kubeflow.trainer.constants import constants as trainer
from kubeflow.trainer.options import Name

_STOP = "stop"
_PYTHON = Runtime(
    name=trainer.DEFAULT_TRAINING_RUNTIME,
    trainer=RuntimeTrainer(TrainerType.CUSTOM_TRAINER, framework="python", image="local"),
    kind=RuntimeKind.TRAINING_RUNTIME,
)
"""The backend starts any framework but torch with plain Python: no torch is installed for it."""


def create(
    client: TrainerClient, name: str, folder: Path, command: list[str], compute: ComputeConfig
) -> None:
    """Start a job: all processes of all nodes, on this machine, with this interpreter.

    Args:
        client: Of the local backend.
        name: Of the job.
        folder: The job's own.
        command: Arguments of torchrun.
        compute: Says how many.
    """
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    count = f"--nproc-per-node={compute.nodes * compute.processes}"
    arguments = {
        "command": [*torchrun, count, *command],
        "stop": str(folder / _STOP),
        "launcher": os.getpid(),
    }
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    function = CustomTrainer(func=_supervise, func_args=arguments, env=environment)
    client.train(runtime=_PYTHON, trainer=function, options=[Name(name)])


def delete(client: TrainerClient, name: str, folder: Path, deadline: float) -> bool:
    """End a job; whether it had ended at the deadline, a time of `time.monotonic`."""
    try:
        running = (trainer.TRAINJOB_CREATED, trainer.TRAINJOB_RUNNING)
        (folder / _STOP).touch()
        while client.get_job(name).status in running and time.monotonic() < deadline:
            time.sleep(0.1)
        ended = client.get_job(name).status not in running
        client.delete_job(name)
    except (ValueError, FileNotFoundError):
        return True  # it was never started
    for left in Path(tempfile.gettempdir()).glob(f"{name}*"):
        shutil.rmtree(left, ignore_errors=True)
    return ended


# The SDK runs the source of this function alone, in a file of its own.
def _supervise(arguments: "dict[str, Any]") -> None:
    import os
    import pathlib
    import subprocess
    import sys
    import time

    def wanted() -> bool:
        try:
            os.kill(arguments["launcher"], 0)
        except ProcessLookupError:
            return False
        return not pathlib.Path(arguments["stop"]).exists()

    job = subprocess.Popen(arguments["command"])
    while job.poll() is None and wanted():
        time.sleep(0.2)
    if job.poll() is None:
        job.terminate()
    sys.exit(job.wait() and 1)
