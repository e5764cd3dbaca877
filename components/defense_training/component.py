"""KFP face of the defense_training step."""

from kfp import dsl


@dsl.component(base_image="backburn/python:0.1.0", install_kfp_package=False)
def defense_training(
    config: str,
    run_id: str,
    dataset: dsl.Input[dsl.Dataset],
    baseline: dsl.Input[dsl.Model],
    hardened: dsl.Output[dsl.Model],
    record: dsl.Output[dsl.Artifact],
):
    """Harden the model: warm start, Reward Neutralization by GRPO, tempered consolidation.

    Args:
        config: Run configuration, JSON.
        run_id: Id of the pipeline run.
        dataset: What data_prep made.
        baseline: The ordinarily aligned model.
        hardened: One LoRA adapter on the public base, and its digest manifest.
        record: What each phase did to slip rate and benign behaviour.
    """
    from backburn.components.shared.scale.job import start

    paths = {
        "dataset": dataset.path,
        "baseline": baseline.path,
        "hardened": hardened.path,
        "record": record.path,
    }
    step = "backburn.components.defense_training.step"
    hardened.metadata.update(start(step, config, run_id=run_id, **paths))
