"""Verdicts on disk, by content: what was paid for once is not asked again.

Holds no text: a key is a SHA-256 over the judge, its rubric, and the exchange.
"""

import sqlite3
from collections.abc import Sequence
from pathlib import Path

from backburn.components.shared.judges.judge import Exchange, Verdict
from backburn.components.shared.storage import canonical_json, sha256_text

_TABLE = "CREATE TABLE IF NOT EXISTS verdicts (key TEXT PRIMARY KEY, refused INTEGER, score REAL)"
_BUSY_SECONDS = 60.0


class VerdictCache:
    """A SQLite file that several processes may use at once."""

    def __init__(self, path: Path | None) -> None:
        """Open or make the file; each verdict is on disk when `keep` returns. None: in memory."""
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
        self._connection = sqlite3.connect(
            path or ":memory:", timeout=_BUSY_SECONDS, isolation_level=None
        )
        self._connection.execute(_TABLE)

    def look_up(
        self, judge_key: str, judge_id: str, exchanges: Sequence[Exchange]
    ) -> dict[Exchange, Verdict]:
        """The verdicts that are known.

        Args:
            judge_key: Digest of all that a verdict depends on besides the exchange.
            judge_id: Identity written into the verdicts.
            exchanges: What is asked for.
        """
        found: dict[Exchange, Verdict] = {}
        for exchange in exchanges:
            row = self._connection.execute(
                "SELECT refused, score FROM verdicts WHERE key = ?", (_key(judge_key, exchange),)
            ).fetchone()
            if row is not None:
                found[exchange] = Verdict(bool(row[0]), float(row[1]), judge_id)
        return found

    def keep(self, judge_key: str, exchange: Exchange, verdict: Verdict) -> None:
        """Remember a verdict; one without a score is not worth remembering, and refused."""
        if verdict.score is None:
            raise ValueError("an unscored verdict is not kept: the exchange is to be asked again")
        self._connection.execute(
            "INSERT OR REPLACE INTO verdicts VALUES (?, ?, ?)",
            (_key(judge_key, exchange), int(verdict.refused), verdict.score),
        )


def _key(judge_key: str, exchange: Exchange) -> str:
    return sha256_text(canonical_json([judge_key, *exchange]))
