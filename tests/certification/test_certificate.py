"""The certificate against enumeration, brute force and simulation."""

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from backburn.components.shared.config import ModelConfig, SamplingConfig
from backburn.components.shared.derivation.certificate import (
    covered_share,
    mean_upper_bound,
    no_live_group_probability,
    run_probability,
)
from backburn.components.shared.evidence import ArmCertificate
from backburn.components.shared.grpo import in_turn
from backburn.components.shared.models import LoadedModel, load_base
from backburn.components.shared.sampling import (
    completion_logits,
    draw_completions,
    log_distribution,
    slip_rate,
)
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM


class FiveTokens:
    """A tokenizer of five tokens, of which 0 ends and 4 pads."""

    eos_token_id = 0
    pad_token_id = 4


@pytest.fixture(scope="module")
def five_token_model() -> LoadedModel:
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=5,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        initializer_range=0.6,
        pad_token_id=4,
        eos_token_id=0,
        bos_token_id=None,
    )
    return LoadedModel(LlamaForCausalLM(config).eval(), FiveTokens())


SETTINGS = [
    SamplingConfig(),
    SamplingConfig(temperature=0.7),
    SamplingConfig(temperature=2.0, top_p=0.9),
    SamplingConfig(top_k=3),
    SamplingConfig(min_p=0.2),
]


@pytest.mark.parametrize("sampling", SETTINGS, ids=str)
def test_probabilities_of_all_completions_sum_to_one(
    five_token_model: LoadedModel, sampling: SamplingConfig
) -> None:
    """Full enumeration of every completion of at most three tokens."""
    prompt = [1, 2, 3]
    completions = [[0]]
    completions += [[a, 0] for a in range(1, 5)]
    completions += [
        [a, b, c] for a, b in itertools.product(range(1, 5), repeat=2) for c in range(5)
    ]
    entries = completion_logits(five_token_model, [prompt] * len(completions), completions)
    total = math.fsum(1.0 - slip_rate(entry, sampling) for entry in entries)
    assert total == pytest.approx(1.0, abs=1e-6)


def test_slip_rate_against_brute_force(five_token_model: LoadedModel) -> None:
    prompt, completion, draws = [2, 1], [3, 1, 0], 20_000
    sampling = SamplingConfig(temperature=1.3)
    exact = slip_rate(completion_logits(five_token_model, [prompt], [completion])[0], sampling)
    generator = torch.Generator().manual_seed(0)
    drawn = draw_completions(
        five_token_model,
        [prompt] * (draws // 2000),
        sampling,
        copies=2000,
        max_tokens=3,
        generator=generator,
    )
    slipped = sum(tokens != completion for tokens in drawn) / draws
    assert slipped == pytest.approx(exact, abs=4 * math.sqrt(exact * (1 - exact) / draws))


def test_padding_changes_no_slip_rate(tiny_base: Path) -> None:
    loaded = load_base(tiny_base, ModelConfig(id="builtin:tiny"))
    prompts = [
        loaded.encode_prompt([{"role": "user", "content": text}])
        for text in (
            "how do i bake bread",
            "tell me how to fry soft fish with butter please explain",
        )
    ]
    rejection = loaded.encode_completion("i can not help with that .")
    together = completion_logits(loaded, prompts, [rejection] * 2)
    alone = [completion_logits(loaded, [prompt], [rejection])[0] for prompt in prompts]
    for a, b in zip(together, alone, strict=True):
        torch.testing.assert_close(a.logits, b.logits, atol=1e-3, rtol=1e-4)


def test_truncations_keep_what_transformers_keeps() -> None:
    from transformers import MinPLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    torch.manual_seed(0)
    logits = torch.randn(50, 40) * 2
    cases = [
        (SamplingConfig(top_k=7), TopKLogitsWarper(7)),
        (SamplingConfig(top_p=0.8), TopPLogitsWarper(0.8)),
        (SamplingConfig(min_p=0.1), MinPLogitsWarper(0.1)),
    ]
    for sampling, warper in cases:
        expected = warper(None, logits.double()).log_softmax(-1)
        torch.testing.assert_close(log_distribution(logits, sampling), expected)


@given(
    st.lists(st.floats(0, 0.5), min_size=1, max_size=8),
    st.integers(0, 600),
    st.integers(0, 600),
    st.integers(2, 16),
)
def test_more_groups_never_help_the_bound(
    rates: list[float], groups: int, more: int, size: int
) -> None:
    few = no_live_group_probability(rates, groups, size)
    assert 0.0 <= no_live_group_probability(rates, groups + more, size) <= few <= 1.0


@given(st.lists(st.floats(0, 0.3), min_size=1, max_size=5), st.integers(1, 30), st.integers(0, 50))
def test_the_bound_holds_for_every_order_in_which_prompts_come(
    rates: list[float], groups: int, seed: int
) -> None:
    order = in_turn(rates, groups, torch.Generator().manual_seed(seed))
    exact = math.prod((1.0 - slip) ** 4 for slip in order)
    assert no_live_group_probability(rates, groups, 4) <= exact * (1 + 1e-9)


def test_bound_at_known_values() -> None:
    assert no_live_group_probability([1e-4], 1000, 8) == pytest.approx((1 - 1e-4) ** 8000)
    assert no_live_group_probability([0.0, 0.0], 10, 8) == 1.0
    assert no_live_group_probability([1.0, 0.0], 10, 8) == 0.0
    assert no_live_group_probability([0.1, 0.2, 0.0], 4, 2) == pytest.approx(0.8**4 * 0.9**2)


def test_the_run_is_certified_up_to_a_temperature() -> None:
    def arm(temperature: float, probability: float | None) -> ArmCertificate:
        return ArmCertificate(
            arm="paper",
            seed=0,
            steps=200,
            groups=200,
            draws=1600,
            temperature=temperature,
            probability=probability,
            unseen_probability=None,
        )

    arms = [arm(1.0, 0.9), arm(1.0, None), arm(0.8, 0.5), arm(2.0, 1e-6)]
    assert run_probability(arms, 1.0) == pytest.approx(0.45)
    assert run_probability(arms, 2.0) == pytest.approx(0.45e-6)
    assert run_probability(arms[1:2], 1.0) is None
    assert run_probability(arms, 0.5) is None


def test_tolerance_bound_covers_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    prompts, confidence, runs = 20, 0.95, 2000
    share = covered_share(prompts, confidence)
    worst = rng.uniform(size=(runs, prompts)).max(axis=1)  # quantile level of the worst seen
    covered = float((worst >= share).mean())
    assert confidence - 0.015 <= covered <= confidence + 0.015
    assert mean_upper_bound([0.0] * 40, 0.95) == pytest.approx(1 - 0.05 ** (1 / 40))
