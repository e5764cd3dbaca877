"""The `audit` pipeline: attack a registered model again, and take its alias if it fails."""

from backburn.components.audited_model.component import audited_model
from backburn.components.shared.arms import arm_groups
from backburn.components.shared.config import RunConfig
from backburn.pipelines.platform import on_any_node
from backburn.pipelines.stages import Stages
from kfp import dsl


def build_audit(settings: RunConfig, run_id: str = dsl.PIPELINE_JOB_ID_PLACEHOLDER):
    """Build the pipeline for an audit's compute settings.

    Args:
        settings: With an `audit` section; see `build_harden`.
        run_id: See `build_harden`.

    Returns:
        A KFP pipeline with the parameters `config` and the groups of arms.
    """
    compute = settings.compute
    controls, attacks = arm_groups(settings, "control"), arm_groups(settings, "hardened")

    @dsl.pipeline(
        name="backburn-audit",
        description="Attack a registered model again; if it fails the gate, it loses its alias.",
    )
    def audit(
        config: str = settings.to_json(),
        control_groups: list = controls,
        attack_groups: list = attacks,
    ):
        stages = Stages(settings, config, run_id)
        with dsl.ExitHandler(stages.close(), name="attack-and-measure"):
            data = stages.prepare(control_groups, attack_groups, audits=True)
            fetched = on_any_node(
                audited_model(config=config, run_id=run_id, dataset=data.outputs["dataset"]),
                compute,
                "Fetch the model",
            )
            hardened = fetched.outputs["hardened"]
            aligned = stages.align(data).after(fetched)
            unhardened = aligned.outputs["model"]
            control = stages.attack(
                control_groups, data, unhardened, "Attack the unhardened model", "control-arms"
            )
            certified = stages.certify(data, aligned, hardened)
            attack = stages.attack(
                attack_groups, data, hardened, "Attack the audited model", "attack-arms", certified
            )
            stages.decide(
                data,
                aligned,
                hardened,
                fetched.outputs["record"],
                certified,
                control,
                attack,
                fetched.outputs["Output"],
            )

    return audit
