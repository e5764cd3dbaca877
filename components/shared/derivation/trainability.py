"""What both models gained by the same harmless training, and how the gains compare."""

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from backburn.components.shared.evidence import TrainabilityRecord
from backburn.components.shared.observations import ModelName, TrainingObservation
from scipy import stats

_SIGNS: dict[Literal["sft", "rl"], int] = {"sft": -1, "rl": 1}
"""Whether a gain is a rise."""


def trainability_records(
    observed: Sequence[TrainingObservation], confidence: float
) -> list[TrainabilityRecord]:
    """One record for each training that was run.

    Rows are the unit: a row's gain is its mean over seeds, and both models have the same rows.

    Args:
        observed: Every training of both models.
        confidence: Of the intervals.
    """
    records: list[TrainabilityRecord] = []
    for training, sign in _SIGNS.items():
        mine = [item for item in observed if item.training == training]
        if not mine:
            continue
        (before, after), (hard_before, hard_after) = (
            _by_row(mine, model) for model in ("baseline", "hardened")
        )
        gains, hard_gains = sign * (after - before), sign * (hard_after - hard_before)
        known = ratio_interval(hard_gains, gains, confidence)
        ratio, low, high = known or (None, None, None)
        records.append(
            TrainabilityRecord(
                training=training,
                rows=len(gains),
                seeds=sorted({item.seed for item in mine}),
                steps=max(len(item.steps) for item in mine),
                baseline_before=float(before.mean()),
                baseline_after=float(after.mean()),
                hardened_before=float(hard_before.mean()),
                hardened_after=float(hard_after.mean()),
                baseline_gain=float(gains.mean()),
                hardened_gain=float(hard_gains.mean()),
                ratio=ratio,
                low=low,
                high=high,
                seconds=math.fsum(item.seconds for item in mine),
            )
        )
    return records


def ratio_interval(
    over: Sequence[float] | np.ndarray, under: Sequence[float] | np.ndarray, confidence: float
) -> tuple[float, float, float] | None:
    """Ratio of two means over the same rows, with a two-sided interval.

    By Fieller's theorem (Fieller 1954, "Some Problems in Interval Estimation"): all ratios r for
    which a paired t-test does not reject that the mean of `over - r * under` is 0. They are an
    interval only where the mean of `under` itself differs from 0 at that confidence.

    Args:
        over: One value a row; at least two rows.
        under: The same rows.
        confidence: Level, in (0, 1).

    Returns:
        (ratio, low, high); None if the mean of `under` is not above 0 with that confidence.
    """
    rows = len(under)
    mean, base = float(np.mean(over)), float(np.mean(under))
    spread = (
        np.cov(np.array([over, under])) * stats.t.ppf(0.5 + confidence / 2, rows - 1) ** 2 / rows
    )
    square = base**2 - float(spread[1, 1])
    if base <= 0.0 or square <= 0.0:
        return None
    middle = (mean * base - float(spread[0, 1])) / square
    half = math.sqrt(max(0.0, middle**2 - (mean**2 - float(spread[0, 0])) / square))
    return mean / base, middle - half, middle + half


def _by_row(observed: Sequence[TrainingObservation], model: ModelName) -> np.ndarray:
    """Before and after, means over seeds; shape (2, rows)."""
    mine = [item for item in observed if item.model == model]
    rows = sorted(mine[0].before)
    values = [[[part[row] for row in rows] for part in (item.before, item.after)] for item in mine]
    means: np.ndarray = np.array(values).mean(axis=0)
    return means
