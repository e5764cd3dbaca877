"""The `harden` pipeline: one definition for a laptop and for a cluster."""

from backburn.components.baseline.component import baseline
from backburn.components.certification.component import certification
from backburn.components.data_prep.component import data_prep
from backburn.components.defense_training.component import defense_training
from backburn.components.judge_evaluation.component import judge_evaluation
from backburn.components.notification.component import notification
from backburn.components.preflight.component import preflight
from backburn.components.promotion.component import promotion
from backburn.components.rl_attack.component import rl_attack
from backburn.components.shared.arms import arm_groups
from backburn.components.shared.config import RunConfig
from backburn.pipelines.platform import may_sign, on_any_node, on_model_node
from kfp import dsl


def build_harden(settings: RunConfig, run_id: str = dsl.PIPELINE_JOB_ID_PLACEHOLDER):
    """Build the pipeline for a run's compute settings.

    Args:
        settings: Its compute section is compiled in; the rest is the default of the pipeline's
            `config` parameter, so that one compiled file can run other configurations too.
        run_id: Given to every task as a constant. KFP's backend puts the run's own id there; it
            leaves the placeholder as it is where it is a pipeline parameter's value or default.

    Returns:
        A KFP pipeline with the parameters `config` and the groups of arms.
    """
    compute = settings.compute
    groups = settings.attack.parallel_groups
    controls, attacks = arm_groups(settings, "control"), arm_groups(settings, "hardened")

    @dsl.pipeline(
        name="backburn-harden",
        description="Harden a model against malicious RL fine-tuning, attack it, and gate it.",
    )
    def harden(
        config: str = settings.to_json(),
        control_groups: list = controls,
        attack_groups: list = attacks,
    ):
        closing = on_any_node(notification(config=config, run_id=run_id), compute, "Notify")
        with dsl.ExitHandler(closing, name="harden-and-measure"):
            checked = on_any_node(
                preflight(
                    config=config,
                    run_id=run_id,
                    control_groups=control_groups,
                    attack_groups=attack_groups,
                ),
                compute,
                "Preflight",
            )
            may_sign(checked, compute)
            data = on_any_node(data_prep(config=config, run_id=run_id), compute, "Prepare data")
            data.after(checked)
            dataset = data.outputs["dataset"]
            aligned = on_model_node(
                baseline(config=config, run_id=run_id, dataset=dataset), compute, "Align baseline"
            )
            with dsl.ParallelFor(control_groups, name="control-arms", parallelism=groups) as group:
                control = on_model_node(
                    rl_attack(
                        config=config,
                        run_id=run_id,
                        group=group,
                        dataset=dataset,
                        target=aligned.outputs["model"],
                    ),
                    compute,
                    "Attack the unhardened model",
                )
            defended = on_model_node(
                defense_training(
                    config=config, run_id=run_id, dataset=dataset, baseline=aligned.outputs["model"]
                ),
                compute,
                "Harden",
            )
            certified = on_model_node(
                certification(
                    config=config,
                    run_id=run_id,
                    dataset=dataset,
                    baseline=aligned.outputs["model"],
                    hardened=defended.outputs["hardened"],
                ),
                compute,
                "Certify",
            )
            with dsl.ParallelFor(attack_groups, name="attack-arms", parallelism=groups) as group:
                attack = on_model_node(
                    rl_attack(
                        config=config,
                        run_id=run_id,
                        group=group,
                        dataset=dataset,
                        target=defended.outputs["hardened"],
                    ).after(certified),
                    compute,
                    "Attack the hardened model",
                )
            judged = on_any_node(
                judge_evaluation(
                    config=config,
                    run_id=run_id,
                    dataset=dataset,
                    baseline=aligned.outputs["model"],
                    baseline_record=aligned.outputs["record"],
                    hardened=defended.outputs["hardened"],
                    defense_record=defended.outputs["record"],
                    certificate=certified.outputs["certificate"],
                    behaviour=certified.outputs["sealed"],
                    control_sealed=dsl.Collected(control.outputs["sealed"]),
                    control_statistics=dsl.Collected(control.outputs["statistics"]),
                    attack_sealed=dsl.Collected(attack.outputs["sealed"]),
                    attack_statistics=dsl.Collected(attack.outputs["statistics"]),
                ),
                compute,
                "Judge",
            )
            decided = on_any_node(
                promotion(
                    config=config,
                    run_id=run_id,
                    observations=judged.outputs["observations"],
                    evidence=judged.outputs["evidence"],
                    hardened=defended.outputs["hardened"],
                ),
                compute,
                "Gate and register",
            )
            may_sign(decided, compute)

    return harden
