"""What an attack costs the attacker: how far the model has left the target's own answers."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from backburn.components.shared.config import SamplingConfig
from backburn.components.shared.domains import PromptRow
from backburn.components.shared.models import LoadedModel
from backburn.components.shared.sampling import scored
from backburn.components.shared.supervised import Example, own_answers


class BenignLoss:
    """Measures networks on benign answers of the target they were made from.

    The loss is 1 - exp(mean log p - mean log p of the target), over all tokens of the answers: 0
    if nothing is lost, 1 if the answers have become impossible, below 0 if they became likelier.
    """

    def __init__(
        self, target: LoadedModel, rows: Sequence[PromptRow], max_tokens: int, seed: int
    ) -> None:
        """Name what is needed; `prepare` does the work, so that idle arms cost nothing.

        Args:
            target: The model that is attacked.
            rows: Benign prompts.
            max_tokens: Length of an answer.
            seed: Of the answers.
        """
        self._target = target
        self._rows = rows
        self._max_tokens = max_tokens
        self._seed = seed
        self._answers: list[Example] = []
        self._before = 0.0

    def prepare(self) -> None:
        """Read the target, unless that is done; it has to be as it was before any attack."""
        if self._answers:
            return
        prompts = self._target.encode_rows(self._rows)
        self._answers = own_answers(self._target, prompts, self._max_tokens, self._seed)
        self._before = self._mean(self._target.model)

    def __call__(self, network: Any) -> float:
        """The loss of a network, at most 1."""
        return 1.0 - math.exp(min(50.0, self._mean(network) - self._before))

    def _mean(self, network: Any) -> float:
        prompts = [list(example.prompt) for example in self._answers]
        completions = [list(example.completion) for example in self._answers]
        chosen = scored(
            lambda entry: entry.token_log_probabilities(SamplingConfig()),
            self._target,
            prompts,
            completions,
            model=network,
        )
        return float(torch.cat(chosen).mean())
