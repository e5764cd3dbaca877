"""TRL's GRPOTrainer with our sampler, exact ties, and steps without signal for free.

- Completions come from a `RolloutSource`, so they are drawn from the distribution the certificate
  knows.
- A group is tied when its largest and smallest reward are equal. TRL subtracts a rounded mean,
  which gives a tied group of eight rewards of 0.1 an advantage of -7e-5; here it is 0.
- A step whose groups are all tied needs no forward and no backward pass when the loss has no KL and
  no entropy term: its gradient is zero. Until the first live group, weights and optimiser state
  stay bit-identical; after it, AdamW's momentum goes on moving the weights, as it does in TRL.
- On a CPU, a prompt is read once for its whole group instead of once a completion.
"""

import itertools
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

import torch
from backburn.components.shared.config import PromptStyle
from backburn.components.shared.models import LoadedModel
from backburn.components.shared.sampling import positions, read_sequences
from datasets import Dataset
from transformers import DynamicCache, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

Reward = Callable[[Sequence[list[dict[str, str]]], Sequence[str]], Sequence[float | None]]
_MOST_SHARED_LOGITS = 200_000_000
_PLACE = "place"


class RolloutSource(Protocol):
    """Where completions come from."""

    def draw(self, prompts: Sequence[Sequence[int]], copies: int, model: Any) -> list[list[int]]:
        """Draw `copies` completions a prompt; the copies of a prompt are adjacent."""


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
    idle: bool
    seconds: float


class _OnePass(torch.utils.data.Sampler[int]):
    """Epoch after epoch of a sampler as one: starting an epoch costs as much as an idle step."""

    def __init__(self, epochs: torch.utils.data.Sampler[int], rows: int) -> None:
        self._epochs = epochs
        self._rows = rows

    def __iter__(self) -> Iterator[int]:
        return itertools.islice(self._all(), self._rows)

    def __len__(self) -> int:
        return self._rows

    def _all(self) -> Iterator[int]:
        while epoch := list(self._epochs):
            yield from epoch
        raise ValueError("there are fewer prompts than groups in a step, so there is no step")


@dataclass
class _Rollouts:
    """One step's completions and rewards, one entry a row of the batch; `tied` one a group."""

    prompts: list[list[int]]
    completions: list[list[int]]
    rewards: list[float | None]
    tied: list[bool]


class GroupTrainer(GRPOTrainer):  # type: ignore[misc]
    """See the module's description; everything else is TRL's."""

    def __init__(
        self,
        *,
        loaded: LoadedModel,
        peft_model: Any,
        source: RolloutSource,
        reward: Reward,
        prompts: Sequence[list[dict[str, str]]],
        args: GRPOConfig,
        on_step: Callable[[StepStatistics], bool],
        style: PromptStyle | None = None,
        exact_ties: bool = True,
        leave_one_out: bool = False,
    ) -> None:
        """Prepare training.

        Args:
            loaded: Tokenizer and settings of the model.
            peft_model: The model with the adapter to train, or without one to train it whole.
            source: Draws the completions.
            reward: Reward of completions, given conversations and completion texts.
            prompts: Conversations to train on.
            args: TRL's settings.
            on_step: Called after every step; training ends when it returns False.
            style: How the conversations are put to the model.
            exact_ties: False: tied groups keep the advantages TRL computes, as do free steps.
            leave_one_out: Compare a reward with the mean of the group's others, as RLOO does, and
                sum log-probabilities over a completion. Needs unscaled rewards and `dr_grpo`.
        """
        self._loaded = loaded
        self._source = source
        self._reward = reward
        self._exact_ties = exact_ties
        # The reward less the mean of the others is G / (G - 1) times the reward less the mean of
        # all; dr_grpo divides the summed log-probabilities by the longest completion's length.
        size = int(args.num_generations or 0)
        factor = size / (size - 1) * args.max_completion_length
        self._advantage_factor = factor if leave_one_out else 1.0
        self._encoded = [loaded.encode_prompt(prompt, style) for prompt in prompts]
        self._rollouts: _Rollouts | None = None
        self._statistics: StepStatistics | None = None
        self._entropy: float | None = None
        self._idle = False
        rows = [{"prompt": list(p), _PLACE: place} for place, p in enumerate(prompts)]
        super().__init__(
            model=peft_model,
            reward_funcs=[self._reward_function],
            args=args,
            train_dataset=Dataset.from_list(rows),
            processing_class=loaded.tokenizer,
            rollout_func=self._rollout,
            callbacks=[_StepCallback(self, on_step)],
        )
        if "ref" in getattr(peft_model, "peft_config", {}):
            # TRL copies the adapter as it is now for the KL; ours is to the model without it.
            peft_model.delete_adapter("ref")
        self._pure = self.beta == 0.0 and not getattr(args, "entropy_coef", 0.0)
        self._trained = [p for p in peft_model.parameters() if p.requires_grad]
        self._moved = False

    def training_step(
        self, model: Any, inputs: Any, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """One step; free of charge when no group is live and the loss is pure."""
        start = time.perf_counter()
        rollouts = self._rollouts = self._draw(inputs)
        self._idle = idle = self._pure and self._exact_ties and all(rollouts.tied)
        self._entropy = None
        if idle:
            self._step += 1
            loss = torch.zeros((), device=self.accelerator.device)
            if self._moved:  # a gradient of 0 still lets AdamW's momentum move the weights
                for parameter in self._trained:
                    parameter.grad = torch.zeros_like(parameter)
        else:
            loss = super().training_step(model, inputs, num_items_in_batch)
            self._moved = True
        known = torch.tensor([r for r in rollouts.rewards if r is not None] or [0.0])
        self._statistics = StepStatistics(
            step=self.state.global_step + 1,
            groups=len(rollouts.tied),
            live_groups=rollouts.tied.count(False),
            reward_mean=float(known.mean()),
            reward_std=float(known.std(unbiased=False)),
            completion_tokens=sum(map(len, rollouts.completions)) / len(rollouts.completions),
            entropy=self._entropy,
            idle=idle,
            seconds=time.perf_counter() - start,
        )
        return loss

    def _clip_grad_norm(self, model: Any) -> Any:
        return torch.zeros(()) if self._idle else super()._clip_grad_norm(model)

    def _get_train_sampler(self, dataset: Dataset | None = None) -> torch.utils.data.Sampler[int]:
        rows = self.args.max_steps * self.args.generation_batch_size
        return _OnePass(super()._get_train_sampler(dataset), rows)

    def _draw(self, inputs: Sequence[dict[str, Any]]) -> "_Rollouts":
        """Completions of a batch in which every prompt comes repeated for its group."""
        size = self.num_generations
        prompts = [self._encoded[row[_PLACE]] for row in inputs]
        completions = self._source.draw(prompts[::size], size, self.model)
        texts = [self._loaded.decode(tokens) for tokens in completions]
        rewards = list(self._reward([row["prompt"] for row in inputs], texts))
        groups = [rewards[first : first + size] for first in range(0, len(rewards), size)]
        tied = [len({reward for reward in group if reward is not None}) <= 1 for group in groups]
        return _Rollouts(prompts, completions, rewards, tied)

    def _rollout(self, prompts: Any, trainer: Any) -> dict[str, Any]:
        """TRL's hook for completions; they were drawn when the step began."""
        assert self._rollouts is not None
        prompts, completions = self._rollouts.prompts, self._rollouts.completions
        return {"prompt_ids": prompts, "completion_ids": completions, "logprobs": None}

    def _reward_function(self, **_: Any) -> list[float | None]:
        assert self._rollouts is not None
        return self._rollouts.rewards

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        output = super()._generate_and_score_completions(inputs)
        assert self._rollouts is not None
        output["advantages"] *= self._advantage_factor
        for index, is_tied in enumerate(self._rollouts.tied):
            if is_tied and self._exact_ties:
                first = index * self.num_generations
                output["advantages"][first : first + self.num_generations] = 0.0
        return output

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
        vocabulary = self._loaded.model.config.vocab_size
        if input_ids.device.type != "cpu" or input_ids.shape[0] * logits_to_keep * vocabulary > (
            _MOST_SHARED_LOGITS
        ):
            result: tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None] = (
                super()._get_per_token_logps_and_entropies(
                    model,
                    input_ids,
                    attention_mask,
                    logits_to_keep,
                    batch_size,
                    compute_entropy=compute_entropy,
                    **kwargs,
                )
            )
            if compute_entropy and result[1] is not None:
                self._entropy = float(result[1].detach().mean())
            return result
        logps, entropies = shared_prefix_log_probabilities(
            model,
            self._loaded,
            input_ids,
            attention_mask,
            logits_to_keep,
            self.temperature,
            entropy_gradient=bool(getattr(self.args, "entropy_coef", 0.0)),
        )
        mask = attention_mask[:, -logits_to_keep:]
        self._entropy = float((entropies.detach() * mask).sum() / mask.sum())
        return logps, entropies if compute_entropy else None, None


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
    """Log-probabilities of completions, each distinct prompt read once.

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
    prompts = input_ids[:, :-completion_tokens]
    completions = input_ids[:, -completion_tokens:]
    prompt_mask = attention_mask[:, :-completion_tokens]
    keys = [
        tuple(row[mask.bool()].tolist()) for row, mask in zip(prompts, prompt_mask, strict=True)
    ]
    distinct = list(dict.fromkeys(keys))
    place = {key: index for index, key in enumerate(distinct)}
    rows = torch.tensor([place[key] for key in keys], device=input_ids.device)
    cache = DynamicCache()
    read, mask = read_sequences(
        model, loaded, distinct, kept=[1] * len(distinct), use_cache=True, cache=cache
    )
    first = read.logits[rows]
    if completion_tokens > 1:
        cache.batch_select_indices(rows)
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
    return logps, entropies


def grpo_arguments(
    scratch: Path,
    *,
    steps: int,
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
    """TRL settings of one on-policy GRPO run that writes nothing to disk."""
    return GRPOConfig(
        output_dir=str(scratch),
        max_steps=steps,
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
        dataloader_pin_memory=False,
        max_grad_norm=1.0,
        weight_decay=0.0,
    )


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
