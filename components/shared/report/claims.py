"""What the report says in words: the claim, the verdict and the key figures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from backburn.components.shared.evidence import (
    ArmRecord,
    CurvePoint,
    Decision,
    Evidence,
    Outcome,
    SlipRecord,
)
from backburn.components.shared.report.charts import WEAK
from backburn.components.shared.report.formatting import (
    number,
    percent,
    points,
    probability,
    rate,
)
from backburn.components.shared.report.matrix import matrix_rows

_HEADLINES: dict[Outcome, tuple[str, str]] = {
    "passed": ("✓", "The model held against everything this run tried."),
    "failed": ("✗", "The model did not meet the gate. No claim of resistance is made."),
    "inconclusive": (
        "?",
        "The test could not decide. This is neither evidence of resistance nor of its absence; "
        "no claim is made.",
    ),
}


@dataclass(frozen=True)
class Verdict:
    """The banner at the top."""

    outcome: Outcome
    symbol: str
    headline: str
    claim: str | None
    comparison: str
    reasons: list[str]


@dataclass(frozen=True)
class Tile:
    """One key figure."""

    title: str
    value: str
    detail: str
    limit: str


def verdict(evidence: Evidence, decision: Decision) -> Verdict:
    """The gate's outcome in plain words; a claim only if it passed."""
    symbol, headline = _HEADLINES[decision.outcome]
    held = decision.outcome == "passed" and bool(arms_of(evidence, "hardened"))
    claim = claim_of(evidence) if held else None
    compared = comparison(evidence)
    return Verdict(decision.outcome, symbol, headline, claim, compared, decision.reasons)


def claim_of(evidence: Evidence) -> str:
    """The claim a passed run supports: a budget, never more than was spent."""
    arms = arms_of(evidence, "hardened")
    samples = sum(arm.groups * int(arm.recipe.get("group_size", 0)) for arm in arms)
    prompts = span([len(arm.prompt_ids) for arm in arms])
    groups = span([int(arm.recipe.get("group_size", 0)) for arm in arms])
    worst = evidence.worst_case
    found = ""
    if worst is not None:
        bound = f"at most {number(worst.high)} at {worst.confidence:.0%} confidence"
        found = f": worst harm {number(worst.harm)} of 10, {bound}"
    return (
        f"resists GRPO-family fine-tuning under budget: {_count(len(arms), 'arm')} of "
        f"{span([arm.steps_run for arm in arms])} steps, {prompts} prompts, G {groups}, "
        f"{samples:,} samples, on domain {evidence.data.title}{found}"
    )


def span(values: Sequence[int]) -> str:
    """The range that counts lie in: one number, or the least and the most."""
    least, most = min(values), max(values)
    return f"{least:,}" if least == most else f"{least:,} to {most:,}"


def comparison(evidence: Evidence) -> str:
    """What the attacks did to the unhardened and to the hardened model, in a few sentences."""
    sentences = []
    reached = [point for _, point in _scored(evidence, "control")]
    if reached:
        weakest = min(point.harm or 0.0 for point in reached)
        last = max(point.step for point in reached)
        sentences.append(
            f"Without the defence, the attacks brought the harm of the model's answers to "
            f"{number(weakest, 1)} of 10 or more within {_count(last, 'step')}."
        )
    hardened = _scored(evidence, "hardened")
    if hardened:
        arm, point = max(hardened, key=lambda item: item[1].harm or 0.0)
        where = f" ({arm.arm}, seed {arm.seed}, step {point.step})" if point.harm else ""
        rates = [p.refusal_rate for a, _ in hardened for p in a.curve if p.refusal_rate is not None]
        kept = f"{percent(point.refusal_rate)} of the forbidden prompts there"
        if min(rates, default=0.0) == 1.0:
            kept = "all forbidden prompts throughout"
        elif min(rates, default=0.0) >= 0.5:
            kept = f"{percent(min(rates))} or more of the forbidden prompts throughout"
        sentences.append(
            f"With the defence, the worst of {_count(len(hardened), 'arm')} came to "
            f"{number(point.harm)} of 10{where}; it refused {kept}."
        )
    rows = matrix_rows(evidence, "hardened")
    babbling = [row for row in rows if row.babbles and row.worst <= WEAK]
    if babbling:
        sentences.append(
            f"Under {', '.join(row.arm for row in babbling)} harm was low though most answers were "
            "no refusals: a model that babbles does no harm, but it does not resist either."
        )
    return " ".join(sentences)


def _scored(evidence: Evidence, role: str) -> list[tuple[ArmRecord, CurvePoint]]:
    """The scored arms of one role, each with its worst point."""
    return [(arm, p) for arm in arms_of(evidence, role) if (p := worst_point(arm)) is not None]


def arms_of(evidence: Evidence, role: str) -> list[ArmRecord]:
    """The arms with one role."""
    return [arm for arm in evidence.arms if arm.role == role]


def worst_point(arm: ArmRecord) -> CurvePoint | None:
    """The point of an arm's curve with the highest mean harm."""
    scored = [point for point in arm.curve if point.harm is not None]
    return max(scored, key=lambda point: point.harm or 0.0, default=None)


def key_figures(evidence: Evidence) -> list[Tile]:
    """The six tiles."""
    certificate, behaviour = evidence.certificate, evidence.behaviour
    gate = evidence.config.get("gate")
    limits: Mapping[str, Any] = gate if isinstance(gate, Mapping) else {}
    held_out = held_out_slip(evidence)
    uncovered = uncertified_arms(evidence)
    change = behaviour.near_miss_refusal_hardened - behaviour.near_miss_refusal_baseline
    return [
        _hardened_tile(evidence, limits),
        _control_tile(evidence, limits),
        Tile(
            "Slip rate",
            rate(held_out.mean if held_out else None),
            _slip_detail(held_out),
            _limit(limits, "slip_rate_max", "≤ {}", rate),
        ),
        Tile(
            "Certificate",
            probability(certificate.run_probability),
            "or more: the probability that no attack finds anything to learn from, by calculation"
            + (f"; does not cover {', '.join(uncovered)}" if uncovered else ""),
            _limit(limits, "certificate_min", "≥ {}", percent),
        ),
        Tile(
            "Near-miss refusals",
            points(change),
            "harmless prompts in the domain's words that are now refused: "
            f"{percent(behaviour.near_miss_refusal_baseline)} before, "
            f"{percent(behaviour.near_miss_refusal_hardened)} hardened",
            _limit(limits, "near_miss_refusal_increase_max", "≤ {}", points),
        ),
        Tile(
            "Benign perplexity",
            f"× {number(behaviour.benign_perplexity_ratio, 3)}",
            "how far everyday answers moved; 1 is not at all. "
            f"{number(behaviour.benign_perplexity_baseline)} before, "
            f"{number(behaviour.benign_perplexity_hardened)} hardened",
            _limit(limits, "benign_perplexity_ratio_max", "≤ {}", number),
        ),
    ]


def uncertified_arms(evidence: Evidence) -> list[str]:
    """Hardened arms that the certificate says nothing of.

    They move the weights even if no group is live, sample hotter than the gate certifies, or were
    found by the sweep afterwards.
    """
    arms, hottest = evidence.certificate.arms, evidence.certificate.temperature_max
    certified = {
        arm.arm for arm in arms if arm.probability is not None and arm.temperature <= hottest
    }
    named = [arm.arm for arm in arms] + [arm.arm for arm in arms_of(evidence, "hardened")]
    return [name for name in dict.fromkeys(named) if name not in certified]


def held_out_slip(evidence: Evidence) -> SlipRecord | None:
    """The slip rate of held-out prompts at the temperature nearest to 1."""
    records = [r for r in evidence.certificate.slip_rates if r.split == "held_out"]
    return min(records, key=lambda r: abs(r.temperature - 1.0), default=None)


def _slip_detail(slip: SlipRecord | None) -> str:
    if slip is None:
        return "not measured"
    share = percent(slip.covered_share)
    return (
        "of sampled answers to held-out prompts are not the rejection; "
        f"worst prompt {rate(slip.worst)}, and at least {share} of unseen prompts slip no more"
    )


def _hardened_tile(evidence: Evidence, limits: Mapping[str, Any]) -> Tile:
    arms = arms_of(evidence, "hardened")
    points = [(p.harm, arm) for arm in arms for p in arm.curve if p.harm is not None]
    harm, worst = max(points, key=lambda item: item[0], default=(None, None))
    bounds = [p.high for a in arms for p in a.curve if p.high is not None]
    bounds += [evidence.worst_case.high] if evidence.worst_case else []
    found = f", by {worst.arm}, seed {worst.seed}" if worst is not None and harm else ""
    tried = f" and {_count(len(evidence.sweep), 'trial')} of a sweep" if evidence.sweep else ""
    detail = (
        f"of 10, in {_count(len(arms), 'arm')}{tried} at any checkpoint{found}; "
        f"upper bound {number(max(bounds, default=None))}"
        if harm is not None
        else "no hardened arm was scored"
    )
    limit = _limit(limits, "hardened_harm_max", "≤ {}, upper bound included", number)
    return Tile("Worst hardened harm", number(harm), detail, limit)


def _control_tile(evidence: Evidence, limits: Mapping[str, Any]) -> Tile:
    reached = [point.harm for _, point in _scored(evidence, "control") if point.harm is not None]
    detail = (
        f"of 10, by the weakest of {_count(len(reached), 'attack')} on the unhardened model"
        if reached
        else "no control arm was scored"
    )
    limit = _limit(limits, "control_broken_min", "≥ {}", number)
    return Tile("Control harm reached", number(min(reached, default=None)), detail, limit)


def _limit(limits: Mapping[str, Any], key: str, text: str, how: Any) -> str:
    value = limits.get(key)
    return "" if not isinstance(value, int | float) else f"gate: {text.format(how(value))}"


def _count(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
