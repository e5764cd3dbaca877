"""Scratch folders: in memory, locked while in use, gone at the end whatever the end."""

import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from backburn.components.shared import scratch
from backburn.components.shared.scratch import remove_leftovers, scratch_folder

HOLD = """
import sys, time
from pathlib import Path
from backburn.components.shared import scratch
from backburn.components.shared.scratch import scratch_folder
scratch._MEMORY = Path(sys.argv[1])
with scratch_folder() as outer, scratch_folder() as inner:
    print(outer, inner, flush=True)
    time.sleep(60)
"""


@pytest.fixture
def no_room(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No memory-backed folder: everything is in the temporary folder."""
    monkeypatch.setattr(scratch, "_MEMORY", tmp_path / "none")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def held(root: Path) -> tuple[subprocess.Popen[str], list[Path]]:
    command = [sys.executable, "-c", HOLD, str(root)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, [Path(name) for name in process.stdout.readline().split()]


def test_a_folder_is_in_memory_private_and_gone_after_an_error() -> None:
    made: list[Path] = []

    def fail() -> None:
        with scratch_folder() as folder:
            made.append(folder)
            (folder / "weights").write_bytes(b"x")
            assert folder.parent == Path("/dev/shm")
            assert folder.stat().st_mode & 0o077 == 0
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert made
    assert not made[0].exists()


def test_without_room_in_memory_it_is_in_the_temporary_folder(no_room: Path) -> None:
    with scratch_folder() as folder:
        assert folder.parent == no_room
    assert list(no_room.iterdir()) == []


def test_sigterm_removes_every_open_folder_and_ends_the_process(tmp_path: Path) -> None:
    process, folders = held(tmp_path)
    process.terminate()
    assert process.wait(30) == -signal.SIGTERM
    assert len(folders) == 2
    assert not any(folder.exists() for folder in folders)


def test_a_killed_process_s_folders_go_and_a_living_one_s_stay(no_room: Path) -> None:
    living, kept = held(no_room)
    killed, left = held(no_room)
    killed.kill()
    killed.wait(30)
    assert all(folder.exists() for folder in left)
    remove_leftovers()
    assert not any(folder.exists() for folder in left)
    assert all(folder.exists() for folder in kept)
    living.terminate()
    living.wait(30)


def test_a_link_of_the_same_name_is_not_followed(no_room: Path) -> None:
    other = no_room / "other"
    other.mkdir()
    (no_room / "backburn-scratch-link").symlink_to(other)
    remove_leftovers()
    assert other.is_dir()


def test_a_folder_taken_for_a_leftover_before_it_was_locked_is_made_again(
    no_room: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock, taken = scratch._lock, []

    def late(folder: Path, how: int) -> int:
        handle = lock(folder, how)
        if not taken:
            taken.append(folder)
            folder.rmdir()
        return handle

    monkeypatch.setattr(scratch, "_lock", late)
    with scratch_folder() as folder:
        assert folder.is_dir()
        assert taken != [folder]
