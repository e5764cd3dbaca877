"""Whether a hardened model still learns what is harmless, as well as the baseline does.

Two short trainings of a fresh adapter, with the same data, settings and seeds for both models: on a
lesson that neither knows (supervised), and on answers of a given length (GRPO, with a reward that
is a rule). Adapters stay in memory and are dropped.
"""

import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

import torch
from backburn.components.shared.checkpoints import Checkpoints
from backburn.components.shared.config import LoraSettings, RunConfig, TrainabilityConfig
from backburn.components.shared.dataset import RunDataset
from backburn.components.shared.domains import LessonRow, PromptRow
from backburn.components.shared.grpo import (
    Conversation,
    Groups,
    GroupTrainer,
    OrdinaryRollouts,
    StepStatistics,
    grpo_arguments,
    in_turn,
)
from backburn.components.shared.models import LoadedModel, add_lora
from backburn.components.shared.observations import ModelName, TrainingObservation
from backburn.components.shared.sampling import Draw, completion_logits, draw_completions
from backburn.components.shared.supervised import (
    Example,
    adapter_optimizer,
    optimizer_step,
    rejection_step,
)

_SEED_OFFSET = 311
_RL_TEMPERATURE = 1.0


def observe_trainings(
    baseline: LoadedModel,
    hardened: LoadedModel,
    dataset: RunDataset,
    config: RunConfig,
    report: Callable[[int, int, str], None],
    checkpoints: Checkpoints,
    draw: Draw = draw_completions,
) -> list[TrainingObservation]:
    """Train both models and measure them before and after; both are as they were afterwards.

    Args:
        baseline: The model before hardening.
        hardened: The model to certify.
        dataset: The lesson and the benign prompts.
        config: Steps, rates and seeds.
        report: Called as `report(done, total, note)`.
        checkpoints: Of the step; trainings that ended are kept.
        draw: What draws the completions of the RL training.

    Returns:
        One observation for each model, training and seed; none if the section is not enabled.
    """
    settings = config.certification.trainability
    if not settings.enabled:
        return []
    trainings = (_Lesson(dataset, settings), _Brevity(dataset, settings, config.seed, draw))
    models: tuple[tuple[ModelName, LoadedModel], ...] = (
        ("baseline", baseline),
        ("hardened", hardened),
    )
    observed: list[TrainingObservation] = []
    total = len(models) * len(trainings) * len(settings.seeds)
    for name, loaded in models:
        for training in trainings:
            measured_before = partial(training.measure, loaded, loaded.model)
            before = checkpoints.remembered(
                f"{name} before {training.name}", dict[str, float], measured_before
            )
            for seed in settings.seeds:
                made = checkpoints.remembered(
                    f"{name} {training.name} {seed}",
                    TrainingObservation,
                    partial(_observe, training, name, loaded, seed, settings.lora, before),
                )
                observed.append(made)
                note = f"{fmean(before.values()):.2f} to {fmean(made.after.values()):.2f}"
                report(len(observed), total, f"{name}, {training.name}: {note}")
    return observed


def _observe(
    training: "_Lesson | _Brevity",
    name: ModelName,
    loaded: LoadedModel,
    seed: int,
    lora: LoraSettings,
    before: dict[str, float],
) -> TrainingObservation:
    """Train a fresh adapter, measure, and drop it."""
    start = time.perf_counter()
    network = add_lora(loaded, lora, seed)
    try:
        steps = training.train(loaded, network, seed)
        after = training.measure(loaded, network)
    finally:
        network.unload()
    return TrainingObservation(
        training=training.name,
        model=name,
        seed=seed,
        before=before,
        after=after,
        steps=steps,
        seconds=time.perf_counter() - start,
    )


class _Lesson:
    """Supervised training on a lesson, measured on questions that were not trained on."""

    name: Literal["sft"] = "sft"

    def __init__(self, dataset: RunDataset, settings: TrainabilityConfig) -> None:
        self._settings = settings
        self._training = dataset.lesson("training")
        self._held_out = dataset.lesson("held_out")

    def measure(self, loaded: LoadedModel, network: Any) -> dict[str, float]:
        """Row -> cross-entropy of its completion, nats per token."""
        examples = [_example(loaded, row) for row in self._held_out]
        entries = completion_logits(
            loaded, [e.prompt for e in examples], [e.completion for e in examples], model=network
        )
        return {
            row.id: -float(entry.logits.log_softmax(-1).gather(-1, entry.tokens[:, None]).mean())
            for row, entry in zip(self._held_out, entries, strict=True)
        }

    def train(self, loaded: LoadedModel, network: Any, seed: int) -> list[float]:
        """Train the adapter; returns the loss of each step, nats per token."""
        settings = self._settings
        examples = [_example(loaded, row) for row in self._training]
        size = min(settings.sft_rows_per_step, len(examples))
        generator = torch.Generator().manual_seed(seed)
        rows = in_turn(examples, settings.sft_steps * size, generator)
        optimizer = adapter_optimizer(network, settings.sft_learning_rate)
        losses: list[float] = []
        network.train()
        for first in range(0, len(rows), size):
            losses.append(fmean(rejection_step(network, loaded, rows[first : first + size])))
            optimizer_step(network, optimizer)
        network.eval()
        return losses


class _Brevity:
    """GRPO on benign prompts with a reward for answers of a given length."""

    name: Literal["rl"] = "rl"

    def __init__(
        self, dataset: RunDataset, settings: TrainabilityConfig, seed: int, draw: Draw
    ) -> None:
        self._settings = settings
        self._seed = seed
        self._draw = draw
        self._training = dataset.rows("benign_defence")
        self._held_out = dataset.rows("benign")[: settings.rl_evaluation_prompts]

    def measure(self, loaded: LoadedModel, network: Any) -> dict[str, float]:
        """Prompt -> mean reward of its completions, drawn from the same random numbers always."""
        copies = self._settings.rl_evaluation_completions
        drawn = self._source(loaded, self._seed + _SEED_OFFSET).draw(
            loaded.encode_rows(self._held_out), copies, network
        )
        rewards = self._reward([], [loaded.decode(tokens) for tokens in drawn])
        return {
            row.id: fmean(rewards[place * copies : (place + 1) * copies])
            for place, row in enumerate(self._held_out)
        }

    def train(self, loaded: LoadedModel, network: Any, seed: int) -> list[float]:
        """Train the adapter; returns the mean reward of each step."""
        settings = self._settings
        prompts = self._prompts(seed)
        rewards: list[float] = []

        def on_step(statistics: StepStatistics) -> bool:
            rewards.append(statistics.reward_mean)
            return True

        with tempfile.TemporaryDirectory(prefix="backburn-trainability-") as scratch:
            GroupTrainer(
                loaded=loaded,
                peft_model=network,
                groups=Groups(
                    loaded,
                    self._source(loaded, seed),
                    self._reward,
                    [row.chat() for row in prompts],
                    per_step=settings.rl_prompts_per_step,
                    size=settings.rl_group_size,
                ),
                args=grpo_arguments(
                    Path(scratch),
                    prompts_per_step=settings.rl_prompts_per_step,
                    group_size=settings.rl_group_size,
                    learning_rate=settings.rl_learning_rate,
                    max_tokens=settings.rl_max_tokens,
                    temperature=_RL_TEMPERATURE,
                    seed=seed,
                    device=str(loaded.device.type),
                ),
                on_step=on_step,
            ).train()
        return rewards

    def _prompts(self, seed: int) -> list[PromptRow]:
        count = self._settings.rl_steps * self._settings.rl_prompts_per_step
        return in_turn(self._training, count, torch.Generator().manual_seed(seed))

    def _source(self, loaded: LoadedModel, seed: int) -> OrdinaryRollouts:
        generator = torch.Generator().manual_seed(seed)
        return OrdinaryRollouts(
            loaded, _RL_TEMPERATURE, self._settings.rl_max_tokens, generator, self._draw
        )

    def _reward(self, _: Sequence[Conversation], completions: Sequence[str]) -> list[float]:
        target = self._settings.rl_target_words
        lengths = [len(text.split()) for text in completions]
        return [min(length, target) / max(length, target) for length in lengths]


def _example(loaded: LoadedModel, row: LessonRow) -> Example:
    prompt = loaded.encode_prompt([{"role": "user", "content": row.prompt}])
    return Example(tuple(prompt), tuple(loaded.encode_completion(row.completion)))
