"""Frozen linear layers on a CPU, multiplied from weights packed once by oneDNN.

PyTorch sends a float32 product on a CPU to MKL, which lays the weights out anew for every call and
has no kernels for the widest instructions of some processors. A LoRA run multiplies by the same
frozen weights thousands of times, so they are packed once here, for the product and for its
gradient. Results differ from MKL's by float32 rounding only.

Within `mixed_precision` these products, and no others, take bfloat16 factors and are added up in
float32, in less time, where the processor does that natively. It is for attacks, harmless
trainings and completions to judge. Likelihoods that are reported, and the distributions of lazy
rollouts, are computed outside of it, and the steps that train a baseline or a defence are in
`full_precision` as a whole: no model depends on whether a processor multiplies bfloat16.

Source of the operators: `torch/_inductor/mkldnn_ir.py`, which packs weights the same way.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch

_ROWS_HINT = 512
"""Rows oneDNN chooses the packed layout for; the layout turned out not to depend on it much."""
_LEAST_MIXED = 2**25
"""Parameters of a model from which mixed precision is faster than it is a burden."""
_FULL, _HALF = torch.float32, torch.bfloat16

_mixed: ContextVar[bool | None] = ContextVar("mixed", default=None)
"""Within `mixed_precision`: True; within `full_precision`: False, and it stays so."""


class PackedLinear(torch.nn.Linear):
    """A linear layer that packs its weights at first use if they are frozen float32 on a CPU."""

    mixed = False
    """Whether `mixed_precision` concerns it."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Shape (..., in) -> (..., out)."""
        if self.weight.requires_grad or not _packable(self.weight) or input.dtype != torch.float32:
            return super().forward(input)
        product: Callable[..., torch.Tensor] = _PackedProduct.apply
        return product(input, self, _HALF if self.mixed and _mixed.get() else _FULL)

    def packed(self, dtype: torch.dtype, transposed: bool) -> torch.Tensor:
        """The packed weights; packed again if they were written to in the meantime."""
        weight = self.weight.detach()
        # PEFT merges through `.data`, which leaves the version counter as it was: hence the value.
        now = weight._version, weight.data_ptr(), float(weight.view(-1)[weight.numel() // 2])
        cache: dict[tuple[torch.dtype, bool], torch.Tensor] = self.__dict__.setdefault(
            "_packed", {}
        )
        if self.__dict__.get("_packed_from") != now:
            cache.clear()
            self.__dict__["_packed_from"] = now
        if (dtype, transposed) not in cache:
            source = weight.to(dtype)
            source = source.t().contiguous() if transposed else source
            cache[dtype, transposed] = torch.ops.mkldnn._reorder_linear_weight(source, _ROWS_HINT)
        return cache[dtype, transposed]

    def __getstate__(self) -> dict[str, Any]:
        """Packed weights are opaque to copy and pickle, and made again when needed."""
        return {k: v for k, v in self.__dict__.items() if k not in ("_packed", "_packed_from")}


class _PackedProduct(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, rows: torch.Tensor, layer: PackedLinear, dtype: torch.dtype
    ) -> torch.Tensor:
        ctx.layer, ctx.dtype = layer, dtype
        return _multiply(rows, layer.packed(dtype, False), layer.bias, dtype)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        packed = ctx.layer.packed(ctx.dtype, True)
        return _multiply(gradient, packed, None, ctx.dtype), None, None


def _multiply(
    rows: torch.Tensor, packed: torch.Tensor, bias: torch.Tensor | None, dtype: torch.dtype
) -> torch.Tensor:
    result: torch.Tensor = torch.ops.mkldnn._linear_pointwise(
        rows.to(dtype).contiguous(),
        packed,
        None if bias is None else bias.to(dtype),
        "none",
        [],
        "",
    )
    return result.to(rows.dtype)


@contextmanager
def mixed_precision() -> Iterator[None]:
    """Multiply by frozen weights in bfloat16, where `pack_linear_layers` found that it pays."""
    before = _mixed.set(_mixed.get() is not False)
    try:
        yield
    finally:
        _mixed.reset(before)


@contextmanager
def full_precision() -> Iterator[None]:
    """Let no `mixed_precision` within have an effect."""
    before = _mixed.set(False)
    try:
        yield
    finally:
        _mixed.reset(before)


def pack_linear_layers(model: torch.nn.Module, *, mixed: bool) -> None:
    """Let every plain linear layer of a model pack its weights while they are frozen.

    Does nothing on a GPU, in another precision than float32 or where torch has no oneDNN.

    Args:
        model: A causal language model.
        mixed: Whether `mixed_precision` may have an effect; it has none on a small model or where
            the processor would only imitate bfloat16.
    """
    if not torch.backends.mkldnn.is_available():
        return
    large = sum(parameter.numel() for parameter in model.parameters()) >= _LEAST_MIXED
    mixed = mixed and large and _multiplies_bfloat16()
    for module in model.modules():
        if type(module) is torch.nn.Linear and _packable(module.weight):
            module.__class__ = PackedLinear
            assert isinstance(module, PackedLinear)
            module.mixed = mixed


def _multiplies_bfloat16() -> bool:
    """Whether the processor multiplies bfloat16 itself; others imitate it, slowly."""
    has = torch.cpu.get_capabilities()
    return any(has.get(instructions, False) for instructions in ("avx512_bf16", "amx_bf16"))


def _packable(weight: torch.Tensor) -> bool:
    return weight.device.type == "cpu" and weight.dtype == torch.float32
