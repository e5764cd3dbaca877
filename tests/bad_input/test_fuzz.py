"""A few seconds of what `python -m benchmarks.fuzz` does for minutes."""

import pytest
from hypothesis import HealthCheck, given, settings

from benchmarks.fuzz import TARGETS, attempt, feed, seeds, with_hypothesis
from tests.shared.evidence_samples import sample_evidence

_EXAMPLES = 100


@pytest.mark.parametrize("target", TARGETS)
def test_no_error_but_the_documented_ones(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if target == "evidence":
        sample = sample_evidence().model_dump_json().encode()
        monkeypatch.setattr("benchmarks.fuzz.seeds", lambda _: [sample])

    @settings(
        max_examples=_EXAMPLES,
        deadline=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(feed(target))
    def fuzz(data: bytes) -> None:
        attempt(target, data)

    fuzz()


@pytest.mark.parametrize(
    "target", [name for name in TARGETS if name not in ("evidence", "envelope")]
)
def test_the_documents_it_starts_from_are_valid(target: str) -> None:
    """Or at least one of them, so that deeper code is reached."""

    def valid(document: bytes) -> bool:
        try:
            TARGETS[target](document)
        except Exception:
            return False
        return True

    assert any(valid(document) for document in seeds(target))


def test_a_finding_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def careless(data: bytes) -> None:
        data[3]

    monkeypatch.setitem(TARGETS, "replies", careless)
    executions, found = with_hypothesis("replies", 5.0, 3)
    assert executions
    assert "seed 3: IndexError" in found
