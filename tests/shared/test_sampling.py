"""The sampler: draws follow their weights, and batching does not change what is drawn from."""

from pathlib import Path

import pytest
import torch
from backburn.components.shared.config import ModelConfig, SamplingConfig
from backburn.components.shared.domains import Domain
from backburn.components.shared.models import load_base
from backburn.components.shared.sampling import (
    completion_logits,
    draw_completions,
    invert_cumulative,
    log_distribution,
    packs,
)
from backburn.components.shared.supervised import Batches, Example
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats


@pytest.mark.parametrize("width", [3, 256, 700])
def test_draws_follow_their_weights(width: int) -> None:
    generator = torch.Generator().manual_seed(width)
    weights = torch.rand(1, width, generator=generator) ** 4
    weights[0, ::3] = 0.0
    uniform = torch.rand(40_000, generator=generator, dtype=torch.float64)
    drawn = invert_cumulative(weights.expand(40_000, -1), uniform)
    counts = torch.bincount(drawn, minlength=width)
    assert int(counts[::3].sum()) == 0
    expected = (weights[0] / weights[0].sum() * 40_000).numpy()
    often = expected >= 5
    observed = counts.numpy()
    pooled = stats.chisquare(
        [*observed[often], observed[~often].sum() + 1e-9],
        [*expected[often], expected[~often].sum() + 1e-9],
        sum_check=False,
    )
    assert pooled.pvalue > 1e-3


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 600), st.integers(0, 10_000))
def test_the_only_index_with_weight_is_drawn(width: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    chosen = int(torch.randint(width, (1,), generator=generator))
    weights = torch.zeros(3, width)
    weights[:, chosen] = 1e-30
    uniform = torch.tensor([0.0, float(torch.rand(1, generator=generator)), 1.0 - 2.0**-53])
    assert invert_cumulative(weights, uniform.double()).tolist() == [chosen] * 3


def test_prompts_of_all_lengths_in_one_batch_read_as_alone(tiny_base: Path, toy: Domain) -> None:
    """Greedy draws: the likeliest token shows what the model read."""
    loaded = load_base(tiny_base, ModelConfig(id="builtin:tiny"))
    rows = toy.benign[:6]
    prompts = loaded.encode_rows(rows)
    prompts += [prompt + prompt for prompt in prompts[:3]]  # twice as long as the shortest
    greedy = SamplingConfig(top_k=1)
    together = draw_completions(
        loaded, prompts, greedy, max_tokens=20, generator=torch.Generator().manual_seed(0)
    )
    for prompt, completion in zip(prompts, together, strict=True):
        alone = draw_completions(
            loaded, [prompt], greedy, max_tokens=20, generator=torch.Generator().manual_seed(1)
        )
        assert alone == [completion]
        with torch.no_grad():
            logits = loaded.model(torch.tensor([[*prompt, *completion]])).logits[0]
        best = logits[len(prompt) - 1 : -1].argmax(-1)
        assert best.tolist() == completion


def test_prompts_that_differ_in_their_last_token_read_as_alone(
    tiny_base: Path, toy: Domain
) -> None:
    """As departures of one prompt do; beside them a prompt of quite another length."""
    loaded = load_base(tiny_base, ModelConfig(id="builtin:tiny"))
    short, long = loaded.encode_row(toy.benign[0]), 2 * loaded.encode_row(toy.benign[1])
    greedy = SamplingConfig(top_k=1)
    starts = [[token] for token in loaded.encode_completion("the bread oven")[:3]]

    def draw(prompts: list[list[int]], prefixes: list[list[int]]) -> list[list[int]]:
        generator = torch.Generator().manual_seed(0)
        return draw_completions(
            loaded, prompts, greedy, max_tokens=12, generator=generator, prefixes=prefixes
        )

    together = draw([short, short, short, long], [*starts, []])
    alone = [draw([short], [start])[0] for start in starts] + draw([long], [[]])
    assert together == alone


def test_distribution_is_normalised_after_truncation() -> None:
    logits = torch.randn(4, 50)
    kept = log_distribution(logits, SamplingConfig(temperature=1.5, top_k=7, top_p=0.8)).exp()
    torch.testing.assert_close(kept.sum(-1), torch.ones(4, dtype=torch.float64))
    assert int((kept > 0).sum(-1).max()) <= 7


def test_hard_examples_come_more_often() -> None:
    examples = [Example((index,), (0,)) for index in range(20)]
    batches = Batches(examples, 5, torch.Generator().manual_seed(0))
    seen: list[int] = []
    for _ in range(200):
        batch = batches.draw()
        assert len(set(batch)) == 5
        seen += [example.prompt[0] for example in batch]
        batches.learn([1.0 if example.prompt[0] == 3 else 0.1 for example in batch])
    assert set(seen) == set(range(20))
    others = [seen.count(index) for index in range(20) if index != 3]
    assert seen.count(3) > 2 * max(others)


def test_what_was_not_seen_counts_as_its_kin() -> None:
    """Ten prompts in ten styles each; those of one prompt are hard."""
    examples = [Example((index,), (0,)) for index in range(100)]
    batches = Batches(
        examples, 5, torch.Generator().manual_seed(0), [index % 10 for index in range(100)]
    )
    seen: list[int] = []
    for step in range(20):
        drawn = [example.prompt[0] for example in batches.draw()]
        batches.learn([1.0 if index % 10 == 7 else 0.01 for index in drawn])
        seen += drawn if step >= 8 else []
    assert {index for index in range(100) if index % 10 == 7} <= set(seen)
    assert sum(index % 10 == 7 for index in seen) > 40  # of 60


def test_packed_rows_read_as_alone(tiny_base: Path, toy: Domain) -> None:
    loaded = load_base(tiny_base, ModelConfig(id="builtin:tiny"))
    rows = [*toy.forbidden[:5], *toy.benign[:5]]
    prompts = loaded.encode_rows(rows)
    completions = [loaded.encode_completion("no" if i % 2 else "add salt") for i in range(10)]
    packed = completion_logits(loaded, prompts, completions)
    for prompt, completion, entry in zip(prompts, completions, packed, strict=True):
        with torch.no_grad():
            logits = loaded.model(torch.tensor([[*prompt, *completion[:-1]]])).logits[0]
        torch.testing.assert_close(entry.logits, logits[-len(completion) :], rtol=1e-4, atol=1e-4)


def test_packs_keep_order_and_length_and_an_empty_batch_has_none() -> None:
    assert packs([]) == []
    divided = packs([900, 900, 900, 5000, 10])
    assert divided == [[0, 1], [2], [3], [4]]


def test_losses_of_zero_or_less_leave_every_example_a_chance() -> None:
    batches = Batches([Example((i,), (0,)) for i in range(6)], 2, torch.Generator().manual_seed(0))
    seen = set()
    for _ in range(60):
        seen |= {example.prompt[0] for example in batches.draw()}
        batches.learn([0.0, -1e-9])
    assert seen == set(range(6))


def test_a_completion_does_not_depend_on_its_batch(tiny_base: Path, toy: Domain) -> None:
    loaded = load_base(tiny_base, ModelConfig(id="builtin:tiny"))
    prompts = loaded.encode_rows(toy.benign[:5])

    def draw(count: int) -> list[list[int]]:
        return draw_completions(
            loaded,
            prompts[:count],
            SamplingConfig(temperature=1.5),
            copies=3,
            max_tokens=16,
            generator=torch.Generator().manual_seed(4),
        )

    together = draw(5)
    assert len({tuple(tokens) for tokens in together}) > 5
    assert draw(2) == together[:6]
