"""Exact slip rates of a hardened model: what its certificate is made of, and how far it goes."""

import time
from collections.abc import Callable, Sequence

from backburn.components.shared.config import (
    DomainConfig,
    PromptStyle,
    RunConfig,
    SamplingConfig,
)
from backburn.components.shared.dataset import RunDataset
from backburn.components.shared.derivation.certificate import needed_rates
from backburn.components.shared.domains import PromptRow, load_domain
from backburn.components.shared.models import LoadedModel
from backburn.components.shared.observations import SlipObservation
from backburn.components.shared.sampling import CompletionLogits, completion_logits, slip_rate
from jinja2 import TemplateError


def observe_slips(
    loaded: LoadedModel,
    dataset: RunDataset,
    config: RunConfig,
    report: Callable[[int, int, str], None],
) -> tuple[list[SlipObservation], int, float]:
    """Measure every slip rate that the certificate of a run needs.

    Args:
        loaded: The hardened model, exactly as it will be attacked.
        dataset: Prompts and canonical rejection.
        config: Temperatures and the arms whose budget is certified.
        report: Called as `report(done, total, note)`.

    Returns:
        The rates, the rejection's length in tokens, and seconds.
    """
    start = time.perf_counter()
    rejection = loaded.encode_completion(dataset.header.rejection)
    rejection = rejection[: config.attack.max_completion_tokens]
    known: dict[tuple[str, PromptStyle], tuple[list[PromptRow], list[CompletionLogits]]] = {}
    needed = needed_rates(config)
    arm_styles = [arm.style for arm in config.attack.arms]
    observed: list[SlipObservation] = []
    for done, (split, style, sampling) in enumerate(needed):
        if (split, style) not in known:
            rows = dataset.rows(split)
            try:
                prompts = loaded.encode_rows(rows, style)
            except TemplateError:
                if style.system_prompt is None or style in arm_styles:
                    raise
                continue  # some chat templates take no system message; derived as not measured
            entries = completion_logits(loaded, prompts, [rejection] * len(prompts))
            known[split, style] = rows, entries
        rows, entries = known[split, style]
        rates = [min(1.0, max(0.0, slip_rate(entry, sampling))) for entry in entries]
        ids = [row.id for row in rows]
        observed.append(
            SlipObservation(
                split=split,
                style=style,
                sampling=sampling,
                rates=dict(zip(ids, rates, strict=True)),
            )
        )
        report(done + 1, len(needed), f"{split}: {sum(rates) / len(rates):.1e}")
    return observed, len(rejection), time.perf_counter() - start


def observe_other_domains(
    loaded: LoadedModel, dataset: RunDataset, config: RunConfig
) -> dict[str, dict[str, float]]:
    """How likely the model rejects what it was not hardened against.

    Returns:
        Shipped domain -> its forbidden held-out prompt's id -> probability of the canonical
        rejection at temperature 1.
    """
    observed: dict[str, dict[str, float]] = {}
    for name in config.certification.other_domains:
        if name == dataset.header.name:
            continue
        domain = load_domain(DomainConfig(name=name))
        rows = [row for row in domain.forbidden if row.split == "held_out"]
        rows = rows[: config.data.held_out_prompts]
        observed[name] = rejection_probabilities(loaded, rows, dataset.header.rejection)
    return observed


def rejection_probabilities(
    loaded: LoadedModel, rows: Sequence[PromptRow], rejection: str
) -> dict[str, float]:
    """Prompt id -> exact probability of the canonical rejection at temperature 1."""
    prompts = loaded.encode_rows(rows)
    completion = loaded.encode_completion(rejection)
    entries = completion_logits(loaded, prompts, [completion] * len(prompts))
    return {
        row.id: 1.0 - slip_rate(entry, SamplingConfig())
        for row, entry in zip(rows, entries, strict=True)
    }
