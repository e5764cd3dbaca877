"""Progress of long work: one JSON line an event, for the console that watches the run.

The file is named by BACKBURN_EVENTS (the local runner sets it). Everywhere else progress goes to
the task's log, a line every few seconds. Of several processes of a step, one reports.
"""

import json
import os
import time
from pathlib import Path
from typing import Any

from backburn.components.shared.scale.distributed import is_primary
from backburn.components.shared.watchdog import sign_of_life

EVENTS_VARIABLE = "BACKBURN_EVENTS"
_LOG_INTERVAL_SECONDS = 10.0


class Progress:
    """Reports phases of one task: what runs, how far it is, what was seen last."""

    def __init__(self, task: str) -> None:
        self._task = task
        path = os.environ.get(EVENTS_VARIABLE)
        self._file = Path(path) if path else None
        self._last_log = 0.0

    def update(self, phase: str, done: int, total: int, note: str = "") -> None:
        """Report that `done` of `total` units of a phase are finished."""
        sign_of_life()
        if not is_primary():
            return
        event = {
            "time": time.time(),
            "task": self._task,
            "phase": phase,
            "done": done,
            "total": total,
            "note": note,
        }
        self._write(event)
        now = time.monotonic()
        if done in (0, total) or now - self._last_log >= _LOG_INTERVAL_SECONDS:
            self._last_log = now
            suffix = f" ({note})" if note else ""
            print(f"[{self._task}] {phase}: {done}/{total}{suffix}", flush=True)

    def finish(self, note: str = "") -> None:
        """Report that the task is done."""
        if not is_primary():
            return
        self._write({"time": time.time(), "task": self._task, "finished": True, "note": note})
        print(f"[{self._task}] done{': ' + note if note else ''}", flush=True)

    def kept(self) -> None:
        """Report that an earlier attempt has done the task."""
        event = {"time": time.time(), "task": self._task, "finished": True, "kept": True}
        self._write(event)
        print(f"[{self._task}] kept from an earlier attempt", flush=True)

    def _write(self, event: dict[str, Any]) -> None:
        if self._file is None:
            return
        line = (json.dumps(event) + "\n").encode()
        handle = os.open(self._file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(handle, line)  # one append: lines of parallel tasks do not mix
        finally:
            os.close(handle)
