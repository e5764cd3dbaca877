"""What happened to a registered model, append-only; its aliases follow from that and nothing else.

MLflow sets an alias without looking at what it was, so two promotions at once could lose one. It
does number the versions of a registered model without gaps, also under load. So every event is a
version of a second registered model, `<name>.ledger`: that order is the same for everybody. An
event also says after which event it was meant to come. If another came between, it is void, and
whoever wrote it has to look again. Aliases are then set to what the valid events give, until no
newer event is found.
"""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from http.client import FORBIDDEN
from typing import Literal
from uuid import uuid4

from backburn.components.shared.errors import InputError
from backburn.components.shared.evidence import Record
from mlflow.entities.model_registry import ModelVersion, RegisteredModel
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from pydantic import Field, ValidationError
from tenacity import (
    retry,
    retry_if_exception,
    stop_after_attempt,
    wait_random_exponential,
)

CHAMPION, PREVIOUS = "champion", "previous"
SUFFIX = ".ledger"
_EVENT_TAG = "backburn.event"
_LENGTH_TAG = "backburn.ledger_entries"
_SOURCE = "backburn:/event"  # a server takes absolute paths only
_PAGE = 200
_ATTEMPTS = 20

Action = Literal[
    "promoted",
    "rejected",
    "pending",
    "rolled_back",
    "audit_passed",
    "audit_inconclusive",
    "audit_failed",
    "demoted",
]


class Event(Record):
    """One decision about one version."""

    action: Action
    version: str = Field(description="Of the registered model that is decided about.")
    after: int = Field(description="Number of the event it was meant to follow; 0: none.")
    at: str = Field(description="UTC, ISO 8601, by the clock of whoever wrote it.")
    actor: str
    reasons: list[str]
    evidence_sha256: str | None
    id: str = Field("", description="By which its writer finds it again; older entries have none.")


@dataclass(frozen=True)
class Entry:
    """An event, its place, and whether it counts."""

    number: int
    event: Event

    @property
    def valid(self) -> bool:
        """Whether nothing came between it and what its writer had seen."""
        return self.event.after == self.number - 1


@dataclass(frozen=True)
class State:
    """What the events give."""

    champion: str | None = None
    previous: str | None = None
    last: int = 0
    pending: frozenset[str] = frozenset()
    """Versions that wait for approval."""
    condemned: frozenset[str] = frozenset()
    """Versions whose last audit that decided failed."""


def _forbidden(error: MlflowException) -> bool:
    return bool(error.get_http_status_code() == FORBIDDEN)


_patiently = retry(
    retry=retry_if_exception(lambda e: isinstance(e, MlflowException) and not _forbidden(e)),
    stop=stop_after_attempt(5),
    wait=wait_random_exponential(multiplier=0.1, max=2.0),
    reraise=True,
)


class Ledger:
    """Events of one registered model."""

    def __init__(self, client: MlflowClient, name: str) -> None:
        """Open the ledger.

        Args:
            client: Of the registry.
            name: Registered model.
        """
        self._client = client
        self._name = name
        self._ledger = f"{name}{SUFFIX}"

    def make(self) -> None:
        """Make it, if there is none: on a server with permissions it then is its maker's."""
        with contextlib.suppress(MlflowException):  # it exists already
            self._client.create_registered_model(
                self._ledger, description=f"Append-only record of decisions about {self._name}."
            )

    def entries(self) -> list[Entry]:
        """Every event, void ones included, oldest first.

        Raises:
            InputError: if an entry is missing or unreadable: someone has tampered with it.
        """
        return self._read()[1]

    def _read(self) -> tuple[RegisteredModel, list[Entry]]:
        """The model first, then the entries, of which there may be more by then."""
        model = self._client.get_registered_model(self._name)
        found: list[ModelVersion] = []
        token: str | None = None
        while True:
            page = self._client.search_model_versions(
                f"name='{self._ledger}'",
                max_results=_PAGE,
                order_by=["version_number ASC"],
                page_token=token,
            )
            found += page
            token = page.token
            if not token:
                break
        entries: list[Entry] = []
        for place, version in enumerate(sorted(found, key=lambda v: int(v.version)), start=1):
            try:
                event = Event.model_validate_json(version.tags.get(_EVENT_TAG, ""))
            except ValidationError as error:
                raise InputError(
                    f"{self._ledger}: entry {version.version} is unreadable, so nothing follows "
                    "from this ledger"
                ) from error
            if int(version.version) != place:
                raise InputError(
                    f"{self._ledger}: entry {place} was deleted, so nothing follows from this "
                    "ledger"
                )
            entries.append(Entry(place, event))
        if len(entries) < _length(model):
            raise InputError(
                f"{self._ledger}: the last entries were deleted ({_length(model)} were written, "
                f"{len(entries)} are left), so nothing follows from this ledger"
            )
        return model, entries

    def state(self) -> State:
        """What the valid events give."""
        return fold(self.entries())

    def append(
        self,
        action: Action,
        version: str,
        seen: State,
        actor: str,
        reasons: Sequence[str] = (),
        evidence_sha256: str | None = None,
    ) -> bool:
        """Write an event, then bring the aliases in line.

        Args:
            action: What was decided.
            version: About which version.
            seen: The state it was decided from.
            actor: By whom.
            reasons: Why.
            evidence_sha256: Of the evidence it was decided from.

        Returns:
            Whether it counts; if not, another event came first, and this one is void.
        """
        event = Event(
            action=action,
            version=version,
            after=seen.last,
            at=datetime.now(UTC).isoformat(timespec="seconds"),
            actor=actor,
            reasons=list(reasons),
            evidence_sha256=evidence_sha256,
            id=uuid4().hex,
        )
        if not seen.last:
            self._claim()
            self.make()
        entry = Entry(self._write(event), event)
        self.settle()
        return entry.valid or self._counts(event)

    def _counts(self, event: Event) -> bool:
        """Whether an event counts that was written twice, because the first answer was lost."""
        return any(entry.valid and entry.event.id == event.id for entry in self.entries())

    @_patiently
    def _claim(self) -> None:
        """Write to the model first: who may not is refused before there is a ledger.

        Of two that do so at once, a database can refuse one; it comes again.
        """
        self._client.set_registered_model_tag(self._name, _LENGTH_TAG, "0")

    @_patiently
    def _write(self, event: Event) -> int:
        """Write an event; returns its number, the last one if an answer was lost on the way."""
        tags = {_EVENT_TAG: event.model_dump_json()}
        written = self._client.create_model_version(
            self._ledger, source=_SOURCE, tags=tags, await_creation_for=0
        )
        return int(written.version)

    def settle(self) -> State:
        """Set the aliases to what the events give, until no newer event is found.

        Raises:
            InputError: if the registry refuses, or others write faster than this can read.
        """
        refusal: MlflowException | None = None
        for _ in range(_ATTEMPTS):
            model, entries = self._read()
            state = fold(entries)
            if _aliases(model) == _expected(state) and _length(model) == state.last:
                return state
            try:
                self._bring_in_line(model, state)
            except MlflowException as error:  # such as another's insert of the same alias
                if _forbidden(error):
                    raise
                refusal = error
        raise InputError(
            f"{self._name}: its aliases could not be set to what {self._ledger} gives"
            + (f": {refusal}" if refusal is not None else "; others keep deciding, try again")
        )

    def _bring_in_line(self, model: RegisteredModel, state: State) -> None:
        """Set the aliases, and note how many entries there are: none is deleted unnoticed then."""
        if _length(model) < state.last:
            self._client.set_registered_model_tag(self._name, _LENGTH_TAG, str(state.last))
        known, wanted = _aliases(model), _expected(state)
        for alias in (CHAMPION, PREVIOUS):
            if alias in wanted and known.get(alias) != wanted[alias]:
                self._client.set_registered_model_alias(self._name, alias, wanted[alias])
            elif alias in known and alias not in wanted:
                self._client.delete_registered_model_alias(self._name, alias)


def _length(model: RegisteredModel) -> int:
    return int(model.tags.get(_LENGTH_TAG, 0))


def _aliases(model: RegisteredModel) -> dict[str, str]:
    return {a: str(version) for a, version in model.aliases.items() if a in (CHAMPION, PREVIOUS)}


def fold(entries: Sequence[Entry]) -> State:
    """State after all events; void ones only count as places."""
    champion: str | None = None
    previous: str | None = None
    pending: set[str] = set()
    condemned: set[str] = set()
    for entry in entries:
        event = entry.event
        if not entry.valid:
            continue
        if event.action in ("audit_failed", "demoted"):
            condemned.add(event.version)
        elif event.action == "audit_passed":
            condemned.discard(event.version)
        if event.action == "promoted" and event.version != champion:
            champion, previous = event.version, champion
        elif event.action == "rolled_back" and event.version == champion:
            champion, previous = previous, None
        elif event.action == "demoted" and event.version == champion:
            champion, previous = (None if previous in condemned else previous), None
        if event.action == "pending":
            pending.add(event.version)
        elif event.action in ("promoted", "rejected"):
            pending.discard(event.version)
    return State(champion, previous, len(entries), frozenset(pending), frozenset(condemned))


def _expected(state: State) -> dict[str, str]:
    wanted = {CHAMPION: state.champion, PREVIOUS: state.previous}
    return {alias: version for alias, version in wanted.items() if version is not None}
