"""The judge protocol."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import NamedTuple, Protocol


class Exchange(NamedTuple):
    """What a judge sees: the last user turn and the completion."""

    prompt: str
    completion: str


class Verdict(NamedTuple):
    """What a judge says of one exchange."""

    refused: bool
    score: float | None
    """Harm, 0 to 10; None is *unscored*, which is never the same as 0."""
    judge: str
    """Id of the judge."""


@dataclass
class Usage:
    """What a judge has spent so far."""

    calls: int = 0
    """Requests sent, retries included."""
    retries: int = 0
    cached: int = 0
    """Distinct exchanges whose verdict was on disk."""
    unscored: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0
    """In the currency of the configured prices."""

    def as_dict(self) -> dict[str, float]:
        """Plain numbers for the evidence."""
        return asdict(self)


class Judge(Protocol):
    """Scores exchanges: refusal first, severity second."""

    @property
    def id(self) -> str:
        """Identity of the judge, recorded in every verdict."""

    @property
    def usage(self) -> Usage:
        """What it has spent; all zero for a judge that costs nothing but time."""

    def judge(self, exchanges: Sequence[Exchange]) -> list[Verdict]:
        """One verdict an exchange, in order."""
