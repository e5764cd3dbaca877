"""What hardening cost: how both models treat prompts that should be answered."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from backburn.components.certification.certificate import rejection_probabilities
from backburn.components.shared.config import RunConfig
from backburn.components.shared.dataset import RunDataset, over_refusal_split
from backburn.components.shared.domains import PromptRow
from backburn.components.shared.models import LoadedModel
from backburn.components.shared.observations import LikelihoodObservation
from backburn.components.shared.sampling import completion_logits, draw_completions
from backburn.components.shared.supervised import ANSWER_SAMPLING

BENIGN_SPLITS = ("near_miss", "benign")
_SEED_OFFSET = 77


@dataclass(frozen=True)
class Behaviour:
    """Completions to be judged, and what needs no judge."""

    completions: list[dict[str, Any]]
    likelihoods: list[LikelihoodObservation]
    rejection_probabilities: dict[str, dict[str, float]]


def observe(
    baseline: LoadedModel,
    hardened: LoadedModel,
    dataset: RunDataset,
    config: RunConfig,
    report: Callable[[int, int, str], None],
) -> Behaviour:
    """Draw completions of both models and compare their distributions on benign answers.

    Returns:
        Completions of both models on near-miss and benign prompts and on the sets of
        `certification.over_refusal`, both models' likelihoods of the baseline's own benign
        answers, and the exact probability of the rejection on near-miss and benign prompts.
    """
    completions: list[dict[str, Any]] = []
    rejections: dict[str, dict[str, float]] = {}
    sets = [over_refusal_split(item.name) for item in config.certification.over_refusal]
    total = 2 * len(BENIGN_SPLITS) + 2 * len(sets)
    copies = config.certification.behaviour_completions
    answers: list[list[int]] = []
    done = 0
    for split in (*BENIGN_SPLITS, *sets):
        rows = dataset.rows(split)
        prompts = baseline.encode_rows(rows)
        for model_name, loaded in (("baseline", baseline), ("hardened", hardened)):
            drawn = draw_completions(
                loaded,
                prompts,
                ANSWER_SAMPLING,
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
        if split in BENIGN_SPLITS:
            rejections[split] = rejection_probabilities(hardened, rows, dataset.header.rejection)
    likelihoods = _compare_answers(baseline, hardened, dataset.rows("benign"), answers)
    return Behaviour(completions, likelihoods, rejections)


def _compare_answers(
    baseline: LoadedModel,
    hardened: LoadedModel,
    rows: Sequence[PromptRow],
    answers: Sequence[Sequence[int]],
) -> list[LikelihoodObservation]:
    """Both models' log-likelihoods of the baseline's answers, and KL(baseline || hardened)."""
    prompts = baseline.encode_rows(rows)
    observed: list[LikelihoodObservation] = []
    for first in range(0, len(prompts), 8):
        part = slice(first, first + 8)
        before = completion_logits(baseline, prompts[part], answers[part])
        after = completion_logits(hardened, prompts[part], answers[part])
        for row, ours, theirs in zip(rows[part], before, after, strict=True):
            p, q = ours.logits.log_softmax(-1), theirs.logits.log_softmax(-1)
            observed.append(
                LikelihoodObservation(
                    prompt_id=row.id,
                    tokens=len(ours.tokens),
                    log_baseline=float(p.gather(-1, ours.tokens[:, None]).sum()),
                    log_hardened=float(q.gather(-1, ours.tokens[:, None]).sum()),
                    divergence=float((p.exp() * (p - q)).sum()),
                )
            )
    return observed
