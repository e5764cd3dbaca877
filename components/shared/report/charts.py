"""Plotly charts as plain JSON: shared look, and escaping of what evidence puts in them."""

import html
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

CONTROL = "#d55e00"
HARDENED = "#0072b2"
SECOND = "#009e73"
INK = "#1f2933"
MUTED = "#52606d"
GRID = "#e4e7eb"
WEAK, BROKEN = 2.0, 7.0
"""Mean harm above the one is a weak model, at or above the other a broken one."""
RATE_FLOOR = 1e-12
"""Rates below it, zero included, are drawn at it: a logarithmic axis has no zero."""

SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "star", "x", "pentagon")
TEMPERATURE_BLUES = ("#0b3c5d", "#0072b2", "#56b4e9", "#a6d4f2", "#cfe8f7")

_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
_UNSAFE = {ord(c): f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"}


@dataclass(frozen=True)
class Chart:
    """One figure of the page; `payload` is its plotly JSON, or None if there is nothing to draw."""

    title: str
    payload: Markup | None
    height: int = 340
    min_width: int = 0


def chart(
    title: str,
    traces: Sequence[dict[str, Any]],
    *,
    x: dict[str, Any],
    y: dict[str, Any],
    height: int = 340,
    min_width: int = 0,
    **layout: Any,
) -> Chart:
    """Make a chart of the common look.

    Args:
        title: Heading above the chart.
        traces: Plotly traces; texts from evidence in them have gone through `label`.
        x: The horizontal axis (see `axis`, `log_axis`).
        y: The vertical axis.
        height: In pixels.
        min_width: In pixels; on a narrower screen the chart scrolls inside its box.
        layout: More keys of plotly's layout.

    Returns:
        The chart; an empty one if there are no traces.
    """
    if not traces:
        return Chart(title, None)
    common = {
        "font": {"family": _FONT, "size": 13, "color": INK},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "margin": {"l": 58, "r": 14, "t": 10, "b": 50},
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
        "hoverlabel": {"bgcolor": "#ffffff", "font": {"color": INK}},
        "height": height,
        "xaxis": x,
        "yaxis": y,
    }
    payload = script_json({"data": list(traces), "layout": common | layout})
    return Chart(title, payload, height, min_width)


def script_json(value: Any) -> Markup:
    r"""JSON that is inert inside a `<script>` element: `<`, `>` and `&` are \u escapes."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return Markup(text.translate(_UNSAFE))


def label(text: str) -> str:
    """Text from evidence for use inside a chart, where plotly would read tags."""
    return html.escape(text)


def axis(title: str, **more: Any) -> dict[str, Any]:
    """A linear axis or one of categories."""
    return {
        "title": {"text": title, "standoff": 10},
        "gridcolor": GRID,
        "zerolinecolor": GRID,
        "linecolor": "#9aa5b1",
        "automargin": True,
    } | more


def log_axis(title: str, values: Iterable[float]) -> dict[str, Any]:
    """A logarithmic axis of rates that shows all values with whole decades around them."""
    exponents = [math.log10(max(value, RATE_FLOOR)) for value in values] or [0.0]
    low, high = math.floor(min(exponents)), math.ceil(max(exponents))
    if low == min(exponents):
        low -= 1
    step = max(1, math.ceil((high - low) / 7))
    ticks = {"dtick": step, "exponentformat": "power", "tickfont": {"size": 11}}
    return axis(title, type="log", range=[low, high + 0.1], **ticks)


def floored(values: Iterable[float]) -> list[float]:
    """Rates as they can be drawn on a logarithmic axis."""
    return [max(value, RATE_FLOOR) for value in values]
