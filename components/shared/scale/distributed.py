"""Which of a step's processes this is, as torchrun's variables say."""

import os


def processes() -> int:
    """Processes of the step, on all machines."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_primary() -> bool:
    """Whether this is the process that writes: files, MLflow, progress."""
    return os.environ.get("RANK", "0") == "0"
