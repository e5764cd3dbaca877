"""The `harden` pipeline: one definition for a laptop and for a cluster."""

from backburn.components.defense_training.component import defense_training
from backburn.components.shared.arms import arm_groups
from backburn.components.shared.config import RunConfig
from backburn.pipelines.platform import on_model_nodes
from backburn.pipelines.stages import Stages
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
        stages = Stages(settings, config, run_id)
        with dsl.ExitHandler(stages.close(), name="harden-and-measure"):
            data = stages.prepare(control_groups, attack_groups, audits=False)
            aligned = stages.align(data)
            unhardened = aligned.outputs["model"]
            control = stages.attack(
                control_groups, data, unhardened, "Attack the unhardened model", "control-arms"
            )
            defended = on_model_nodes(
                defense_training(
                    config=config,
                    run_id=run_id,
                    dataset=data.outputs["dataset"],
                    baseline=unhardened,
                ),
                compute,
                "Harden",
            )
            hardened = defended.outputs["hardened"]
            certified = stages.certify(data, aligned, hardened)
            attack = stages.attack(
                attack_groups, data, hardened, "Attack the hardened model", "attack-arms", certified
            )
            stages.decide(
                data, aligned, hardened, defended.outputs["record"], certified, control, attack
            )

    return harden
