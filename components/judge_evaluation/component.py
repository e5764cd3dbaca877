"""KFP face of the judge_evaluation step."""

from typing import List

from kfp import dsl


@dsl.component(base_image="backburn/train:0.1.0", install_kfp_package=False)
def judge_evaluation(
    config: str,
    run_id: str,
    dataset: dsl.Input[dsl.Dataset],
    baseline: dsl.Input[dsl.Model],
    baseline_record: dsl.Input[dsl.Artifact],
    hardened: dsl.Input[dsl.Model],
    defense_record: dsl.Input[dsl.Artifact],
    certificate: dsl.Input[dsl.Artifact],
    behaviour: dsl.Input[dsl.Artifact],
    control_sealed: dsl.Input[List[dsl.Artifact]],
    control_statistics: dsl.Input[List[dsl.Artifact]],
    attack_sealed: dsl.Input[List[dsl.Artifact]],
    attack_statistics: dsl.Input[List[dsl.Artifact]],
    observations: dsl.Output[dsl.Artifact],
    evidence: dsl.Output[dsl.Artifact],
    rejudges: str = "",
    audited: str = "",
):
    """Open the seals, score every completion with the evaluation judge, write the evidence.

    Args:
        config: Run configuration, JSON.
        run_id: Id of the pipeline run.
        dataset: What data_prep made.
        baseline: The ordinarily aligned model.
        baseline_record: What the baseline step measured.
        hardened: The hardened model.
        defense_record: What each phase of the defence measured.
        certificate: The certificate.
        behaviour: Sealed completions on benign and near-miss prompts.
        control_sealed: Sealed completions of the control arms.
        control_statistics: Statistics of the control arms.
        attack_sealed: Sealed completions of the arms on the hardened model.
        attack_statistics: Statistics of the arms on the hardened model.
        observations: Everything that was measured, without text, JSON.
        evidence: Everything the gate decides from, JSON.
        rejudges: The run whose completions are judged again, JSON; empty: this run's own.
        audited: The registered version that was attacked, JSON; empty: this run hardened its own.
    """
    from pathlib import Path

    from backburn.components.judge_evaluation.inputs import collect
    from backburn.components.judge_evaluation.step import run

    arms = [*control_sealed, *attack_sealed], [*control_statistics, *attack_statistics]
    single = (dataset, baseline, baseline_record, hardened, defense_record, certificate, behaviour)
    inputs = collect(single, *arms)
    outputs = (Path(observations.path), Path(evidence.path))
    evidence.metadata.update(run(config, run_id, *inputs, *outputs, rejudges, audited))
