"""How bad input has to be refused: the documented error, the reason in one line, and soon."""

import time
from collections.abc import Callable

import pytest
from backburn.components.shared.errors import BackburnError, InputError

_MOST_SECONDS = 20.0
_LONGEST_LINE = 1000
_MOST_LINES = 60


def refused(
    call: Callable[[], object], reason: str, error: type[BackburnError] = InputError
) -> None:
    """Assert that a call raises exactly this error, for this reason."""
    start = time.perf_counter()
    with pytest.raises(error) as caught:
        call()
    assert time.perf_counter() - start < _MOST_SECONDS
    assert type(caught.value) is error
    lines = str(caught.value).split("\n")
    assert any(reason in line for line in lines), f"{reason!r} is in no line of:\n{caught.value}"
    assert "Traceback" not in str(caught.value)
    assert len(lines) <= _MOST_LINES
    assert max(map(len, lines)) <= _LONGEST_LINE
