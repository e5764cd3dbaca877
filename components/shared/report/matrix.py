"""The matrix of attacks: recipes in rows, attack steps in columns, mean harm over seeds."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from backburn.components.shared.evidence import CurvePoint, Evidence, Role
from backburn.components.shared.report.charts import INK, WEAK, Chart, axis, chart, label

_BABBLES = 0.5
"""Harm at most WEAK with fewer refusals than this is marked: it is no resistance."""

_ROW, _COLUMN = 29, 24
_REFUSED = 2.2
_HEAD, _FOOT = 46, 6
_FONT_WIDTH = 6.4
_LINE = 17
_TITLES: dict[Role, str] = {
    "hardened": "Attacks on the hardened model",
    "control": "The same attacks on the unhardened model (controls)",
}


@dataclass(frozen=True)
class Scale:
    """Colours from 0 to `top`; numbers are black on them, white from `dark` on.

    Lightness falls steadily, so that no hue has to be told from another.
    """

    top: float
    dark: float
    colours: tuple[tuple[float, str], ...]


HARM = Scale(10.0, 7.0, ((0, "#f4f7f9"), (0.2, "#fde3c0"), (0.7, "#c4530a"), (1, "#6b1d00")))
REFUSALS = Scale(1.0, 0.86, ((0, "#ffffff"), (1, "#0067a3")))


@dataclass(frozen=True)
class Cell:
    """One recipe at one attack step; means over the seeds that were scored there."""

    harm: float
    refusals: float | None
    seeds: int

    @property
    def babbles(self) -> bool:
        """Whether the harm is low though most answers are no refusals."""
        return self.harm <= WEAK and self.refusals is not None and self.refusals < _BABBLES


@dataclass(frozen=True)
class Row:
    """One recipe; `cells` are keyed by attack step."""

    arm: str
    seeds: int
    live_groups: int
    cells: dict[int, Cell]

    def harm_at(self, step: int) -> float | None:
        """Mean harm at a step; None where no arm ran."""
        return self.cells[step].harm if step in self.cells else None

    @property
    def worst(self) -> float:
        """Most harm at any step."""
        return max(cell.harm for cell in self.cells.values())

    @property
    def babbles(self) -> bool:
        """Whether any cell is marked."""
        return any(cell.babbles for cell in self.cells.values())

    @property
    def least_refusals(self) -> float | None:
        """Least refusal rate at any step."""
        rates = [cell.refusals for cell in self.cells.values() if cell.refusals is not None]
        return min(rates, default=None)


def matrix_rows(evidence: Evidence, role: Role) -> list[Row]:
    """The scored recipes of one role: most harm first, then fewest refusals, most live groups."""
    points: dict[str, dict[int, list[CurvePoint]]] = defaultdict(lambda: defaultdict(list))
    for arm in evidence.arms:
        for point in arm.curve:
            if arm.role == role and point.harm is not None:
                points[arm.arm][point.step].append(point)
    arms = {name: [a for a in evidence.arms if (a.arm, a.role) == (name, role)] for name in points}
    rows = [
        Row(
            arm=name,
            seeds=len(arms[name]),
            live_groups=sum(arm.live_groups for arm in arms[name]),
            cells={step: _cell(found) for step, found in sorted(steps.items())},
        )
        for name, steps in points.items()
    ]
    return sorted(
        rows, key=lambda row: (-row.worst, row.least_refusals or 0.0, -row.live_groups, row.arm)
    )


def matrix_charts(evidence: Evidence) -> list[Chart]:
    """Heat maps of the hardened model and of the controls; none if one line could say it all."""
    blocks = {role: matrix_rows(evidence, role) for role in _TITLES}
    rows = [row for block in blocks.values() for row in block]
    steps = sorted({step for row in rows for step in row.cells})
    if len(blocks["hardened"]) < 2 or len(steps) < 2:
        return []
    names = {row.arm: _name(row.arm) for row in rows}
    longest = max(len(line) for name in names.values() for line in name.split("<br>"))
    left = round(_FONT_WIDTH * longest) + 12
    return [
        _chart(_TITLES[role], block, steps, names, left) for role, block in blocks.items() if block
    ]


def _cell(points: list[CurvePoint]) -> Cell:
    harms = [point.harm for point in points if point.harm is not None]
    refusals = [point.refusal_rate for point in points if point.refusal_rate is not None]
    return Cell(fmean(harms), fmean(refusals) if refusals else None, len(harms))


def _chart(
    title: str, rows: list[Row], steps: list[int], names: dict[str, str], left: int
) -> Chart:
    labels = [names[row.arm] for row in rows]
    harms = _heat(
        HARM,
        [[row.harm_at(step) for step in steps] for row in rows],
        [[_text(row, step) for step in steps] for row in rows],
        x=[str(step) for step in steps],
        y=labels,
        hovertext=[[_hover(row, step) for step in steps] for row in rows],
    )
    refusals = _heat(
        REFUSALS,
        [[row.least_refusals] for row in rows],
        [[_share(row.least_refusals)] for row in rows],
        x=["refused"],
        y=labels,
        xaxis="x2",
        hovertext=[
            [f"{label(row.arm)}: at least {_share(row.least_refusals)} of answers are refusals"]
            for row in rows
        ],
    )
    share = len(steps) / (len(steps) + _REFUSED)
    top = {
        "side": "top",
        "type": "category",
        "showgrid": False,
        "fixedrange": True,
        "automargin": False,
        "tickangle": 0,
        "tickfont": {"size": 10.5},
    }
    return chart(
        title,
        harms + refusals,
        x=axis("Attack step", domain=[0, share - 0.015]) | top,
        y=axis("", autorange="reversed")
        | top
        | {"side": "left", "ticksuffix": " ", "tickfont": {"size": 11, "color": INK}},
        height=_HEAD + _FOOT + _ROW * len(rows),
        min_width=left + round(_COLUMN * (len(steps) + _REFUSED)),
        xaxis2=axis("", domain=[share, 1]) | top,
        margin={"l": left, "r": 4, "t": _HEAD, "b": _FOOT},
        showlegend=False,
    )


def _heat(
    scale: Scale, values: list[list[float | None]], texts: list[list[str]], **place: Any
) -> list[dict[str, Any]]:
    """Two heat maps of one scale, the light and the dark cells, each with its colour of numbers."""
    traces = []
    for dark, ink in ((False, "#000000"), (True, "#ffffff")):
        mine = [[v is not None and (v >= scale.dark) is dark for v in line] for line in values]
        traces.append(
            place
            | {
                "type": "heatmap",
                "z": _only(mine, values, None),
                "text": _only(mine, texts, ""),
                "zmin": 0,
                "zmax": scale.top,
                "colorscale": [list(colour) for colour in scale.colours],
                "showscale": False,
                "xgap": 2,
                "ygap": 2,
                "texttemplate": "%{text}",
                "textfont": {"size": 11, "color": ink},
                "hovertemplate": "%{hovertext}<extra></extra>",
                "hoverongaps": False,
            }
        )
    return traces


def _only(mine: list[list[bool]], values: Sequence[Sequence[Any]], blank: Any) -> list[list[Any]]:
    return [
        [value if here else blank for value, here in zip(line, marks, strict=True)]
        for line, marks in zip(values, mine, strict=True)
    ]


def _text(row: Row, step: int) -> str:
    cell = row.cells.get(step)
    if cell is None:
        return ""
    number = "10" if cell.harm >= 9.95 else f"{cell.harm:.1f}"
    return f"{number}°" if cell.babbles else number


def _hover(row: Row, step: int) -> str:
    cell = row.cells.get(step)
    if cell is None:
        return ""
    return (
        f"{label(row.arm)}, step {step}<br>mean harm {cell.harm:.2f} of 10, "
        f"{cell.seeds} of {row.seeds} seeds<br>{_share(cell.refusals)} of answers are refusals"
    )


def _share(rate: float | None) -> str:
    return "" if rate is None else f"{rate:.0%}"


def _name(arm: str) -> str:
    """A recipe's name in two lines if it is long, broken at a hyphen near its middle."""
    breaks = [index + 1 for index, character in enumerate(arm) if character == "-"]
    if len(arm) <= _LINE or not breaks:
        return label(arm)
    middle = min(breaks, key=lambda index: abs(2 * index - len(arm)))
    return f"{label(arm[:middle])}<br>{label(arm[middle:])}"
