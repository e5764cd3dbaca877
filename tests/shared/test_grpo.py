"""Ties, advantages and idle steps of the trainer, beside stock TRL's."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from backburn.components.rl_attack.lazy_rollouts import Rollouts
from backburn.components.shared import grpo, memory
from backburn.components.shared.config import LoraSettings, ModelConfig, SamplingConfig
from backburn.components.shared.domains import Domain
from backburn.components.shared.grpo import (
    Groups,
    GroupTrainer,
    StepStatistics,
    grpo_arguments,
    in_turn,
    shared_prefix_log_probabilities,
)
from backburn.components.shared.models import LoadedModel, add_lora, load_base
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from trl import GRPOTrainer

STEPS, GROUP, TOKENS = 3, 8, 6
Scores = Callable[[Sequence[str]], list[float]]


def adapter(model: Any) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(first[name], second[name]) for name in first)


def train(
    base: Path,
    toy: Domain,
    scratch: Path,
    scores: Scores,
    trainer: type[GroupTrainer] | None = GroupTrainer,
    loss: str = "dapo",
    scale: str = "group",
    beta: float = 0.0,
    exact_ties: bool = True,
    entropy: float = 0.0,
    **settings: bool,
) -> tuple[bool, list[StepStatistics], Any]:
    """Whether the adapter stood still, what the steps saw, and the trainer; None: stock TRL."""
    loaded = load_base(base, ModelConfig(id="builtin:tiny"))
    model = add_lora(loaded, LoraSettings(), 0)
    before = adapter(model)
    history: list[StepStatistics] = []
    args = grpo_arguments(
        scratch,
        prompts_per_step=1,
        group_size=GROUP,
        learning_rate=1e-3,
        max_tokens=TOKENS,
        temperature=1.0,
        seed=0,
        loss=loss,
        scale_rewards=scale,
        beta=beta,
        entropy_coefficient=entropy,
    )
    prompts = [row.chat() for row in in_turn(toy.benign[:2], STEPS, torch.Generator())]
    made: Any
    if trainer is None:

        def reward(completions: Any, **_: Any) -> list[float]:
            return scores([completion[0]["content"] for completion in completions])

        args.max_steps = STEPS
        made = GRPOTrainer(
            model=model,
            reward_funcs=[reward],
            args=args,
            train_dataset=Dataset.from_list([{"prompt": prompt} for prompt in prompts]),
            processing_class=loaded.tokenizer,
        )
    else:
        made = trainer(
            loaded=loaded,
            peft_model=model,
            groups=Groups(
                loaded,
                source(loaded),
                lambda _, texts: scores(texts),
                prompts,
                per_step=1,
                size=GROUP,
                exact_ties=exact_ties,
            ),
            args=args,
            on_step=lambda statistics: history.append(statistics) is None,
            **settings,
        )
    made.train()
    return same(before, adapter(model)), history, made


def source(loaded: LoadedModel) -> Rollouts:
    return Rollouts(
        loaded,
        loaded.encode_completion("i can not help ."),
        SamplingConfig(),
        max_tokens=TOKENS,
        generator=torch.Generator().manual_seed(0),
        lazy=False,
    )


def constant(value: float) -> Scores:
    return lambda texts: [value] * len(texts)


@pytest.mark.parametrize("value", [0.5, 0.1])
def test_tied_groups_are_free_and_move_nothing(
    tiny_base: Path, toy: Domain, tmp_path: Path, value: float
) -> None:
    still, history, made = train(tiny_base, toy, tmp_path, constant(value))
    assert still
    assert [item.idle for item in history] == [True] * STEPS
    assert all(item.live_groups == 0 and item.groups == 1 for item in history)
    assert not made.optimizer.state  # the optimiser has never made a step


@pytest.mark.parametrize(("value", "stands_still"), [(0.5, True), (0.1, False)])
def test_stock_stands_still_only_where_the_mean_of_a_tied_group_is_exact(
    tiny_base: Path, toy: Domain, tmp_path: Path, value: float, stands_still: bool
) -> None:
    stock, *_ = train(tiny_base, toy, tmp_path / "stock", constant(value), trainer=None)
    ours, history, _ = train(tiny_base, toy, tmp_path / "ours", constant(value), exact_ties=False)
    assert stock is stands_still
    assert ours is stands_still
    assert [item.idle for item in history] == [stands_still] * STEPS
    assert not any(item.live_groups for item in history)


def test_a_live_group_moves_the_adapter(tiny_base: Path, toy: Domain, tmp_path: Path) -> None:
    def lengths(texts: Sequence[str]) -> list[float]:
        return [float(len(text)) for text in texts]

    still, history, _ = train(tiny_base, toy, tmp_path, lengths)
    assert not still
    assert all(item.live_groups == 1 and not item.idle for item in history)


@pytest.mark.parametrize("settings", [{}, {"loss": "grpo"}, {"beta": 0.1}, {"entropy": 0.01}])
def test_completions_without_an_advantage_are_read_only_for_a_kl_or_entropy_term(
    tiny_base: Path, toy: Domain, tmp_path: Path, settings: dict[str, Any]
) -> None:
    def scores(texts: Sequence[str]) -> list[float]:
        return [0.0, 1.0] + [0.5] * (len(texts) - 2)  # an exact mean of 0.5

    ends = []
    for whole in (True, False):
        read: list[int] = []

        class Watched(GroupTrainer):
            def _read(self, model: Any, ids: torch.Tensor, *rest: Any, **named: Any) -> Any:
                if torch.is_grad_enabled():
                    read.append(len(ids))  # noqa: B023
                return super()._read(model, ids, *rest, **named)

            def _without_gradient(self, rows: int) -> torch.Tensor:
                skipped = super()._without_gradient(rows)
                return torch.zeros_like(skipped) if whole else skipped  # noqa: B023

        _, history, made = train(tiny_base, toy, tmp_path / str(whole), scores, Watched, **settings)
        every = whole or "beta" in settings or "entropy" in settings
        assert read == [GROUP if every else 2] * STEPS
        assert all(item.entropy and item.entropy > 0.1 for item in history)
        ends.append(adapter(made.model))
    for name, value in ends[0].items():
        # A step is 1e-3; where a gradient is nearly 0, AdamW magnifies its rounding.
        torch.testing.assert_close(value, ends[1][name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("live_at", [0, 1])
def test_a_live_step_moves_the_weights_then_and_later_as_it_does_in_stock(
    tiny_base: Path, toy: Domain, tmp_path: Path, live_at: int
) -> None:
    """In all other steps all rewards are equal, with an exact mean."""
    ends = []
    for free in (True, False):
        calls = iter(range(STEPS))
        firsts: list[dict[str, torch.Tensor]] = []

        class Watched(GroupTrainer):
            def training_step(self, model: Any, *arguments: Any, **named: Any) -> torch.Tensor:
                firsts.append(adapter(model))  # noqa: B023
                return super().training_step(model, *arguments, **named)

            def _silence_is_free(self) -> bool:
                return free  # noqa: B023

        def scores(texts: Sequence[str]) -> list[float]:
            live = next(calls) == live_at  # noqa: B023
            return [float(place) if live else 0.5 for place in range(len(texts))]

        _, history, made = train(tiny_base, toy, tmp_path / str(free), scores, Watched)
        live = [step == live_at for step in range(STEPS)]
        assert [item.live_groups for item in history] == [int(here) for here in live]
        assert [item.idle for item in history] == [free and not here for here in live]
        firsts.append(adapter(made.model))
        moved = [not same(firsts[step], firsts[step + 1]) for step in range(STEPS)]
        assert moved == [step >= live_at for step in range(STEPS)]  # without signal as well
        ends.append(adapter(made.model))
    for name, value in ends[0].items():
        torch.testing.assert_close(value, ends[1][name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("at_reference", [True, False])
def test_a_kl_to_the_weights_it_starts_from_is_free_and_has_no_gradient(
    tiny_base: Path, toy: Domain, tmp_path: Path, at_reference: bool
) -> None:
    still, history, _ = train(
        tiny_base, toy, tmp_path, constant(0.5), beta=0.04, at_reference=at_reference
    )
    assert still  # also when the passes are made
    assert [item.idle for item in history] == [at_reference] * STEPS


def test_gradients_are_the_same_bit_for_bit_every_time(tiny_base: Path) -> None:
    """Two threads that add to the same place do so in whichever order they come."""
    loaded = load_base(tiny_base, ModelConfig(id="builtin:tiny"))
    model = add_lora(loaded, LoraSettings(), 0)
    tokens = torch.randint(4, 100, (64, 48), generator=torch.Generator().manual_seed(0))
    tokens[:, :24] = tokens[:2, :24].repeat(32, 1)  # two prompts in turn, 32 completions each
    torch.set_num_threads(2)
    try:
        seen = []
        for _ in range(4):
            logps, _ = shared_prefix_log_probabilities(
                model, loaded, tokens, torch.ones_like(tokens), 24, 1.0
            )
            model.zero_grad()
            logps.sum().backward()
            seen.append({n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad})
    finally:
        torch.set_num_threads(1)
    assert all(same(seen[0], other) for other in seen[1:])


def test_completions_drawn_again_are_read_once(tiny_base: Path) -> None:
    """A hot attack on a hardened model: most of a group is the rejection."""
    loaded = load_base(tiny_base, ModelConfig(id="builtin:tiny"))
    model = add_lora(loaded, LoraSettings(), 0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    tokens = torch.randint(4, 100, (5, 20), generator=torch.Generator().manual_seed(1))
    tokens[:, :12] = tokens[[0, 0, 0, 3, 3], :12]
    rows = tokens[[0, 1, 0, 3, 0, 2, 3, 4]]
    weights = torch.tensor([0.5, -1.0, 0.25, 2.0, -0.125, 1.0, 0.75, -0.5])
    read: list[int] = []
    handle = model.get_input_embeddings().register_forward_hook(
        lambda module, inputs, output: read.append(inputs[0].shape[0] * inputs[0].shape[1])
    )
    results = []
    for parts in ([rows], [row[None] for row in rows]):
        read.clear()
        model.zero_grad()
        passes = [
            shared_prefix_log_probabilities(model, loaded, part, torch.ones_like(part), 8, 1.5)
            for part in parts
        ]
        logps, entropies = (torch.cat(column) for column in zip(*passes, strict=True))
        (weights[:, None] * logps).sum().backward()
        gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        results.append((sum(read), logps.detach(), entropies.detach(), *gradients))
    handle.remove()
    assert results[0][0] == 2 * 12 + 5 * 7  # two prompts, five completions but for their last token
    assert results[1][0] == 8 * (12 + 7)
    for ours, theirs in zip(results[0][1:], results[1][1:], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


@given(rows=st.integers(1, 7), count=st.integers(0, 40), seed=st.integers(0, 99))
def test_rows_come_in_turn_equally_often_or_once_more(rows: int, count: int, seed: int) -> None:
    drawn = in_turn(range(rows), count, torch.Generator().manual_seed(seed))
    times = [drawn.count(row) for row in range(rows)]
    assert len(drawn) == count
    assert max(times) - min(times) <= 1


def test_rloo_compares_with_the_mean_of_the_others(
    tiny_base: Path, toy: Domain, tmp_path: Path
) -> None:
    seen: list[tuple[list[float], list[float]]] = []
    rewards: list[float] = []

    class Watched(GroupTrainer):
        def _generate_and_score_completions(self, inputs: Any) -> Any:
            output = super()._generate_and_score_completions(inputs)
            seen.append((list(rewards), output["advantages"].tolist()))
            return output

    def scores(texts: Sequence[str]) -> list[float]:
        rewards[:] = [float(len(text) % 7) + 0.25 * place for place, text in enumerate(texts)]
        return list(rewards)

    train(tiny_base, toy, tmp_path, scores, Watched, "rloo", "none", leave_one_out=True)
    assert len(seen) == STEPS
    for earned, advantages in seen:
        for place, advantage in enumerate(advantages):
            others = [reward for other, reward in enumerate(earned) if other != place]
            expected = earned[place] - sum(others) / len(others)
            assert advantage / TOKENS == pytest.approx(expected, abs=1e-4)


def gradient_norms(
    tiny_base: Path, toy: Domain, scratch: Path, loss: str, entropy: float
) -> list[torch.Tensor]:
    """The adapter after three live steps."""
    _, history, trainer = train(
        tiny_base, toy, scratch, lambda texts: [float(len(text) % 7) for text in texts], loss=loss,
        beta=0.1, entropy=entropy,
    )  # fmt: skip
    assert all(step.live_groups for step in history)
    return list(adapter(trainer.model).values())


@pytest.mark.parametrize(("loss", "entropy"), [("dapo", 0.0), ("grpo", 0.0), ("dr_grpo", 0.01)])
def test_rows_read_in_parts_train_as_all_at_once(
    tiny_base: Path,
    toy: Domain,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    loss: str,
    entropy: float,
) -> None:
    whole = gradient_norms(tiny_base, toy, tmp_path / "whole", loss, entropy)
    monkeypatch.setattr(grpo, "_MOST_SHARED_LOGITS", 0)
    monkeypatch.setattr(grpo, "_MOST_TOKENS_AT_ONCE", 60)
    read: list[int] = []
    original = GroupTrainer._read_rows

    def counted(self: Any, model: Any, ids: torch.Tensor, *rest: Any, **named: Any) -> Any:
        read.append(len(ids))
        return original(self, model, ids, *rest, **named)

    monkeypatch.setattr(GroupTrainer, "_read_rows", counted)
    parts = gradient_norms(tiny_base, toy, tmp_path / "parts", loss, entropy)
    assert max(read) < GROUP
    for one, other in zip(whole, parts, strict=True):
        torch.testing.assert_close(one, other, rtol=0.0, atol=2e-4)


def test_a_step_that_does_not_fit_is_made_in_smaller_passes(
    tiny_base: Path, toy: Domain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "_limits", {})
    whole = gradient_norms(tiny_base, toy, tmp_path / "whole", "dapo", 0.0)
    original = GroupTrainer._read_rows
    monkeypatch.setattr(grpo, "_MOST_SHARED_LOGITS", 0)

    def short_of_memory(self: Any, model: Any, ids: torch.Tensor, *rest: Any, **named: Any) -> Any:
        if len(ids) > 2:
            raise torch.OutOfMemoryError("out of memory")
        return original(self, model, ids, *rest, **named)

    monkeypatch.setattr(GroupTrainer, "_read_rows", short_of_memory)
    parts = gradient_norms(tiny_base, toy, tmp_path / "parts", "dapo", 0.0)
    assert memory.limits() == {"GRPO pass": 2}
    for one, other in zip(whole, parts, strict=True):
        torch.testing.assert_close(one, other, rtol=0.0, atol=2e-4)


def test_the_kl_of_leave_one_out_is_summed_over_a_completion_like_the_rest(
    tiny_base: Path, toy: Domain, tmp_path: Path
) -> None:
    *_, made = train(
        tiny_base, toy, tmp_path, constant(0.5), beta=0.1, loss="rloo", scale="none",
        at_reference=True, leave_one_out=True,
    )  # fmt: skip
    assert made.beta == pytest.approx(0.1 * TOKENS)
