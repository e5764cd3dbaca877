"""The evidence bundle: a folder from which every figure can be checked without the model."""

from pathlib import Path

from backburn.components.shared.attestation import (
    ATTESTATION,
    DECISION,
    EVIDENCE,
    MODEL_CARD,
    OBSERVATIONS,
    REPORT,
    make_statement,
)
from backburn.components.shared.evidence import Decision, Evidence
from backburn.components.shared.model_card import render_model_card
from backburn.components.shared.report import render_report
from backburn.components.shared.signing import public_key, sign_statement
from backburn.components.shared.storage import json_bytes, sha256_bytes, write_bytes


def write_bundle(
    folder: Path, observations: Path, evidence_file: Path, evidence: Evidence, decision: Decision
) -> None:
    """Write all files of the bundle, the signed attestation last.

    Args:
        folder: Where they go.
        observations: What `judge_evaluation` wrote; copied byte by byte.
        evidence_file: The same.
        evidence: Content of the evidence file.
        decision: Made from it.

    Raises:
        ContainmentError: if there is no key to sign with.
    """
    contents = {
        OBSERVATIONS: observations.read_bytes(),
        EVIDENCE: evidence_file.read_bytes(),
        DECISION: json_bytes(decision.model_dump(mode="json")),
        REPORT: render_report(evidence, decision).encode(),
        MODEL_CARD: render_model_card(evidence, decision).encode(),
    }
    digests = {name: sha256_bytes(content) for name, content in contents.items()}
    statement = make_statement(evidence, decision, digests, public_key())
    for name, content in contents.items():
        write_bytes(folder / name, content)
    signed = sign_statement(statement.model_dump(mode="json", by_alias=True))
    write_bytes(folder / ATTESTATION, signed)
