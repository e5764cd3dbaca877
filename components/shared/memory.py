"""When memory runs out: the same work again in smaller parts, with the same result.

A batch's gradient is a sum over its examples, and each completion has random numbers of its own,
so dividing the work changes neither. What was found to fit is remembered: the next batch is alike.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from backburn.components.shared.errors import MemoryLimitError
from backburn.components.shared.scale import distributed

Item = TypeVar("Item")
Result = TypeVar("Result")

_WORDS_OF_A_CPU = ("can't allocate memory", "not enough memory")
_limits: dict[str, int] = {}


def limits() -> dict[str, int]:
    """Kind of work -> items at once that it was lowered to in this process."""
    return dict(_limits)


def in_parts_that_fit(
    kind: str,
    items: Sequence[Item],
    work: Callable[[Sequence[Item]], list[Result]],
    undo: Callable[[], None] = lambda: None,
) -> list[Result]:
    """Do work on items, at once if memory allows, else in halves, quarters and so on.

    Args:
        kind: Work of one kind has one limit, for as long as the process lives.
        items: What to work on.
        work: Called with some of them, in order; its results are joined.
        undo: Called after a part that did not fit, to take back what it had done.

    Returns:
        The results of all.

    Raises:
        MemoryLimitError: if a single item does not fit, or several processes share the work: they
            could not agree.
    """
    results: list[Result] = []
    first = 0
    while first < len(items):
        part = items[first : first + _limits.get(kind, len(items))]
        try:
            results += work(part)
        except RuntimeError as error:
            lower(kind, len(part), error)
        else:
            first += len(part)
            continue
        undo()  # outside of the handler: its traceback keeps the failed pass's tensors alive
        empty_cache()
    return results


def lower(kind: str, at_once: int, error: RuntimeError) -> None:
    """Halve the limit of a kind of work after an error, if that is what helps.

    Raises:
        RuntimeError: the error, if it has another cause.
        MemoryLimitError: see `in_parts_that_fit`.
    """
    if not _is_out_of_memory(error):
        raise error
    if at_once == 1 or distributed.processes() > 1:
        raise MemoryLimitError(
            f"{kind}: out of memory with {at_once} item(s) at once, {_free()}. Use an accelerator "
            "with more memory, or shorter prompts and completions (model.max_prompt_tokens, "
            "attack.max_completion_tokens)"
        ) from None
    _limits[kind] = most = at_once // 2
    print(f"[memory] {kind}: {at_once} at once do not fit, {most} from now", flush=True)


def gradients_of(model: Any) -> Callable[[], None]:
    """Remember a model's gradients; the result puts them back."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    before = [None if p.grad is None else p.grad.detach().clone() for p in trained]

    def put_back() -> None:
        for parameter, gradient in zip(trained, before, strict=True):
            parameter.grad = None if gradient is None else gradient.clone()

    return put_back


def empty_cache() -> None:
    """Give back what a failed pass held."""
    import torch  # not needed by steps without a model

    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _is_out_of_memory(error: RuntimeError) -> bool:
    import torch

    return isinstance(error, torch.OutOfMemoryError) or any(
        words in str(error) for words in _WORDS_OF_A_CPU
    )


def _free() -> str:
    import torch

    if not torch.cuda.is_available():
        return "in main memory"
    free, total = torch.cuda.mem_get_info()
    return f"with {free / 2**30:.1f} of {total / 2**30:.1f} GiB free"
