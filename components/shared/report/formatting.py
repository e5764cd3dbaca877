"""Numbers and dates as people read them."""

import math
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import yaml
from backburn.components.shared.config import Template
from backburn.components.shared.gate import digits

MISSING = "n/a"
TEMPLATES: dict[Template, str] = {
    "model": "the model's own",
    "plain": "plain lines",
    "headings": "headings",
    "bare": "bare",
}
"""What a page calls them."""
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def number(value: float | None, digits: int = 2) -> str:
    """A plain number with a fixed number of digits, or `n/a`."""
    return MISSING if value is None else f"{value:,.{digits}f}"


def compact(value: float | None) -> str:
    """A number of unknown size: three significant digits, powers of ten when far from one."""
    if value is None:
        return MISSING
    if value == 0 or 1e-3 <= abs(value) < 1e3:
        return f"{value:.3g}"
    return f"{value:,.0f}" if 1e3 <= abs(value) < 1e9 else _scientific(value)


def against(value: float | None, limit: float) -> str:
    """A number beside its compact limit: compact too, unless both would then look the same."""
    text = compact(value)
    if value is None or value == limit or text != compact(limit):
        return text
    return digits(value, limit)[0]


def rate(value: float | None) -> str:
    """A probability that is usually tiny (a slip rate): percent, or a power of ten below 0.1%."""
    if value is None:
        return MISSING
    return _scientific(value) if 0 < value < 1e-3 else percent(value)


def percent(value: float | None) -> str:
    """A share in percent with one digit."""
    return MISSING if value is None else f"{100 * value:.1f}%"


def probability(value: float | None) -> str:
    """A lower bound on a probability: rounded down, with more digits the closer it is to one."""
    if value is None or value < 1e-3:
        return rate(value)
    digits = 1
    if 0.99 < value < 1:
        digits = max(1, math.ceil(-math.log10(100 * (1 - value))) + 1)
    if digits > 5:
        return "> 99.999%"
    scale = 10**digits
    # The addend undoes binary rounding, so that 0.9913 stays 99.13%.
    return f"{math.floor(100 * value * scale + 1e-6) / scale:.{digits}f}%"


def lower_bound(value: float | None) -> str:
    """A lower bound on a probability in a table; a dash where there is none."""
    return "–" if value is None else f"≥ {probability(value)}"


def points(change: float) -> str:
    """A signed difference of two shares, in percentage points."""
    return f"{100 * change:+.1f} points"


def duration(seconds: float | None) -> str:
    """Seconds as `3.2 s`, `4 min 05 s` or `2 h 03 min`."""
    if seconds is None:
        return MISSING
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min"


def moment(text: str) -> str:
    """An ISO 8601 time as a readable UTC time; other text stays as it is."""
    try:
        parsed = datetime.fromisoformat(text)
    except ValueError:
        return text
    if parsed.tzinfo is not None:
        parsed = parsed.astimezone(UTC)
    return f"{parsed:%d %B %Y, %H:%M} UTC"


def interval(low: float | None, high: float | None) -> str:
    """Two bounds in brackets, or nothing if either is missing."""
    return "" if low is None or high is None else f"[{low:.2f}, {high:.2f}]"


def as_yaml(value: Any) -> str:
    """A plain value as YAML, in the order in which it was written."""
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=100)


def words(name: str) -> str:
    """A field's name as words: `held_out` -> `held-out`."""
    return name.replace("_", "-")


FILTERS: dict[str, Callable[..., str]] = {
    "number": number,
    "compact": compact,
    "against": against,
    "rate": rate,
    "percent": percent,
    "probability": probability,
    "lower_bound": lower_bound,
    "points": points,
    "duration": duration,
    "moment": moment,
    "yaml": as_yaml,
    "words": words,
    "template": TEMPLATES.__getitem__,
}


def _scientific(value: float) -> str:
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa}\u00a0×\u00a010{str(int(exponent)).translate(_SUPERSCRIPTS)}"
