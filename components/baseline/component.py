"""KFP face of the baseline step."""

from kfp import dsl


@dsl.component(base_image="backburn/python:0.1.0", install_kfp_package=False)
def baseline(
    config: str,
    run_id: str,
    dataset: dsl.Input[dsl.Dataset],
    model: dsl.Output[dsl.Model],
    record: dsl.Output[dsl.Artifact],
):
    """Give a model that does not refuse an ordinary explanatory-refusal alignment.

    Args:
        config: Run configuration, JSON.
        run_id: Id of the pipeline run.
        dataset: What data_prep made.
        model: LoRA adapter and manifest of the ordinarily aligned model.
        record: Whether alignment was needed, and refusal rates before and after.
    """
    from backburn.components.shared.scale.job import start

    paths = {"dataset": dataset.path, "model": model.path, "record": record.path}
    step = "backburn.components.baseline.step"
    model.metadata.update(start(step, config, run_id=run_id, **paths))
