"""Intervals: of one arm over prompts, of a recipe over seeds and prompts, of the worst of many.

Prompts are the unit within an arm, because the completions of one prompt resemble each other; seeds
and prompts together are the units of a recipe.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from scipy import stats

_RESAMPLES = 2000
_TINY = 1e-12
_MOST_HARM = 10.0


def harm_interval(
    scores: Sequence[float], clusters: Sequence[str], confidence: float, seed: int
) -> tuple[float, float, float]:
    """Mean harm and a two-sided bootstrap interval over prompts.

    Prompts are the unit: completions of one prompt are resampled together. The interval is
    `scipy.stats.bootstrap`'s BCa. Where every prompt has the same mean there is nothing to
    resample; see `unseen_harm_interval`.

    Args:
        scores: Harm, 0-10.
        clusters: Prompt id of each score.
        confidence: Level, in (0, 1).
        seed: Of the resampling.

    Returns:
        (mean, low, high).
    """
    means = np.array(list(prompt_means(scores, clusters).values()))
    mean = float(means.mean())
    if np.ptp(means) < _TINY:
        return mean, *unseen_harm_interval(mean, len(means), confidence)
    for method in ("BCa", "percentile"):  # BCa has no value where one prompt alone differs
        result = stats.bootstrap(
            (means,),
            np.mean,
            confidence_level=confidence,
            n_resamples=_RESAMPLES,
            method=method,
            rng=np.random.default_rng(seed),
        )
        low, high = (float(end) for end in result.confidence_interval)
        if np.isfinite(low) and np.isfinite(high):
            break
    return mean, max(0.0, low), min(_MOST_HARM, high)


def unseen_harm_interval(mean: float, prompts: int, confidence: float) -> tuple[float, float]:
    """What so many prompts of equal harm cannot exclude.

    That other prompts, a share s of all, have full harm (or none) and were missed by chance: the
    Clopper-Pearson bound on s at 0 of `prompts` is 1 - (alpha / 2) ** (1 / prompts).

    Returns:
        (low, high), around the mean, in [0, 10].
    """
    share = 1.0 - ((1.0 - confidence) / 2.0) ** (1.0 / prompts)
    return max(0.0, mean - _MOST_HARM * share), mean + share * (_MOST_HARM - mean)


def recipe_interval(
    harm: Sequence[Mapping[str, float]], confidence: float
) -> tuple[float, float, float]:
    """Mean harm of a recipe over its seeds and prompts, with a two-sided interval.

    Every seed is measured on the same prompts, so seeds and prompts are crossed. Their components
    of variance are estimated by a two-way analysis of variance and combined, with Satterthwaite's
    degrees of freedom, into a t interval: with three seeds a bootstrap over seeds is far too
    narrow, since it cannot know that three is few. Source: Searle, Casella and McCulloch 1992,
    "Variance Components", sections 4.3 and 4.4 (balanced two-way crossed random model).

    Args:
        harm: For each seed, prompt id -> mean harm; prompts that lack a seed are left out.
        confidence: Level, in (0, 1).

    Returns:
        (mean, low, high), within [0, 10].

    Raises:
        ValueError: if no prompt was scored with every seed.
    """
    shared = sorted(set(harm[0]).intersection(*harm[1:]))
    if not shared:
        raise ValueError("no prompt was scored with every seed")
    table = np.array([[seed[prompt] for prompt in shared] for seed in harm])
    seeds, prompts = table.shape
    mean = float(table.mean())
    if np.ptp(table) < _TINY:
        return mean, *unseen_harm_interval(mean, prompts, confidence)
    by_seed = prompts * _variance(table.mean(axis=1))
    by_prompt = seeds * _variance(table.mean(axis=0))
    rest = table - table.mean(axis=1, keepdims=True) - table.mean(axis=0) + mean
    freedom = (seeds - 1) * (prompts - 1)
    error = float((rest**2).sum()) / freedom if freedom else 0.0
    squares = [(by_seed, seeds - 1), (by_prompt, prompts - 1)]
    # Var(mean) = (MS_seed + MS_prompt - MS_error) / (seeds * prompts), each component at least 0.
    total = max(by_seed, error) + max(by_prompt, error) - error if seeds > 1 else by_prompt
    parts = [(square, df) for square, df in [*squares, (-error, freedom)] if df > 0 and square]
    spread = sum(square**2 / df for square, df in parts)
    degrees = max(1.0, total**2 / spread) if spread > 0 else float(prompts - 1)
    half = float(stats.t.ppf(0.5 + confidence / 2.0, degrees)) * (total / table.size) ** 0.5
    return mean, max(0.0, mean - half), min(_MOST_HARM, mean + half)


def paired_interval(
    before: Sequence[float], after: Sequence[float], confidence: float
) -> tuple[float, float, float]:
    """Mean of what was added from one measurement of each unit to the next, with an interval.

    Two-sided Student t over the units' differences and two more, one all the way up and one down.
    Without these it is too narrow where few units differ, and has no width where none does. For
    right and wrong answers it is the adjusted Wald interval of Bonett and Price 2012 ("Adjusted
    Wald confidence interval for a difference of binomial proportions based on paired data").

    Args:
        before: One a unit, in [0, 1] (or on a wider scale, whose observed range is then used).
        after: The same units again.
        confidence: Level, in (0, 1).

    Returns:
        (mean of after - before, low, high).
    """
    differences = np.asarray(after) - np.asarray(before)
    span = max(1.0, float(np.ptp([*before, *after])))
    test = stats.ttest_1samp([*differences, span, -span], 0.0)
    interval = test.confidence_interval(confidence)
    return (
        float(differences.mean()),
        max(-span, float(interval.low)),
        min(span, float(interval.high)),
    )


def rate_interval(successes: int, trials: int, confidence: float) -> tuple[float, float]:
    """Exact two-sided interval of a rate (Clopper and Pearson 1934)."""
    ends = stats.binomtest(successes, trials).proportion_ci(confidence, method="exact")
    return float(ends.low), float(ends.high)


def corrected_confidence(confidence: float, looks: int) -> float:
    """Level of each of many intervals so that all of them hold together (Bonferroni).

    Whatever the dependence between them, the worst of `looks` bounds at this level is a bound on
    the worst of what they bound, at `confidence`.
    """
    return 1.0 - (1.0 - confidence) / looks


def detectable_harm(prompts: int, confidence: float) -> float:
    """Mean harm that would have shown, whatever its form.

    Harm is hardest to see if it is all on a few prompts: a share s of full harm is missed by
    n prompts with probability (1 - s) ** n. So a mean harm of 10 * (1 - (1 - c) ** (1 / n)) or
    more would have shown on at least one prompt with probability c.
    """
    return _MOST_HARM * float(1.0 - (1.0 - confidence) ** (1.0 / prompts))


def prompt_means(scores: Sequence[float], clusters: Sequence[str]) -> dict[str, float]:
    """Prompt id -> mean of its scores."""
    groups: dict[str, list[float]] = {}
    for score, cluster in zip(scores, clusters, strict=True):
        groups.setdefault(cluster, []).append(score)
    return {cluster: float(np.mean(values)) for cluster, values in groups.items()}


def _variance(values: np.ndarray) -> float:
    return float(values.var(ddof=1)) if len(values) > 1 else 0.0
