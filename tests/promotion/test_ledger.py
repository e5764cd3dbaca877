"""The ledger: one order for everybody, also when two write at once."""

import threading
from pathlib import Path

import pytest
from backburn.components.promotion.ledger import (
    CHAMPION,
    PREVIOUS,
    SUFFIX,
    Entry,
    Event,
    Ledger,
    State,
    fold,
)
from backburn.components.shared.errors import InputError
from hypothesis import given
from hypothesis import strategies as st
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

NAME = "backburn-model-domain"
RACES = 30
FIRST_RACES = 6


def registry(folder: Path, versions: int) -> tuple[str, Ledger, MlflowClient]:
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    client = MlflowClient(tracking_uri=uri)
    client.create_registered_model(NAME)
    for _ in range(versions):
        client.create_model_version(NAME, source="backburn:test")
    return uri, Ledger(client, NAME), client


def aliases(client: MlflowClient) -> dict[str, str]:
    return {a: str(v) for a, v in client.get_registered_model(NAME).aliases.items()}


def test_aliases_follow_from_the_events(tmp_path: Path) -> None:
    _, ledger, client = registry(tmp_path, 3)
    assert ledger.state() == State()
    assert ledger.append("promoted", "1", ledger.state(), "ann")
    assert aliases(client) == {CHAMPION: "1"}
    assert ledger.append("promoted", "2", ledger.state(), "ann")
    assert ledger.append("rejected", "3", ledger.state(), "ann", ["worse"])
    assert aliases(client) == {CHAMPION: "2", PREVIOUS: "1"}
    assert ledger.append("rolled_back", "2", ledger.state(), "bob")
    assert aliases(client) == {CHAMPION: "1"}
    assert [entry.event.action for entry in ledger.entries()] == [
        "promoted", "promoted", "rejected", "rolled_back",
    ]  # fmt: skip


def test_an_event_that_did_not_see_the_last_one_is_void(tmp_path: Path) -> None:
    _, ledger, client = registry(tmp_path, 2)
    seen = ledger.state()
    assert ledger.append("promoted", "1", seen, "ann")
    assert not ledger.append("promoted", "2", seen, "bob")
    assert aliases(client) == {CHAMPION: "1"}
    assert [entry.valid for entry in ledger.entries()] == [True, False]
    assert ledger.append("promoted", "2", ledger.state(), "bob")
    assert aliases(client) == {CHAMPION: "2", PREVIOUS: "1"}


def test_an_alias_that_somebody_moved_is_put_back(tmp_path: Path) -> None:
    _, ledger, client = registry(tmp_path, 2)
    ledger.append("promoted", "1", ledger.state(), "ann")
    client.set_registered_model_alias(NAME, CHAMPION, "2")
    client.set_registered_model_alias(NAME, PREVIOUS, "2")
    ledger.settle()
    assert aliases(client) == {CHAMPION: "1"}


def test_a_ledger_with_a_hole_gives_nothing(tmp_path: Path) -> None:
    _, ledger, client = registry(tmp_path, 2)
    for version in ("1", "2"):
        ledger.append("promoted", version, ledger.state(), "ann")
    client.delete_model_version(f"{NAME}{SUFFIX}", "1")
    with pytest.raises(InputError, match="entry 1 was deleted"):
        ledger.state()


def test_races_leave_one_champion_one_previous_and_every_event(tmp_path: Path) -> None:
    uri, ledger, client = registry(tmp_path, 2)
    for race in range(RACES):
        seen = ledger.state()
        counted: dict[str, bool] = {}
        start = threading.Barrier(2)

        def promote(version: str, seen: State = seen, start: threading.Barrier = start,
                    counted: dict[str, bool] = counted) -> None:  # fmt: skip
            mine = Ledger(MlflowClient(tracking_uri=uri), NAME)
            start.wait()
            counted[version] = mine.append("promoted", version, seen, f"racer {version}")

        threads = [threading.Thread(target=promote, args=(version,)) for version in ("1", "2")]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(counted.values()) == [False, True], race
        winner = next(version for version, valid in counted.items() if valid)
        state = ledger.state()
        assert state.champion == winner
        assert aliases(client).get(CHAMPION) == winner
        assert aliases(client).get(PREVIOUS) == state.previous
        assert len(ledger.entries()) == 2 * (race + 1)
    assert state.previous is not None


ACTIONS = st.sampled_from(["promoted", "rejected", "pending", "rolled_back", "demoted"])


@given(st.lists(st.tuples(ACTIONS, st.sampled_from("123"), st.booleans()), max_size=30))
def test_whatever_happens_champion_and_previous_differ(
    events: list[tuple[str, str, bool]],
) -> None:
    entries = [
        Entry(
            number,
            Event.model_validate(
                {
                    "action": action,
                    "version": version,
                    "after": number - 1 if valid else number - 2,
                    "at": "2026-01-01T00:00:00+00:00",
                    "actor": "a",
                    "reasons": [],
                    "evidence_sha256": None,
                }
            ),
        )
        for number, (action, version, valid) in enumerate(events, start=1)
    ]
    state = fold(entries)
    assert state.champion is None or state.champion != state.previous
    assert state.champion is not None or state.previous is None
    promoted = {e.event.version for e in entries if e.valid and e.event.action == "promoted"}
    assert {state.champion, state.previous} - {None} <= promoted
    valid = [entry for entry in entries if entry.valid]
    assert fold(entries).champion == fold([Entry(i, e.event.model_copy(update={"after": i - 1}))
                                           for i, e in enumerate(valid, 1)]).champion  # fmt: skip


def test_a_missing_model_is_said_so(tmp_path: Path) -> None:
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'mlflow.db'}")
    with pytest.raises(MlflowException, match="absent"):
        Ledger(client, "absent").settle()


def test_first_decisions_at_once_are_refused_by_no_database(tmp_path: Path) -> None:
    for number in range(FIRST_RACES):
        folder = tmp_path / str(number)
        folder.mkdir()
        uri, ledger, _ = registry(folder, 2)
        seen, start = ledger.state(), threading.Barrier(2)
        counted: list[bool] = []

        def promote(version: str, uri: str = uri, seen: State = seen,
                    start: threading.Barrier = start,
                    counted: list[bool] = counted) -> None:  # fmt: skip
            mine = Ledger(MlflowClient(tracking_uri=uri), NAME)
            start.wait()
            counted.append(mine.append("promoted", version, seen, f"racer {version}"))

        threads = [threading.Thread(target=promote, args=(version,)) for version in ("1", "2")]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(counted) == [False, True], number
        assert len(ledger.entries()) == 2
