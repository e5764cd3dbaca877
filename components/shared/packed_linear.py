"""Frozen linear layers on a CPU, multiplied from weights packed once by oneDNN.

PyTorch sends a float32 product on a CPU to MKL, which lays the weights out anew for every call and
has no kernels for the widest instructions of some processors. A LoRA run multiplies by the same
frozen weights thousands of times, so they are packed once here, for the product and for its
gradient. Results differ from MKL's by float32 rounding only.

Source of the operators: `torch/_inductor/mkldnn_ir.py`, which packs weights the same way.
"""

from collections.abc import Callable
from typing import Any

import torch

_ROWS_HINT = 512
"""Rows oneDNN chooses the packed layout for; the layout turned out not to depend on it much."""


class PackedLinear(torch.nn.Linear):
    """A linear layer that packs its weights at first use if they are frozen float32 on a CPU."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Shape (..., in) -> (..., out)."""
        if self.weight.requires_grad or not _packable(self.weight) or input.dtype != torch.float32:
            return super().forward(input)
        product: Callable[..., torch.Tensor] = _PackedProduct.apply
        return product(input, self)

    def packed(self, transposed: bool) -> torch.Tensor:
        """The packed weights; packed again if they were written to in the meantime."""
        weight = self.weight.detach()
        # PEFT merges through `.data`, which leaves the version counter as it was: hence the value.
        now = weight._version, weight.data_ptr(), float(weight.view(-1)[weight.numel() // 2])
        cache: dict[bool, torch.Tensor] = self.__dict__.setdefault("_packed", {})
        if self.__dict__.get("_packed_from") != now:
            cache.clear()
            self.__dict__["_packed_from"] = now
        if transposed not in cache:
            source = weight.t().contiguous() if transposed else weight
            cache[transposed] = torch.ops.mkldnn._reorder_linear_weight(source, _ROWS_HINT)
        return cache[transposed]

    def __getstate__(self) -> dict[str, Any]:
        """Packed weights are opaque to copy and pickle, and made again when needed."""
        return {k: v for k, v in self.__dict__.items() if k not in ("_packed", "_packed_from")}


class _PackedProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, layer: PackedLinear) -> torch.Tensor:
        ctx.layer = layer
        return _multiply(rows, layer.packed(False), layer.bias)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return _multiply(gradient, ctx.layer.packed(True), None), None


def _multiply(rows: torch.Tensor, packed: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    result: torch.Tensor = torch.ops.mkldnn._linear_pointwise(
        rows.contiguous(), packed, bias, "none", [], ""
    )
    return result


def pack_linear_layers(model: torch.nn.Module) -> None:
    """Let every plain linear layer of a model pack its weights while they are frozen.

    Does nothing on a GPU, in another precision than float32 or where torch has no oneDNN.
    """
    if not torch.backends.mkldnn.is_available():
        return
    for module in model.modules():
        if type(module) is torch.nn.Linear and _packable(module.weight):
            module.__class__ = PackedLinear


def _packable(weight: torch.Tensor) -> bool:
    return weight.device.type == "cpu" and weight.dtype == torch.float32
