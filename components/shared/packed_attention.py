"""Attention over sequences laid end to end in one row, at the cost of each sequence's own.

A mask over the whole row makes attention cost the square of all tokens, nearly all of it for pairs
that the mask then hides. Here a row's queries are laid out by sequence for the time of the product,
and see what all sequences begin with and their own sequence only.

Source of the hook: "Attention interface" in the documentation of transformers.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

_NAME = "backburn_packed"
_REPLACED = "sdpa"
_LIKE_LENGTH = 1.5


@dataclass(frozen=True)
class Block:
    """Sequences of like length.

    Attributes:
        columns: Shape (sequences * longest): column of each token in the row; that of some other
            token where a sequence is shorter than the longest.
        visible: Shape (sequences, 1, longest, shared + longest): what a token sees.
    """

    columns: torch.Tensor
    visible: torch.Tensor


@dataclass(frozen=True)
class PackedLayout:
    """Where sequences lie in a row of tokens.

    Attributes:
        shared: Tokens at the row's start that all sequences begin with.
        blocks: The sequences, shortest first.
        places: Shape (tokens - shared): place of each column after `shared` in what the blocks
            hold, one after the other.
    """

    shared: int
    blocks: tuple[Block, ...]
    places: torch.Tensor

    @classmethod
    def of(cls, shared: int, lengths: Sequence[int], device: Any) -> "PackedLayout":
        """Lay out sequences.

        Args:
            shared: Tokens that all begin with.
            lengths: Tokens of each sequence after those, in the order of the row.
            device: Of the tensors.
        """
        starts = [shared + before for before in accumulate(lengths, initial=0)]
        blocks: list[Block] = []
        place_of: dict[int, int] = {}  # of a sequence's first token
        held = 0
        for chosen in of_like_length(lengths, _LIKE_LENGTH):
            longest = max(lengths[i] for i in chosen)
            place_of |= {i: held + row * longest for row, i in enumerate(chosen)}
            held += len(chosen) * longest
            columns = [starts[i] + min(n, lengths[i] - 1) for i in chosen for n in range(longest)]
            # A sequence's own columns come first, so what lies beyond its end is never seen.
            triangle = torch.ones(longest, longest, dtype=torch.bool).tril()
            beginning = torch.ones(longest, shared, dtype=torch.bool)
            visible = torch.cat([beginning, triangle], dim=1).expand(len(chosen), 1, -1, -1)
            blocks.append(Block(torch.tensor(columns, device=device), visible.to(device)))
        places = [place_of[i] + n for i, length in enumerate(lengths) for n in range(length)]
        return cls(shared, tuple(blocks), torch.tensor(places, device=device))


def of_like_length(lengths: Sequence[int], most: float) -> list[list[int]]:
    """Places of sequences in groups, so that short ones are not padded to long ones.

    Args:
        lengths: Of the sequences.
        most: Length of a group's longest, at most, over that of its shortest.

    Returns:
        The groups, shortest sequences first; like ones in their order.
    """
    groups: list[list[int]] = []
    for place in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        if not groups or lengths[place] > most * lengths[groups[-1][0]]:
            groups.append([])
        groups[-1].append(place)
    return groups


_layout: ContextVar[PackedLayout | None] = ContextVar("layout", default=None)


@contextmanager
def packed_attention(network: Any, layout: PackedLayout) -> Iterator[bool]:
    """Let a model's attention read a row as the sequences that it holds.

    Args:
        network: A causal language model, perhaps within PEFT.
        layout: Of the row that the model is going to read.

    Yields:
        Whether it will. If not, the caller has to pass a mask: the model's attention is none that
        can be replaced, or its blocks are computed again in the backward pass, after this.
    """
    config = network.config
    again = torch.is_grad_enabled() and network.is_activation_checkpointing
    if config._attn_implementation != _REPLACED or again:
        yield False
        return
    before = _layout.set(layout)
    config._attn_implementation = _NAME
    try:
        yield True
    finally:
        config._attn_implementation = _REPLACED
        _layout.reset(before)


def _attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Shapes (1, heads, tokens, width) -> (1, tokens, heads, width)."""
    layout = _layout.get()
    assert layout is not None
    assert attention_mask is None
    beginning = [part[:, :, : layout.shared] for part in (query, key, value)]
    read = []
    if layout.shared:
        read.append(sdpa_attention_forward(module, *beginning, None, **options)[0][0])
    own = []
    for block in layout.blocks:
        count = len(block.visible)
        queries, keys, values = (
            _by_sequence(part, block.columns, count) for part in (query, key, value)
        )
        keys, values = (
            torch.cat([part.expand(count, -1, -1, -1), rows], dim=2)
            for part, rows in zip(beginning[1:], (keys, values), strict=True)
        )
        rows = sdpa_attention_forward(module, queries, keys, values, block.visible, **options)[0]
        own.append(rows.flatten(0, 1))
    read.append(torch.cat(own).index_select(0, layout.places))
    return torch.cat(read)[None], None


def _by_sequence(row: torch.Tensor, columns: torch.Tensor, count: int) -> torch.Tensor:
    """Shape (1, heads, tokens, width) -> (sequences, heads, longest, width)."""
    heads, width = row.shape[1], row.shape[3]
    tokens = row[0].transpose(0, 1).flatten(1).index_select(0, columns)
    return tokens.view(count, -1, heads, width).transpose(1, 2)


AttentionInterface.register(_NAME, _attend)
