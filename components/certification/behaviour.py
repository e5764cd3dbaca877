"""What hardening cost: how both models treat prompts that should be answered."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from backburn.components.shared.config import RunConfig, SamplingConfig
from backburn.components.shared.dataset import RunDataset
from backburn.components.shared.models import LoadedModel
from backburn.components.shared.sampling import completion_logits, draw_completions, slip_rate
from backburn.components.shared.supervised import ANSWER_SAMPLING

BENIGN_SPLITS = ("near_miss", "benign")
_SEED_OFFSET = 77


@dataclass(frozen=True)
class Behaviour:
    """Completions to be judged, and what needs no judge."""

    completions: list[dict[str, Any]]
    figures: dict[str, float]


def observe(
    baseline: LoadedModel,
    hardened: LoadedModel,
    dataset: RunDataset,
    config: RunConfig,
    report: Callable[[int, int, str], None],
) -> Behaviour:
    """Draw completions of both models and compare their distributions on benign answers.

    Returns:
        Completions of both models on near-miss and benign prompts, and `benign_kl`,
        `benign_perplexity_*` (on the baseline's own benign answers) and `*_rejection_probability`
        (exact).
    """
    completions: list[dict[str, Any]] = []
    figures: dict[str, float] = {}
    total = 2 * len(BENIGN_SPLITS)
    copies = config.certification.behaviour_completions
    answers: list[list[int]] = []
    done = 0
    for split in BENIGN_SPLITS:
        rows = dataset.rows(split)
        prompts = [baseline.encode_row(row) for row in rows]
        for model_name, loaded in (("baseline", baseline), ("hardened", hardened)):
            sampling = ANSWER_SAMPLING
            drawn = draw_completions(
                loaded,
                prompts,
                sampling,
                copies=copies,
                max_tokens=config.attack.max_completion_tokens,
                generator=torch.Generator().manual_seed(config.seed + _SEED_OFFSET),
            )
            completions += [
                {
                    "model": model_name,
                    "split": split,
                    "prompt_id": rows[index // copies].id,
                    "completion": loaded.decode(tokens),
                    "tokens": len(tokens),
                }
                for index, tokens in enumerate(drawn)
            ]
            if split == "benign" and model_name == "baseline":
                answers = drawn[::copies]
            done += 1
            report(done, total, f"{model_name} on {split}")
        rejection = hardened.encode_completion(dataset.header.rejection)
        entries = completion_logits(hardened, prompts, [rejection] * len(prompts))
        rates = [1.0 - slip_rate(entry, SamplingConfig()) for entry in entries]
        figures[f"{split}_rejection_probability"] = sum(rates) / len(rates)
    prompts = [baseline.encode_row(row) for row in dataset.rows("benign")]
    figures.update(_compare_answers(baseline, hardened, prompts, answers))
    return Behaviour(completions, figures)


def _compare_answers(
    baseline: LoadedModel,
    hardened: LoadedModel,
    prompts: list[list[int]],
    answers: list[list[int]],
) -> dict[str, float]:
    """Perplexities on the baseline's answers, and KL(baseline || hardened) per token."""
    divergence, log_baseline, log_hardened, tokens = 0.0, 0.0, 0.0, 0
    for first in range(0, len(prompts), 8):
        part = slice(first, first + 8)
        before = completion_logits(baseline, prompts[part], answers[part])
        after = completion_logits(hardened, prompts[part], answers[part])
        for ours, theirs in zip(before, after, strict=True):
            p, q = ours.logits.log_softmax(-1), theirs.logits.log_softmax(-1)
            divergence += float((p.exp() * (p - q)).sum())
            log_baseline += float(p.gather(-1, ours.tokens[:, None]).sum())
            log_hardened += float(q.gather(-1, ours.tokens[:, None]).sum())
            tokens += len(ours.tokens)
    before_perplexity = float(torch.tensor(-log_baseline / tokens).exp())
    after_perplexity = float(torch.tensor(-log_hardened / tokens).exp())
    return {
        "benign_kl": max(0.0, divergence / tokens),
        "benign_perplexity_baseline": before_perplexity,
        "benign_perplexity_hardened": after_perplexity,
        "benign_perplexity_ratio": after_perplexity / before_perplexity,
    }
