"""What a bundle's signature says: which weights were tested, with what outcome, by which files.

An in-toto Statement v1 (https://in-toto.io/Statement/v1): its subjects are the hardened model's
files, its predicate names the outcome and the bundle's other files by digest.
"""

from collections.abc import Mapping
from typing import Literal

from backburn.components.shared.evidence import Decision, Evidence, Outcome, Record
from backburn.components.shared.report.claims import verdict
from backburn.components.shared.signing import STATEMENT_TYPE
from pydantic import ConfigDict, Field

OBSERVATIONS, EVIDENCE, DECISION = "observations.json", "evidence.json", "decision.json"
REPORT, MODEL_CARD = "report.html", "README.md"
FILES = (OBSERVATIONS, EVIDENCE, DECISION, REPORT, MODEL_CARD)
"""Of a bundle, besides the attestation that signs them."""

ATTESTATION = "attestation.json"
PREDICATE_TYPE = "urn:backburn:predicate:resistance-to-rl-fine-tuning:v1"
ADAPTER_FOLDER = "adapter"


class ResourceDescriptor(Record):
    """A file and its digest, as in-toto names them."""

    name: str
    digest: dict[Literal["sha256"], str]


class Predicate(Record):
    """What is said of the subjects."""

    run_id: str
    created: str
    outcome: Outcome
    claim: str | None = Field(description="In words; None unless the gate passed.")
    dry_run: bool
    gate_version: str
    gate_digest: str
    config_digest: str
    backburn_version: str
    code_sha256: str
    domain: str
    model_base: str
    model_revision: str | None
    base_digests: dict[str, str]
    baseline_digest: str
    hardened_digest: str
    files: list[ResourceDescriptor] = Field(description="The bundle's files, by name.")
    public_key: str = Field(description="PEM of the key that signed; proves nothing by itself.")


class Statement(Record):
    """An in-toto Statement v1; field names are its own."""

    model_config = ConfigDict(populate_by_name=True)

    type: str = Field(STATEMENT_TYPE, alias="_type")
    subject: list[ResourceDescriptor]
    predicate_type: str = Field(PREDICATE_TYPE, alias="predicateType")
    predicate: Predicate


def make_statement(
    evidence: Evidence, decision: Decision, files: Mapping[str, str], public_key: str
) -> Statement:
    """Say what evidence and decision say.

    Args:
        evidence: Of the run.
        decision: Made from it.
        files: Name -> SHA-256 of the bundle's files, the attestation left out.
        public_key: PEM of the key that will sign.
    """
    return Statement(
        subject=[
            _describe(f"{ADAPTER_FOLDER}/{name}", digest)
            for name, digest in sorted(evidence.hardened_files.items())
        ],
        predicate=Predicate(
            run_id=evidence.run_id,
            created=evidence.created,
            outcome=decision.outcome,
            claim=verdict(evidence, decision).claim,
            dry_run=decision.dry_run,
            gate_version=decision.gate_version,
            gate_digest=decision.gate_digest,
            config_digest=evidence.config_digest,
            backburn_version=evidence.backburn_version,
            code_sha256=evidence.code_sha256,
            domain=evidence.data.domain,
            model_base=evidence.model_base,
            model_revision=evidence.model_revision,
            base_digests=evidence.base_digests,
            baseline_digest=evidence.baseline_digest,
            hardened_digest=evidence.hardened_digest,
            files=[_describe(name, digest) for name, digest in sorted(files.items())],
            public_key=public_key,
        ),
    )


def _describe(name: str, sha256: str) -> ResourceDescriptor:
    return ResourceDescriptor(name=name, digest={"sha256": sha256})
