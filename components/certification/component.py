"""KFP face of the certification step."""

from kfp import dsl


@dsl.component(base_image="backburn/train:0.1.0", install_kfp_package=False)
def certification(
    config: str,
    run_id: str,
    dataset: dsl.Input[dsl.Dataset],
    baseline: dsl.Input[dsl.Model],
    hardened: dsl.Input[dsl.Model],
    certificate: dsl.Output[dsl.Artifact],
    sealed: dsl.Output[dsl.Artifact],
):
    """State, without attacking, how likely the run's attacks are to meet no live group.

    Args:
        config: Run configuration, JSON.
        run_id: Id of the pipeline run.
        dataset: What data_prep made.
        baseline: The model before hardening.
        hardened: The model to certify.
        certificate: Slip rates, lower bounds and exact figures on benign answers.
        sealed: Encrypted completions of both models on benign and near-miss prompts.
    """
    from backburn.components.shared.scale.job import start

    paths = {
        "dataset": dataset.path,
        "baseline": baseline.path,
        "hardened": hardened.path,
        "certificate": certificate.path,
        "sealed": sealed.path,
    }
    step = "backburn.components.certification.step"
    made = start(step, config, divides_work=False, run_id=run_id, **paths)
    certificate.metadata.update(made)
