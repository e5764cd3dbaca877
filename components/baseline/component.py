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
    from pathlib import Path

    from backburn.components.shared.scale.job import start

    model.metadata.update(
        start(
            "backburn.components.baseline.step",
            config,
            run_id=run_id,
            dataset=Path(dataset.path),
            model=Path(model.path),
            record=Path(record.path),
        )
    )
