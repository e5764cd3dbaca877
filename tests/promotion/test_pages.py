"""What MLflow's pages say of runs, versions and models."""

import pytest
from backburn.components.promotion.pages import (
    model_description,
    run_description,
    version_description,
)
from backburn.components.shared.config import RunConfig
from backburn.components.shared.evidence import Outcome
from backburn.components.shared.gate import decide
from backburn.components.shared.report.claims import claim_of

from tests.shared.evidence_samples import (
    CONFIG,
    large_config,
    large_evidence,
    sample_decision,
    sample_evidence,
)

OUTCOMES: tuple[Outcome, ...] = ("passed", "failed", "inconclusive")


@pytest.mark.parametrize("outcome", OUTCOMES)
def test_a_runs_page_begins_with_the_verdict_and_has_every_check(outcome: Outcome) -> None:
    evidence = sample_evidence(outcome)
    decision = sample_decision(evidence, outcome)
    page = run_description(evidence, decision, None)
    assert page.splitlines()[0][1:].startswith(f" Gate {outcome}. ")
    assert (claim_of(evidence) in page) == (outcome == "passed")
    for check in decision.checks:
        (row,) = [line for line in page.splitlines() if f"| {check.description} |" in line]
        assert row.startswith("| ✓ |" if check.passed else "| **✗** |")
        assert row.count("|") == 5
    for reason in decision.reasons:
        assert (f"- {reason}" in page) == (outcome != "passed")
    assert "[report](#/experiments/7/runs/2ea1c961f6ae40f2/artifacts/report.html)" in page
    assert ("/versions/3)" in page) == (outcome == "passed")


def test_a_runs_page_leads_to_the_pipeline_run_and_says_what_a_dry_run_is() -> None:
    decision = sample_decision(dry_run=True)
    page = run_description(sample_evidence(), decision, "https://kfp.example/#/runs/details/1")
    assert "[pipeline run](https://kfp.example/#/runs/details/1)" in page
    assert "dry run: nothing was registered" in page


def test_a_versions_page_says_how_to_check_and_fetch_it() -> None:
    page = version_description(sample_evidence(), sample_decision())
    name = CONFIG.registered_model_name
    assert f"`backburn pull models:/{name}/3 -o model --key backburn.pem`" in page
    assert "`backburn verify FOLDER --key backburn.pem`" in page
    assert claim_of(sample_evidence()) in page


def test_no_page_is_longer_than_mlflow_takes() -> None:
    evidence = large_evidence()
    evidence.run_id = "x" * 200
    decision = decide(evidence, large_config(), "0" * 64)
    decision = decision.model_copy(update={"reasons": ["a long reason " * 20] * 60})
    decision.outcome = "failed"
    page = run_description(evidence, decision, None)
    assert len(page) <= 5000
    assert "in the report" in page
    assert page.endswith(f"`{evidence.run_id}`\n")


def test_a_models_page_says_what_it_is() -> None:
    page = model_description(RunConfig())
    assert "builtin:smollm2-135m-instruct" in page
    assert "`champion`" in page
