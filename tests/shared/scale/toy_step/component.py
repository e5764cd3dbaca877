"""The face of a step that only the tests of launchers use."""

from kfp import dsl


@dsl.component(base_image="backburn/python:0.1.0", install_kfp_package=False)
def toy_step(
    config: str,
    run_id: str,
    plan: dict,
    dataset: dsl.Input[dsl.Dataset],
    model: dsl.Output[dsl.Model],
    record: dsl.Output[dsl.Artifact],
):
    """Copy a folder, as `plan` says."""
