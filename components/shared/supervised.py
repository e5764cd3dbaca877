"""Supervised losses of the baseline and the defence, on a model with an adapter in training."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from backburn.components.shared.config import SamplingConfig
from backburn.components.shared.errors import TrainingDivergedError
from backburn.components.shared.memory import gradients_of, in_parts_that_fit
from backburn.components.shared.models import LoadedModel
from backburn.components.shared.packed_linear import mixed_precision
from backburn.components.shared.sampling import (
    columns_read,
    draw_completions,
    packs,
    read_packed,
)
from backburn.components.shared.scale import distributed
from backburn.components.shared.scale.sharding import in_step

ANSWER_SAMPLING = SamplingConfig(temperature=0.7)
"""How benign answers are drawn: a little cooler than the attack, as a deployed model would be."""

KEPT_TOKENS = 32
"""Length of the benign answers trained on. With 12, a model drifts in the tokens after them."""

BEGINNING = 8
_WHOLE_SHARE = 0.5
_LEAST_PRIORITY = 0.02
_LEAST_HARDEST = 1e-6
_BETAS = (0.9, 0.95)
"""A shorter memory of squared gradients than the default: these runs take tens of steps."""


@dataclass(frozen=True)
class Example:
    """A prompt and the completion to be learnt or kept, as token ids."""

    prompt: tuple[int, ...]
    completion: tuple[int, ...]


class Batches:
    """Endless batches of examples, those with the largest loss when last seen more often.

    A batch is drawn without repetition, an example with probability proportional to its loss when
    it was last in a batch. Before that it counts as its kin do on average, or, if none of them was
    in a batch, as the hardest of all.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        size: int,
        generator: torch.Generator,
        kin: Sequence[int] | None = None,
    ) -> None:
        """Prepare.

        Args:
            examples: What to draw from.
            size: Examples a batch; at most all.
            generator: CPU generator of the draws.
            kin: A number for each example, the same for those that ask the same thing; default:
                no two do.
        """
        self._examples = list(examples)
        self._kin = list(range(len(self._examples)) if kin is None else kin)
        self._size = min(size, len(self._examples))
        self._generator = generator
        self._losses: dict[int, float] = {}
        self._drawn: list[int] = []

    def draw(self) -> list[Example]:
        """The next batch."""
        if self._size == 0:
            return []
        # Losses of an untrained adapter are 0 up to rounding, which may be negative.
        hardest = max(_LEAST_HARDEST, max(self._losses.values(), default=1.0))
        floor = _LEAST_PRIORITY * hardest
        of_kin: dict[int, list[float]] = {}
        for index, loss in self._losses.items():
            of_kin.setdefault(self._kin[index], []).append(loss)
        expected = {kin: sum(losses) / len(losses) for kin, losses in of_kin.items()}
        weights = torch.tensor(
            [
                max(self._losses.get(index, expected.get(kin, 2.0 * hardest)), floor)
                for index, kin in enumerate(self._kin)
            ]
        )
        # Exponential races: the `size` smallest of Exp(1) / weight are a draw without repetition.
        arrivals = -torch.rand(len(weights), generator=self._generator).log() / weights
        self._drawn = arrivals.argsort()[: self._size].tolist()
        return [self._examples[index] for index in self._drawn]

    def sample(self, size: int) -> list[Example]:
        """Some examples, all equally likely; nothing is learnt of them."""
        chosen = torch.randint(len(self._examples), (size,), generator=self._generator)
        return [self._examples[index] for index in chosen.tolist()]

    def learn(self, losses: Sequence[float]) -> None:
        """Remember the losses of the batch drawn last, in its order."""
        self._losses.update(zip(self._drawn, losses, strict=True))

    def state_dict(self) -> dict[int, float]:
        """Place of an example -> its loss when last seen."""
        return dict(self._losses)

    def load_state_dict(self, losses: dict[int, float]) -> None:
        """Go on from `state_dict`."""
        self._losses = dict(losses)


def own_answers(
    loaded: LoadedModel, prompts: Sequence[list[int]], max_tokens: int, seed: int
) -> list[Example]:
    """The model's own answers to benign prompts, which training must not change."""
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
) -> list[float]:
    """Add the gradient of the cross-entropy of the completions on logits / temper.

    With temper > 1 the loss of a token at probability p is that of a flatter distribution, so its
    gradient does not vanish as p approaches 1: it keeps widening the logit margin. The loss is a
    mean over all tokens of the batch.

    Returns:
        The mean over tokens, for each example.
    """

    def losses(chunk: list[Example], own: list[int]) -> torch.Tensor:
        logits = _completion_logits(model, loaded, chunk, own)
        labels = [token for place in own for token in chunk[place].completion]
        return torch.nn.functional.cross_entropy(
            logits / temper, torch.tensor(labels, device=logits.device), reduction="none"
        )

    return _backward(model, losses, batch)


class References:
    """What the model without its adapter says of benign answers; computed once a prompt.

    Keeps `tokens * vocabulary` float32 values an answer in main memory.
    """

    def __init__(self, model: Any, loaded: LoadedModel, answers: Sequence[Example]) -> None:
        """Prepare for some answers, of different prompts.

        Args:
            model: The PeftModel in training.
            loaded: Its tokenizer and device.
            answers: Whole answers; batches may hold their beginnings.
        """
        self._model = model
        self._loaded = loaded
        self._answers = {example.prompt: example for example in answers}
        self._known: dict[tuple[int, ...], torch.Tensor] = {}
        self._read: list[list[tuple[int, ...]]] = []

    def log_probabilities(self, batch: Sequence[Example]) -> torch.Tensor:
        """Log-probabilities at the answers' tokens; shape (tokens of the batch, vocabulary).

        Sharded processes call this together, each with a batch of its own, which may be empty.
        """
        fresh = [
            prompt for prompt in dict.fromkeys(e.prompt for e in batch) if prompt not in self._known
        ]
        with in_step(self._model):
            if fresh:
                self._compute(fresh)
        rows = [self._known[e.prompt][: len(e.completion)] for e in batch]
        return torch.cat(rows or [torch.empty(0)]).to(self._loaded.device)

    def _compute(self, prompts: list[tuple[int, ...]]) -> None:
        """Read some answers in one pass."""
        whole = [self._answers[prompt] for prompt in prompts]
        was_training = self._model.training
        self._model.eval()
        with torch.no_grad(), self._model.disable_adapter():
            logits = _completion_logits(self._model, self._loaded, whole)
        self._model.train(was_training)
        parts = logits.log_softmax(-1).cpu().split([len(e.completion) for e in whole])
        self._known.update(zip(prompts, parts, strict=True))
        self._read.append(prompts)

    def state_dict(self) -> list[list[int]]:
        """Places of the answers known so far, by the pass that read them.

        What a pass computes differs in its last bits with what else it reads.
        """
        place = {prompt: index for index, prompt in enumerate(self._answers)}
        return [[place[prompt] for prompt in prompts] for prompts in self._read]

    def load_state_dict(self, passes: list[list[int]]) -> None:
        """Read again what `state_dict` says was known, in the same passes."""
        prompts = list(self._answers)
        self._known.clear()
        self._read.clear()
        for places in passes:
            self._compute([prompts[place] for place in places])


def shorten(batch: Sequence[Example], generator: torch.Generator) -> list[Example]:
    """Half of the answers cut to their beginning, where a model decides whether to answer at all.

    The others stay whole: without them the model drifts in what it says after the beginning.
    """
    whole = torch.rand(len(batch), generator=generator) < _WHOLE_SHARE
    return [
        e if keep else Example(e.prompt, e.completion[:BEGINNING])
        for e, keep in zip(batch, whole.tolist(), strict=True)
    ]


def benign_step(
    model: Any,
    loaded: LoadedModel,
    batch: Sequence[Example],
    references: References,
    weight: float = 1.0,
) -> list[float]:
    """Add the gradient of weight * KL(reference || model), a mean over the answers' tokens.

    The reference is the model with its adapter disabled.

    Returns:
        The KL per token of each example, without the weight.
    """

    def losses(chunk: list[Example], own: list[int]) -> torch.Tensor:
        reference = references.log_probabilities([chunk[place] for place in own])
        logits = _completion_logits(model, loaded, chunk, own)
        return torch.nn.functional.kl_div(
            logits.log_softmax(-1),
            reference,
            log_target=True,
            reduction="none",
        ).sum(-1)

    return _backward(model, losses, batch, weight)


@contextmanager
def noisy_embeddings(model: Any, amount: float, seed: int) -> Iterator[None]:
    """Shake what is read while a gradient is computed, so that less is learnt by heart.

    Adds uniform noise to token embeddings, as NEFTune does (Jain et al. 2023, arXiv 2310.05914),
    but of a size relative to the embeddings' own spread. Passes without gradient, as those that
    compute references, see the text as it is.

    Args:
        model: A causal language model.
        amount: Standard deviation of the noise over that of the embedding matrix; 0: none.
        seed: Of the noise.
    """
    if amount == 0.0:
        yield
        return
    embedding = model.get_input_embeddings()
    weight = embedding.weight.detach()
    width = amount * float(weight.float().std()) * 3.0**0.5
    generator = torch.Generator(weight.device).manual_seed(seed)

    def shake(module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        if not torch.is_grad_enabled():
            return output
        columns, whole = columns_read.get() or (slice(None), output.shape[-2])
        # Drawn for what all processes read, so that their number changes nothing.
        shape = (*output.shape[:-2], whole, output.shape[-1])
        uniform = torch.rand(shape, generator=generator, device=output.device)[..., columns, :]
        shaken: torch.Tensor = output + ((2.0 * uniform - 1.0) * width).to(output.dtype)
        return shaken

    handle = embedding.register_forward_hook(shake)
    try:
        yield
    finally:
        handle.remove()


def adapter_optimizer(model: Any, learning_rate: float) -> torch.optim.AdamW:
    """AdamW on what is trained."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return torch.optim.AdamW(trained, lr=learning_rate, betas=_BETAS, weight_decay=0.0)


def optimizer_step(model: Any, optimizer: torch.optim.Optimizer) -> None:
    """Add up the gradients of all processes, clip, step, and forget the gradient.

    Raises:
        TrainingDivergedError: if the gradient is not finite; the weights stay as they are.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    distributed.sum_gradients(trained)
    require_finite_gradient(torch.nn.utils.clip_grad_norm_(trained, 1.0))
    optimizer.step()
    optimizer.zero_grad()


def require_finite_gradient(norm: torch.Tensor) -> None:
    """Stop before a step would make all weights NaN.

    Raises:
        TrainingDivergedError: if a gradient's norm is not finite.
    """
    if not torch.isfinite(norm):
        raise TrainingDivergedError(
            f"training diverged: the gradient's norm is {float(norm):g}. The weights in training "
            "are those of the step before and are not kept. Lower the learning rate of this "
            "phase; if the first step fails, look for damaged weights or a wrong model.dtype"
        )


def noising_step(
    model: Any,
    loaded: LoadedModel,
    batch: Sequence[Example],
    mass: float,
    generator: torch.Generator,
) -> list[float]:
    """Add the gradient of the cross-entropy to completions blurred by noise.

    The target of a token has 1 - mass on the token itself; fresh uniform noise divides the rest
    among all others (TokenBuncher's Token Noiser, arXiv 2508.20697).

    Returns:
        The mean over tokens, for each example.
    """

    def losses(chunk: list[Example], own: list[int]) -> torch.Tensor:
        logits = _completion_logits(model, loaded, chunk, own).float()
        labels = torch.tensor([t for place in own for t in chunk[place].completion]).unsqueeze(-1)
        lengths = [len(example.completion) for example in chunk]
        # Drawn for all processes, which share the generator's later numbers.
        uniform = torch.rand(sum(lengths), logits.shape[-1], generator=generator).split(lengths)
        target = torch.cat([uniform[place] for place in own]).scatter_(-1, labels, 0.0)
        target *= mass / target.sum(-1, keepdim=True)
        target.scatter_(-1, labels, 1.0 - mass)
        return -(target.to(logits.device) * logits.log_softmax(-1)).sum(-1)

    return _backward(model, losses, batch)


def _backward(
    model: Any,
    losses: Callable[[list[Example], list[int]], torch.Tensor],
    batch: Sequence[Example],
    weight: float = 1.0,
) -> list[float]:
    """Backward pass of a token-mean loss, in as few passes as memory allows.

    Each process reads its own examples of every pass; the gradients are parts of the batch's until
    `optimizer_step` adds them up.

    Args:
        model: In training.
        losses: Called as `losses(chunk, own)`, with the examples of a pass and the positions of
            this process's; the losses of their tokens.
        batch: Of all processes.
        weight: Of the loss.

    Returns:
        The mean over tokens, for each example in the order of the batch.
    """
    total = sum(len(example.completion) for example in batch)
    mine = set(distributed.own(range(len(batch))))
    means: list[float] = []

    def one_pass(chunk: list[Example], scale: float, places: Sequence[int]) -> list[float]:
        tokens = losses(chunk, list(places))
        (scale * tokens.sum() / total).backward()
        parts = tokens.detach().split([len(chunk[place].completion) for place in places])
        return [float(part.mean()) for part in parts]

    for chosen in packs([len(e.prompt) + len(e.completion) for e in batch]):
        chunk = [batch[index] for index in chosen]
        own = [place for place, index in enumerate(chosen) if index in mine]
        # One that has nothing to read reads something in vain: noise is drawn as it is read.
        backward = partial(one_pass, chunk, weight if own else 0.0)
        read = in_parts_that_fit("training pass", own or [0], backward, gradients_of(model))
        means += read[: len(own)]
    return distributed.gathered(means)


def _completion_logits(
    model: Any, loaded: LoadedModel, batch: Sequence[Example], own: Sequence[int] | None = None
) -> torch.Tensor:
    """Logits of the completion tokens of a batch, or of some of it; shape (tokens, vocabulary)."""
    with mixed_precision():
        return read_packed(
            model,
            loaded,
            [[*e.prompt, *e.completion[:-1]] for e in batch],
            kept=[len(e.completion) for e in batch],
            chosen=own,
        )
