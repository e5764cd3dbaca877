"""A defence to compare with: entropy as reward and token noising, after TokenBuncher.

Written from the description of arXiv 2508.20697: GRPO whose reward is the negative mean token
entropy of completions to forbidden prompts, so that they become certain and give an attacker
nothing to choose from; each step is followed by one that blurs, with noise over all other tokens,
what raising the entropy again would bring back. Benign answers are kept by their KL.
"""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from backburn.components.defense_training.meter import Kept
from backburn.components.shared.checkpoints import Checkpoints
from backburn.components.shared.config import EntropyConfig, SamplingConfig
from backburn.components.shared.domains import PromptRow
from backburn.components.shared.grpo import (
    Conversation,
    Groups,
    GroupTrainer,
    StepStatistics,
    grpo_arguments,
    in_turn,
)
from backburn.components.shared.models import LoadedModel
from backburn.components.shared.sampling import CompletionLogits, draw_completions, scored
from backburn.components.shared.supervised import (
    Batches,
    Example,
    adapter_optimizer,
    benign_step,
    noising_step,
    optimizer_step,
    shorten,
)


class _Certainty:
    """Draws completions, and rewards the draw made last by how certain its tokens were."""

    def __init__(self, loaded: LoadedModel, max_tokens: int, generator: torch.Generator) -> None:
        self._loaded = loaded
        self._max_tokens = max_tokens
        self._generator = generator
        self._rewards: list[float | None] = []
        self.drawn: list[Example] = []

    def draw(self, prompts: Sequence[Sequence[int]], copies: int, model: Any) -> list[list[int]]:
        completions = draw_completions(
            self._loaded,
            prompts,
            SamplingConfig(),
            copies=copies,
            max_tokens=self._max_tokens,
            generator=self._generator,
            model=model,
        )
        asked = [list(prompt) for prompt in prompts for _ in range(copies)]
        self._rewards = list(scored(_certainty, self._loaded, asked, completions, model=model))
        self.drawn = [Example(tuple(p), tuple(c)) for p, c in zip(asked, completions, strict=True)]
        return completions

    def reward(self, _: Sequence[Conversation], __: Sequence[str]) -> list[float | None]:
        return self._rewards


def _certainty(entry: CompletionLogits) -> float:
    """Negative mean entropy of a completion's tokens, in nats."""
    logs = entry.logits.float().log_softmax(-1)
    return float((logs.exp() * logs).sum(-1).mean())


def lower_entropy(
    model: Any,
    loaded: LoadedModel,
    config: EntropyConfig,
    *,
    forbidden: Sequence[PromptRow],
    kept: Kept,
    max_tokens: int,
    seed: int,
    report: Callable[[int, int, str], None],
    checkpoints: Checkpoints,
) -> None:
    """Train the adapter of `model` in place.

    Args:
        model: The PeftModel.
        loaded: Its tokenizer and device.
        config: Steps and rates.
        forbidden: Prompts whose completions are to become certain.
        kept: Answers that must not change.
        max_tokens: Length of rollouts.
        seed: Of every random choice.
        report: Called as `report(done, total, note)`.
        checkpoints: Of the step.
    """
    generator = torch.Generator().manual_seed(seed)
    answering = Batches([*kept.near_miss, *kept.benign], config.benign_per_step, generator)
    noising = adapter_optimizer(model, config.noise_learning_rate)
    keeping = adapter_optimizer(model, config.learning_rate)
    certainty = _Certainty(loaded, max_tokens, generator)

    def after_step(statistics: StepStatistics) -> bool:
        noising_step(model, loaded, certainty.drawn, config.noise_mass, generator)
        optimizer_step(model, noising)
        if config.benign_per_step:
            answers = shorten(answering.draw(), generator)
            answering.learn(
                benign_step(model, loaded, answers, kept.references, config.benign_weight)
            )
            optimizer_step(model, keeping)
        report(statistics.step, config.steps, f"entropy {-statistics.reward_mean:.2f} nats")
        return True

    prompts = [
        row.chat() for row in in_turn(forbidden, config.steps * config.prompts_per_step, generator)
    ]
    parts = {
        "adapter": model,
        "draws": generator,
        "answering": answering,
        "references": kept.references,
        "noising": noising,
        "keeping": keeping,
    }
    with (
        tempfile.TemporaryDirectory(prefix="backburn-defence-") as scratch,
        checkpoints.phase("entropy", parts) as phase,
    ):
        if phase.over or phase.done >= config.steps:
            return
        GroupTrainer(
            loaded=loaded,
            peft_model=model,
            groups=Groups(
                loaded,
                certainty,
                certainty.reward,
                prompts,
                per_step=config.prompts_per_step,
                size=config.group_size,
            ),
            args=grpo_arguments(
                Path(scratch),
                prompts_per_step=config.prompts_per_step,
                group_size=config.group_size,
                learning_rate=config.learning_rate,
                max_tokens=max_tokens,
                temperature=1.0,
                seed=seed,
                device=str(loaded.device.type),
            ),
            on_step=after_step,
            start=phase.done,
            phase=phase,
        ).train()
