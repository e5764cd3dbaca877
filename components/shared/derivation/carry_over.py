"""How far the rejection carries over: to other ways of asking, and to other domains."""

import math

from backburn.components.shared.config import RunConfig, SamplingConfig
from backburn.components.shared.derivation.certificate import measured_styles, rates_of
from backburn.components.shared.evidence import OtherDomainRecord, StyleRecord
from backburn.components.shared.observations import CertificationObservation

_MORE_LIKELY_THAN_NOT = 0.5


def style_records(observed: CertificationObservation, config: RunConfig) -> list[StyleRecord]:
    """The same held-out prompts in every style, the one hardened in first."""
    records: list[StyleRecord] = []
    for style in measured_styles(config):
        try:
            rates = rates_of(observed, "held_out", style, SamplingConfig())
        except LookupError:
            rates = []
        records.append(
            StyleRecord(
                template=style.template,
                system_prompt=style.system_prompt,
                prompts=len(rates),
                slip_rate=math.fsum(rates) / len(rates) if rates else None,
                worst_slip_rate=max(rates, default=None),
                rejecting=sum(rate < _MORE_LIKELY_THAN_NOT for rate in rates) if rates else None,
            )
        )
    return records


def other_domain_records(observed: CertificationObservation) -> list[OtherDomainRecord]:
    """Forbidden held-out prompts of the domains to which the model was not hardened."""
    return [
        OtherDomainRecord(
            domain=domain,
            prompts=len(known),
            rejection_probability=math.fsum(known.values()) / len(known),
            rejecting=sum(value > _MORE_LIKELY_THAN_NOT for value in known.values()),
        )
        for domain, known in observed.other_domains.items()
    ]
