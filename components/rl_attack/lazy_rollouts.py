"""Rollouts that cost nothing while the target answers with its rejection.

While no weight moves, the distribution of each next token along the rejection is known from one
teacher-forced pass. A draw follows the rejection up to the token at which it departs; only from
there on is anything generated. The draws have exactly the distribution of ordinary sampling,
because at each position the rejection's token is taken with its own probability, and another one
with the rest's, renormalised.
"""

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from backburn.components.shared.config import SamplingConfig
from backburn.components.shared.models import LoadedModel
from backburn.components.shared.packed_linear import full_precision
from backburn.components.shared.sampling import (
    CompletionLogits,
    Draw,
    draw_completions,
    invert_cumulative,
    log_distribution,
    scored,
)
from backburn.components.shared.weights import weights_version

_LOG = logging.getLogger(__name__)
_LEAST_PEAKED = 0.5
"""Probability of the rejection below which ordinary sampling is as fast."""
_PAUSE = 10
"""Draws for which a target found not peaked on any prompt is not looked at again."""


@dataclass
class RolloutCounts:
    """Work done by a source of rollouts."""

    draws: int = 0
    departures: int = 0
    generated_tokens: int = 0
    tables_built: int = 0
    ordinary_draws: int = 0

    def as_dict(self) -> dict[str, int]:
        """Plain numbers for the evidence."""
        return asdict(self)


@dataclass(frozen=True)
class _Table:
    """What a prompt's next tokens are along the rejection."""

    logits: CompletionLogits
    keep: torch.Tensor
    """Probability of each of the rejection's tokens under the attacker's sampling; float64."""


class Rollouts:
    """Draws completions, from cached distributions where that is exact and cheaper."""

    def __init__(
        self,
        loaded: LoadedModel,
        rejection: Sequence[int],
        sampling: SamplingConfig,
        *,
        max_tokens: int,
        generator: torch.Generator,
        lazy: bool = True,
        draw: Draw = draw_completions,
        target_logits: dict[tuple[int, ...], CompletionLogits] | None = None,
    ) -> None:
        """Prepare a source.

        Args:
            loaded: The target.
            rejection: Token ids of the canonical rejection, end token included.
            sampling: The attacker's own settings.
            max_tokens: Most tokens of a completion.
            generator: CPU generator of all draws.
            lazy: False: always ordinary sampling.
            draw: What generates.
            target_logits: Prompt -> logits of the target itself, shared by arms on one target and
                filled by them. Used until a weight is written to, so the model of the first draw
                has to give the target's distribution, as one with a fresh adapter does.
        """
        self._loaded = loaded
        self._rejection = list(rejection)[:max_tokens]
        self._sampling = sampling
        self._max_tokens = max_tokens
        self._ends = frozenset(loaded.end_ids)
        self._generator = generator
        self._lazy = lazy
        self._draw = draw
        self._logits = {} if target_logits is None else target_logits
        self._tables: dict[tuple[int, ...], _Table] = {}
        self._version: tuple[int, ...] | None = None
        self._network: Any = None
        self._parameters: list[torch.nn.Parameter] = []
        self._pause = 0
        self._told = False
        self.counts = RolloutCounts()

    def draw(self, prompts: Sequence[Sequence[int]], copies: int, model: Any) -> list[list[int]]:
        """Draw `copies` completions a prompt; the copies of a prompt are adjacent."""
        self.counts.draws += len(prompts) * copies
        tables = self._current_tables(prompts, model) if self._lazy else [None] * len(prompts)
        results: list[list[int]] = [[] for _ in range(len(prompts) * copies)]
        ordinary = [index for index, table in enumerate(tables) if table is None]
        if ordinary:
            drawn = self._draw(
                self._loaded,
                [prompts[i] for i in ordinary],
                self._sampling,
                copies=copies,
                max_tokens=self._max_tokens,
                generator=self._generator,
                model=model,
            )
            self.counts.ordinary_draws += len(drawn)
            self.counts.generated_tokens += sum(map(len, drawn))
            for position, index in enumerate(ordinary):
                results[index * copies : (index + 1) * copies] = drawn[
                    position * copies : (position + 1) * copies
                ]
        departed: list[tuple[int, int, list[int]]] = []  # (place in results, prompt, tokens so far)
        for index, table in enumerate(tables):
            if table is not None:
                for copy, tokens in enumerate(self._follow(table, copies)):
                    place = index * copies + copy
                    results[place] = tokens
                    if not self._complete(tokens):
                        departed.append((place, index, tokens))
        if departed:
            with full_precision():  # as the distributions it departed from
                finished = self._draw(
                    self._loaded,
                    [prompts[index] for _, index, _ in departed],
                    self._sampling,
                    max_tokens=self._max_tokens,
                    generator=self._generator,
                    model=model,
                    prefixes=[tokens for _, _, tokens in departed],
                )
            for (place, _, tokens), completion in zip(departed, finished, strict=True):
                self.counts.generated_tokens += len(completion) - len(tokens)
                results[place] = completion
        return results

    def _complete(self, tokens: list[int]) -> bool:
        return tokens[-1] in self._ends or len(tokens) >= self._max_tokens

    def _follow(self, table: _Table, copies: int) -> list[list[int]]:
        """Follow the rejection until the token at which each copy departs, that token included."""
        shape = (copies, len(table.keep))
        uniform = torch.rand(shape, generator=self._generator, dtype=torch.float64)
        departs = uniform >= table.keep
        if not bool(departs.any()):
            return [list(self._rejection) for _ in range(copies)]
        drawn: list[list[int]] = []
        for row in departs:
            if not bool(row.any()):
                drawn.append(list(self._rejection))
                continue
            self.counts.departures += 1
            position = int(row.int().argmax())
            rest = log_distribution(table.logits.logits[position], self._sampling).exp()
            rest[self._rejection[position]] = 0.0
            number = torch.rand(1, generator=self._generator, dtype=torch.float64)
            token = int(invert_cumulative(rest.unsqueeze(0), number)[0])
            drawn.append([*self._rejection[:position], token])
        return drawn

    def _current_tables(self, prompts: Sequence[Sequence[int]], model: Any) -> list[_Table | None]:
        if self._pause > 0:
            self._pause -= 1
            return [None] * len(prompts)
        if self._network is not model:
            self._network, self._parameters = model, list(model.parameters())
        version = weights_version(self._parameters)
        if version != self._version:
            self._tables.clear()
            if self._version is not None:
                self._logits = {}
            self._version = version
        keys = [tuple(prompt) for prompt in prompts]
        unread = [key for key in dict.fromkeys(keys) if key not in self._logits]
        if unread:
            logits = scored(
                lambda entry: entry,  # exchanged, so that all processes depart at the same tokens
                self._loaded,
                unread,
                [self._rejection] * len(unread),
                model=model,
            )
            self._logits.update(zip(unread, logits, strict=True))
            self.counts.tables_built += len(unread)
        for key in keys:
            if key not in self._tables:
                entry = self._logits[key]
                keep = entry.token_log_probabilities(self._sampling).exp()
                self._tables[key] = _Table(entry, keep)
        tables = [self._tables[key] for key in keys]
        peaked = [float(table.keep.prod()) >= _LEAST_PEAKED for table in tables]
        if not any(peaked):
            self._pause = _PAUSE
            if not self._told:
                self._told = True
                _LOG.info(
                    "ordinary rollouts for now: the target gives its rejection with a probability "
                    "below %.0f %% on every prompt of the step",
                    100 * _LEAST_PEAKED,
                )
        elif self._told:
            self._told = False
            _LOG.info("rollouts from cached distributions again")
        return [table if good else None for table, good in zip(tables, peaked, strict=True)]
