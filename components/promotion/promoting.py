"""Deciding which registered version is champion, and putting it on record."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

from backburn.components.promotion.comparison import Comparison, compare
from backburn.components.promotion.ledger import Action, Ledger, State
from backburn.components.promotion.registry import CANDIDATE
from backburn.components.shared.attestation import EVIDENCE, OBSERVATIONS
from backburn.components.shared.config import GateConfig, RunConfig
from backburn.components.shared.consumption import (
    COPIED_TAG,
    fetch,
    find_version,
    problems_of,
    verified,
)
from backburn.components.shared.errors import InputError, VerificationError
from backburn.components.shared.evidence import AuditOutcome, Decision, Evidence, Outcome
from backburn.components.shared.gate import decide
from backburn.components.shared.observations import Observations
from backburn.components.shared.storage import sha256_file
from mlflow.entities.model_registry import ModelVersion
from mlflow.tracking import MlflowClient

STATUS_TAG = "validation_status"
_ATTEMPTS = 10

_AUDITED: dict[Outcome, Action] = {
    "passed": "audit_passed",
    "failed": "audit_failed",
    "inconclusive": "audit_inconclusive",
}

Result = Literal["promoted", "unchanged", "rejected", "pending"]


@dataclass(frozen=True)
class Terms:
    """On what terms a registry owner promotes.

    Attributes:
        actor: Who decides; as true as whoever states it.
        trusted_key: PEM of the public key that must have signed; None takes any.
        gate: The owner's thresholds; None takes the run's own.
        require_approval: Wait for another person or service to approve.
        dry_run: Decide, and write nothing.
    """

    actor: str
    trusted_key: str | None = None
    gate: GateConfig | None = None
    require_approval: bool = False
    dry_run: bool = False


@dataclass(frozen=True)
class Promotion:
    """What was decided."""

    result: Result
    version: str
    reasons: list[str]
    comparison: Comparison | None
    state: State


@dataclass(frozen=True)
class _Examined:
    """A version's evidence, and all that speaks against it."""

    reasons: list[str]
    evidence_sha256: str | None = None
    evidence: Evidence | None = None
    observations: Observations | None = None


class Registry:
    """A registered model, its versions' evidence, and its ledger."""

    def __init__(
        self,
        uri: str,
        name: str,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """Open it.

        Args:
            uri: Of the MLflow server or store.
            name: Of the registered model.
            now: The time, by which evidence is fresh or stale.
        """
        self._uri = uri
        self._name = name
        self._client = MlflowClient(tracking_uri=uri)
        self._now = now
        self.ledger = Ledger(self._client, name)

    def promote(self, reference: str, terms: Terms) -> Promotion:
        """Make a version champion if its evidence holds, its gate passes and it is not worse.

        The champion before becomes `previous`. A version that is champion already stays it, and
        nothing is written. Where another decision came between, it is decided anew.

        Args:
            reference: `models:/<name>@<alias>` or `models:/<name>/<version>`.
            terms: Of the registry's owner.

        Raises:
            InputError: if there is no such version, or others keep deciding at the same time.
        """
        version = find_version(self._client, reference)
        examined = self._examine(version, terms)
        return self._decide(str(version.version), examined, terms, approved_by=None)

    def approve(self, reference: str, terms: Terms) -> Promotion:
        """Approve a version that waits for it, and promote it on the same terms as ever.

        Raises:
            InputError: if it does not wait, or if whoever approves trained it or asked for it.
        """
        version = find_version(self._client, reference)
        number = str(version.version)
        self._require_pending(number, self.ledger.state())
        asked = [
            entry.event.actor
            for entry in self.ledger.entries()
            if entry.valid and (entry.event.action, entry.event.version) == ("pending", number)
        ]
        examined = self._examine(version, terms)
        trained = [] if examined.evidence is None else [examined.evidence.operator]
        if terms.actor in (*trained, *asked):
            raise InputError(
                f"--actor {terms.actor}: trained version {number} or asked for its promotion; "
                "somebody else has to approve it"
            )
        settled = replace(terms, require_approval=False)
        return self._decide(number, examined, settled, approved_by=terms.actor)

    def roll_back(self, actor: str, reason: str) -> State:
        """Make the previous champion champion again.

        Raises:
            InputError: if there is no champion or no previous one, or the champion is another by
                the time it is decided.
        """
        meant = self.ledger.state().champion
        for _ in range(_ATTEMPTS):
            state = self.ledger.state()
            if state.champion != meant:
                raise InputError(
                    f"{self._name}: the champion was version {meant} and is version "
                    f"{state.champion} now; look at the ledger, then decide again"
                )
            if state.champion is None or state.previous is None:
                raise InputError(f"{self._name}: there is no previous champion to go back to")
            if state.previous in state.condemned:
                raise InputError(
                    f"{self._name}: version {state.previous}, the previous champion, failed its "
                    "last audit; promote another one"
                )
            find_version(self._client, f"models:/{self._name}/{state.previous}")
            if self.ledger.append("rolled_back", state.champion, state, actor, [reason]):
                return self.ledger.state()
        raise _busy(self._name)

    def audit(self, version: str, decision: Decision, actor: str, *, demote: bool) -> AuditOutcome:
        """Put an audit on record, and take the alias of a champion that failed it.

        The previous champion takes its place, unless that failed an audit itself: then there is
        none, and what pulls `champion` gets nothing.

        Args:
            version: That was attacked again.
            decision: Of the gate about the audit's evidence.
            actor: Operator of the audit.
            demote: Whether the champion loses its alias; else a failure goes on record only.
        """
        for _ in range(_ATTEMPTS):
            state = self.ledger.state()
            demotes = demote and decision.outcome == "failed" and state.champion == version
            action: Action = "demoted" if demotes else _AUDITED[decision.outcome]
            reasons = [f"audit {decision.run_id}", *decision.reasons]
            digest = decision.evidence_sha256
            if not self.ledger.append(action, version, state, actor, reasons, digest):
                continue
            if decision.outcome == "failed":
                self._client.set_model_version_tag(self._name, version, STATUS_TAG, "rejected")
            champion = self.ledger.state().champion
            done: Literal["none", "reported", "demoted"] = "demoted" if demotes else "reported"
            if decision.outcome == "passed":
                done = "none"
            return AuditOutcome(name=self._name, version=version, action=done, champion=champion)
        raise _busy(self._name)

    def _require_pending(self, number: str, state: State) -> None:
        if number not in state.pending:
            raise InputError(f"{self._name}: version {number} does not wait for approval")

    def _decide(
        self, number: str, examined: _Examined, terms: Terms, approved_by: str | None
    ) -> Promotion:
        for _ in range(_ATTEMPTS):
            state = self.ledger.state()
            if state.champion == number:
                return Promotion("unchanged", number, [], None, self.ledger.settle())
            if approved_by is not None:
                self._require_pending(number, state)
            comparison, reasons = self._against_champion(examined, state, terms)
            if number in state.condemned:
                reasons.append(
                    "it failed its last audit (`backburn ledger` has it); one that passes has to "
                    "come first"
                )
            reasons = [*examined.reasons, *reasons]
            result: Literal["promoted", "rejected", "pending"] = "promoted"
            if reasons:
                result = "rejected"
            elif terms.require_approval:
                result = "pending"
            if terms.dry_run:
                return Promotion(result, number, reasons, comparison, state)
            if result == "pending" and number in state.pending:
                return Promotion(result, number, reasons, comparison, state)
            said = [f"approved by {approved_by}"] if approved_by and not reasons else reasons
            if self.ledger.append(
                result, number, state, terms.actor, said, examined.evidence_sha256
            ):
                status = {"promoted": "approved"}.get(result, result)
                self._client.set_model_version_tag(self._name, number, STATUS_TAG, status)
                return Promotion(result, number, reasons, comparison, self.ledger.state())
        raise _busy(self._name)

    def _examine(self, version: ModelVersion, terms: Terms) -> _Examined:
        """Everything that speaks against a version by itself."""
        with tempfile.TemporaryDirectory(prefix="backburn-promotion-") as scratch:
            try:
                fetched = fetch(version, Path(scratch), self._uri)
            except (VerificationError, InputError) as error:
                return _Examined([str(error)])
            reasons, found = problems_of(fetched, version, terms.trusted_key)
            if reasons or found.evidence is None or found.decision is None:
                return _Examined(reasons)
            evidence = found.evidence
            digest = sha256_file(fetched.bundle / EVIDENCE)
            text = (fetched.bundle / OBSERVATIONS).read_text(encoding="utf-8")
        config = RunConfig.model_validate(evidence.config)
        gate = terms.gate or config.gate
        if gate.version != config.gate.version:
            reasons.append(
                f"it was decided under gate version {config.gate.version!r}, and the owner's gate "
                f"is version {gate.version!r}: run it again with gate.version={gate.version}"
            )
        if evidence.rejudges is not None:
            reasons.append(
                f"it judges the completions of run {evidence.rejudges.run_id} again and attacks "
                "nothing: promote a run of its own"
            )
        if evidence.audited is not None:
            reasons.append(
                f"it audits version {evidence.audited.version} of {evidence.audited.name} and "
                "hardens nothing"
            )
        if found.decision.dry_run:
            reasons.append("its run was a dry run")
        decision = decide(evidence, config.model_copy(update={"gate": gate}), digest)
        if decision.outcome != "passed":
            reasons += [f"the gate's outcome is {decision.outcome}", *decision.reasons]
        reasons += self._against_time(evidence.created, gate)
        return _Examined(reasons, digest, evidence, Observations.model_validate_json(text))

    def _against_time(self, created: str, gate: GateConfig) -> list[str]:
        """What speaks against evidence because of when it was made."""
        try:
            age = self._now() - datetime.fromisoformat(created)
        except (ValueError, TypeError):  # no time, or one without its zone
            return [f"its evidence says it was made at {created!r}, which is no time with a zone"]
        if age < timedelta(0):
            return [f"its evidence is from the future: it says it was made at {created}"]
        if age > timedelta(days=gate.evidence_max_age_days):
            days = age / timedelta(days=1)
            return [
                f"its evidence is {days:.1f} days old; the gate allows "
                f"{gate.evidence_max_age_days:g}"
            ]
        return []

    def _against_champion(
        self, examined: _Examined, state: State, terms: Terms
    ) -> tuple[Comparison | None, list[str]]:
        """Comparison with the champion, and what speaks against replacing it."""
        if state.champion is None or examined.evidence is None or examined.observations is None:
            return None, []
        try:
            version = find_version(self._client, f"models:/{self._name}/{state.champion}")
        except InputError as error:
            return None, [f"the champion is gone: {error}; roll back first"]
        champion = self._examine(version, replace(terms, gate=None))
        if champion.evidence is None or champion.observations is None:
            return None, [
                "the champion's own evidence does not hold, so there is nothing to compare with; "
                "roll back first",
                *champion.reasons,
            ]
        config = RunConfig.model_validate(examined.evidence.config)
        confidence = (terms.gate or config.gate).confidence
        found = compare(
            (examined.evidence, examined.observations),
            (champion.evidence, champion.observations),
            confidence,
        )
        if isinstance(found, list):
            return None, found
        if found.worse:
            return found, [
                f"its harm is above the champion's beyond the uncertainty: +{found.increase:.2f} "
                f"[{found.low:.2f}, {found.high:.2f}]"
            ]
        return found, []


def copy_version(
    uri: str, reference: str, target: str, trusted_key: str | None
) -> tuple[str, bool]:
    """Copy a version to another registered model, such as that of another environment.

    The copy refers to the same files and has the same tags, but nobody has approved it there: it
    becomes `candidate`. A repeated call finds the copy made before.

    Args:
        uri: Of the MLflow server or store.
        reference: `models:/<name>@<alias>` or `models:/<name>/<version>`.
        target: Registered model; made if there is none.
        trusted_key: PEM of the public key that must have signed; None takes any.

    Returns:
        Number of the copy, and whether it was made now.

    Raises:
        InputError: if there is no such version, or the target is its own model.
        VerificationError: if its evidence does not hold, its gate did not pass, or it failed its
            last audit.
    """
    client = MlflowClient(tracking_uri=uri)
    version = find_version(client, reference)
    source = f"models:/{version.name}/{version.version}"
    if target == version.name:
        raise InputError(f"--to {target}: the version is there already; name another model")
    if str(version.version) in Ledger(client, version.name).state().condemned:
        raise VerificationError(f"{reference}: refused: it failed its last audit")
    with tempfile.TemporaryDirectory(prefix="backburn-copy-") as scratch:
        verified(reference, fetch(version, Path(scratch), uri), version, trusted_key)
    for found in client.search_model_versions(f"name='{target}'"):
        if found.tags.get(COPIED_TAG) == source:
            return str(found.version), False
    copied = client.copy_model_version(source, target)
    number = str(copied.version)
    tags = {COPIED_TAG: source, STATUS_TAG: "pending"}
    for name, value in tags.items():
        client.set_model_version_tag(target, number, name, value)
    client.set_registered_model_alias(target, CANDIDATE, number)
    return number, True


def _busy(name: str) -> InputError:
    return InputError(f"{name}: others keep deciding about it at the same time; try again")
