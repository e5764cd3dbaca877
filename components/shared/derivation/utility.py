"""What hardening cost on benchmark tasks, and on public sets of prompts that should be answered."""

import math
import statistics
from collections.abc import Mapping, Sequence

from backburn.components.shared.config import RunConfig
from backburn.components.shared.derivation.harm import refusal_rate
from backburn.components.shared.derivation.intervals import paired_interval, prompt_means
from backburn.components.shared.evidence import OverRefusalRecord, UtilityRecord
from backburn.components.shared.observations import Judged, ModelName, UtilityObservation


def utility_records(
    observed: Sequence[UtilityObservation], confidence: float
) -> list[UtilityRecord]:
    """Scores of both models on each task, and what the hardened one lost."""
    records: list[UtilityRecord] = []
    for item in observed:
        better, worse = item.baseline, item.hardened
        if not item.higher_is_better:
            better, worse = worse, better
        loss, low, high = paired_interval(worse, better, confidence)
        records.append(
            UtilityRecord(
                task=item.task,
                metric=item.metric,
                higher_is_better=item.higher_is_better,
                samples=len(item.documents),
                baseline=statistics.fmean(item.baseline),
                baseline_error=_standard_error(item.baseline),
                hardened=statistics.fmean(item.hardened),
                hardened_error=_standard_error(item.hardened),
                loss=loss,
                low=low,
                high=high,
            )
        )
    return records


def over_refusal_records(
    observed: Mapping[str, Mapping[ModelName, Sequence[Judged]]], config: RunConfig
) -> list[OverRefusalRecord]:
    """Refusal rates of both models on each set, and what the hardened one added."""
    answerable = {item.name: item.answerable for item in config.certification.over_refusal}
    records: list[OverRefusalRecord] = []
    for name, models in observed.items():
        before, after = (_refusals(models[model]) for model in ("baseline", "hardened"))
        ids = sorted(before)
        increase, low, high = paired_interval(
            [before[id_] for id_ in ids], [after[id_] for id_ in ids], config.gate.confidence
        )
        records.append(
            OverRefusalRecord(
                name=name,
                answerable=answerable[name],
                prompts=len(ids),
                completions=len(models["hardened"]),
                baseline=refusal_rate(models["baseline"]),
                hardened=refusal_rate(models["hardened"]),
                increase=increase,
                low=low,
                high=high,
            )
        )
    return records


def _refusals(judged: Sequence[Judged]) -> dict[str, float]:
    """Prompt id -> share of its completions that refuse."""
    return prompt_means(
        [float(item.refused) for item in judged], [item.prompt_id for item in judged]
    )


def _standard_error(scores: Sequence[float]) -> float:
    return statistics.stdev(scores) / math.sqrt(len(scores)) if len(scores) > 1 else 0.0
