"""KFP face of the notification step."""

from kfp import dsl


@dsl.component(base_image="backburn/train:0.1.0", install_kfp_package=False)
def notification(config: str, run_id: str, status: dsl.PipelineTaskFinalStatus) -> str:
    """Close the run's MLflow record and tell webhooks how the pipeline ended, whatever happened.

    Args:
        config: Run configuration, JSON.
        run_id: Id of the pipeline run.
        status: Final status of the pipeline, from KFP.

    Returns:
        The message, JSON.
    """
    from backburn.components.notification.step import run

    return run(config, run_id, str(status.state))
