"""Packed layers give what ordinary ones give, in mixed precision nearly so, and notice a merge."""

import copy

import pytest
import torch
from backburn.components.shared import packed_linear
from backburn.components.shared.packed_linear import (
    PackedLinear,
    full_precision,
    mixed_precision,
    pack_linear_layers,
)


def packed(bias: bool) -> tuple[torch.nn.Linear, torch.nn.Linear]:
    torch.manual_seed(0)
    ordinary = torch.nn.Linear(40, 56, bias=bias).requires_grad_(False)
    model = torch.nn.Sequential(copy.deepcopy(ordinary))
    pack_linear_layers(model, mixed=False)
    layer = model[0]
    assert isinstance(layer, PackedLinear)
    return ordinary, layer


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(1, 40), (7, 40), (3, 5, 40)])
def test_product_and_gradient_are_those_of_an_ordinary_layer(
    bias: bool, shape: tuple[int, ...]
) -> None:
    ordinary, layer = packed(bias)
    rows = torch.randn(shape)
    results = []
    for module in (ordinary, layer):
        given = rows.clone().requires_grad_(True)
        result = module(given)
        (result**2).sum().backward()
        results.append((result.detach(), given.grad))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-4)


def test_a_merge_through_data_is_noticed() -> None:
    ordinary, layer = packed(bias=False)
    rows = torch.randn(4, 40)
    layer(rows)
    for module in (ordinary, layer):
        module.weight.data += 1.0
    torch.testing.assert_close(layer(rows), ordinary(rows), rtol=1e-5, atol=1e-4)


def test_weights_in_training_are_not_packed() -> None:
    _, layer = packed(bias=False)
    layer.requires_grad_(True)
    layer(torch.randn(4, 40)).sum().backward()
    assert layer.weight.grad is not None
    assert "_packed" not in layer.__dict__


def test_a_used_layer_can_be_copied() -> None:
    _, layer = packed(bias=True)
    rows = torch.randn(2, 40)
    torch.testing.assert_close(copy.deepcopy(layer)(rows), layer(rows))


def in_bfloat16(layer: PackedLinear) -> PackedLinear:
    layer.mixed = True
    return layer


ONEDNN_HAS_BFLOAT16 = torch.ops.mkldnn._is_mkldnn_bf16_supported()
"""Whether oneDNN multiplies bfloat16 here, be it by imitation; it refuses to without AVX-512."""


@pytest.mark.parametrize("bias", [False, True])
def test_mixed_precision_multiplies_bfloat16_and_gives_back_float32(bias: bool) -> None:
    ordinary, layer = packed(bias)
    rows = torch.randn(7, 40).requires_grad_(True)
    expected = ordinary(rows.detach())
    if not ONEDNN_HAS_BFLOAT16:
        # What matters on such a processor: no model is ever sent there.
        assert not packed_linear._multiplies_bfloat16()
        with mixed_precision():
            torch.testing.assert_close(layer(rows), expected, rtol=1e-5, atol=1e-4)
        return
    with mixed_precision():
        result = in_bfloat16(layer)(rows)
    result.sum().backward()  # outside, as a training step calls it
    assert result.dtype == torch.float32
    assert rows.grad is not None
    assert rows.grad.dtype == torch.float32
    assert 1e-4 < float((result - expected).detach().abs().max()) < 0.05
    slope = ordinary.weight.sum(0).expand(7, -1)
    torch.testing.assert_close(rows.grad, slope, rtol=0.02, atol=0.02)
    torch.testing.assert_close(layer(rows), expected, rtol=1e-5, atol=1e-4)


def test_what_is_marked_as_exact_stays_float32() -> None:
    ordinary, layer = packed(bias=True)
    rows = torch.randn(3, 40)
    with full_precision(), mixed_precision():
        result = in_bfloat16(layer)(rows)
    torch.testing.assert_close(result, ordinary(rows), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    ("least", "mixed", "native", "reduced"),
    [(1, True, True, True), (10**6, True, True, False), (1, False, True, False),
     (1, True, False, False)],
)  # fmt: skip
def test_only_large_models_on_processors_with_bfloat16_are_concerned(
    least: int, mixed: bool, native: bool, reduced: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packed_linear, "_LEAST_MIXED", least)
    monkeypatch.setattr(packed_linear, "_multiplies_bfloat16", lambda: native)
    model = torch.nn.Sequential(torch.nn.Linear(40, 56).requires_grad_(False))
    pack_linear_layers(model, mixed=mixed)
    layer = model[0]
    assert isinstance(layer, PackedLinear)
    assert layer.mixed is reduced
    if reduced and not ONEDNN_HAS_BFLOAT16:
        return
    rows = torch.randn(3, 40)
    with mixed_precision():
        within = model(rows)
    assert bool((within != model(rows)).any()) is reduced
