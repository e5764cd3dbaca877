"""What the processes of one step tell each other; with one process, nothing happens here.

Every process runs the whole step with the same seeds, so all take the same decisions. Only what is
expensive is divided: each does its part of the forward and backward passes, and the parts come
together here. No process decides by a number that the others do not have bit for bit. What is
trained is replicated; frozen weights are too, unless `sharding` divides them.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import torch

_LAUNCHER_VARIABLES = (
    "RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE",
    "ROLE_RANK", "ROLE_WORLD_SIZE",
)  # fmt: skip
_TIMEOUT = timedelta(days=1)
"""Torchrun ends the others when a process dies; one that waits for a slow judge is no failure."""
Item = TypeVar("Item")

_rank, _local_rank, _processes, _processes_here = 0, 0, 1, 1


def join() -> None:
    """Become one of torchrun's processes, as its variables say; call before anything uses a GPU.

    The process sees one accelerator, the one of its local rank, and the variables are taken out
    of the environment: transformers, TRL and accelerate would divide the work a second time.
    """
    global _rank, _local_rank, _processes, _processes_here
    if "RANK" not in os.environ:
        return
    _rank, _local_rank = int(os.environ["RANK"]), int(os.environ["LOCAL_RANK"])
    _processes = int(os.environ["WORLD_SIZE"])
    _processes_here = int(os.environ["LOCAL_WORLD_SIZE"])
    every = ",".join(map(str, range(_processes_here)))
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", every).split(",")
    if _local_rank < len(visible):
        os.environ["CUDA_VISIBLE_DEVICES"] = visible[_local_rank]
    if _processes == _processes_here:  # nothing need listen on a network
        for library in ("GLOO", "NCCL"):
            os.environ.setdefault(f"{library}_SOCKET_IFNAME", "lo")
    import torch

    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    torch.distributed.init_process_group(backend, timeout=_TIMEOUT)
    for name in _LAUNCHER_VARIABLES:
        os.environ.pop(name, None)


def processes() -> int:
    """Processes of the step, on all machines."""
    return _processes


def processes_here() -> int:
    """Those that share this machine."""
    return _processes_here


def is_primary() -> bool:
    """Whether this is the process that writes: files, MLflow, progress."""
    return _rank == 0


@contextmanager
def first_on_machine() -> Iterator[None]:
    """Let a machine's first process fill a cache before the others look into it."""
    if _processes > 1 and _local_rank > 0:
        _barrier()
    yield
    if _processes > 1 and _local_rank == 0:
        _barrier()


def from_primary(make: Callable[[], Item]) -> Item:
    """What the primary process makes, in every process; the others make nothing."""
    if _processes == 1:
        return make()
    import torch

    box: list[Any] = [make() if _rank == 0 else None]
    torch.distributed.broadcast_object_list(box, src=0)
    made: Item = box[0]
    return made


def own(items: Sequence[Item]) -> Sequence[Item]:
    """This process's part of a list: every n-th, so that sorted lengths are shared out evenly."""
    return items[_rank::_processes]


def gathered(values: Sequence[Item]) -> list[Item]:
    """One value an item, in the items' order, from the values of each process's `own` items."""
    if _processes == 1:
        return list(values)
    import torch

    parts: list[Any] = [None] * _processes
    torch.distributed.all_gather_object(parts, list(values))
    merged: list[Any] = [None] * sum(map(len, parts))
    for rank, part in enumerate(parts):
        merged[rank::_processes] = part
    return merged


def own_rows(count: int) -> range:
    """This process's part of a tensor's rows, which lie side by side."""
    return range(_rank * count // _processes, (_rank + 1) * count // _processes)


def joined_rows(values: "torch.Tensor", count: int) -> "torch.Tensor":
    """The rows of all processes, of which this process's carry their gradient.

    Args:
        values: Of the rows `own_rows(count)`; a process that has none gives any one row.
        count: Rows of all processes.

    Returns:
        Shape (count, ...), the same numbers in every process.
    """
    if _processes == 1:
        return values
    import torch

    rows = own_rows(count)
    whole = values.new_zeros(count, *values.shape[1:])
    whole[rows.start : rows.stop] = values.detach()[: len(rows)]
    torch.distributed.all_reduce(whole)
    if not rows:
        return whole + 0.0 * values.sum()  # a backward pass needs something to start from
    return torch.cat([whole[: rows.start], values, whole[rows.stop :]])


def sum_gradients(parameters: Iterable["torch.nn.Parameter"]) -> None:
    """Give every process the sum of all processes' gradients."""
    if _processes == 1:
        return
    import torch

    trained = list(parameters)
    for parameter in trained:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    flat = torch.cat([p.grad.reshape(-1) for p in trained if p.grad is not None])
    torch.distributed.all_reduce(flat)
    for parameter, part in zip(trained, flat.split([p.numel() for p in trained]), strict=True):
        assert parameter.grad is not None
        parameter.grad.copy_(part.view_as(parameter))


def _barrier() -> None:
    gathered([None])
