"""Supervised losses of the baseline and the defence, on a model with an adapter in training."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from backburn.components.shared.config import SamplingConfig
from backburn.components.shared.domains import PromptRow
from backburn.components.shared.models import LoadedModel
from backburn.components.shared.sampling import draw_completions, pad_left, read_sequences

ANSWER_SAMPLING = SamplingConfig(temperature=0.7)
"""How benign answers are drawn: a little cooler than the attack, as a deployed model would be."""

KEPT_TOKENS = 32
"""Length of the benign answers trained on. With 12, a model drifts in the tokens after them."""

_MOST_PADDING = 1.25
_MOST_TOKENS = 4096


@dataclass(frozen=True)
class Example:
    """A prompt and the completion to be learnt or kept, as token ids."""

    prompt: tuple[int, ...]
    completion: tuple[int, ...]


class Batches:
    """Endless batches of examples: a fresh seeded shuffle each time round."""

    def __init__(self, examples: Sequence[Example], size: int, generator: torch.Generator) -> None:
        self._examples = list(examples)
        self._size = min(size, len(self._examples))
        self._generator = generator
        self._order: list[int] = []

    def __iter__(self) -> Iterator[list[Example]]:
        return self

    def __next__(self) -> list[Example]:
        while len(self._order) < self._size:
            self._order += torch.randperm(len(self._examples), generator=self._generator).tolist()
        chosen, self._order = self._order[: self._size], self._order[self._size :]
        return [self._examples[index] for index in chosen]


def own_answers(
    loaded: LoadedModel, rows: Sequence[PromptRow], max_tokens: int, seed: int
) -> list[Example]:
    """The model's own answers to benign prompts, which training must not change."""
    prompts = [loaded.encode_row(row) for row in rows]
    answers = draw_completions(
        loaded,
        prompts,
        ANSWER_SAMPLING,
        max_tokens=max_tokens,
        generator=torch.Generator().manual_seed(seed),
    )
    return [Example(tuple(p), tuple(a)) for p, a in zip(prompts, answers, strict=True)]


def rejection_step(
    model: Any, loaded: LoadedModel, batch: Sequence[Example], temper: float = 1.0
) -> float:
    """Add the gradient of the cross-entropy of the completions on logits / temper; return the loss.

    With temper > 1 the loss of a token at probability p is that of a flatter distribution, so its
    gradient does not vanish as p approaches 1: it keeps widening the logit margin. Mean over
    tokens.
    """

    def loss(chunk: list[Example]) -> torch.Tensor:
        logits, labels = _completion_logits(model, loaded, chunk)
        return torch.nn.functional.cross_entropy(logits / temper, labels)

    return _backward(loss, batch)


class References:
    """What the model without its adapter says of benign answers; computed once an example.

    Keeps `tokens * vocabulary` float32 values an example in main memory.
    """

    def __init__(self, model: Any, loaded: LoadedModel) -> None:
        self._model = model
        self._loaded = loaded
        self._known: dict[Example, torch.Tensor] = {}

    def log_probabilities(self, batch: Sequence[Example]) -> torch.Tensor:
        """Log-probabilities at the answers' tokens; shape (tokens of the batch, vocabulary)."""
        fresh = [example for example in dict.fromkeys(batch) if example not in self._known]
        if fresh:
            was_training = self._model.training
            self._model.eval()
            with torch.no_grad(), self._model.disable_adapter():
                logits, _ = _completion_logits(self._model, self._loaded, fresh)
            self._model.train(was_training)
            lengths = [len(example.completion) for example in fresh]
            parts = logits.log_softmax(-1).cpu().split(lengths)
            self._known.update(zip(fresh, parts, strict=True))
        return torch.cat([self._known[example] for example in batch]).to(self._loaded.device)


def benign_step(
    model: Any,
    loaded: LoadedModel,
    batch: Sequence[Example],
    references: References,
    weight: float = 1.0,
) -> float:
    """Add the gradient of weight * KL(reference || model) per token on the reference's answers.

    The reference is the model with its adapter disabled. Returns the KL, without its weight.
    """

    def loss(chunk: list[Example]) -> torch.Tensor:
        logits, _ = _completion_logits(model, loaded, chunk)
        return weight * torch.nn.functional.kl_div(
            logits.log_softmax(-1),
            references.log_probabilities(chunk),
            log_target=True,
            reduction="batchmean",
        )

    return _backward(loss, batch) / weight if weight > 0 and batch else 0.0


def adapter_optimizer(model: Any, learning_rate: float) -> torch.optim.AdamW:
    """AdamW on what is trained."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return torch.optim.AdamW(trained, lr=learning_rate, weight_decay=0.0)


def _backward(loss: Callable[[list[Example]], torch.Tensor], batch: Sequence[Example]) -> float:
    """Backward pass of a token-mean loss in chunks of like length: no work for padding."""
    total = sum(len(example.completion) for example in batch)
    value = 0.0
    for chunk in _chunks(batch):
        part = loss(chunk) * (sum(len(example.completion) for example in chunk) / total)
        part.backward()
        value += float(part.detach())
    return value


def _chunks(batch: Sequence[Example]) -> Iterator[list[Example]]:
    def length(example: Example) -> int:
        return len(example.prompt) + len(example.completion)

    chunk: list[Example] = []
    for example in sorted(batch, key=length):
        if chunk and (
            length(example) > _MOST_PADDING * length(chunk[0])
            or length(example) * (len(chunk) + 1) > _MOST_TOKENS
        ):
            yield chunk
            chunk = []
        chunk.append(example)
    if chunk:
        yield chunk


def _completion_logits(
    model: Any, loaded: LoadedModel, batch: Sequence[Example]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and labels of all completion tokens of a batch: (tokens, vocabulary) and (tokens,)."""
    output, _ = read_sequences(
        model,
        loaded,
        [[*e.prompt, *e.completion[:-1]] for e in batch],
        kept=[len(e.completion) for e in batch],
    )
    labels, inside = pad_left([e.completion for e in batch], loaded.pad_id)
    chosen = inside.bool().to(loaded.device)
    return output.logits[chosen].float(), labels.to(loaded.device)[chosen]
