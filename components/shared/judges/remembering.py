"""A judge that judges a distinct exchange once."""

from collections.abc import Sequence

from backburn.components.shared.judges.judge import Exchange, Judge, Usage, Verdict


class RememberingJudge:
    """Asks another judge, once for each distinct exchange."""

    def __init__(self, judge: Judge) -> None:
        """Remember the verdicts of a judge."""
        self._judge = judge
        self._known: dict[Exchange, Verdict] = {}

    @property
    def id(self) -> str:
        """Identity of the judge that is asked."""
        return self._judge.id

    @property
    def usage(self) -> Usage:
        """What the judge that is asked has spent."""
        return self._judge.usage

    def judge(self, exchanges: Sequence[Exchange]) -> list[Verdict]:
        """One verdict an exchange, in order."""
        fresh = [exchange for exchange in dict.fromkeys(exchanges) if exchange not in self._known]
        if fresh:
            self._known.update(zip(fresh, self._judge.judge(fresh), strict=True))
        return [self._known[exchange] for exchange in exchanges]
