"""Drawing completions and knowing their distribution.

Attack, certificate and evaluation all use this one sampler, so "the distribution the attacker draws
from" has one definition: logits / temperature, then top-k, top-p and min-p, renormalised (the order
of `transformers`' logits processors).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from backburn.components.shared.config import SamplingConfig
from backburn.components.shared.models import LoadedModel

_MOST_ROWS_AT_ONCE = 48
_COMPACT_BELOW = 0.75
_LEAST_SHARED = 8


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
    batch = max(1, _MOST_ROWS_AT_ONCE // copies)
    results: list[list[int]] = [[] for _ in range(len(prompts) * copies)]
    was_training = network.training
    network.eval()
    try:
        for first in range(0, len(order), batch):
            chosen = order[first : first + batch]
            drawn = _draw_batch(
                network,
                loaded,
                [list(prompts[i]) for i in chosen],
                [starts[i] for i in chosen],
                sampling,
                max_tokens,
                generator,
                copies,
            )
            for position, index in enumerate(chosen):
                results[index * copies : (index + 1) * copies] = drawn[
                    position * copies : (position + 1) * copies
                ]
    finally:
        network.train(was_training)
    return results


def _draw_batch(
    network: Any,
    loaded: LoadedModel,
    prompts: list[list[int]],
    starts: list[list[int]],
    sampling: SamplingConfig,
    max_tokens: int,
    generator: torch.Generator,
    copies: int,
) -> list[list[int]]:
    device = loaded.device
    output, mask = read_sequences(
        network,
        loaded,
        [prompt + start for prompt, start in zip(prompts, starts, strict=True)],
        kept=[1] * len(prompts),
        use_cache=True,
    )
    cache, logits = output.past_key_values, output.logits[:, -1]
    if copies > 1:
        cache.batch_repeat_interleave(copies)
        logits, mask = logits.repeat_interleave(copies, 0), mask.repeat_interleave(copies, 0)
    completions = [list(start) for start in starts for _ in range(copies)]
    ends = set(loaded.end_ids)
    alive = list(range(len(completions)))  # row of the cache -> completion
    while True:
        tokens = sample_tokens(logits, sampling, generator)
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
            past_key_values=cache,
            use_cache=True,
        )
        cache, logits = output.past_key_values, output.logits[:, -1]


def sample_tokens(
    logits: torch.Tensor, sampling: SamplingConfig, generator: torch.Generator
) -> torch.Tensor:
    """Draw one token a row, by inverting the cumulative distribution.

    Args:
        logits: Shape (rows, vocabulary).
        sampling: Sampling settings.
        generator: CPU generator.

    Returns:
        Shape (rows,), on the CPU.
    """
    probabilities = log_distribution(logits, sampling, torch.float32).exp()
    return invert_cumulative(probabilities.cpu(), generator)


def invert_cumulative(weights: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Draw an index a row with probability proportional to its weight; shapes (rows, n) -> (rows,).

    Fifty times faster than `torch.multinomial` on a CPU with a large vocabulary.
    """
    cumulative = weights.double().cumsum(-1)
    uniform = torch.rand(len(weights), 1, generator=generator, dtype=torch.float64)
    drawn = torch.searchsorted(cumulative, uniform * cumulative[:, -1:], right=True).squeeze(1)
    return drawn.clamp(max=weights.shape[-1] - 1)


def read_sequences(
    network: Any,
    loaded: LoadedModel,
    sequences: Sequence[Sequence[int]],
    *,
    kept: Sequence[int],
    use_cache: bool = False,
) -> tuple[Any, torch.Tensor]:
    """Forward pass over sequences, what they all begin with (a system prompt) read only once.

    Args:
        network: A causal language model; gradients flow through the shared beginning too.
        loaded: Its tokenizer and device.
        sequences: Token ids.
        kept: Logits wanted of each sequence, counted from its end.
        use_cache: Whether the keys and values are wanted.

    Returns:
        The model's output, logits of shape (sequences, max(kept), vocabulary), and the attention
        mask of everything read, of shape (sequences, tokens).
    """
    unshared = zip(sequences, kept, strict=True)
    shared = shared_beginning(sequences, most=min(len(s) - k for s, k in unshared))
    ids, mask = pad_left([sequence[shared:] for sequence in sequences], loaded.pad_id)
    ids, mask = ids.to(loaded.device), mask.to(loaded.device)
    cache = None
    if shared:
        first = torch.tensor([list(sequences[0][:shared])], device=loaded.device)
        cache = network(input_ids=first, use_cache=True, logits_to_keep=1).past_key_values
        cache.batch_repeat_interleave(len(sequences))
        mask = torch.cat([mask.new_ones(len(sequences), shared), mask], dim=1)
    width = ids.shape[1]
    output = network(
        input_ids=ids,
        attention_mask=mask,
        position_ids=positions(mask)[:, shared:],
        past_key_values=cache,
        use_cache=use_cache or shared > 0,
        # As positions, not as a number: a slice is not contiguous, and a head on it runs as a
        # batched product that copies the vocabulary's matrix for each row.
        logits_to_keep=torch.arange(width - max(kept), width, device=loaded.device),
    )
    return output, mask


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


@torch.no_grad()
def completion_logits(
    loaded: LoadedModel,
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[int]],
    *,
    model: Any | None = None,
    batch_size: int = 16,
) -> list[CompletionLogits]:
    """One teacher-forced pass over prompts and given completions.

    Args:
        loaded: Tokenizer and model.
        prompts: Token ids.
        completions: Token ids, end token included; one a prompt.
        model: Used instead of `loaded.model`, for a model in training.
        batch_size: Sequences per pass.

    Returns:
        One entry a prompt, logits on the CPU in float32.
    """
    network = loaded.model if model is None else model
    was_training = network.training
    network.eval()
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]) + len(completions[i]))
    results: dict[int, CompletionLogits] = {}
    try:
        for first in range(0, len(order), batch_size):
            chosen = order[first : first + batch_size]
            # The last token of a completion is predicted, never read.
            output, _ = read_sequences(
                network,
                loaded,
                [[*prompts[i], *completions[i][:-1]] for i in chosen],
                kept=[len(completions[i]) for i in chosen],
            )
            logits = output.logits.float().cpu()
            for row, index in enumerate(chosen):
                length = len(completions[index])
                results[index] = CompletionLogits(
                    logits[row, -length:], torch.tensor(list(completions[index]))
                )
    finally:
        network.train(was_training)
    return [results[index] for index in range(len(prompts))]


def slip_rate(entry: CompletionLogits, sampling: SamplingConfig) -> float:
    """Probability that a completion departs from the given one: 1 - prod p(token).

    Computed as -expm1(sum log p) in float64, so that rates far below float32's epsilon survive.
    """
    return float(-torch.expm1(entry.token_log_probabilities(sampling).sum()))
