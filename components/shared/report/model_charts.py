"""Charts of the hardened model: slip rates, consolidation, behaviour; of judges and time."""

import math
from collections import Counter
from typing import Any

from backburn.components.shared.evidence import CalibrationRecord, Evidence
from backburn.components.shared.report.charts import (
    CONTROL,
    HARDENED,
    INK,
    MUTED,
    RATE_FLOOR,
    SECOND,
    TEMPERATURE_BLUES,
    Chart,
    axis,
    chart,
    floored,
    label,
    log_axis,
)
from backburn.components.shared.report.formatting import duration, rate, words

TRAINED_ON = ("defence",)
"""Splits that say nothing of unseen prompts."""
_BINS_PER_DECADE = 2


def slip_chart(evidence: Evidence) -> Chart:
    """Mean slip rate by split and temperature, with upper bounds."""
    records = evidence.certificate.slip_rates
    traces = []
    for index, temperature in enumerate(sorted({r.temperature for r in records})):
        chosen = [r for r in records if r.temperature == temperature]
        means = floored(r.mean for r in chosen)
        worst = [max(0.0, r.worst - mean) for r, mean in zip(chosen, means, strict=True)]
        place: dict[str, Any] = {
            "x": [label(words(r.split)) for r in chosen],
            "offsetgroup": str(index),
            "hovertext": [
                f"{rate(r.mean)}, worst prompt {rate(r.worst)}, bound {rate(r.upper_bound)}"
                for r in chosen
            ],
            "hovertemplate": f"%{{x}}, T = {temperature:g}<br>%{{hovertext}}<extra></extra>",
        }
        traces.append(
            place
            | {
                "type": "bar",
                "name": f"temperature {temperature:g}",
                "y": means,
                "error_y": {"type": "data", "symmetric": False, "array": worst, "color": MUTED}
                | {"arrayminus": [0.0] * len(worst), "thickness": 1.3, "width": 5},
                "marker": {"color": TEMPERATURE_BLUES[index % len(TEMPERATURE_BLUES)]},
            }
        )
        traces.append(
            place
            | {
                "type": "scatter",
                "mode": "markers",
                "name": "upper bound for unseen prompts",
                "legendgroup": "bound",
                "legendrank": 2000,
                "showlegend": index == 0,
                "y": [
                    None if r.split in TRAINED_ON else max(r.upper_bound, RATE_FLOOR)
                    for r in chosen
                ],
                "marker": {"symbol": "diamond", "size": 8, "color": INK},
            }
        )
    return chart(
        "Slip rate by split and sampling temperature",
        traces,
        x=axis("", type="category"),
        y=log_axis(
            "Slip rate (log scale)",
            [value for r in records for value in (r.mean, r.worst, r.upper_bound)],
        ),
        height=420,
        barmode="group",
        scattermode="group",
    )


def per_prompt_chart(evidence: Evidence) -> Chart:
    """How many held-out prompts have which slip rate."""
    rates = evidence.certificate.per_prompt.values()
    bins = Counter(math.floor(_BINS_PER_DECADE * math.log10(value)) for value in floored(rates))
    traces = []
    if bins:
        edges = list(range(min(bins), max(bins) + 1))
        traces.append(
            {
                "type": "bar",
                "x": [(edge + 0.5) / _BINS_PER_DECADE for edge in edges],
                "y": [bins[edge] for edge in edges],
                "width": 0.94 / _BINS_PER_DECADE,
                "marker": {"color": HARDENED},
                "hovertext": [
                    f"{rate(10 ** (e / _BINS_PER_DECADE))} to "
                    f"{rate(10 ** ((e + 1) / _BINS_PER_DECADE))}"
                    for e in edges
                ],
                "hovertemplate": "%{y} prompt(s) with<br>%{hovertext}<extra></extra>",
            }
        )
    decades = range(math.floor(math.log10(RATE_FLOOR)), 1)
    ticks = {
        "tickvals": list(decades),
        "ticktext": [
            f"≤ 10<sup>{d}</sup>" if d == decades[0] else f"10<sup>{d}</sup>" for d in decades
        ],
    }
    return chart(
        "Held-out prompts by slip rate",
        traces,
        x=axis("Slip rate of a prompt (log scale)", **ticks),
        y=axis("Prompts", rangemode="tozero", tickformat="d"),
    )


def consolidation_chart(evidence: Evidence) -> Chart:
    """Slip rate and near-miss rejection against consolidation step."""
    curves = {
        "slip_rate": ("slip rate, validation prompts", HARDENED, "circle", "solid"),
        "near_miss_rejection": ("rejection of near-miss prompts", SECOND, "square", "dash"),
    }
    traces, seen = [], []
    for key, (name, colour, symbol, dash) in curves.items():
        rows = [row for row in evidence.consolidation_curve if key in row and "step" in row]
        if not rows:
            continue
        values = [row[key] for row in rows]
        seen += values
        traces.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": name,
                "x": [row["step"] for row in rows],
                "y": floored(values),
                "line": {"color": colour, "width": 2, "dash": dash},
                "marker": {"color": colour, "symbol": symbol, "size": 8},
                "hovertext": [rate(value) for value in values],
                "hovertemplate": "step %{x}: %{hovertext}<extra>%{fullData.name}</extra>",
            }
        )
    return chart(
        "Consolidation: the slip rate falls by decades",
        traces,
        x=axis("Consolidation step", rangemode="tozero"),
        y=log_axis("Probability (log scale)", seen),
    )


def refusals_chart(evidence: Evidence) -> Chart:
    """Refusals of prompts that should be answered, before and after hardening."""
    cost = evidence.behaviour
    before = [cost.near_miss_refusal_baseline, cost.benign_refusal_baseline]
    after = [cost.near_miss_refusal_hardened, cost.benign_refusal_hardened]
    names = ["near-miss prompts", "benign prompts"]
    return chart(
        "Refusals of prompts that should be answered",
        _before_and_after(names, before, after, ".1%"),
        x=axis("", type="category"),
        y=axis("Refused", tickformat=".0%", range=[0, max(0.1, 1.2 * max(before + after))]),
        height=300,
        barmode="group",
    )


def perplexity_chart(evidence: Evidence) -> Chart:
    """Perplexity of benign answers before and after hardening."""
    cost = evidence.behaviour
    before, after = [cost.benign_perplexity_baseline], [cost.benign_perplexity_hardened]
    return chart(
        "Surprise at its own earlier benign answers",
        _before_and_after(["benign answers"], before, after, ".3f"),
        x=axis("", type="category"),
        y=axis("Perplexity (lower is closer)", range=[0, 1.2 * max(before + after)]),
        height=300,
        barmode="group",
    )


def calibration_chart(record: CalibrationRecord) -> Chart:
    """A judge's scores against the labels of the calibration set."""
    pairs = [
        (labelled, score)
        for labelled, score in zip(record.labels, record.scores, strict=False)
        if score is not None
    ]
    diagonal = {
        "type": "scatter",
        "mode": "lines",
        "x": [0, 10],
        "y": [0, 10],
        "line": {"color": MUTED, "dash": "dot", "width": 1.2},
        "hoverinfo": "skip",
    }
    dots = {
        "type": "scatter",
        "mode": "markers",
        "x": [labelled for labelled, _ in pairs],
        "y": [score for _, score in pairs],
        "marker": {"color": HARDENED, "size": 9, "opacity": 0.45},
        "hovertemplate": "label %{x:.1f}, score %{y:.1f}<extra></extra>",
    }
    return chart(
        f"Judge of the {record.role}: {record.judge}",
        [diagonal, dots] if pairs else [],
        x=axis("Harm by the domain's label", range=[-0.4, 10.4], dtick=2),
        y=axis("Harm by the judge", range=[-0.4, 10.4], dtick=2),
        showlegend=False,
    )


def time_chart(evidence: Evidence) -> Chart:
    """Wall time of each step of the run."""
    steps = [(step, value) for step, value in evidence.seconds.items() if step != "total"]
    bars = {
        "type": "bar",
        "orientation": "h",
        "x": [value / 60 for _, value in steps],
        "y": [label(step.replace("_", " ")) for step, _ in steps],
        "text": [duration(value) for _, value in steps],
        "textposition": "auto",
        "marker": {"color": HARDENED},
        "hovertemplate": "%{y}: %{text}<extra></extra>",
    }
    return chart(
        "Wall time of each step",
        [bars] if steps else [],
        x=axis("Minutes", rangemode="tozero"),
        y=axis("", autorange="reversed", type="category", ticksuffix=" "),
        height=110 + 30 * len(steps),
    )


def _before_and_after(
    names: list[str], before: list[float], after: list[float], how: str
) -> list[dict[str, Any]]:
    groups = (("baseline", CONTROL, before), ("hardened", HARDENED, after))
    return [
        {
            "type": "bar",
            "name": name,
            "x": names,
            "y": values,
            "marker": {"color": colour},
            "texttemplate": f"%{{y:{how}}}",
            "textposition": "outside",
            "cliponaxis": False,
            "hovertemplate": f"%{{x}}, {name}: %{{y:{how}}}<extra></extra>",
        }
        for name, colour, values in groups
    ]
