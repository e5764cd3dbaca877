"""Sequences in one row are read as they would be with a mask over the whole row, and as alone."""

from pathlib import Path

import pytest
import torch
from backburn.components.shared.config import LoraSettings, ModelConfig
from backburn.components.shared.models import LoadedModel, add_lora, load_base
from backburn.components.shared.packed_attention import PackedLayout, packed_attention
from backburn.components.shared.sampling import read_packed

LENGTHS = (3, 9, 1, 6)


@pytest.fixture
def loaded(tiny_base: Path) -> LoadedModel:
    return load_base(tiny_base, ModelConfig(id="builtin:tiny"))


def sequences(shared: int) -> list[list[int]]:
    """Different from the first token after the shared ones on."""
    generator = torch.Generator().manual_seed(shared)
    beginning = torch.randint(6, 90, (shared,), generator=generator).tolist()
    return [
        [*beginning, 10 + place, *torch.randint(6, 90, (length,), generator=generator).tolist()]
        for place, length in enumerate(LENGTHS)
    ]


@pytest.mark.parametrize("shared", [0, 12])
@pytest.mark.parametrize("chosen", [None, [1], [0, 3]])
def test_logits_and_gradients_are_those_of_a_mask(
    loaded: LoadedModel, shared: int, chosen: list[int] | None
) -> None:
    model = add_lora(loaded, LoraSettings(rank=4, alpha=8), 0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    results = []
    for implementation in ("sdpa", "eager"):
        loaded.model.set_attn_implementation(implementation)
        model.zero_grad()
        logits = read_packed(model, loaded, sequences(shared), kept=[2, 4, 1, 3], chosen=chosen)
        logits.square().mean().backward()
        gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        results.append((logits.detach(), *gradients))
    kept = [2, 4, 1, 3]
    assert len(results[0][0]) == sum(kept[place] for place in (chosen or range(4)))
    assert len(results[0]) > 10
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


def test_blocks_that_are_computed_again_have_the_same_gradients(loaded: LoadedModel) -> None:
    """They are when a step's processes divide the weights."""
    model = add_lora(loaded, LoraSettings(rank=4, alpha=8), 0).train()
    results = []
    for again in (False, True):
        if again:
            loaded.model.activation_checkpointing_enable()
        model.zero_grad()
        read_packed(model, loaded, sequences(12), kept=[2, 4, 1, 3]).square().mean().backward()
        results.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert len(results[0]) > 10
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


def test_a_sequence_reads_the_same_beside_others_as_alone(loaded: LoadedModel) -> None:
    together = read_packed(loaded.model, loaded, sequences(12), kept=[1] * 4)
    for sequence, beside in zip(sequences(12), together, strict=True):
        alone = loaded.model(input_ids=torch.tensor([sequence])).logits[0, -1]
        torch.testing.assert_close(beside, alone, rtol=1e-4, atol=1e-3)


def test_attention_is_as_before_afterwards_also_after_an_error(loaded: LoadedModel) -> None:
    ids = torch.arange(8, 20)[None]
    before = loaded.model(input_ids=ids).logits

    def fail() -> None:
        with packed_attention(loaded.model, PackedLayout.of(0, [12], "cpu")) as replaced:
            assert replaced
            raise ValueError("in between")

    with pytest.raises(ValueError, match="in between"):
        fail()
    assert loaded.model.config._attn_implementation == "sdpa"
    torch.testing.assert_close(loaded.model(input_ids=ids).logits, before)


def test_another_attention_is_left_alone(loaded: LoadedModel) -> None:
    loaded.model.set_attn_implementation("eager")
    with packed_attention(loaded.model, PackedLayout.of(0, [12], "cpu")) as replaced:
        assert not replaced
        assert loaded.model.config._attn_implementation == "eager"
