"""A judge that one of a step's processes asks for all of them."""

from collections.abc import Callable, Sequence

from backburn.components.shared.judges.judge import Exchange, Judge, Usage, Verdict
from backburn.components.shared.scale.distributed import from_primary, is_primary


class PrimaryJudge:
    """Lives in the primary process, whose verdicts all processes get: nothing is paid twice."""

    def __init__(self, make: Callable[[], Judge]) -> None:
        """Make the judge, in the primary process only."""
        self._judge = make() if is_primary() else None
        self._id = from_primary(lambda: self._asked.id)

    @property
    def _asked(self) -> Judge:
        assert self._judge is not None
        return self._judge

    @property
    def id(self) -> str:
        """Identity of the judge that is asked."""
        return self._id

    @property
    def usage(self) -> Usage:
        """What this process has spent on the judge: nothing, unless it asks."""
        return Usage() if self._judge is None else self._judge.usage

    def judge(self, exchanges: Sequence[Exchange]) -> list[Verdict]:
        """One verdict an exchange, in order; every process has to ask."""
        return from_primary(lambda: self._asked.judge(exchanges))
