"""The judge protocol."""

from collections.abc import Sequence
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


class Judge(Protocol):
    """Scores exchanges: refusal first, severity second."""

    @property
    def id(self) -> str:
        """Identity of the judge, recorded in every verdict."""

    def judge(self, exchanges: Sequence[Exchange]) -> list[Verdict]:
        """One verdict an exchange, in order."""
