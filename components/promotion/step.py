"""The promotion step: decide from the evidence alone, register, report and summarise."""

from pathlib import Path

from backburn.components.promotion.bundle import write_bundle
from backburn.components.promotion.pages import describe_version, run_description
from backburn.components.promotion.promoting import Registry
from backburn.components.promotion.registry import register
from backburn.components.shared.attestation import ATTESTATION, FILES, REPORT
from backburn.components.shared.config import AuditConfig, RunConfig
from backburn.components.shared.derivation.figures import derive
from backburn.components.shared.errors import InputError
from backburn.components.shared.evidence import (
    AuditedRecord,
    AuditOutcome,
    Decision,
    Evidence,
    Summary,
    TrackedRun,
)
from backburn.components.shared.gate import decide
from backburn.components.shared.models import read_manifest
from backburn.components.shared.observations import Observations
from backburn.components.shared.parsing import first_problem
from backburn.components.shared.report.claims import verdict
from backburn.components.shared.signing import require_key
from backburn.components.shared.step import open_step
from backburn.components.shared.storage import read_bytes, sha256_file, write_bytes, write_json
from backburn.components.shared.tracking import (
    AUDIT_ACTION_TAG,
    CLAIM_TAG,
    DESCRIPTION_TAG,
    OUTCOME_TAG,
    PIPELINE_URL_TAG,
    client,
    tracking_uri,
)
from pydantic import ValidationError

_EXIT_CODES = {"passed": 0, "failed": 1, "inconclusive": 1}
_SOURCES = {
    "control_arms": "arms[role=control]",
    "control_start_harm": "arms[role=control].curve[step=0].harm, largest",
    "control_broken_harm": "arms[role=control].curve[step<=gate.control_broken_by].harm, largest "
    "of each "
    "arm, least of them",
    "evaluation_judge_agreement": "calibration[role=evaluation].spearman",
    "evaluation_judge_drift": "calibration[role=evaluation].drift",
    "evaluation_judge_injection_drop": "calibration[role=evaluation].injection_drop",
    "evaluation_judge_paid_attack": "config.judges.evaluation, rejudges.reward",
    "coverage": "coverage",
    "hardened_arms": "arms[role=hardened].steps_run",
    "hardened_harm": "arms[role=hardened].curve[].harm, largest",
    "hardened_harm_upper_bound": "worst_case.high, arms[role=hardened].curve[].high, largest",
    "held_out_slip_rate": "certificate.slip_rates[split=held_out, temperature=1].mean",
    "certificate": "certificate.run_probability",
    "sweep_trials": "sweep[]",
    "near_miss_refusal_increase": "behaviour.near_miss_refusal_hardened - ..._baseline",
    "benign_refusal_increase": "behaviour.benign_refusal_hardened - ..._baseline",
    "benign_perplexity_ratio": "behaviour.benign_perplexity_ratio",
    "trainability": "trainability[].ratio, least",
    "utility_loss": "utility[].loss, largest",
    "over_refusal_increase": "over_refusal[answerable].increase, largest",
}


def run(
    config_json: str,
    run_id: str,
    observations: Path,
    evidence: Path,
    hardened: Path,
    bundle: Path,
    summary: Path,
    report: Path,
) -> dict[str, str | float]:
    """Decide, register if the gate passes, and sign the bundle; returns the artifact's metadata.

    Args:
        config_json: Configuration of the run.
        run_id: Id of the pipeline run.
        observations: What `judge_evaluation` measured.
        evidence: What it made of that.
        hardened: The model the evidence is about.
        bundle: Folder where everything goes, signed.
        summary: Where the summary goes.
        report: Where a copy of the bundle's report goes.

    Raises:
        InputError: if the evidence is unreadable, does not follow from the observations, or is not
            about this model and this run.
        ContainmentError: if there is no key to sign with.
    """
    with open_step(config_json, run_id, "promotion", ["gate"]) as step:
        config = step.config
        require_key()
        found = read_evidence(evidence)
        check_binding(found, config, run_id, hardened)
        check_figures(found, config, observations)
        tracked = TrackedRun(
            uri=tracking_uri(config),
            experiment_id=step.tracking.parent_experiment(),
            run_id=step.tracking.parent_id,
        )
        decided = decide(found, config, sha256_file(evidence))
        decided = decided.model_copy(update={"tracked": tracked})
        if (found.audited is None) != (config.audit is None):
            raise InputError(
                "the configuration has an `audit` section and the evidence is of no audit, or the "
                "other way round; nothing is decided from it"
            )
        if found.audited is not None and config.audit is not None and not decided.dry_run:
            outcome = settle_audit(found, found.audited, decided, config, config.audit)
            decided = decided.model_copy(update={"audit": outcome})
            step.tracking.parent_tags({AUDIT_ACTION_TAG: outcome.action})
        elif decided.outcome == "passed" and not decided.dry_run:
            registration = register(hardened, found, decided, config, step.tracking.parent_id)
            decided = decided.model_copy(update={"registration": registration})
            describe_version(client(config), found, decided)
        write_bundle(bundle, observations, evidence, found, decided)
        write_bytes(report, (bundle / REPORT).read_bytes())
        summarised = summarise(found, decided, config, step.tracking.parent_id, step.seconds)
        write_json(summary, summarised.model_dump(mode="json"))
        step.tracking.parent_metrics(summarised.figures)
        for path in (*(bundle / name for name in (*FILES, ATTESTATION)), summary):
            step.tracking.artifact(path, parent=True)
        pipeline_url = step.tracking.parent_tag(PIPELINE_URL_TAG)
        tags = {
            OUTCOME_TAG: decided.outcome,
            "backburn.evidence_sha256": decided.evidence_sha256,
            DESCRIPTION_TAG: run_description(found, decided, pipeline_url),
        }
        claim = verdict(found, decided).claim
        step.tracking.parent_tags(tags if claim is None else {**tags, CLAIM_TAG: claim})
        return {"seconds": step.seconds, "outcome": decided.outcome}


def settle_audit(
    evidence: Evidence,
    audited: AuditedRecord,
    decision: Decision,
    config: RunConfig,
    audit: AuditConfig,
) -> AuditOutcome:
    """Put an audit on record; a champion that failed it loses its alias, if so configured.

    Args:
        evidence: Of the audit.
        audited: The version it is about.
        decision: Made from it.
        config: Of the run; names the server.
        audit: Its section of the configuration.
    """
    registry = Registry(tracking_uri(config), audited.name)
    outcome = registry.audit(
        audited.version, decision, evidence.operator, demote=audit.on_failure == "demote"
    )
    tags = {
        "backburn.audit": decision.outcome,
        "backburn.audit_run_id": decision.run_id,
        "backburn.audited_at": evidence.created,
        "backburn.audit_evidence_sha256": decision.evidence_sha256,
        "backburn.audit_reasons": "; ".join(decision.reasons),
    }
    for name, value in tags.items():
        client(config).set_model_version_tag(audited.name, audited.version, name, value)
    return outcome


def read_evidence(path: Path) -> Evidence:
    """Read and validate an evidence file.

    Raises:
        InputError: if it is missing or does not match the schema.
    """
    try:
        return Evidence.model_validate_json(read_bytes(str(path)))
    except ValidationError as error:
        raise InputError(f"{path}: not readable as evidence: {first_problem(error)}") from error


def check_binding(evidence: Evidence, config: RunConfig, run_id: str, hardened: Path) -> None:
    """Refuse evidence about another run, another configuration or another model.

    Raises:
        InputError: naming what differs.
    """
    manifest = read_manifest(hardened)
    pairs = {
        "run id": (evidence.run_id, run_id),
        "configuration digest": (evidence.config_digest, config.digest()),
        "hardened model digest": (evidence.hardened_digest, manifest.digest()),
    }
    differing = [
        f"{n}: {found} != {expected}" for n, (found, expected) in pairs.items() if found != expected
    ]
    if differing:
        raise InputError(
            "the evidence is not about this run's model, so nothing is decided from it: "
            + "; ".join(differing)
        )


def check_figures(evidence: Evidence, config: RunConfig, observations: Path) -> None:
    """Refuse evidence whose figures are not those that its observations give.

    Raises:
        InputError: naming the first figure that differs.
    """
    if evidence.observations_sha256 != sha256_file(observations):
        raise InputError(f"{observations}: not the observations the evidence was made from")
    try:
        observed = Observations.model_validate_json(read_bytes(str(observations)))
    except ValidationError as error:
        raise InputError(f"{observations}: not observations: {first_problem(error)}") from error
    for name, figures in derive(observed, config).as_dict().items():
        if figures != getattr(evidence, name):
            raise InputError(
                f"the evidence's {name} does not follow from the observations, so nothing is "
                "decided from it"
            )


def summarise(
    evidence: Evidence, decision: Decision, config: RunConfig, tracking_run_id: str, seconds: float
) -> Summary:
    """The figures of the gate, where each came from, and wall time per step."""
    return Summary(
        run_id=evidence.run_id,
        outcome=decision.outcome,
        exit_code=_EXIT_CODES[decision.outcome],
        reasons=decision.reasons,
        figures={check.name: check.value for check in decision.checks},
        thresholds={check.name: check.threshold for check in decision.checks},
        sources={check.name: f"evidence.json: {_SOURCES[check.name]}" for check in decision.checks},
        seconds={**evidence.seconds, "promotion": seconds},
        registration=decision.registration,
        audit=decision.audit,
        report="report.html",
        evidence="evidence.json",
        tracking_uri=tracking_uri(config),
        tracking_run_id=tracking_run_id,
    )
