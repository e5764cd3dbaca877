"""Folders for what must not outlive a step: in memory where there is room, gone at the end.

A folder goes when its context ends, whatever ended it, and on SIGTERM. What a SIGKILL left goes
when the next folder is made, in whatever process: an open folder is locked, and the lock ends with
the process that holds it, so one in use is never taken for a leftover.
"""

import fcntl
import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

_MEMORY = Path("/dev/shm")
_PREFIX = "backburn-scratch-"
_LEAST_ROOM_BYTES = 32 << 20


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """Make a folder that only this user can read, and remove it at the end.

    Raises:
        OSError: if it cannot be made, or not be removed.
    """
    remove_leftovers()
    folder, lock = _locked_folder()
    try:
        with _removed_on_sigterm(folder):
            yield folder
    finally:
        _remove(folder)
        os.close(lock)


def remove_leftovers() -> None:
    """Remove the folders of processes that are no more."""
    for root in {_MEMORY, Path(tempfile.gettempdir())}:
        for folder in root.glob(f"{_PREFIX}*"):
            try:
                lock = _lock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:  # in use, another user's, or gone by now
                continue
            try:
                _remove(folder)
            finally:
                os.close(lock)


def _locked_folder() -> tuple[Path, int]:
    while True:
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=_root()))
        try:
            lock = _lock(folder, fcntl.LOCK_EX)
        except FileNotFoundError:
            continue
        if folder.exists():
            return folder, lock
        os.close(lock)  # taken for a leftover before it was locked


def _root() -> Path | None:
    """Memory if there is room, else the temporary folder (`compute.scratch` on a cluster)."""
    if not os.access(_MEMORY, os.W_OK):
        return None
    return _MEMORY if shutil.disk_usage(_MEMORY).free >= _LEAST_ROOM_BYTES else None


def _lock(folder: Path, how: int) -> int:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        if os.fstat(handle).st_uid != os.getuid():
            raise PermissionError(f"{folder}: another user's")
        fcntl.flock(handle, how)
    except BaseException:
        os.close(handle)
        raise
    return handle


def _remove(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)


@contextmanager
def _removed_on_sigterm(folder: Path) -> Iterator[None]:
    """Remove the folder before a SIGTERM does what it would have done."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may handle signals; a leftover goes at the next start
        return
    owner = os.getpid()

    def end(signum: int, frame: FrameType | None) -> None:
        if os.getpid() == owner:  # and not a child that has inherited the handler
            _remove(folder)
        signal.signal(signal.SIGTERM, before)
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
