"""Checking a bundle without the model: who signed it, what is in it, and does it follow."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from backburn.components.shared.attestation import (
    ADAPTER_FOLDER,
    ATTESTATION,
    DECISION,
    EVIDENCE,
    FILES,
    MODEL_CARD,
    OBSERVATIONS,
    REPORT,
    Statement,
    make_statement,
)
from backburn.components.shared.config import RunConfig
from backburn.components.shared.derivation.figures import derive
from backburn.components.shared.errors import InputError
from backburn.components.shared.evidence import Decision, Evidence, Record
from backburn.components.shared.gate import decide, gate_digest
from backburn.components.shared.model_card import render_model_card
from backburn.components.shared.observations import Observations
from backburn.components.shared.parsing import first_problem
from backburn.components.shared.provenance import code_digest
from backburn.components.shared.report import render_report
from backburn.components.shared.signing import key_id, open_statement, read_statement
from backburn.components.shared.storage import (
    canonical_json,
    model_digest,
    sha256_bytes,
    sha256_file,
    sha256_text,
)
from pydantic import ValidationError

_MOST_PROBLEMS = 8
_Kind = TypeVar("_Kind", bound=Record)


@dataclass
class Finding:
    """One question put to the bundle."""

    question: str
    problems: list[str] = field(default_factory=list)
    note: str = ""

    @property
    def holds(self) -> bool:
        """Whether nothing speaks against it."""
        return not self.problems


@dataclass
class Verification:
    """All findings; a bundle is sound if each of them holds."""

    findings: list[Finding] = field(default_factory=list)
    evidence: Evidence | None = None
    decision: Decision | None = None
    signer: str = ""
    trusted: bool = False

    @property
    def sound(self) -> bool:
        """Whether every question was asked and answered well."""
        return self.decision is not None and all(item.holds for item in self.findings)

    @property
    def other_code(self) -> bool:
        """Whether other code than this made the evidence."""
        return self.evidence is not None and self.evidence.code_sha256 != code_digest()

    def ask(self, question: str) -> Finding:
        """Open a question."""
        self.findings.append(Finding(question))
        return self.findings[-1]


def verify_bundle(
    folder: Path, trusted_key: str | None = None, model: Path | None = None
) -> Verification:
    """Check a bundle.

    Args:
        folder: The bundle; other files in it are ignored.
        trusted_key: PEM of the public key that must have signed. Without one the key that the
            bundle names is used: that shows that its files belong together, not who made them.
        model: A hardened model's artifact, or a folder with its `adapter`; its files must be the
            ones that were tested.

    Returns:
        Every finding. Questions that cannot be asked because an earlier one failed are left out,
        and the bundle is not sound then.

    Raises:
        InputError: if the folder is no bundle at all.
    """
    attestation = folder / ATTESTATION
    if not attestation.is_file():
        problem = f"it has no {ATTESTATION}" if folder.is_dir() else "there is no such folder"
        raise InputError(
            f"{folder}: not an evidence bundle: {problem}; give the folder of a finished run, "
            "runs/<run id>, or of a fetched model"
        )
    verification = Verification()
    statement = _signature(verification, attestation.read_bytes(), trusted_key)
    if statement is None:
        return verification
    contents = _files(verification, folder, statement)
    evidence = _parsed(verification, contents, EVIDENCE, Evidence)
    observations = _parsed(verification, contents, OBSERVATIONS, Observations)
    decision = _parsed(verification, contents, DECISION, Decision)
    verification.evidence = evidence
    if evidence is None or observations is None or decision is None:
        return verification
    config = _configuration(verification, evidence)
    if config is None:
        return verification
    _figures(verification, contents, evidence, observations, config)
    _decision(verification, contents, evidence, decision, config)
    _statement(verification, statement, evidence, decision)
    _pages(verification, contents, evidence, decision)
    if model is not None:
        _weights(verification, model, statement)
    verification.decision = decision
    return verification


def _signature(
    verification: Verification, content: bytes, trusted_key: str | None
) -> Statement | None:
    finding = verification.ask("Is it signed?")
    try:
        statement = Statement.model_validate(read_statement(content))
        key = trusted_key or statement.predicate.public_key
        open_statement(content, key)
        verification.signer = key_id(key)
        verification.trusted = trusted_key is not None
        if key_id(statement.predicate.public_key) != verification.signer:
            finding.problems.append(f"{ATTESTATION}: names another key than the one that signed")
    except (InputError, ValidationError) as error:
        shown = _first(error) if isinstance(error, ValidationError) else error
        finding.problems.append(f"{ATTESTATION}: {shown}")
        return None
    finding.note = f"by key {verification.signer[:16]}" + (
        "" if trusted_key else ", which the bundle itself names: pass --key to say whose it must be"
    )
    return statement


def _files(verification: Verification, folder: Path, statement: Statement) -> dict[str, bytes]:
    """Contents of the files that are what was signed."""
    finding = verification.ask("Are its files what was signed?")
    listed = {item.name: item.digest["sha256"] for item in statement.predicate.files}
    for name in sorted(set(FILES) ^ set(listed)):
        finding.problems.append(
            f"{name}: {'not listed in' if name in FILES else 'unexpected in'} the attestation"
        )
    contents: dict[str, bytes] = {}
    for name in FILES:
        path = folder / name
        if not path.is_file():
            finding.problems.append(f"{name}: missing")
            continue
        content = path.read_bytes()
        if sha256_bytes(content) != listed.get(name):
            finding.problems.append(f"{name}: changed since it was signed (SHA-256 differs)")
            continue
        contents[name] = content
    finding.note = f"{len(contents)} files"
    return contents


def _parsed(
    verification: Verification, contents: dict[str, bytes], name: str, kind: type[_Kind]
) -> _Kind | None:
    if name not in contents:
        return None
    finding = verification.ask(f"Is {name} well formed?")
    try:
        return kind.model_validate_json(contents[name])
    except ValidationError as error:
        finding.problems.append(f"{name}: {_first(error)}")
        return None


def _configuration(verification: Verification, evidence: Evidence) -> RunConfig | None:
    finding = verification.ask("Is its configuration the one it names?")
    try:
        config = RunConfig.model_validate(evidence.config)
    except ValidationError as error:
        finding.problems.append(f"{EVIDENCE}: config: {_first(error)}")
        return None
    stated = sha256_text(canonical_json(evidence.config))  # new defaults do not change old files
    _compare(finding, "config_digest", evidence.config_digest, stated)
    return config


def _figures(
    verification: Verification,
    contents: dict[str, bytes],
    evidence: Evidence,
    observations: Observations,
    config: RunConfig,
) -> None:
    finding = verification.ask("Does every figure follow from the observations?")
    _compare(
        finding,
        "observations_sha256",
        evidence.observations_sha256,
        sha256_bytes(contents[OBSERVATIONS]),
    )
    for name in ("run_id", "config_digest"):
        stated, its = getattr(observations, name), getattr(evidence, name)
        _compare(finding, f"observations.{name}", stated, its)
    try:
        figures = derive(observations, config).as_dict()
    except InputError as error:
        finding.problems.append(str(error))
        return
    count = 0
    for name, made in figures.items():
        count += sum(1 for _ in _leaves(_plain(made)))
        _compare(finding, name, _plain(getattr(evidence, name)), _plain(made))
    finding.note = f"{count:,} figures made again, bit for bit"
    if verification.other_code:
        finding.note += f", by other code than Backburn {evidence.backburn_version} of the run"


def _decision(
    verification: Verification,
    contents: dict[str, bytes],
    evidence: Evidence,
    decision: Decision,
    config: RunConfig,
) -> None:
    finding = verification.ask("Does the decision follow from the evidence?")
    again = decide(evidence, config, sha256_bytes(contents[EVIDENCE]))
    recorded = {name: getattr(decision, name) for name in ("registration", "tracked", "audit")}
    again = again.model_copy(update={**recorded, "gate_digest": gate_digest(evidence.config)})
    _compare(finding, "decision", _plain(decision), _plain(again))
    if decision.registration is not None and (decision.outcome != "passed" or decision.dry_run):
        finding.problems.append("decision.registration: a model that did not pass was registered")
    if decision.audit is not None and evidence.audited is None:
        finding.problems.append("decision.audit: the run was no audit")
    finding.note = decision.outcome


def _statement(
    verification: Verification, statement: Statement, evidence: Evidence, decision: Decision
) -> None:
    finding = verification.ask("Does the attestation say what the evidence says?")
    listed = {item.name: item.digest["sha256"] for item in statement.predicate.files}
    again = make_statement(evidence, decision, listed, statement.predicate.public_key)
    _compare(finding, "attestation", _plain(statement), _plain(again))
    digest = model_digest(evidence.base_digests, evidence.hardened_files)
    _compare(finding, "hardened_digest", evidence.hardened_digest, digest)


def _pages(
    verification: Verification, contents: dict[str, bytes], evidence: Evidence, decision: Decision
) -> None:
    finding = verification.ask("Do report and model card show it?")
    if verification.other_code:
        finding.note = "not asked: they were written by another version of Backburn"
        return
    pages: dict[str, Callable[[Evidence, Decision], str]] = {
        REPORT: render_report,
        MODEL_CARD: render_model_card,
    }
    if decision.run_id != evidence.run_id:
        finding.note = "not asked: evidence and decision are of two runs"
        return
    for name, render in pages.items():
        if name in contents and contents[name] != render(evidence, decision).encode():
            finding.problems.append(f"{name}: not what evidence and decision give")


def _weights(verification: Verification, model: Path, statement: Statement) -> None:
    finding = verification.ask("Are these the weights that were tested?")
    expected = {item.name: item.digest["sha256"] for item in statement.subject}
    found = {
        f"{ADAPTER_FOLDER}/{path.relative_to(model / ADAPTER_FOLDER).as_posix()}": path
        for path in sorted((model / ADAPTER_FOLDER).rglob("*"))
        if path.is_file()
    }
    for name in sorted(set(expected) | set(found)):
        if name not in found:
            finding.problems.append(f"{name}: missing from {model}")
        elif name not in expected:
            finding.problems.append(f"{name}: not among the files that were tested")
        elif sha256_file(found[name]) != expected[name]:
            finding.problems.append(f"{name}: other content than the file that was tested")
    finding.note = f"{len(expected)} files"


def _plain(value: Any) -> Any:
    """As JSON has it, so that what is compared is what was written."""
    if isinstance(value, Record):
        return value.model_dump(mode="json")
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value


def _compare(finding: Finding, path: str, stated: Any, made: Any) -> None:
    for problem in _differences(path, stated, made):
        if len(finding.problems) == _MOST_PROBLEMS:
            finding.problems.append("... and more")
        if len(finding.problems) > _MOST_PROBLEMS:
            return
        finding.problems.append(problem)


def _differences(path: str, stated: Any, made: Any) -> Iterator[str]:
    if isinstance(stated, dict) and isinstance(made, dict):
        for key in [*stated, *(key for key in made if key not in stated)]:
            if key not in stated or key not in made:
                yield f"{path}.{key}: {'missing' if key not in stated else 'unexpected'}"
            else:
                yield from _differences(f"{path}.{key}", stated[key], made[key])
    elif isinstance(stated, list) and isinstance(made, list):
        if len(stated) != len(made):
            yield f"{path}: {len(stated)} items stated, {len(made)} follow"
            return
        for index, (one, other) in enumerate(zip(stated, made, strict=True)):
            yield from _differences(f"{path}[{index}]", one, other)
    elif stated != made or type(stated) is not type(made):
        yield f"{path}: states {_short(stated)}, {_short(made)} follows"


def _first(error: ValidationError) -> str:
    """What does not fit the schema, on one line."""
    return f"{first_problem(error)}; was it written by another version of Backburn?"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _leaves(item)
    else:
        yield value
