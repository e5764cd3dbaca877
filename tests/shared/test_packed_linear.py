"""Packed layers give what ordinary ones give, forward and backward, and notice a merge."""

import copy

import pytest
import torch
from backburn.components.shared.packed_linear import PackedLinear, pack_linear_layers


def packed(bias: bool) -> tuple[torch.nn.Linear, torch.nn.Linear]:
    torch.manual_seed(0)
    ordinary = torch.nn.Linear(40, 56, bias=bias).requires_grad_(False)
    model = torch.nn.Sequential(copy.deepcopy(ordinary))
    pack_linear_layers(model)
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
