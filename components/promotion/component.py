"""KFP face of the promotion step."""

from kfp import dsl


@dsl.component(base_image="backburn/train:0.1.0", install_kfp_package=False)
def promotion(
    config: str,
    run_id: str,
    observations: dsl.Input[dsl.Artifact],
    evidence: dsl.Input[dsl.Artifact],
    hardened: dsl.Input[dsl.Model],
    bundle: dsl.Output[dsl.Artifact],
    summary: dsl.Output[dsl.Artifact],
    report: dsl.Output[dsl.HTML],
):
    """Decide from the evidence alone; register the model when the gate passes; sign the bundle.

    Args:
        config: Run configuration, JSON.
        run_id: Id of the pipeline run.
        observations: What judge_evaluation measured.
        evidence: What it made of that.
        hardened: The model the evidence is about.
        bundle: Observations, evidence, decision, report and model card, signed.
        summary: Every gated figure, for scripts.
        report: One self-contained HTML page.
    """
    from pathlib import Path

    from backburn.components.promotion.step import run

    artifacts = (observations, evidence, hardened, bundle, summary, report)
    bundle.metadata.update(run(config, run_id, *[Path(item.path) for item in artifacts]))
