"""A frozen model's weights divided over a step's processes, by FSDP2.

Each process holds its part of every weight. A block's weights are gathered when the block is run,
forward or backward, and let go after it; activations of a block in training are computed again for
its backward pass. A LoRA, which comes later, is no part of this and stays whole everywhere.

Gathering is a joint act: all processes make equally many passes through the model, in the same
order, or wait for each other for ever. Passes with a gradient come in equal numbers, because each
process makes one for every batch, if need be in vain. All other passes are made `in_step`.

FSDP2 takes seconds to import, so it is imported only where weights are divided.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from backburn.components.shared.errors import InputError
from backburn.components.shared.scale import distributed


def shard(
    model: Any, device: str, prepare: Callable[[torch.nn.Module], None] = lambda block: None
) -> None:
    """Divide a model's weights in place; a device holds its part and one whole block at a time.

    Args:
        model: A frozen transformers model in main memory, the same in every process.
        device: Kind of device that gets the parts.
        prepare: Called with each block on its device, then with the model, before it is divided.

    Raises:
        InputError: if the model does not say what its blocks are.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    names = set(model._no_split_modules or ())
    blocks = [module for module in model.modules() if type(module).__name__ in names]
    if not blocks:
        raise InputError(
            f"compute.sharding: {type(model).__name__} does not name its blocks, so its weights "
            "cannot be divided; set compute.sharding to none"
        )
    mesh = init_device_mesh(device, (distributed.processes(),))
    for block in blocks:
        prepare(block.to(device))
        fully_shard(block, mesh=mesh, reshard_after_forward=True)
    prepare(model)
    fully_shard(model, mesh=mesh, reshard_after_forward=True)
    model.activation_checkpointing_enable()


def is_sharded(model: Any) -> bool:
    """Whether a model, or the one below its adapter, went through `shard`."""
    return _root(model) is not None


def own_part(weight: torch.Tensor) -> torch.Tensor:
    """What this process holds of a weight: all of it, unless it went through `shard`."""
    if distributed.processes() == 1:
        return weight
    from torch.distributed.tensor import DTensor

    return weight.to_local() if isinstance(weight, DTensor) else weight


@contextmanager
def in_step(model: Any) -> Iterator[None]:
    """Let each process make as many passes without gradient as it likes.

    Before each of them all agree that somebody makes one; a process that is done reads one token in
    vain until nobody does. All processes have to come here. With whole weights nothing happens.
    """
    root = _root(model)
    if root is None:
        yield
        return

    def announce(*_: Any) -> None:
        _somebody_reads(True)

    handle = root.register_forward_pre_hook(announce, prepend=True)  # before weights are gathered
    try:
        yield
    finally:
        handle.remove()
    token = torch.zeros(1, 1, dtype=torch.long, device=next(root.parameters()).device)
    with torch.no_grad():
        while _somebody_reads(False):
            root(input_ids=token, use_cache=False)


def _somebody_reads(reads: bool) -> bool:
    flag = torch.tensor(int(reads))
    torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MAX)
    return bool(flag)


def _root(model: Any) -> Any:
    if distributed.processes() == 1:
        return None
    from torch.distributed.fsdp import FSDPModule

    return next((module for module in model.modules() if isinstance(module, FSDPModule)), None)
