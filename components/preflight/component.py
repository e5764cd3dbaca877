"""KFP face of the preflight step."""

from typing import List, NamedTuple

from kfp import dsl


@dsl.component(base_image="backburn/python:0.1.0", install_kfp_package=False)
def preflight(
    config: str, run_id: str, facts: dsl.Output[dsl.Artifact]
) -> NamedTuple("Groups", control_groups=List[dict], attack_groups=List[dict]):
    """Check model, domain, judges, key and disk before anything expensive runs.

    Args:
        config: Run configuration, JSON.
        run_id: Id of the pipeline run.
        facts: What was found, JSON.

    Returns:
        Groups of control arms and of attack arms; each group is attacked by one task.
    """
    from pathlib import Path

    from backburn.components.preflight.step import run

    groups = run(config, run_id, Path(facts.path))
    return (groups["control_groups"], groups["attack_groups"])
