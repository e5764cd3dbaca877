"""What MLflow's pages say of a run, a registered version and a registered model, in Markdown."""

from backburn.components.shared.attestation import ATTESTATION, EVIDENCE, MODEL_CARD, REPORT
from backburn.components.shared.config import RunConfig
from backburn.components.shared.evidence import Check, Decision, Evidence, Registration
from backburn.components.shared.report.claims import comparison, verdict
from backburn.components.shared.report.formatting import against, compact
from backburn.components.shared.report.links import run_page, version_page
from mlflow.tracking import MlflowClient

_LONGEST = 5000
"""MLflow's column for descriptions."""
_GAP = "\u00a0\u00a0"
"""MLflow draws tables without space between columns."""

_AUDITED = {
    "none": "no alias moved",
    "reported": "put on record, no alias moved",
    "demoted": "demoted, it is no longer champion",
}


def run_description(evidence: Evidence, decision: Decision, pipeline_url: str | None) -> str:
    """The page of the parent run: verdict, claim, table of the gate, links.

    Args:
        evidence: What was measured.
        decision: What the gate made of it, with registration and tracked run as far as there are.
        pipeline_url: Page of the pipeline run, if a KFP server said where that is.
    """
    links = []
    if decision.tracked is not None:
        files = f"{run_page(decision.tracked)}/artifacts"
        links += [f"[report]({files}/{REPORT})", f"[evidence]({files}/{EVIDENCE})"]
    if found := decision.registration:
        links.append(f"[version {found.version} of {found.name}]({version_page(found)})")
    links.append(f"[pipeline run]({pipeline_url})" if pipeline_url else _code(evidence.run_id))
    return _fitting(_verdict(evidence, decision), _table(decision), " · ".join(links))


def version_description(evidence: Evidence, decision: Decision) -> str:
    """The page of a registered version: claim, table of the gate, and how to check and fetch it.

    Args:
        evidence: What was measured.
        decision: A passed one, with its registration.
    """
    found = decision.registration
    assert found is not None
    links = ""
    if decision.tracked is not None:
        page = run_page(decision.tracked)
        links = f"[the run]({page}) · [report]({page}/artifacts/{REPORT})"
    return _fitting(_verdict(evidence, decision), _table(decision), f"{_use(found)}\n\n{links}")


def model_description(config: RunConfig) -> str:
    """The page of a registered model: what its versions are."""
    return (
        f"LoRA adapters that harden {_code(config.model.id)} against malicious RL fine-tuning on "
        f"the domain {_code(config.domain_name)}, made and tested by Backburn. A version is here "
        "only because its gate passed; its description says under which budget. "
        "`candidate` is the newest of them, `champion` the one in use, `previous` the one before.\n"
    )


def describe_version(mlflow: MlflowClient, evidence: Evidence, decision: Decision) -> None:
    """Write the page of a version that has just been registered."""
    found = decision.registration
    assert found is not None
    mlflow.update_model_version(
        found.name, found.version, description=version_description(evidence, decision)
    )


def _verdict(evidence: Evidence, decision: Decision) -> str:
    said = verdict(evidence, decision)
    lines = [f"{said.symbol} Gate {said.outcome}. {said.headline}"]  # lists show it as it is
    if said.claim is not None:
        lines.append(f"This model **{said.claim}**.")
    else:
        lines.append("\n".join(f"- {reason}" for reason in said.reasons))
    if (audited := evidence.audited) is not None:
        done = "nothing was written" if decision.audit is None else _AUDITED[decision.audit.action]
        lines.append(f"An audit of version {audited.version} of {_code(audited.name)}: {done}.")
    if decision.dry_run:
        lines.append("This was a dry run: nothing was registered.")
    lines.append(comparison(evidence))
    if evidence.data.stand_in:
        lines.append("The domain is a stand-in: a harmless topic plays the hazard.")
    return "\n\n".join(line for line in lines if line)


def _table(decision: Decision) -> str:
    rows = [
        f"| {'✓' if check.passed else '**✗**'} | {check.description} | {_GAP}{_value(check)} | "
        f"{_GAP}{'≤' if check.comparison == '<=' else '≥'} {compact(check.threshold)} |"
        for check in decision.checks
    ]
    return "\n".join(["| | gate | value | limit |", "|:--|:--|:--|:--|", *rows])


def _value(check: Check) -> str:
    shown = "missing" if check.value is None else against(check.value, check.threshold)
    return shown if check.passed else f"**{shown}**"


def _use(found: Registration) -> str:
    return (
        f"To use it: `backburn pull models:/{found.name}/{found.version} -o model --key "
        f"backburn.pem` fetches it and refuses it if its evidence does not hold. To check the "
        f"evidence alone, download the run's files ({ATTESTATION}, {MODEL_CARD} and the others) "
        "and run `backburn verify FOLDER --key backburn.pem`."
    )


def _code(text: str) -> str:
    return f"`{' '.join(text.split()).replace('`', chr(39))}`"


def _fitting(head: str, table: str, tail: str) -> str:
    """All of it; without the table if that is too long, as the report has it too."""
    whole = f"{head}\n\n{table}\n\n{tail}\n"
    if len(whole) <= _LONGEST:
        return whole
    instead = f"\n\nThe table of the gate is in the report.\n\n{tail}\n"
    return head[: _LONGEST - len(instead)] + instead
