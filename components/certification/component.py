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
    from pathlib import Path

    from backburn.components.certification.step import run

    artifacts = (dataset, baseline, hardened, certificate, sealed)
    certificate.metadata.update(run(config, run_id, *[Path(a.path) for a in artifacts]))
