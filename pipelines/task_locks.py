"""Who is at work in a run's folder: one command at a time, and the tasks it started."""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from backburn.components.shared.errors import InputError

_PATIENCE_SECONDS = 60
_PAUSE_SECONDS = 0.2


@contextmanager
def command_lock(path: Path) -> Iterator[None]:
    """Be the one command that runs a run.

    Raises:
        InputError: if another does.
    """
    with _opened(path) as handle:
        if not _locked(handle, fcntl.LOCK_EX):
            raise InputError(
                f"{path.parent}: a command is at work on this run. Wait for its end, or stop it"
            )
        yield


@contextmanager
def task_lock(path: Path) -> Iterator[None]:
    """Be one of the tasks of a run."""
    with _opened(path) as handle:
        fcntl.flock(handle, fcntl.LOCK_SH)
        yield


def wait_for_tasks(path: Path) -> None:
    """Wait until no task of an interrupted command is left.

    Raises:
        InputError: if one does not end.
    """
    until = time.monotonic() + _PATIENCE_SECONDS
    with _opened(path) as handle:
        while not _locked(handle, fcntl.LOCK_EX):
            if time.monotonic() > until:
                raise InputError(
                    f"{path.parent}: a task of the interrupted command is still running after "
                    f"{_PATIENCE_SECONDS} s; end it (its command line has "
                    "`multiprocessing.forkserver`)"
                )
            time.sleep(_PAUSE_SECONDS)


def _locked(handle: int, how: int) -> bool:
    try:
        fcntl.flock(handle, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o664)
    try:
        yield handle
    finally:
        os.close(handle)
