"""KFP face of the baseline step."""

from kfp import dsl


@dsl.component(base_image="backburn/train:0.1.0", install_kfp_package=False)
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
    from pathlib import Path

    from backburn.components.baseline.step import run

    paths = [Path(artifact.path) for artifact in (dataset, model, record)]
    model.metadata.update(run(config, run_id, *paths))
