"""KFP face of the audited_model step."""

from kfp import dsl


@dsl.component(base_image="backburn/train:0.1.0", install_kfp_package=False)
def audited_model(
    config: str,
    run_id: str,
    dataset: dsl.Input[dsl.Dataset],
    hardened: dsl.Output[dsl.Model],
    record: dsl.Output[dsl.Artifact],
) -> str:
    """Fetch the registered model that is to be attacked again, and verify it.

    Args:
        config: Run configuration, JSON; its `audit` section names the model.
        run_id: Id of the pipeline run.
        dataset: What data_prep made.
        hardened: The registered model.
        record: What each phase of its defence measured, from its evidence, JSON.

    Returns:
        Its name, version and run, JSON.
    """
    from pathlib import Path

    from backburn.components.audited_model.step import run

    paths = [Path(item.path) for item in (dataset, hardened, record)]
    found, metadata = run(config, run_id, *paths)
    hardened.metadata.update(metadata)
    return found
