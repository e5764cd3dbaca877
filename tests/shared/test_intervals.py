"""Intervals cover as often as they say, by simulation, and the worst of many is bounded."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from backburn.components.shared.config import GateConfig
from backburn.components.shared.derivation.harm import arm_record, recipe_records, worst_case
from backburn.components.shared.derivation.intervals import (
    corrected_confidence,
    detectable_harm,
    harm_interval,
    paired_interval,
    rate_interval,
    recipe_interval,
    unseen_harm_interval,
)
from backburn.components.shared.observations import ArmObservation, CheckpointObservation, Judged
from hypothesis import given
from hypothesis import strategies as st

PROMPTS, LEVEL = 40, 0.95


@pytest.mark.parametrize(
    ("draw", "mean"),
    [
        (lambda rng: 10 * rng.beta(2, 3, PROMPTS), 4.0),
        (lambda rng: 10 * rng.beta(0.5, 2, PROMPTS), 2.0),
        (lambda rng: np.where(rng.random(PROMPTS) < 0.3, 10 * rng.beta(4, 2, PROMPTS), 0.0), 2.0),
    ],
    ids=["even", "skewed", "a third harmful"],
)
def test_the_interval_over_prompts_covers(
    draw: Callable[[np.random.Generator], np.ndarray], mean: float
) -> None:
    rng = np.random.default_rng(5)
    names, runs, hits = [str(place) for place in range(PROMPTS)], 1200, 0
    for run in range(runs):
        _, low, high = harm_interval(draw(rng).tolist(), names, LEVEL, run)
        hits += low <= mean <= high
    assert 0.93 <= hits / runs <= 0.97


@pytest.mark.parametrize(
    ("seeds", "by_seed", "by_prompt", "rest"),
    [(3, 0.0, 1.0, 1.0), (3, 0.3, 1.0, 1.0), (5, 0.3, 1.0, 0.5), (3, 0.1, 2.0, 0.5)],
)
def test_the_interval_over_seeds_and_prompts_covers(
    seeds: int, by_seed: float, by_prompt: float, rest: float
) -> None:
    rng = np.random.default_rng(6)
    runs, hits = 2000, 0
    for _ in range(runs):
        table = (
            4.0
            + by_seed * rng.normal(size=(seeds, 1))
            + by_prompt * rng.normal(size=(1, PROMPTS))
            + rest * rng.normal(size=(seeds, PROMPTS))
        )
        harm = [{str(p): float(value) for p, value in enumerate(row)} for row in table]
        _, low, high = recipe_interval(harm, LEVEL)
        hits += low <= 4.0 <= high
    assert 0.93 <= hits / runs <= 0.97


@pytest.mark.parametrize(
    ("units", "lost", "gained"),
    [(150, 0.10, 0.05), (150, 0.03, 0.03), (250, 0.02, 0.0), (40, 0.2, 0.0)],
)
def test_the_interval_of_a_paired_difference_covers(units: int, lost: float, gained: float) -> None:
    """Right and wrong answers of two models to the same questions, most of which agree."""
    rng = np.random.default_rng(8)
    runs, hits = 2000, 0
    for _ in range(runs):
        both = (rng.random(units) < 0.7).astype(float)
        draw = rng.random(units)
        before = np.where(draw < lost, 1.0, np.where(draw < lost + gained, 0.0, both))
        after = np.where(draw < lost, 0.0, np.where(draw < lost + gained, 1.0, both))
        _, low, high = paired_interval(before.tolist(), after.tolist(), LEVEL)
        hits += low <= gained - lost <= high
    assert 0.94 <= hits / runs <= 0.99


def test_equal_differences_do_not_exclude_what_so_few_could_miss() -> None:
    mean, low, high = paired_interval([1.0] * 40, [1.0] * 40, LEVEL)
    assert mean == 0.0
    assert high == -low == pytest.approx(2.0195 * (2 / 41 / 42) ** 0.5, abs=1e-4)
    mean, low, high = paired_interval([0.0] * 40, [1.0] * 40, LEVEL)
    assert 0.8 < low < mean == high == 1.0
    assert paired_interval([0.0, 50.0], [0.0, 50.0], LEVEL)[2] > 30


def test_rates_have_exact_intervals() -> None:
    rng = np.random.default_rng(7)
    known = {k: rate_interval(k, 200, LEVEL) for k in range(201)}
    draws = rng.binomial(200, 0.3, 4000)
    covered = np.mean([known[k][0] <= 0.3 <= known[k][1] for k in draws])
    assert 0.94 <= covered <= 0.975
    assert rate_interval(0, 40, LEVEL)[1] == pytest.approx(1 - 0.025 ** (1 / 40))


def test_bounds_at_known_values() -> None:
    assert unseen_harm_interval(0.0, 40, LEVEL)[1] == pytest.approx(0.881, abs=1e-3)
    assert detectable_harm(40, LEVEL) == pytest.approx(0.722, abs=1e-3)
    assert corrected_confidence(0.95, 10) == pytest.approx(0.995)
    with pytest.raises(ValueError, match="no prompt"):
        recipe_interval([{"a": 1.0}, {"b": 1.0}], LEVEL)


@given(st.lists(st.floats(0, 10), min_size=2, max_size=12))
def test_intervals_hold_their_mean_and_stay_in_range(scores: list[float]) -> None:
    mean, low, high = harm_interval(scores, [str(i) for i in range(len(scores))], LEVEL, 0)
    assert 0.0 <= low <= mean + 1e-9
    assert mean - 1e-9 <= high <= 10.0
    table = [{str(i): score for i, score in enumerate(scores)}] * 2
    mean, low, high = recipe_interval(table, LEVEL)
    assert 0.0 <= low <= mean + 1e-9
    assert mean - 1e-9 <= high <= 10.0


def observed(
    name: str,
    seed: int,
    harms: dict[int, float],
    moved_at: int | None,
    recipe: dict[str, Any] | None = None,
) -> ArmObservation:
    """An arm of 20 steps with the same harm on 40 prompts, but for one that has none."""
    steps = list(range(1, 21))
    idle = [moved_at is None or step < moved_at for step in steps]
    columns = ("reward_mean", "reward_std", "entropy", "live_groups", "groups", "seconds")
    return ArmObservation(
        arm=name,
        role="hardened",
        seed=seed,
        recipe=recipe or {},
        prompt_ids=[],
        steps_planned=20,
        steps={
            "step": [float(step) for step in steps],
            "idle": [float(value) for value in idle],
            **{column: [1.0] * 20 for column in columns},
        },
        checkpoints=[
            CheckpointObservation(
                step=step,
                benign_loss=0.0,
                judged=[
                    Judged(
                        prompt_id=str(place),
                        sha256="0" * 64,
                        tokens=3,
                        refused=harm == 0.0,
                        score=harm * (place > 0),
                    )
                    for place in range(PROMPTS)
                ],
            )
            for step, harm in harms.items()
        ],
        rollouts={},
        seconds=1.0,
    )


def test_unmoved_checkpoints_are_one_model_and_moved_ones_each_their_own() -> None:
    gate = GateConfig()
    still = [observed("paper", seed, {0: 0.0, 10: 0.0, 20: 0.0}, None) for seed in range(3)]
    moved = observed("hot", 0, {0: 0.0, 10: 0.0, 20: 1.5}, moved_at=15)
    bare = observed("bare", 0, {0: 0.0, 20: 0.0}, None, {"style": {"template": "bare"}})
    for arms, models in (([*still, bare], 2), (still, 1), ([*still, moved], 2), ([moved], 2)):
        records = [arm_record(arm, gate, 0) for arm in arms]
        worst = worst_case(arms, records, gate, 0)
        assert worst is not None
        assert worst.models == models
        assert worst.high >= max(p.high or 0.0 for r in records for p in r.curve) - 1e-9
    assert (worst.arm, worst.step) == ("hot", 20)
    assert arm_record(moved, gate, 0).moved_at == 15
    by_name = {record.arm: record for record in recipe_records([*still, moved], gate)}
    assert by_name["paper"].seeds == [0, 1, 2]
    assert by_name["paper"].high == pytest.approx(0.881, abs=1e-3)
    assert by_name["hot"].step == 20
