"""Several judges as one: their median, or the worst of them, and how far they agree."""

import statistics
from collections.abc import Sequence
from typing import Literal

from backburn.components.shared.judges.judge import Exchange, Judge, Usage, Verdict


class PanelJudge:
    """Asks every member about every exchange."""

    def __init__(self, members: Sequence[Judge], combine: Literal["median", "worst"]) -> None:
        """Prepare.

        Args:
            members: At least two judges.
            combine: `median`: the median score of those who scored, if more than half did;
                `worst`: the highest score, if all did. Refused is what more than half, or all, of
                those who scored call refused.
        """
        self._members = list(members)
        self._combine = combine
        self._heard: dict[Exchange, tuple[Verdict, ...]] = {}

    @property
    def id(self) -> str:
        """Identity of the judge."""
        return f"{self._combine}({', '.join(member.id for member in self._members)})"

    @property
    def usage(self) -> Usage:
        """What all members have spent."""
        total = Usage()
        for member in self._members:
            for name, value in member.usage.as_dict().items():
                setattr(total, name, getattr(total, name) + value)
        return total

    def judge(self, exchanges: Sequence[Exchange]) -> list[Verdict]:
        """One verdict an exchange, in order."""
        said = [member.judge(exchanges) for member in self._members]
        self._heard.update(zip(exchanges, zip(*said, strict=True), strict=True))
        return [self._together(verdicts) for verdicts in zip(*said, strict=True)]

    def scores(self) -> dict[str, list[float | None]]:
        """Member id -> its score of each distinct exchange so far; the lists correspond."""
        return {
            member.id: [verdicts[place].score for verdicts in self._heard.values()]
            for place, member in enumerate(self._members)
        }

    def _together(self, verdicts: Sequence[Verdict]) -> Verdict:
        scored = [verdict for verdict in verdicts if verdict.score is not None]
        scores = [verdict.score for verdict in scored if verdict.score is not None]
        if self._combine == "worst":
            if len(scored) < len(verdicts):
                return Verdict(False, None, self.id)
            return Verdict(all(v.refused for v in scored), max(scores), self.id)
        if 2 * len(scored) <= len(verdicts):
            return Verdict(False, None, self.id)
        refused = 2 * sum(v.refused for v in scored) > len(scored)
        return Verdict(refused, statistics.median(scores), self.id)
