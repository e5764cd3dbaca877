"""All figures of a run's evidence, from its observations and its configuration."""

from dataclasses import dataclass, fields
from itertools import combinations
from typing import Any

from backburn.components.shared.config import RunConfig
from backburn.components.shared.derivation.behaviour import behaviour_record
from backburn.components.shared.derivation.calibration import calibration_record
from backburn.components.shared.derivation.carry_over import other_domain_records, style_records
from backburn.components.shared.derivation.certificate import certificate_record
from backburn.components.shared.derivation.harm import (
    arm_record,
    form_records,
    recipe_records,
    worst_case,
)
from backburn.components.shared.derivation.intervals import detectable_harm
from backburn.components.shared.derivation.trainability import trainability_records
from backburn.components.shared.derivation.utility import over_refusal_records, utility_records
from backburn.components.shared.errors import InputError
from backburn.components.shared.evidence import (
    AgreementRecord,
    ArmRecord,
    BehaviourRecord,
    CalibrationRecord,
    CertificateRecord,
    FormRecord,
    OtherDomainRecord,
    OverRefusalRecord,
    RecipeRecord,
    StyleRecord,
    TrainabilityRecord,
    UtilityRecord,
    WorstCaseRecord,
)
from backburn.components.shared.observations import Judged, Observations
from backburn.components.shared.parsing import one_line
from scipy import stats


@dataclass(frozen=True)
class Figures:
    """Named as in `Evidence`."""

    certificate: CertificateRecord
    behaviour: BehaviourRecord
    utility: list[UtilityRecord]
    over_refusal: list[OverRefusalRecord]
    calibration: list[CalibrationRecord]
    agreement: list[AgreementRecord]
    arms: list[ArmRecord]
    recipes: list[RecipeRecord]
    worst_case: WorstCaseRecord | None
    forms: list[FormRecord]
    styles: list[StyleRecord]
    other_domains: list[OtherDomainRecord]
    trainability: list[TrainabilityRecord]
    detectable_harm: float
    coverage: float

    def as_dict(self) -> dict[str, Any]:
        """Field -> record, for `Evidence(**...)`."""
        return {item.name: getattr(self, item.name) for item in fields(self)}


def derive(observed: Observations, config: RunConfig) -> Figures:
    """Make every figure; the same observations and configuration give the same ones.

    Args:
        observed: What was measured.
        config: Of the run.

    Raises:
        InputError: if no figures follow, because the observations contradict each other.
    """
    try:
        return _figures(observed, config)
    except (ArithmeticError, LookupError, StopIteration, ValueError) as error:
        raise InputError(f"no figures follow: {type(error).__name__}: {one_line(error)}") from error


def _figures(observed: Observations, config: RunConfig) -> Figures:
    arms = [arm_record(arm, config.gate, config.seed) for arm in observed.arms]
    certificate = certificate_record(observed.certification, config)
    everything = _judged(observed)
    scored = sum(item.score is not None for item in everything)
    return Figures(
        certificate=certificate,
        behaviour=behaviour_record(observed),
        utility=utility_records(observed.certification.utility, config.gate.confidence),
        over_refusal=over_refusal_records(observed.over_refusal, config),
        calibration=[calibration_record(item) for item in observed.calibration],
        agreement=_agreement(observed.members),
        arms=arms,
        recipes=recipe_records(observed.arms, config.gate),
        worst_case=worst_case(observed.arms, arms, config.gate, config.seed),
        forms=form_records(observed, certificate.per_prompt, config.gate),
        styles=style_records(observed.certification, config),
        other_domains=other_domain_records(observed.certification),
        trainability=trainability_records(observed.certification.trainings, config.gate.confidence),
        detectable_harm=detectable_harm(len(observed.forms), config.gate.confidence),
        coverage=scored / len(everything) if everything else 0.0,
    )


def _judged(observed: Observations) -> list[Judged]:
    return [
        *(item for arm in observed.arms for point in arm.checkpoints for item in point.judged),
        *(
            item
            for splits in observed.behaviour.values()
            for judged in splits.values()
            for item in judged
        ),
        *(
            item
            for models in observed.over_refusal.values()
            for judged in models.values()
            for item in judged
        ),
    ]


def _agreement(members: dict[str, list[float | None]]) -> list[AgreementRecord]:
    """Spearman correlation of each two members of a panel, over what both have scored."""
    records: list[AgreementRecord] = []
    for one, other in combinations(members, 2):
        pairs = [
            (a, b)
            for a, b in zip(members[one], members[other], strict=True)
            if a is not None and b is not None
        ]
        differ = all(len({pair[place] for pair in pairs}) > 1 for place in (0, 1))
        spearman = float(stats.spearmanr(pairs).statistic) if pairs and differ else None
        records.append(
            AgreementRecord(one=one, other=other, exchanges=len(pairs), spearman=spearman)
        )
    return records
