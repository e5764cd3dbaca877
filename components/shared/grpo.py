"""TRL's GRPOTrainer with our sampler, exact ties, and steps without signal for free.

- Completions come from a `RolloutSource`, so they are drawn from the distribution the certificate
  knows. `Groups` draws and rewards them, with or without a trainer at work.
- A group is tied when its largest and smallest reward are equal. TRL subtracts a rounded mean,
  which gives a tied group of eight rewards of 0.1 an advantage of -7e-5; here it is 0.
- A step in which no completion has an advantage has a gradient of zero when the loss has no entropy
  term, and no KL term or one to the very weights it starts from. It needs no forward and no
  backward pass. Until the first live group, weights and optimiser state stay bit-identical; then
  AdamW is told how many steps there were, since in TRL it counts them, and its first moves depend
  on that. Afterwards its momentum goes on moving the weights in such steps, as it does in TRL.
- Without such terms, a completion without an advantage adds nothing to the gradient of other steps
  either: it is not read.
- On a CPU, a prompt is read once for its whole group instead of once a completion.
- Of several processes each reads some of a step's completions. Log-probabilities are exchanged
  and gradients added up here, so TRL goes on as if it were alone with all of them. Where they
  divide the weights too, each reads its completions in one pass, whatever their number.
"""

import logging
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

import torch
from backburn.components.shared import memory
from backburn.components.shared.checkpoints import Phase
from backburn.components.shared.config import PromptStyle, SamplingConfig
from backburn.components.shared.models import LoadedModel
from backburn.components.shared.packed_linear import mixed_precision
from backburn.components.shared.sampling import (
    Draw,
    draw_completions,
    positions,
    read_sequences,
)
from backburn.components.shared.scale import distributed
from backburn.components.shared.scale.sharding import is_sharded
from backburn.components.shared.supervised import require_finite_gradient
from datasets import Dataset
from torch.utils.checkpoint import checkpoint
from transformers import DynamicCache, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

logging.getLogger("trl").setLevel(logging.ERROR)  # a warning quotes completions without a reward

Conversation = list[dict[str, str]]
Reward = Callable[[Sequence[Conversation], Sequence[str]], Sequence[float | None]]
Row = TypeVar("Row")
_PASS = "GRPO pass"
_MOST_SHARED_LOGITS = 200_000_000
_MOST_TOKENS_AT_ONCE = 2048
"""Of a training pass that keeps activations; an accelerator's memory goes to those."""


class RolloutSource(Protocol):
    """Where completions come from."""

    def draw(self, prompts: Sequence[Sequence[int]], copies: int, model: Any) -> list[list[int]]:
        """Draw `copies` completions a prompt; the copies of a prompt are adjacent."""


class OrdinaryRollouts:
    """Completions drawn from the model as it is."""

    def __init__(
        self,
        loaded: LoadedModel,
        temperature: float,
        max_tokens: int,
        generator: torch.Generator,
        draw: Draw = draw_completions,
    ) -> None:
        """Prepare.

        Args:
            loaded: Tokenizer of the model.
            temperature: Of the draws.
            max_tokens: Length of a completion.
            generator: CPU generator of the draws.
            draw: What draws.
        """
        self._loaded = loaded
        self._draw = draw
        self._sampling = SamplingConfig(temperature=temperature)
        self._max_tokens = max_tokens
        self._generator = generator

    def draw(self, prompts: Sequence[Sequence[int]], copies: int, model: Any) -> list[list[int]]:
        """See `RolloutSource`."""
        return self._draw(
            self._loaded,
            prompts,
            self._sampling,
            copies=copies,
            max_tokens=self._max_tokens,
            generator=self._generator,
            model=model,
        )


@dataclass
class StepStatistics:
    """What one optimiser step saw."""

    step: int
    groups: int
    live_groups: int
    reward_mean: float
    reward_std: float
    completion_tokens: float
    entropy: float | None
    """Mean over the tokens that the gradient is computed from, in nats; None in an idle step."""
    idle: bool
    seconds: float


@dataclass(frozen=True)
class Drawn:
    """One step's completions and rewards, one entry a completion; `tied` has one a group."""

    prompts: list[list[int]]
    completions: list[list[int]]
    rewards: list[float | None]
    tied: list[bool]
    silent: bool
    """No completion has an advantage."""
    seconds: float

    def statistics(self, step: int, idle: bool, entropy: float | None = None) -> StepStatistics:
        """What the step saw, but for the seconds of training."""
        known = [reward for reward in self.rewards if reward is not None] or [0.0]
        mean = sum(known) / len(known)
        variance = sum((reward - mean) ** 2 for reward in known) / len(known)
        return StepStatistics(
            step=step,
            groups=len(self.tied),
            live_groups=self.tied.count(False),
            reward_mean=mean,
            reward_std=variance**0.5,
            completion_tokens=sum(map(len, self.completions)) / len(self.completions),
            entropy=entropy,
            idle=idle,
            seconds=self.seconds,
        )


class Groups:
    """Draws and rewards the groups of each step of a training."""

    def __init__(
        self,
        loaded: LoadedModel,
        source: RolloutSource,
        reward: Reward,
        prompts: Sequence[Conversation],
        *,
        per_step: int,
        size: int,
        style: PromptStyle | None = None,
        exact_ties: bool = True,
    ) -> None:
        """Prepare.

        Args:
            loaded: Tokenizer of the model.
            source: Draws the completions.
            reward: Reward of completions, given conversations and completion texts.
            prompts: Conversations in the order of their use, `per_step` a step.
            per_step: Groups of a step.
            size: Completions of a group.
            style: How the conversations are put to the model.
            exact_ties: False: tied groups keep the advantages TRL computes.
        """
        self.prompts = list(prompts)
        self.per_step = per_step
        self.size = size
        self.exact_ties = exact_ties
        self._loaded = loaded
        self._source = source
        self._reward = reward
        self._style = style
        self._encoded: dict[str, list[int]] = {}
        self._texts: dict[tuple[int, ...], str] = {}

    @property
    def steps(self) -> int:
        """Steps there are prompts for."""
        return len(self.prompts) // self.per_step

    def draw(self, step: int, model: Any) -> Drawn:
        """The groups of a step, the first being step 0, drawn from the model as it is now."""
        start = time.perf_counter()
        asked = self.prompts[step * self.per_step : (step + 1) * self.per_step]
        prompts = [self._encode(prompt) for prompt in asked]
        completions = self._source.draw(prompts, self.size, model)
        rewards = list(
            self._reward(_each(asked, self.size), [self._decode(tokens) for tokens in completions])
        )
        groups = [rewards[first : first + self.size] for first in range(0, len(rewards), self.size)]
        tied = [len({reward for reward in group if reward is not None}) <= 1 for group in groups]
        return Drawn(
            prompts=_each(prompts, self.size),
            completions=completions,
            rewards=rewards,
            tied=tied,
            silent=all(tied) and (self.exact_ties or _mean_is_exact(groups, self._loaded.device)),
            seconds=time.perf_counter() - start,
        )

    def _encode(self, prompt: Conversation) -> list[int]:
        key = repr(prompt)
        if key not in self._encoded:
            self._encoded[key] = self._loaded.encode_prompt(prompt, self._style)
        return self._encoded[key]

    def _decode(self, tokens: list[int]) -> str:
        key = tuple(tokens)
        if key not in self._texts:
            self._texts[key] = self._loaded.decode(tokens)
        return self._texts[key]


def _each(rows: Sequence[Row], copies: int) -> list[Row]:
    return [row for row in rows for _ in range(copies)]


def _mean_is_exact(groups: Sequence[Sequence[float | None]], device: torch.device) -> bool:
    """Whether TRL's float32 mean of each tied group, on this device, is the reward itself."""
    missing = float("nan")
    known = [[missing if reward is None else reward for reward in group] for group in groups]
    rewards = torch.tensor(known, device=device)
    return not bool((rewards - rewards.nanmean(1, keepdim=True)).nan_to_num().any())


def in_turn(rows: Sequence[Row], count: int, generator: torch.Generator) -> list[Row]:
    """`count` rows, shuffled round after round, so that each comes equally often or once more."""
    order: list[int] = []
    while len(order) < count:
        order += torch.randperm(len(rows), generator=generator).tolist()
    return [rows[index] for index in order[:count]]


class GroupTrainer(GRPOTrainer):  # type: ignore[misc]
    """See the module's description; everything else is TRL's."""

    def __init__(
        self,
        *,
        loaded: LoadedModel,
        peft_model: Any,
        groups: Groups,
        args: GRPOConfig,
        on_step: Callable[[StepStatistics], bool],
        start: int = 0,
        first: Drawn | None = None,
        at_reference: bool = False,
        leave_one_out: bool = False,
        phase: Phase | None = None,
        optimizer: torch.optim.Optimizer | None = None,
    ) -> None:
        """Prepare training.

        Args:
            loaded: Tokenizer and settings of the model.
            peft_model: The model with the adapter to train, or without one to train it whole.
            groups: Draws the completions.
            args: TRL's settings; `max_steps` is set here.
            on_step: Called after every step; training ends when it returns False.
            start: Steps already made, all of them free.
            first: What was drawn for the first step to make.
            at_reference: The adapter is fresh, so that until it moves the KL's gradient is zero.
            leave_one_out: Compare a reward with the mean of the group's others, as RLOO does, and
                sum log-probabilities over a completion. Needs unscaled rewards and `dr_grpo`.
            phase: Where the training's state is kept, apart from the optimiser's, which is added
                here; its steps are the training's, and `start` is those it has made.
            optimizer: Of the network's trained weights; default: TRL's AdamW.
        """
        self._loaded = loaded
        self._groups = groups
        self._start = start
        self._first = first
        self._at_reference = at_reference
        # The reward less the mean of the others is G / (G - 1) times the reward less the mean of
        # all; dr_grpo divides the summed log-probabilities by the longest completion's length.
        factor = groups.size / (groups.size - 1) * args.max_completion_length
        self._advantage_factor = factor if leave_one_out else 1.0
        self._drawn: Drawn | None = None
        self._statistics: StepStatistics | None = None
        self._entropy: float | None = None
        self._idle = False
        self._advantages: torch.Tensor | None = None
        self._rows_at_once = 1
        args.max_steps = groups.steps - start
        rows = [{"prompt": prompt} for prompt in groups.prompts[start * groups.per_step :]]
        super().__init__(
            model=peft_model,
            reward_funcs=[self._reward_function],
            args=args,
            train_dataset=Dataset.from_list(rows),
            processing_class=loaded.tokenizer,
            rollout_func=self._rollout,
            callbacks=[_StepCallback(self, on_step)],
            optimizers=(optimizer, None),
        )
        if leave_one_out:
            self.beta *= args.max_completion_length  # summed over a completion as well
        if "ref" in getattr(peft_model, "peft_config", {}):
            # TRL copies the adapter as it is now for the KL; ours is to the model without it.
            peft_model.delete_adapter("ref")
        self._trained = [p for p in peft_model.parameters() if p.requires_grad]
        self._moved = False
        if phase is not None:
            phase.add("trainer", self)
            self.add_callback(_PhaseCallback(phase))

    def state_dict(self) -> dict[str, bool]:
        """What a training that goes on needs to know besides weights and optimiser."""
        return {"moved": self._moved}

    def load_state_dict(self, state: dict[str, bool]) -> None:
        """Go on from `state_dict`."""
        self._moved = state["moved"]

    def training_step(
        self, model: Any, inputs: Any, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """One step; free of charge when its gradient is known to be zero."""
        begun = time.perf_counter()
        step = self._start + self.state.global_step
        drawn, self._first = self._first or self._groups.draw(step, self.model), None
        self._drawn = drawn
        self._idle = idle = drawn.silent and self._silence_is_free()
        self._entropy = None
        if idle:
            self._step += 1
            loss = torch.zeros((), device=self.accelerator.device)
            if self._moved:  # a gradient of 0 still lets AdamW's momentum move the weights
                for parameter in self._trained:
                    parameter.grad = torch.zeros_like(parameter)
        else:
            if step and not self._moved:
                self._count_idle_steps(step)
            loss = self._train_in_parts_that_fit(model, inputs, num_items_in_batch)
            distributed.sum_gradients(self._trained)
            self._moved = True
        self._statistics = drawn.statistics(step + 1, idle, self._entropy)
        self._statistics.seconds = time.perf_counter() - begun
        return loss

    def _count_idle_steps(self, steps: int) -> None:
        """Give AdamW the state that so many steps with gradients of zero leave."""
        optimizer: Any = getattr(self.optimizer, "optimizer", self.optimizer)
        for parameter in self._trained:
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()  # moves nothing, as both moments are zero
        for parameter in self._trained:
            parameter.grad = None
        for state in optimizer.state.values():
            state["step"].fill_(steps)

    def _train_in_parts_that_fit(self, model: Any, inputs: Any, items: Any) -> torch.Tensor:
        put_back = memory.gradients_of(self.model)
        while True:
            try:
                loss: torch.Tensor = super().training_step(model, inputs, items)
                return loss
            except RuntimeError as error:
                memory.lower(_PASS, self._rows_at_once, error)
            put_back()
            memory.empty_cache()

    def _silence_is_free(self) -> bool:
        at_reference = self._at_reference and not self._moved
        return not getattr(self.args, "entropy_coef", 0.0) and (self.beta == 0.0 or at_reference)

    def _clip_grad_norm(self, model: Any) -> Any:
        if self._idle:
            return torch.zeros(())
        norm = super()._clip_grad_norm(model)
        require_finite_gradient(torch.as_tensor(norm))
        return norm

    def _rollout(self, prompts: Any, trainer: Any) -> dict[str, Any]:
        """TRL's hook for completions; they were drawn when the step began."""
        assert self._drawn is not None
        return {
            "prompt_ids": self._drawn.prompts,
            "completion_ids": self._drawn.completions,
            "logprobs": None,
        }

    def _reward_function(self, **_: Any) -> list[float | None]:
        assert self._drawn is not None
        return list(self._drawn.rewards)

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        output = super()._generate_and_score_completions(inputs)
        assert self._drawn is not None
        output["advantages"] *= self._advantage_factor
        for index, is_tied in enumerate(self._drawn.tied):
            if is_tied and self._groups.exact_ties:
                first = index * self._groups.size
                output["advantages"][first : first + self._groups.size] = 0.0
        return output

    def _compute_loss(self, model: Any, inputs: Any) -> Any:
        self._advantages = inputs["advantages"]
        try:
            return super()._compute_loss(model, inputs)
        finally:
            self._advantages = None

    def _without_gradient(self, rows: int) -> torch.Tensor:
        """Which completions need not be read, as only an advantage could make them count."""
        if self._advantages is None or self.beta or getattr(self.args, "entropy_coef", 0.0):
            return torch.zeros(rows, dtype=torch.bool)
        return (self._advantages == 0.0).cpu()

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        count = len(input_ids)
        idle = self._without_gradient(count)
        own = distributed.own_rows(count) or range(1)
        # One that has nothing to read reads something in vain: all processes take part. Where they
        # divide the weights, they have to make as many passes as each other.
        rows = [row for row in own if is_sharded(model) or not idle[row]] or [own[0]]
        logps, entropies = self._read(
            model,
            input_ids[rows],
            attention_mask[rows],
            logits_to_keep,
            batch_size=batch_size,
            compute_entropy=compute_entropy,
            **kwargs,
        )
        places = torch.tensor([row - own[0] for row in rows], device=logps.device)

        def joined(values: torch.Tensor) -> torch.Tensor:
            """Of all completions, in order; 0 for those not read."""
            if len(rows) < len(own):
                nothing = values.new_zeros(len(own), logits_to_keep)
                values = nothing.index_copy(0, places, values)
            return distributed.joined_rows(values, count)

        logps = joined(logps)
        if entropies is None:
            return logps, None, None
        entropies = joined(entropies)
        mask = attention_mask[:, -logits_to_keep:] * ~idle.unsqueeze(1).to(entropies.device)
        self._entropy = float((entropies.detach() * mask).sum() / mask.sum().clamp(min=1))
        return logps, entropies if compute_entropy else None, None

    def _read(
        self,
        model: Any,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        logits_to_keep: int,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Log-probabilities and entropies of some completions; shape (rows, logits_to_keep)."""
        vocabulary = self._loaded.model.config.vocab_size
        limit = memory.limits().get(_PASS, len(input_ids))
        self._rows_at_once = len(input_ids)
        sharded = is_sharded(model)
        if (
            sharded
            or input_ids.device.type != "cpu"
            or limit < len(input_ids)
            or len(input_ids) * logits_to_keep * vocabulary > _MOST_SHARED_LOGITS
        ):
            fit = limit if sharded else max(1, _MOST_TOKENS_AT_ONCE // input_ids.shape[1])
            most = min(limit, fit)
            self._rows_at_once = min(most, len(input_ids))
            parts = [
                self._read_rows(
                    model,
                    input_ids[first : first + most],
                    attention_mask[first : first + most],
                    logits_to_keep,
                    again=len(input_ids) > most,
                    **kwargs,
                )
                for first in range(0, len(input_ids), most)
            ]
            logps = torch.cat([part[0] for part in parts])
            if not kwargs["compute_entropy"]:
                return logps, None
            return logps, torch.cat([part[1] for part in parts])
        with mixed_precision():
            return shared_prefix_log_probabilities(
                model,
                self._loaded,
                input_ids,
                attention_mask,
                logits_to_keep,
                self.temperature,
                entropy_gradient=bool(getattr(self.args, "entropy_coef", 0.0)),
            )

    def _read_rows(
        self,
        model: Any,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        logits_to_keep: int,
        *,
        again: bool,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, Any]:
        """TRL's own reading of some rows.

        With `again`, they are read once more in the backward pass, so that no more than they are
        held in memory at a time, whatever the loss makes of all rows together.
        """
        read = super()._get_per_token_logps_and_entropies

        def logps_and_entropies(ids: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, Any]:
            logps, entropies, *_ = read(model, ids, mask, logits_to_keep, **kwargs)
            return logps, entropies

        if again and torch.is_grad_enabled():
            made: tuple[torch.Tensor, Any] = checkpoint(
                logps_and_entropies, input_ids, attention_mask, use_reentrant=False
            )
            return made
        return logps_and_entropies(input_ids, attention_mask)


def shared_prefix_log_probabilities(
    model: Any,
    loaded: LoadedModel,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    completion_tokens: int,
    temperature: float,
    *,
    entropy_gradient: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities of completions, each distinct prompt and completion read once.

    Args:
        model: A causal language model; gradients flow through the shared prompt.
        loaded: Its tokenizer and device.
        input_ids: Left-padded prompts followed by right-padded completions; shape (rows, tokens).
        attention_mask: Same shape.
        completion_tokens: Width of the completion part, T.
        temperature: Divides the logits.
        entropy_gradient: Whether the entropies need a gradient.

    Returns:
        Log-probabilities and entropies, both of shape (rows, T).
    """
    tables = (map(tuple, table.tolist()) for table in (input_ids, attention_mask))
    exchanges, asked = _distinct(list(zip(*tables, strict=True)), input_ids.device)
    input_ids, attention_mask = (
        torch.tensor(rows, device=input_ids.device) for rows in zip(*exchanges, strict=True)
    )
    prompts = input_ids[:, :-completion_tokens]
    completions = input_ids[:, -completion_tokens:]
    prompt_mask = attention_mask[:, :-completion_tokens]
    distinct, rows = _distinct(
        [tuple(row[mask.bool()].tolist()) for row, mask in zip(prompts, prompt_mask, strict=True)],
        input_ids.device,
    )
    cache = DynamicCache()
    read, mask = read_sequences(
        model, loaded, distinct, kept=[1] * len(distinct), use_cache=True, cache=cache
    )
    # Not indexing, whose gradient adds up in an order that differs from run to run on a CPU.
    first = read.logits.index_select(0, rows)
    if completion_tokens > 1:
        for layer in cache.layers:
            layer.keys = layer.keys.index_select(0, rows)
            layer.values = layer.values.index_select(0, rows)
        full_mask = torch.cat([mask[rows], attention_mask[:, -completion_tokens:-1]], dim=1)
        written = model(
            input_ids=completions[:, :-1],
            attention_mask=full_mask,
            position_ids=positions(full_mask)[:, -completion_tokens + 1 :],
            cache=cache,
            use_cache=True,
        )
        logits = torch.cat([first, written.logits], dim=1)
    else:
        logits = first
    logits = logits.float() / temperature
    normaliser = logits.logsumexp(-1)
    logps = logits.gather(-1, completions.unsqueeze(-1)).squeeze(-1) - normaliser
    with torch.set_grad_enabled(entropy_gradient and torch.is_grad_enabled()):
        entropies = normaliser - (logits.softmax(-1) * logits).sum(-1)
    return logps.index_select(0, asked), entropies.index_select(0, asked)


def _distinct(items: Sequence[Row], device: torch.device) -> tuple[list[Row], torch.Tensor]:
    """Each distinct item once, in order, and for every item its place among them."""
    place = {item: index for index, item in enumerate(dict.fromkeys(items))}
    return list(place), torch.tensor([place[item] for item in items], device=device)


def grpo_arguments(
    scratch: Path,
    *,
    prompts_per_step: int,
    group_size: int,
    learning_rate: float,
    max_tokens: int,
    temperature: float,
    seed: int,
    beta: float = 0.0,
    entropy_coefficient: float = 0.0,
    loss: str = "dapo",
    scale_rewards: str = "group",
    device: str = "cpu",
) -> GRPOConfig:
    """TRL settings of one on-policy GRPO run that writes nothing to disk, `max_steps` apart."""
    arguments = GRPOConfig(
        output_dir=str(scratch),
        per_device_train_batch_size=prompts_per_step * group_size,
        gradient_accumulation_steps=1,
        num_generations=group_size,
        learning_rate=learning_rate,
        lr_scheduler_type="constant",
        max_completion_length=max_tokens,
        temperature=temperature,
        beta=beta,
        entropy_coef=entropy_coefficient,
        loss_type="dr_grpo" if loss == "rloo" else loss,
        scale_rewards=scale_rewards,
        seed=seed,
        data_seed=seed,
        use_cpu=device == "cpu",
        bf16=False,
        gradient_checkpointing=False,
        save_strategy="no",
        report_to=[],
        logging_strategy="no",
        disable_tqdm=True,
        remove_unused_columns=False,
        shuffle_dataset=False,
        dataloader_pin_memory=False,
        max_grad_norm=1.0,
        weight_decay=0.0,
    )
    # Otherwise transformers copies the model to every GPU it sees, and multiplies the batch.
    arguments._n_gpu = min(1, arguments.n_gpu)
    return arguments


class _StepCallback(TrainerCallback):  # type: ignore[misc]
    """Hands each step's statistics to the caller and stops training when told to."""

    def __init__(self, trainer: GroupTrainer, on_step: Callable[[StepStatistics], bool]) -> None:
        self._trainer = trainer
        self._on_step = on_step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        statistics = self._trainer._statistics
        assert statistics is not None
        if not self._on_step(statistics):
            control.should_training_stop = True


class _PhaseCallback(TrainerCallback):  # type: ignore[misc]
    """Gives the optimiser its state, and says when a step has ended."""

    def __init__(self, phase: Phase) -> None:
        self._phase = phase

    def on_step_begin(self, *_: Any, optimizer: Any, **__: Any) -> None:
        # Not earlier: random numbers are restored with it, and TRL draws some before.
        if "optimizer" not in self._phase.parts:
            self._phase.add("optimizer", optimizer)

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self._phase.completed()
