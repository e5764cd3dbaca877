"""KFP face of the rl_attack step. There is no output for weights, on purpose."""

from kfp import dsl


@dsl.component(base_image="backburn/python:0.1.0", install_kfp_package=False)
def rl_attack(
    config: str,
    run_id: str,
    group: dict,
    dataset: dsl.Input[dsl.Dataset],
    target: dsl.Input[dsl.Model],
    sealed: dsl.Output[dsl.Artifact],
    statistics: dsl.Output[dsl.Artifact],
):
    """Attack one target with a group of arms, in memory, and seal what it says on held-out prompts.

    Args:
        config: Run configuration, JSON.
        run_id: Id of the pipeline run.
        group: Role and arms, as preflight made it.
        dataset: What data_prep made.
        target: The baseline model for control arms, else the hardened model.
        sealed: Encrypted completions at the checkpoint steps.
        statistics: Rewards, live groups, entropy and rollout counts of each arm.
    """
    from backburn.components.shared.scale.job import start

    paths = {
        "dataset": dataset.path,
        "target": target.path,
        "sealed": sealed.path,
        "statistics": statistics.path,
    }
    step = "backburn.components.rl_attack.step"
    statistics.metadata.update(start(step, config, run_id=run_id, group=group, **paths))
