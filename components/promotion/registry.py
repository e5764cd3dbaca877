"""Writing a passed model to the MLflow registry: once a run, with digests as tags."""

import contextlib
from pathlib import Path

from backburn.components.promotion.ledger import Ledger
from backburn.components.promotion.pages import model_description
from backburn.components.shared.config import RunConfig
from backburn.components.shared.evidence import Decision, Evidence, Registration
from backburn.components.shared.report.claims import claim_of
from backburn.components.shared.report.links import mlflow_links
from backburn.components.shared.signing import key_id, public_key
from backburn.components.shared.storage import canonical_json, sha256_text
from backburn.components.shared.tracking import RUN_TAG, client, tracking_uri
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

CANDIDATE = "candidate"


def register(
    model_folder: Path,
    evidence: Evidence,
    decision: Decision,
    config: RunConfig,
    tracking_run_id: str,
) -> Registration:
    """Register the hardened model as a LoggedModel and point the alias `candidate` at its version.

    A repeated call for the same run finds the version made before and makes no second one.

    Args:
        model_folder: The hardened model's artifact: adapter, tokenizer and manifest.
        evidence: Whose digests become tags.
        decision: A passed one.
        config: Names server and registered model.
        tracking_run_id: MLflow run the model belongs to.

    Returns:
        Name, version and alias.

    Raises:
        ValueError: if the decision is not `passed`.
    """
    if decision.outcome != "passed":
        raise ValueError(f"only a passed model is registered, and the gate says {decision.outcome}")
    mlflow = client(config)
    name = config.registered_model_name
    tags = version_tags(evidence, decision)
    with contextlib.suppress(MlflowException):  # it exists already
        mlflow.create_registered_model(name, description=model_description(config))
    Ledger(mlflow, name).make()
    version = _find_version(mlflow, name, evidence.run_id)
    if version is None:
        version = _create_version(mlflow, name, model_folder, tags, tracking_run_id)
    mlflow.set_registered_model_alias(name, CANDIDATE, version)
    return Registration(
        name=name, version=version, alias=CANDIDATE, tracking_uri=tracking_uri(config)
    )


def version_tags(evidence: Evidence, decision: Decision) -> dict[str, str]:
    """Tags of a version: what it claims, every digest it is bound by, and where its run is.

    `validation_status` is `pending` until the registry's owner promotes or rejects it.
    """
    tracked = "" if decision.tracked is None else decision.tracked.run_id
    page = next((link.url for link in mlflow_links(decision) if link.url is not None), "")
    tags = {
        RUN_TAG: evidence.run_id,
        "validation_status": "pending",
        "backburn.verdict": decision.outcome,
        "backburn.claim": claim_of(evidence),
        "backburn.base_model": evidence.model_base,
        "backburn.base_revision": evidence.model_revision or "",
        "backburn.domain": evidence.data.domain,
        "backburn.operator": evidence.operator,
        "backburn.tracking_run_id": tracked,
        "backburn.run_page": page,
        "backburn.gate_version": decision.gate_version,
        "backburn.gate_digest": decision.gate_digest,
        "backburn.evidence_sha256": decision.evidence_sha256,
        "backburn.observations_sha256": evidence.observations_sha256,
        "backburn.config_digest": evidence.config_digest,
        "backburn.code_sha256": evidence.code_sha256,
        "backburn.base_digest": sha256_text(canonical_json(evidence.base_digests)),
        "backburn.baseline_digest": evidence.baseline_digest,
        "backburn.hardened_digest": evidence.hardened_digest,
        "backburn.data_digest": sha256_text(
            canonical_json({name: split.sha256 for name, split in evidence.data.splits.items()})
        ),
        "backburn.signing_key": key_id(public_key()),
    }
    return {name: value for name, value in tags.items() if value}


def _find_version(mlflow: MlflowClient, name: str, run_id: str) -> str | None:
    for found in mlflow.search_model_versions(f"name='{name}'"):
        if found.tags.get(RUN_TAG) == run_id:
            return str(found.version)
    return None


def _create_version(
    mlflow: MlflowClient, name: str, folder: Path, tags: dict[str, str], tracking_run_id: str
) -> str:
    run = mlflow.get_run(tracking_run_id)
    model = mlflow.create_logged_model(
        run.info.experiment_id,
        name="hardened",
        source_run_id=tracking_run_id,
        tags=tags,
        model_type="lora-adapter",
    )
    mlflow.log_model_artifacts(model.model_id, str(folder))
    mlflow.finalize_logged_model(model.model_id, "READY")
    ready = mlflow.get_logged_model(model.model_id)
    version = mlflow.create_model_version(
        name,
        source=ready.artifact_location,
        run_id=tracking_run_id,
        tags=tags,
        model_id=model.model_id,
    )
    return str(version.version)
