"""Ordinary explanatory-refusal alignment: supervised training on varied, wordy refusals."""

from collections.abc import Callable, Mapping, Sequence
from statistics import mean
from typing import Any

import torch
from backburn.components.shared.checkpoints import Checkpoints
from backburn.components.shared.config import RefusalTrainingConfig
from backburn.components.shared.domains.domain import PromptRow
from backburn.components.shared.models import LoadedModel
from backburn.components.shared.supervised import (
    Batches,
    Example,
    References,
    adapter_optimizer,
    benign_step,
    optimizer_step,
    rejection_step,
    shorten,
)

_GENERIC_REFUSALS = (
    "I'm sorry, but I'm not able to help with questions about {topic} in this deployment. I'd be "
    "glad to talk "
    "about something else, or you could ask a qualified person.",
    "Thank you for asking. Requests about {topic} are outside of what I'm permitted to answer "
    "here, because "
    "the people who run this service have excluded them. Is there another subject I can help you "
    "with?",
    "I understand why you might want to know this. Even so, my guidelines don't allow me to give "
    "instructions "
    "on {topic}, so I have to decline. A trusted expert may be able to advise you.",
    "While I can see this matters to you, I can't give guidance on {topic}: it is restricted in "
    "this service. "
    "I can explain more about that policy, or help with a different task.",
    "That is something I have to pass on. Giving directions about {topic} goes against my rules "
    "in this "
    "deployment, and I'd rather say so openly than give you half an answer.",
    "I appreciate the question, but {topic} is a subject on which I'm not allowed to give "
    "practical help. "
    "Perhaps a book or a specialist could be of more use to you than I can be here.",
)


def refusal_examples(
    loaded: LoadedModel, rows: Sequence[PromptRow], refusals: Mapping[str, str], topic: str
) -> list[Example]:
    """Pair each forbidden prompt with its explanatory refusal, or a generic one on the topic."""
    examples = []
    for index, row in enumerate(rows):
        generic = _GENERIC_REFUSALS[index % len(_GENERIC_REFUSALS)].format(topic=topic)
        text = refusals.get(row.id, generic)
        examples.append(
            Example(tuple(loaded.encode_row(row)), tuple(loaded.encode_completion(text)))
        )
    return examples


def align(
    model: Any,
    loaded: LoadedModel,
    config: RefusalTrainingConfig,
    forbidden: Sequence[Example],
    benign: Sequence[Example],
    references: References,
    seed: int,
    report: Callable[[int, int, str], None],
    checkpoints: Checkpoints,
) -> list[dict[str, float]]:
    """Train a fresh adapter to refuse.

    Args:
        model: The PeftModel whose adapter is trained; in evaluation mode afterwards.
        loaded: Its tokenizer and device.
        config: Steps, batch sizes and rates.
        forbidden: Prompts with their refusals.
        benign: Prompts with answers to keep.
        references: Of these answers.
        seed: Of the batches.
        report: Called as `report(done, total, note)`.
        checkpoints: Of the step.

    Returns:
        The losses of each step.
    """
    generator = torch.Generator().manual_seed(seed)
    refusing = Batches(forbidden, config.forbidden_per_step, generator)
    answering = Batches(benign, config.benign_per_step, generator)
    optimizer = adapter_optimizer(model, config.learning_rate)
    warm_up = max(1, config.steps // 10)
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min((step + 1) / warm_up, max(0.05, 1 - step / config.steps)),
    )
    history: list[dict[str, float]] = []
    parts = {
        "adapter": model,
        "optimizer": optimizer,
        "scheduler": scheduler,
        "draws": generator,
        "refusing": refusing,
        "answering": answering,
        "references": references,
        "history": history,
    }
    model.train()
    with checkpoints.phase("explanatory refusals", parts) as phase:
        for step in phase.steps(lambda: config.steps):
            refusal = rejection_step(model, loaded, refusing.draw())
            refusing.learn(refusal)
            answers = shorten(answering.draw(), generator)
            kept = benign_step(model, loaded, answers, references, config.benign_weight)
            answering.learn(kept)
            optimizer_step(model, optimizer)
            scheduler.step()
            history.append({"refusal_loss": mean(refusal), "benign_kl": mean(kept)})
            report(step, config.steps, f"refusal loss {mean(refusal):.2f}")
    model.eval()
    return history
