"""A few seconds of what `python -m benchmarks.fuzz` does for minutes."""

import random

import pytest
from hypothesis import HealthCheck, given, settings

from benchmarks.fuzz import TARGETS, attempt, changed, feed, seeds, with_hypothesis

_EXAMPLES = 100


@pytest.mark.parametrize("target", TARGETS)
def test_no_error_but_the_documented_ones(target: str) -> None:
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


@pytest.mark.parametrize("target", TARGETS)
def test_the_documents_it_starts_from_are_valid(target: str) -> None:
    """Or at least one of them, so that deeper code is reached."""
    written = [document.write(document.value) for document in seeds(target)]
    assert "accepted" in {attempt(target, data) for data in written}


def test_changes_of_the_structure_reach_what_stands_behind_the_schema() -> None:
    """Some of the changed evidence is still evidence, and some is refused at many fields."""
    documents = seeds("evidence")
    outcomes = {attempt("evidence", changed(documents[0], random.Random(i))) for i in range(150)}
    assert "accepted" in outcomes
    assert len(outcomes) > 20


def test_a_finding_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def careless(data: bytes) -> None:
        data[len(data)]

    monkeypatch.setitem(TARGETS, "replies", careless)
    found = with_hypothesis("replies", 1.0, 3)
    assert found.examples
    ((kind, text),) = found.findings.items()
    assert kind.startswith("IndexError at test_fuzz.py:")
    assert text.startswith("seed 3: ")
