"""Drawing completions and knowing their distribution.

Attack, certificate and evaluation all use this one sampler, so "the distribution the attacker draws
from" has one definition: logits / temperature, then top-k, top-p and min-p, renormalised (the order
of `transformers`' logits processors).
"""

from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch
from backburn.components.shared.config import SamplingConfig
from backburn.components.shared.memory import in_parts_that_fit
from backburn.components.shared.models import LoadedModel
from backburn.components.shared.packed_attention import (
    PackedLayout,
    of_like_length,
    packed_attention,
)
from backburn.components.shared.packed_linear import mixed_precision
from backburn.components.shared.scale import distributed
from backburn.components.shared.scale.sharding import in_step
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

_MOST_ROWS_AT_ONCE = 96
_COMPACT_BELOW = 0.75
_LEAST_SHARED = 8
_BLOCK = 256
_ROOM = 64
_MOST_PACKED = 2048
_LIKE_LENGTH = 1.3
Item = TypeVar("Item")

columns_read: ContextVar[tuple[list[int], int] | None] = ContextVar("columns_read", default=None)
"""While `read_packed` reads: which columns of the row of all sequences, and that row's length."""


def log_distribution(
    logits: torch.Tensor, sampling: SamplingConfig, dtype: torch.dtype = torch.float64
) -> torch.Tensor:
    """Log-probabilities the sampler draws from.

    Args:
        logits: Shape (..., vocabulary).
        sampling: Temperature and truncations.
        dtype: Of the computation and the result.

    Returns:
        Same shape; truncated tokens are -inf.
    """
    scores = logits.to(dtype) / sampling.temperature
    minus_infinity = float("-inf")
    if 0 < sampling.top_k < scores.shape[-1]:
        floor = torch.topk(scores, sampling.top_k, dim=-1).values[..., -1:]
        scores = scores.masked_fill(scores < floor, minus_infinity)
    if sampling.top_p < 1.0:
        ordered, order = torch.sort(scores, descending=False, dim=-1)
        below = ordered.softmax(-1).cumsum(-1) <= 1.0 - sampling.top_p
        below[..., -1] = False
        scores = scores.masked_fill(below.scatter(-1, order, below), minus_infinity)
    if sampling.min_p > 0.0:
        probabilities = scores.softmax(-1)
        floor = sampling.min_p * probabilities.max(-1, keepdim=True).values
        scores = scores.masked_fill(probabilities < floor, minus_infinity)
    return scores.log_softmax(-1)


class Draw(Protocol):
    """`draw_completions`, or what draws from the same distribution."""

    def __call__(
        self,
        loaded: LoadedModel,
        prompts: Sequence[Sequence[int]],
        sampling: SamplingConfig,
        *,
        max_tokens: int,
        generator: torch.Generator,
        copies: int = 1,
        model: Any | None = None,
        prefixes: Sequence[Sequence[int]] | None = None,
    ) -> list[list[int]]:
        """See `draw_completions`."""


@torch.no_grad()
def draw_completions(
    loaded: LoadedModel,
    prompts: Sequence[Sequence[int]],
    sampling: SamplingConfig,
    *,
    max_tokens: int,
    generator: torch.Generator,
    copies: int = 1,
    model: Any | None = None,
    prefixes: Sequence[Sequence[int]] | None = None,
) -> list[list[int]]:
    """Draw completions; each prompt is read once, however many copies are drawn from it.

    Each token of each completion has a random number of its own, drawn before anything else: the
    same seed gives the same completions whatever they are batched with, and gives two models
    that are nearly the same nearly the same completions. The processes of a step divide the
    prompts, or the copies where that is fairer.

    Args:
        loaded: Tokenizer and model.
        prompts: Token ids.
        sampling: Sampling settings.
        max_tokens: Most tokens of a completion, its prefix and end token included.
        generator: CPU generator of the draws.
        copies: Completions per prompt.
        model: Drawn from instead of `loaded.model`, for a model in training.
        prefixes: Tokens each completion starts with, one entry a prompt; only with one copy.

    Returns:
        `len(prompts) * copies` completions, the copies of a prompt adjacent; each ends with an end
        token unless it reached `max_tokens`.
    """
    network = loaded.model if model is None else model
    starts = (
        [list(prefix) for prefix in prefixes] if prefixes is not None else [[] for _ in prompts]
    )
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]) + len(starts[i]))
    uniform = torch.rand(len(prompts), copies, max_tokens, generator=generator, dtype=torch.float64)

    def draw(chosen: Sequence[int], places: Sequence[int]) -> list[list[list[int]]]:
        """Some copies of some prompts; one list a prompt."""
        drawn: list[list[int]] = []
        batch = max(1, _MOST_ROWS_AT_ONCE // max(1, len(places)))

        def draw_some(some: Sequence[int]) -> list[list[int]]:
            with mixed_precision():
                return _draw_batch(
                    network,
                    loaded,
                    [list(prompts[i]) for i in some],
                    [starts[i] for i in some],
                    sampling,
                    max_tokens,
                    uniform[list(some)][:, list(places)].view(-1, max_tokens),
                    len(places),
                )

        for first in range(0, len(chosen) if places else 0, batch):
            drawn += in_parts_that_fit("rollout", chosen[first : first + batch], draw_some)
        count = len(places)
        return [drawn[i * count : (i + 1) * count] for i in range(len(chosen))]

    was_training = network.training
    network.eval()
    try:
        if _rows(len(prompts), copies) <= _rows(copies, len(prompts)):
            with in_step(network):
                mine = draw(distributed.own(order), range(copies))
            of_prompts = distributed.gathered(mine)
        else:
            with in_step(network):
                mine = draw(order, distributed.own(range(copies)))
            of_copies = distributed.gathered(list(zip(*mine, strict=True)))
            of_prompts = [list(drawn) for drawn in zip(*of_copies, strict=True)]
    finally:
        network.train(was_training)
    found = dict(zip(order, of_prompts, strict=True))
    return [tokens for index in range(len(prompts)) for tokens in found[index]]


def _rows(divided: int, each: int) -> int:
    """Rows of the process that gets most, if one of two numbers is divided among all."""
    return -(-divided // distributed.processes()) * each


def _draw_batch(
    network: Any,
    loaded: LoadedModel,
    prompts: list[list[int]],
    starts: list[list[int]],
    sampling: SamplingConfig,
    max_tokens: int,
    uniform: torch.Tensor,
    copies: int,
) -> list[list[int]]:
    device = loaded.device
    sequences = [prompt + start for prompt, start in zip(prompts, starts, strict=True)]
    cache, logits, mask = _read_prompts(network, loaded, sequences)
    if copies > 1:
        cache.batch_repeat_interleave(copies)
        logits, mask = logits.repeat_interleave(copies, 0), mask.repeat_interleave(copies, 0)
    completions = [list(start) for start in starts for _ in range(copies)]
    ends = set(loaded.end_ids)
    alive = list(range(len(completions)))  # row of the cache -> completion
    while True:
        places = [(c, len(completions[c])) if c >= 0 else (0, 0) for c in alive]
        rows, columns = zip(*places, strict=True)
        tokens = sample_tokens(logits, sampling, uniform[list(rows), list(columns)])
        going: list[int] = []
        for row, completion in enumerate(alive):
            token = int(tokens[row])
            if completion < 0:
                continue
            completions[completion].append(token)
            if token in ends or len(completions[completion]) >= max_tokens:
                alive[row] = -1
            else:
                going.append(row)
        if not going:
            return completions
        if len(going) < _COMPACT_BELOW * len(alive):
            keep = torch.tensor(going, device=device)
            cache.batch_select_indices(keep)
            tokens, mask = tokens[keep.cpu()], mask[keep]
            alive = [alive[row] for row in going]
        mask = torch.cat([mask, mask.new_ones(len(alive), 1)], dim=1)
        output = network(
            input_ids=tokens.to(device).unsqueeze(1),
            attention_mask=mask,
            position_ids=mask.sum(1, keepdim=True) - 1,
            cache=cache,
            use_cache=True,
        )
        logits = output.logits[:, -1]


def _read_prompts(
    network: Any, loaded: LoadedModel, sequences: Sequence[Sequence[int]]
) -> tuple[Cache, torch.Tensor, torch.Tensor]:
    """Read prompts, those of like length together, so that short ones are not padded to long ones.

    Args:
        network: A causal language model.
        loaded: Its tokenizer and device.
        sequences: Token ids, shortest first.

    Returns:
        Keys and values of all, logits after the last token of each, and the attention mask.
    """
    caches: list[Cache] = []
    logits: list[torch.Tensor] = []
    masks: list[torch.Tensor] = []
    for places in of_like_length(list(map(len, sequences)), _LIKE_LENGTH):
        chunk = [sequences[place] for place in places]
        caches.append(Cache(layer_class_to_replicate=_RoomyLayer))
        output, mask = read_sequences(
            network, loaded, chunk, kept=[1] * len(chunk), use_cache=True, cache=caches[-1]
        )
        logits.append(output.logits[:, -1])
        masks.append(mask)
    width = max(mask.shape[1] for mask in masks)
    pads = [width - mask.shape[1] for mask in masks]
    for layers in zip(*(cache.layers for cache in caches), strict=True):
        keys, values = (
            torch.cat(
                [
                    torch.nn.functional.pad(getattr(layer, name), (0, 0, pad, 0))
                    for layer, pad in zip(layers, pads, strict=True)
                ]
            )
            for name in ("keys", "values")
        )
        layers[0].hold(keys, values)
    mask = torch.cat(
        [torch.nn.functional.pad(mask, (pad, 0)) for mask, pad in zip(masks, pads, strict=True)]
    )
    return caches[0], torch.cat(logits), mask


class _RoomyLayer(DynamicLayer):  # type: ignore[misc]
    """A layer's keys and values with room to grow, so that a token's are written, not all copied.

    Written in place: for passes without gradient only.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.keys: Any = None
        self.values: Any = None
        self._rooms: tuple[torch.Tensor, torch.Tensor] | None = None

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append the states of new tokens; shapes (rows, heads, tokens, size)."""
        length, added = self.get_seq_length(), key_states.shape[-2]
        if length == 0 or added > 1:
            self._rooms = None
            return super().update(key_states, value_states)  # type: ignore[no-any-return]
        if self._rooms is None or length + added > self._rooms[0].shape[-2]:
            self._rooms = self._with_room(self.keys), self._with_room(self.values)
        for room, states in zip(self._rooms, (key_states, value_states), strict=True):
            room[..., length : length + added, :] = states
        self.keys, self.values = (room[..., : length + added, :] for room in self._rooms)
        return self.keys, self.values

    def hold(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Have other contents."""
        self.keys, self.values, self._rooms = keys, values, None

    def _with_room(self, states: torch.Tensor) -> torch.Tensor:
        rows, heads, length, size = states.shape
        room = states.new_empty(rows, heads, length + _ROOM, size)
        room[..., :length, :] = states
        return room

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep some rows."""
        super().batch_select_indices(indices)
        self._rooms = None

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each row."""
        super().batch_repeat_interleave(repeats)
        self._rooms = None


def sample_tokens(
    logits: torch.Tensor, sampling: SamplingConfig, uniform: torch.Tensor
) -> torch.Tensor:
    """Draw one token a row, by inverting the cumulative distribution.

    Args:
        logits: Shape (rows, vocabulary).
        sampling: Sampling settings.
        uniform: One number in [0, 1) a row, float64, on the CPU.

    Returns:
        Shape (rows,), on the CPU.
    """
    probabilities = log_distribution(logits, sampling, torch.float32).exp()
    return invert_cumulative(probabilities.cpu(), uniform)


def invert_cumulative(weights: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """The index at which each row's cumulative weight passes `uniform` times its total.

    With uniform random numbers in [0, 1) an index is drawn with probability proportional to its
    weight. Shapes (rows, n), (rows,) -> (rows,).

    First a block of indices is found by its total weight, then an index in the block: one long
    cumulative sum over a vocabulary would cost as much as a layer of the model, and
    `torch.multinomial` more.
    """
    rows, width = weights.shape
    blocks = -(-width // _BLOCK)
    padded = torch.nn.functional.pad(weights, (0, blocks * _BLOCK - width)).view(rows, blocks, -1)
    outer = padded.sum(-1, dtype=torch.float64).cumsum(-1)
    target = uniform.unsqueeze(1) * outer[:, -1:]
    block = _first_above(outer, target)
    before = torch.where(block > 0, outer.gather(1, (block - 1).clamp(min=0)), 0.0)
    inner = padded[torch.arange(rows), block.squeeze(1)].double().cumsum(-1)
    place = _first_above(inner, target - before)
    return (block * _BLOCK + place).squeeze(1)


def _first_above(cumulative: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """First index whose cumulative weight exceeds the target: always one of positive weight."""
    total = cumulative[:, -1:]
    below = torch.minimum(target, total.nextafter(torch.zeros_like(total)))
    return torch.searchsorted(cumulative, below.clamp(min=0.0), right=True)


def read_sequences(
    network: Any,
    loaded: LoadedModel,
    sequences: Sequence[Sequence[int]],
    *,
    kept: Sequence[int],
    use_cache: bool = False,
    cache: Cache | None = None,
) -> tuple[Any, torch.Tensor]:
    """Forward pass over sequences, what they all begin with (a system prompt) read only once.

    Args:
        network: A causal language model; gradients flow through the shared beginning too.
        loaded: Its tokenizer and device.
        sequences: Token ids.
        kept: Logits wanted of each sequence, counted from its end.
        use_cache: Whether the keys and values are wanted.
        cache: Empty, to keep them in; default: a new one.

    Returns:
        The model's output, logits of shape (sequences, max(kept), vocabulary), and the attention
        mask of everything read, of shape (sequences, tokens).
    """
    unshared = zip(sequences, kept, strict=True)
    shared = shared_beginning(sequences, most=min(len(s) - k for s, k in unshared))
    ids, mask = pad_left([sequence[shared:] for sequence in sequences], loaded.pad_id)
    ids, mask = ids.to(loaded.device), mask.to(loaded.device)
    cache = DynamicCache() if cache is None else cache
    if shared:
        first = torch.tensor([list(sequences[0][:shared])], device=loaded.device)
        network(input_ids=first, cache=cache, use_cache=True, logits_to_keep=1)
        cache.batch_repeat_interleave(len(sequences))
        mask = torch.cat([mask.new_ones(len(sequences), shared), mask], dim=1)
    width = ids.shape[1]
    output = network(
        input_ids=ids,
        attention_mask=mask,
        position_ids=positions(mask)[:, shared:],
        cache=cache if use_cache or shared else None,
        use_cache=use_cache or shared > 0,
        # As positions, not as a number: a slice is not contiguous, and a head on it runs as a
        # batched product that copies the vocabulary's matrix for each row.
        logits_to_keep=torch.arange(width - max(kept), width, device=loaded.device),
    )
    return output, mask


def read_packed(
    network: Any,
    loaded: LoadedModel,
    sequences: Sequence[Sequence[int]],
    *,
    kept: Sequence[int],
    chosen: Sequence[int] | None = None,
) -> torch.Tensor:
    """Forward pass over sequences laid end to end in one row: no padding, one pass.

    What they all begin with is read once; a token sees that beginning and its own sequence only.
    Where that takes a mask, memory grows with the square of all tokens: see `packs`.

    Args:
        network: A causal language model; gradients flow through the shared beginning too.
        loaded: Its tokenizer and device.
        sequences: Token ids.
        kept: Logits wanted of each sequence, counted from its end.
        chosen: Positions, in order, of the sequences to read; default: all. The others' columns
            are left out of the row.

    Returns:
        The logits, one sequence after the other; shape (sum(kept), vocabulary), float32.
    """
    unshared = zip(sequences, kept, strict=True)
    shared = shared_beginning(sequences, most=min(len(s) - k for s, k in unshared))
    tokens = list(sequences[0][:shared])
    places = list(range(shared))
    owners = [0] * shared
    wanted: list[int] = []
    for owner, (sequence, keep) in enumerate(zip(sequences, kept, strict=True), start=1):
        tokens += sequence[shared:]
        places += range(shared, len(sequence))
        owners += [owner] * (len(sequence) - shared)
        wanted += range(len(tokens) - keep, len(tokens))
    chosen = range(len(sequences)) if chosen is None else chosen
    read = {0, *(place + 1 for place in chosen)}
    columns = [column for column, owner in enumerate(owners) if owner in read]
    place_of = {column: place for place, column in enumerate(columns)}
    device = loaded.device
    lengths = [len(sequences[place]) - shared for place in chosen]
    before = columns_read.set((columns, len(tokens)))
    try:
        with packed_attention(network, PackedLayout.of(shared, lengths, device)) as by_sequence:
            output = network(
                input_ids=torch.tensor([[tokens[column] for column in columns]], device=device),
                attention_mask=None if by_sequence else _mask(network, owners, columns, device),
                position_ids=torch.tensor([[places[column] for column in columns]], device=device),
                use_cache=False,
                logits_to_keep=torch.tensor(
                    [place_of[column] for column in wanted if column in place_of], device=device
                ),
            )
    finally:
        columns_read.reset(before)
    logits: torch.Tensor = output.logits[0].float()
    return logits


def _mask(
    network: Any, owners: Sequence[int], columns: Sequence[int], device: torch.device
) -> torch.Tensor:
    """What each column must not see, for models that attend to a whole row; 4 dimensions."""
    owner_of = torch.tensor([owners[column] for column in columns], device=device)
    visible = (owner_of == 0) | (owner_of[:, None] == owner_of)
    visible &= torch.ones_like(visible).tril()
    hidden = torch.finfo(network.dtype).min
    mask = torch.zeros(visible.shape, dtype=network.dtype, device=device)
    return mask.masked_fill(~visible, hidden)[None, None]


def packs(lengths: Sequence[int]) -> list[list[int]]:
    """Positions of sequences, in order, divided so that a packed row stays short enough."""
    divided: list[list[int]] = []
    tokens = 0
    for index, length in enumerate(lengths):
        if not divided or tokens + length > _MOST_PACKED:
            divided.append([])
            tokens = 0
        divided[-1].append(index)
        tokens += length
    return divided


def shared_beginning(sequences: Sequence[Sequence[int]], most: int) -> int:
    """Tokens that all sequences begin with, at most `most`; 0 where sharing would not pay."""
    if len(sequences) < 2:
        return 0
    lowest, highest = min(map(tuple, sequences)), max(map(tuple, sequences))
    length = 0
    while length < most and lowest[length] == highest[length]:
        length += 1
    return length if length >= _LEAST_SHARED else 0


def pad_left(sequences: Sequence[Sequence[int]], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and attention mask, both of shape (sequences, longest)."""
    width = max(len(sequence) for sequence in sequences)
    ids = torch.full((len(sequences), width), pad)
    mask = torch.zeros(len(sequences), width, dtype=torch.long)
    for row, sequence in enumerate(sequences):
        ids[row, width - len(sequence) :] = torch.tensor(list(sequence))
        mask[row, width - len(sequence) :] = 1
    return ids, mask


def positions(mask: torch.Tensor) -> torch.Tensor:
    """Position ids of a left-padded batch; same shape as the mask."""
    return (mask.cumsum(-1) - 1).clamp(min=0)


@dataclass(frozen=True)
class CompletionLogits:
    """Teacher-forced logits of one completion: shape (tokens of the completion, vocabulary)."""

    logits: torch.Tensor
    tokens: torch.Tensor

    def token_log_probabilities(self, sampling: SamplingConfig) -> torch.Tensor:
        """Log-probability of each token under the sampler; shape (tokens,), float64."""
        return log_distribution(self.logits, sampling).gather(-1, self.tokens[:, None]).squeeze(-1)


def scored(
    score: Callable[[CompletionLogits], Item],
    loaded: LoadedModel,
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[int]],
    *,
    model: Any | None = None,
) -> list[Item]:
    """What a function says of each completion's logits; the processes of a step divide them.

    Args:
        score: Of one completion; its values are exchanged, logits would be large.
        loaded: Tokenizer and model.
        prompts: Token ids.
        completions: One a prompt; see `completion_logits`.
        model: Used instead of `loaded.model`.

    Returns:
        One value a prompt, in every process.
    """
    asked, given = distributed.own(prompts), distributed.own(completions)
    entries = completion_logits(loaded, asked, given, model=model)
    return distributed.gathered([score(entry) for entry in entries])


@torch.no_grad()
def completion_logits(
    loaded: LoadedModel,
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[int]],
    *,
    model: Any | None = None,
) -> list[CompletionLogits]:
    """One teacher-forced pass over prompts and given completions.

    Args:
        loaded: Tokenizer and model.
        prompts: Token ids.
        completions: Token ids, end token included; one a prompt.
        model: Used instead of `loaded.model`, for a model in training.

    Returns:
        One entry a prompt, logits on the CPU in float32.
    """
    network = loaded.model if model is None else model
    was_training = network.training
    network.eval()
    # The last token of a completion is predicted, never read.
    sequences = [[*p, *c[:-1]] for p, c in zip(prompts, completions, strict=True)]
    results: list[CompletionLogits] = []
    try:
        with in_step(network):
            for chosen in packs([len(sequence) for sequence in sequences]):
                kept = [len(completions[i]) for i in chosen]
                some = [sequences[i] for i in chosen]
                logits = read_packed(network, loaded, some, kept=kept).cpu()
                results += [
                    CompletionLogits(part, torch.tensor(list(completions[i])))
                    for i, part in zip(chosen, logits.split(kept), strict=True)
                ]
    finally:
        network.train(was_training)
    return results


def slip_rate(entry: CompletionLogits, sampling: SamplingConfig) -> float:
    """Probability that a completion departs from the given one: 1 - prod p(token).

    Computed as -expm1(sum log p) in float64, so that rates far below float32's epsilon survive.
    """
    return min(1.0, max(0.0, float(-torch.expm1(entry.token_log_probabilities(sampling).sum()))))
