"""Ends a step that shows no sign of life, after a dump of what its threads are doing."""

import faulthandler
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

EXIT_HUNG = 75
"""Exit code of a step that was ended: EX_TEMPFAIL, so that a retry may help."""
_last_sign = time.monotonic()


def sign_of_life() -> None:
    """Tell the watchdog that work goes on.

    `Progress` does at each report; what may take long between two reports does by itself: judges
    at each answer, downloads at each part.
    """
    global _last_sign
    _last_sign = time.monotonic()


@contextmanager
def watched(title: str, minutes: float | None) -> Iterator[None]:
    """End this process if no sign of life is seen for so long.

    The dump has files, lines and names of functions, no values. A thread that holds the
    interpreter in native code cannot keep this one from running for long, but a process that the
    system stops can: the platform's own time limit (`compute.timeout_hours`) is for that.

    Args:
        title: Of the step.
        minutes: Patience; None: no end.
    """
    if minutes is None:
        yield
        return
    over = threading.Event()
    sign_of_life()

    def watch() -> None:
        while not over.wait(min(10.0, minutes * 6.0)):
            silent = time.monotonic() - _last_sign
            if silent > minutes * 60.0:
                print(
                    f"[{title}] hung: no progress for {silent / 60:.1f} minutes "
                    f"(compute.hang_minutes is {minutes:g}). Its threads:",
                    file=sys.stderr,
                    flush=True,
                )
                faulthandler.dump_traceback(file=2, all_threads=True)
                os._exit(EXIT_HUNG)

    threading.Thread(target=watch, name="watchdog", daemon=True).start()
    try:
        yield
    finally:
        over.set()
