"""The preflight step: refuse a bad run in seconds instead of after hours."""

from pathlib import Path
from typing import Any

from backburn.components.preflight.checks import (
    check_environment,
    check_groups,
    check_pipeline,
    check_run,
)
from backburn.components.shared.checkpoints import check_place
from backburn.components.shared.consumption import find_version
from backburn.components.shared.domains import load_domain
from backburn.components.shared.judges.calibration import require_evaluation_judge
from backburn.components.shared.judges.rubrics import keep_rubrics
from backburn.components.shared.step import open_step
from backburn.components.shared.storage import write_json
from backburn.components.shared.tracking import client


def run(
    config_json: str,
    run_id: str,
    control_groups: list[dict[str, Any]],
    attack_groups: list[dict[str, Any]],
    facts: Path,
    *,
    audits: bool = False,
) -> None:
    """Check the run.

    Args:
        config_json: Configuration of the run.
        run_id: Id of the pipeline run.
        control_groups: Groups of control arms, as the pipeline will run them.
        attack_groups: Groups of arms on the hardened model.
        facts: Where the preflight report goes.
        audits: Whether the pipeline audits a registered model instead of hardening one.

    Raises:
        InputError: with every problem found.
    """
    with open_step(config_json, run_id, "preflight") as step:
        check_environment()
        check_pipeline(step.config, "audit" if audits else "harden")
        check_groups(step.config, "control", control_groups)
        check_groups(step.config, "hardened", attack_groups)
        compute = step.config.compute
        found = check_run(step.config, has_model_steps=compute.tools_image is None)
        check_place(step.config, run_id)
        step.progress.update("calibrate the evaluation judge", 0, 1)
        domain, judges = load_domain(step.config.domain), step.config.judges
        record = require_evaluation_judge(judges, domain.header.rubric, domain.calibration)
        found["evaluation judge"] = record.model_dump(mode="json")
        rubrics = keep_rubrics(judges, domain.header, client(step.config))
        found["rubrics"] = [rubric.model_dump(mode="json") for rubric in rubrics]
        if step.config.audit is not None:
            audited = find_version(client(step.config), step.config.audited_reference)
            found["audited"] = f"models:/{audited.name}/{audited.version}"
        write_json(facts, found)
        step.tracking.parameters({"packages": found["packages"], "model": found["model"]})
