"""The preflight step: refuse a bad run in seconds instead of after hours."""

from pathlib import Path
from typing import Any

from backburn.components.preflight.checks import arm_groups, check_environment, check_run
from backburn.components.shared.step import open_step
from backburn.components.shared.storage import write_json


def run(config_json: str, run_id: str, facts: Path) -> dict[str, list[dict[str, Any]]]:
    """Check the run; returns the groups of control and attack arms.

    Args:
        config_json: Configuration of the run.
        run_id: Id of the pipeline run.
        facts: Where the preflight report goes.

    Raises:
        InputError: with every problem found.
    """
    with open_step(config_json, run_id, "preflight") as step:
        check_environment()
        found = check_run(step.config)
        write_json(facts, found)
        step.tracking.parameters({"packages": found["packages"], "model": found["model"]})
        return {
            "control_groups": arm_groups(step.config, "control"),
            "attack_groups": arm_groups(step.config, "hardened"),
        }
