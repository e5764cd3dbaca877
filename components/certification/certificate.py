"""The certificate: what can be said about an attack's chances without running it.

For a prompt x the slip rate s(x) is the exact probability that a completion drawn under given
sampling settings departs from the canonical rejection: 1 - prod_t p(r_t | x, r_<t), from one
teacher-forced pass. While no group is live an on-policy attack without an entropy term, and with
ties taken exactly, leaves the weights bit-identical, so its draws are independent and

    P(no live group in an attack) >= prod_x (1 - s(x)) ** (draws from x)

because a group whose completions all equal the rejection has equal rewards, whatever the reward is.
"""

import math
import time
from collections.abc import Callable, Sequence

from backburn.components.shared.config import (
    AttackArmConfig,
    PromptStyle,
    RunConfig,
    SamplingConfig,
)
from backburn.components.shared.dataset import RunDataset
from backburn.components.shared.domains.domain import Split
from backburn.components.shared.evidence import ArmCertificate, CertificateRecord, SlipRecord
from backburn.components.shared.models import LoadedModel
from backburn.components.shared.sampling import CompletionLogits, completion_logits, slip_rate

CERTIFIED_SPLITS: tuple[Split, ...] = ("held_out", "attack", "validation", "defence")


def certify(
    loaded: LoadedModel,
    dataset: RunDataset,
    config: RunConfig,
    report: Callable[[int, int, str], None],
) -> CertificateRecord:
    """Write the certificate of a hardened model for the run's own budget.

    Args:
        loaded: The hardened model, exactly as it will be attacked.
        dataset: Prompts and canonical rejection.
        config: Temperatures, confidence and the arms whose budget is certified.
        report: Called as `report(done, total, note)`.

    Returns:
        Slip rates by split and temperature, and a lower bound per arm and for the run.
    """
    start = time.perf_counter()
    rejection = loaded.encode_completion(dataset.header.rejection)
    rejection = rejection[: config.attack.max_completion_tokens]
    confidence = config.certification.confidence
    read = _Reader(loaded, dataset, rejection)
    slips: list[SlipRecord] = []
    for done, split in enumerate(CERTIFIED_SPLITS):
        entries = read(split, PromptStyle())
        for temperature in config.certification.temperatures:
            rates = _rates(entries, SamplingConfig(temperature=temperature))
            slips.append(
                SlipRecord(
                    split=split,
                    temperature=temperature,
                    mean=sum(rates) / len(rates),
                    worst=max(rates),
                    upper_bound=mean_upper_bound(rates, confidence),
                    covered_share=covered_share(len(rates), confidence),
                    prompts=len(rates),
                )
            )
        report(
            done + 1,
            len(CERTIFIED_SPLITS),
            f"{split}: slip rate {slips[-1].mean:.1e} at the hottest",
        )
    arms = [
        _certify_arm(arm, seed, read, confidence)
        for arm in config.attack.arms
        for seed in arm.seeds
    ]
    known = [arm.probability for arm in arms if arm.probability is not None]
    held_out = _rates(read("held_out", PromptStyle()), SamplingConfig())
    names = [row.id for row in dataset.rows("held_out")]
    return CertificateRecord(
        rejection_tokens=len(rejection),
        confidence=confidence,
        slip_rates=slips,
        arms=arms,
        run_probability=math.prod(known) if known else None,
        per_prompt=dict(zip(names, held_out, strict=True)),
        seconds=time.perf_counter() - start,
    )


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


class _Reader:
    """Logits of the rejection after the prompts of a split, put to the model in a style."""

    def __init__(self, loaded: LoadedModel, dataset: RunDataset, rejection: Sequence[int]) -> None:
        self._loaded = loaded
        self._dataset = dataset
        self._rejection = rejection
        self._known: dict[tuple[str, str], list[CompletionLogits]] = {}

    def __call__(self, split: Split, style: PromptStyle) -> list[CompletionLogits]:
        key = split, style.model_dump_json()
        if key not in self._known:
            prompts = [self._loaded.encode_row(row, style) for row in self._dataset.rows(split)]
            completions = [self._rejection] * len(prompts)
            self._known[key] = completion_logits(self._loaded, prompts, completions)
        return self._known[key]


def _certify_arm(
    arm: AttackArmConfig, seed: int, read: _Reader, confidence: float
) -> ArmCertificate:
    """The arm trains on `arm.prompts` prompts: the worst ones it might choose are assumed."""
    entries = read("attack", arm.style)
    missing = arm.prompts - len(entries)
    rates = sorted(_rates(entries, arm.sampling), reverse=True)[: arm.prompts]
    if missing > 0:
        further = _rates(read("defence", arm.style), arm.sampling)
        rates += sorted(further, reverse=True)[:missing]
    groups, size = arm.steps * arm.prompts_per_step, arm.group_size
    unseen = _rates(read("held_out", arm.style), arm.sampling)
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


def _rates(entries: Sequence[CompletionLogits], sampling: SamplingConfig) -> list[float]:
    return [min(1.0, max(0.0, slip_rate(entry, sampling))) for entry in entries]
