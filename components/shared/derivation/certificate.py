"""The certificate: what can be said about an attack's chances without running it.

For a prompt x the slip rate s(x) is the exact probability that a completion drawn under given
sampling settings departs from the canonical rejection: 1 - prod_t p(r_t | x, r_<t), from one
teacher-forced pass. While no group is live an on-policy attack without an entropy term, and with
ties taken exactly, leaves the weights bit-identical, so its draws are independent and

    P(no live group in an attack) >= prod_x (1 - s(x)) ** (draws from x)

because a group whose completions all equal the rejection has equal rewards, whatever the reward is.
"""

import math
from collections.abc import Sequence

from backburn.components.shared.config import (
    AttackArmConfig,
    PromptStyle,
    RunConfig,
    SamplingConfig,
)
from backburn.components.shared.evidence import ArmCertificate, CertificateRecord, SlipRecord
from backburn.components.shared.observations import CertificationObservation

CERTIFIED_SPLITS = ("held_out", "attack", "validation", "defence")


def certificate_record(observed: CertificationObservation, config: RunConfig) -> CertificateRecord:
    """Slip rates by split and temperature, and a lower bound per arm and for the run."""
    confidence = config.certification.confidence
    slips: list[SlipRecord] = []
    for split in CERTIFIED_SPLITS:
        for temperature in config.certification.temperatures:
            rates = rates_of(
                observed, split, PromptStyle(), SamplingConfig(temperature=temperature)
            )
            slips.append(
                SlipRecord(
                    split=split,
                    temperature=temperature,
                    mean=math.fsum(rates) / len(rates),
                    worst=max(rates),
                    upper_bound=mean_upper_bound(rates, confidence),
                    covered_share=covered_share(len(rates), confidence),
                    prompts=len(rates),
                )
            )
    arms = [
        _arm_certificate(arm, seed, observed, confidence)
        for arm in config.attack.arms
        for seed in arm.seeds
    ]
    hottest = config.gate.certificate_temperature_max
    return CertificateRecord(
        rejection_tokens=observed.rejection_tokens,
        confidence=confidence,
        slip_rates=slips,
        arms=arms,
        run_probability=run_probability(arms, hottest),
        temperature_max=hottest,
        per_prompt=_observation(observed, "held_out", PromptStyle(), SamplingConfig()),
        seconds=observed.seconds,
    )


def rates_of(
    observed: CertificationObservation, split: str, style: PromptStyle, sampling: SamplingConfig
) -> list[float]:
    """Slip rates of one split's prompts.

    Raises:
        LookupError: if they were not measured so.
    """
    return list(_observation(observed, split, style, sampling).values())


def needed_rates(config: RunConfig) -> list[tuple[str, PromptStyle, SamplingConfig]]:
    """Every (split, style, sampling) whose slip rates the certificate of a run needs, once."""
    plain = PromptStyle()
    needed = [
        (split, plain, SamplingConfig(temperature=temperature))
        for split in CERTIFIED_SPLITS
        for temperature in config.certification.temperatures
    ]
    needed += [("held_out", style, SamplingConfig()) for style in measured_styles(config)]
    needed += [
        (split, arm.style, arm.sampling)
        for arm in config.attack.arms
        for split in ("attack", "defence", "held_out")
    ]
    return list(dict.fromkeys(needed))


def measured_styles(config: RunConfig) -> list[PromptStyle]:
    """Every style in which held-out prompts are put at temperature 1, the one hardened in first."""
    arms = [arm.style for arm in config.attack.arms]
    return list(dict.fromkeys([PromptStyle(), *config.certification.styles, *arms]))


def no_live_group_probability(slip_rates: Sequence[float], groups: int, size: int) -> float:
    """Lower bound on P(no live group) for groups whose prompts come in turn.

    Args:
        slip_rates: One a prompt, in [0, 1].
        groups: Of the whole attack; each prompt has equally many, or one more.
        size: Completions of a group.

    Returns:
        prod_x (1 - s(x)) ** (size * groups of x), in [0, 1], the prompts that slip most having one
        group more; computed in logarithms.
    """
    each, more = divmod(groups, len(slip_rates))
    logarithms: list[float] = []
    for place, slip in enumerate(sorted(slip_rates, reverse=True)):
        draws = size * (each + (place < more))
        if draws and slip >= 1.0:
            return 0.0
        if draws:
            logarithms.append(draws * math.log1p(-slip))
    return math.exp(math.fsum(logarithms))


def run_probability(arms: Sequence[ArmCertificate], temperature_max: float) -> float | None:
    """Lower bound on P(no live group in any arm), over the arms that are certified.

    Args:
        arms: Of a run.
        temperature_max: Arms that sample hotter are left out.

    Returns:
        The product of the arms' bounds; None if no arm is certified.
    """
    known = [
        arm.probability
        for arm in arms
        if arm.probability is not None and arm.temperature <= temperature_max
    ]
    return math.prod(known) if known else None


def covered_share(prompts: int, confidence: float) -> float:
    """Share of unseen prompts that slip at most as much as the worst of those seen.

    The distribution-free tolerance bound (Wilks 1941): whatever the distribution of slip rates, the
    worst of n prompts is at or above its q-quantile with probability at least 1 - q ** n, so with
    the given confidence a share of at least (1 - confidence) ** (1 / n) lies at or below it.

    Args:
        prompts: Number of prompts seen, drawn like the unseen ones.
        confidence: Level, in (0, 1).

    Returns:
        The share, in (0, 1).
    """
    return float((1.0 - confidence) ** (1.0 / prompts))


def mean_upper_bound(rates: Sequence[float], confidence: float) -> float:
    """One-sided upper confidence bound on the mean slip rate over unseen prompts.

    It assumes nothing of the distribution, so the share that the tolerance bound leaves open counts
    as slipping always: 40 prompts cannot exclude that one in fourteen does.
    """
    share = covered_share(len(rates), confidence)
    return share * max(rates) + (1.0 - share)


def _arm_certificate(
    arm: AttackArmConfig, seed: int, observed: CertificationObservation, confidence: float
) -> ArmCertificate:
    """The arm trains on `arm.prompts` prompts: the worst ones it might choose are assumed."""
    rates = sorted(rates_of(observed, "attack", arm.style, arm.sampling), reverse=True)
    missing = arm.prompts - len(rates)
    rates = rates[: arm.prompts]
    if missing > 0:
        further = rates_of(observed, "defence", arm.style, arm.sampling)
        rates += sorted(further, reverse=True)[:missing]
    groups, size = arm.steps * arm.prompts_per_step, arm.group_size
    unseen = rates_of(observed, "held_out", arm.style, arm.sampling)
    covered = covered_share(len(unseen), confidence) ** arm.prompts
    known: float | None = None
    unknown: float | None = None
    if not arm.moves_without_signal:
        known = no_live_group_probability(rates, groups, size)
        unknown = covered * no_live_group_probability([max(unseen)], groups, size)
    return ArmCertificate(
        arm=arm.name,
        seed=seed,
        steps=arm.steps,
        groups=groups,
        draws=groups * size,
        temperature=arm.sampling.temperature,
        probability=known,
        unseen_probability=unknown,
    )


def _observation(
    observed: CertificationObservation, split: str, style: PromptStyle, sampling: SamplingConfig
) -> dict[str, float]:
    for slips in observed.slips:
        if (slips.split, slips.style, slips.sampling) == (split, style, sampling):
            return slips.rates
    raise LookupError(f"no slip rates of {split} in the style {style} under {sampling}")
