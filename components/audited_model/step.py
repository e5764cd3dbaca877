"""The audited_model step: a registered model, verified, as the hardened model of this run."""

import shutil
from pathlib import Path

from backburn.components.shared.config import RunConfig
from backburn.components.shared.consumption import pull
from backburn.components.shared.dataset import RunDataset
from backburn.components.shared.errors import InputError
from backburn.components.shared.evidence import AuditedRecord, DataRecord, Evidence
from backburn.components.shared.step import open_step
from backburn.components.shared.storage import write_json
from backburn.components.shared.tracking import AUDITED_TAG, tracking_uri

_TRAINED_ON = ("defence", "validation", "near_miss_defence", "benign_defence")


def run(
    config_json: str,
    run_id: str,
    dataset: Path,
    hardened: Path,
    record: Path,
) -> tuple[str, dict[str, str | float]]:
    """Fetch the model and its evidence.

    Args:
        config_json: Configuration of the run.
        run_id: Id of the pipeline run.
        dataset: What `data_prep` made.
        hardened: Where the registered model goes.
        record: Where the measurements of its defence go.

    Returns:
        Its `AuditedRecord` as JSON, and the metadata of the model's artifact.

    Raises:
        InputError: if there is no such version, or it cannot be audited with this configuration.
        VerificationError: if its evidence does not hold.
    """
    with open_step(config_json, run_id, "audited_model", ["audit"]) as step:
        config = step.config
        reference = config.audited_reference
        step.progress.update("fetch and verify", 0, 1, reference)
        if hardened.is_dir() and not any(hardened.iterdir()):
            hardened.rmdir()  # made by KFP
        trusted = None if config.audit is None else config.audit.trusted_key
        pulled = pull(reference, hardened, tracking_uri(config), trusted)
        evidence = pulled.verification.evidence
        assert evidence is not None
        try:
            check_fits(evidence, RunDataset(dataset).record, config)
        except InputError:
            shutil.rmtree(hardened)
            raise
        write_json(
            record,
            {
                "phases": [phase.model_dump() for phase in evidence.phases],
                "consolidation_curve": evidence.consolidation_curve,
                "neutralization_steps": [],
            },
        )
        found = AuditedRecord(
            name=pulled.name,
            version=pulled.version,
            run_id=evidence.run_id,
            evidence_sha256=pulled.evidence_sha256,
        )
        step.tracking.parent_tags({AUDITED_TAG: f"models:/{found.name}/{found.version}"})
        step.tracking.parameters({"audited": found.model_dump()})
        metadata: dict[str, str | float] = {
            "seconds": step.seconds,
            "step": "audited_model",
            "digest": evidence.hardened_digest,
        }
        return found.model_dump_json(), metadata


def check_fits(evidence: Evidence, data: DataRecord, config: RunConfig) -> None:
    """Refuse an audit whose figures would say nothing about this model.

    Args:
        evidence: Of the registered model.
        data: What it is to be attacked with.
        config: Of the audit.

    Raises:
        InputError: with everything that does not fit.
    """
    problems = []
    if (evidence.model_base, evidence.model_revision) != (config.model.id, config.model.revision):
        made, given = (
            f"{base} (revision {revision or 'not pinned'})"
            for base, revision in (
                (evidence.model_base, evidence.model_revision),
                (config.model.id, config.model.revision),
            )
        )
        problems.append(f"model: it was made from {made}, not {given}")
    if evidence.data.domain != data.domain:
        problems.append(f"domain: it was hardened to {evidence.data.domain}, not {data.domain}")
    elif evidence.data.rejection != data.rejection:
        problems.append("domain: it was taught another canonical rejection than the domain has now")
    else:
        changed = [
            name
            for name in _TRAINED_ON
            if evidence.data.splits[name].sha256 != data.splits[name].sha256
        ]
        if changed:
            problems.append(
                f"data: the splits {', '.join(changed)} are not those it was trained on, so "
                "prompts it knows could be held out here. Use the domain, the data section and "
                "the seed of its own run"
            )
    if problems:
        raise InputError("\n  ".join([f"{config.audited_reference} cannot be audited:", *problems]))
