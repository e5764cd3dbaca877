"""KFP face of the preflight step."""

from kfp import dsl


@dsl.component(base_image="backburn/train:0.1.0", install_kfp_package=False)
def preflight(
    config: str,
    run_id: str,
    control_groups: list,
    attack_groups: list,
    facts: dsl.Output[dsl.Artifact],
    audits: bool = False,
):
    """Check model, domain, judges, arms, key and disk before anything expensive runs.

    Args:
        config: Run configuration, JSON.
        run_id: Id of the pipeline run.
        control_groups: Groups of control arms the pipeline will run.
        attack_groups: Groups of arms it will run on the hardened model.
        facts: What was found, JSON.
        audits: Whether the pipeline audits a registered model instead of hardening one.
    """
    from pathlib import Path

    from backburn.components.preflight.step import run

    run(config, run_id, control_groups, attack_groups, Path(facts.path), audits=audits)
