"""KFP face of the promotion step."""

from kfp import dsl


@dsl.component(base_image="backburn/python:0.1.0", install_kfp_package=False)
def promotion(
    config: str,
    run_id: str,
    evidence: dsl.Input[dsl.Artifact],
    hardened: dsl.Input[dsl.Model],
    decision: dsl.Output[dsl.Artifact],
    summary: dsl.Output[dsl.Artifact],
    report: dsl.Output[dsl.HTML],
):
    """Decide from the evidence alone; register the model when the gate passes; write the report.

    Args:
        config: Run configuration, JSON.
        run_id: Id of the pipeline run.
        evidence: What judge_evaluation wrote.
        hardened: The model the evidence is about.
        decision: Outcome, reasons and every check.
        summary: Every gated figure, for scripts.
        report: One self-contained HTML page.
    """
    from pathlib import Path

    from backburn.components.promotion.step import run

    paths = [Path(a.path) for a in (evidence, hardened, decision, summary, report)]
    decision.metadata.update(run(config, run_id, *paths))
