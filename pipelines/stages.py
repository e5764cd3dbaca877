"""What the pipelines have in common; each function adds tasks to the pipeline being built."""

from typing import Any

from backburn.components.baseline.component import baseline
from backburn.components.certification.component import certification
from backburn.components.data_prep.component import data_prep
from backburn.components.judge_evaluation.component import judge_evaluation
from backburn.components.notification.component import notification
from backburn.components.preflight.component import preflight
from backburn.components.promotion.component import promotion
from backburn.components.rl_attack.component import rl_attack
from backburn.components.shared.config import RunConfig
from backburn.pipelines.platform import (
    may_notify,
    may_sign,
    on_any_node,
    on_model_node,
    on_model_nodes,
)
from kfp import dsl

_Channel = Any
"""A parameter of the pipeline or an output of a task; kfp has no public type for both."""


class Stages:
    """Adds the stages of one run to the pipeline being built."""

    def __init__(self, settings: RunConfig, config: str, run_id: str) -> None:
        """Begin.

        Args:
            settings: Its compute section is compiled in.
            config: The pipeline's parameter of that name.
            run_id: Every task's constant of that name.
        """
        self.compute = settings.compute
        self.webhooks = settings.notification
        self.groups_at_once = settings.attack.parallel_groups
        self.run = {"config": config, "run_id": run_id}

    def close(self) -> dsl.PipelineTask:
        """The task that runs last, whatever happened."""
        closing = on_any_node(notification(**self.run), self.compute, "Notify")
        may_notify(closing, self.compute, self.webhooks)
        return closing

    def prepare(
        self, control_groups: _Channel, attack_groups: _Channel, *, audits: bool
    ) -> dsl.PipelineTask:
        """Preflight and data; returns the second task."""
        checked = on_any_node(
            preflight(
                **self.run,
                control_groups=control_groups,
                attack_groups=attack_groups,
                audits=audits,
            ),
            self.compute,
            "Preflight",
        )
        may_sign(checked, self.compute)
        data = on_any_node(data_prep(**self.run), self.compute, "Prepare data")
        return data.after(checked)

    def align(self, data: dsl.PipelineTask) -> dsl.PipelineTask:
        """The ordinarily aligned model, which controls and defence start from."""
        return on_model_nodes(
            baseline(**self.run, dataset=data.outputs["dataset"]), self.compute, "Align baseline"
        )

    def attack(
        self,
        groups: _Channel,
        data: dsl.PipelineTask,
        target: _Channel,
        title: str,
        name: str,
        after: dsl.PipelineTask | None = None,
    ) -> dsl.PipelineTask:
        """One task for each group of arms; returns the task of the loop."""
        with dsl.ParallelFor(groups, name=name, parallelism=self.groups_at_once) as group:
            arms = rl_attack(
                **self.run, group=group, dataset=data.outputs["dataset"], target=target
            )
            if after is not None:
                arms.after(after)
            return on_model_nodes(arms, self.compute, title)

    def certify(
        self, data: dsl.PipelineTask, aligned: dsl.PipelineTask, hardened: _Channel
    ) -> dsl.PipelineTask:
        """Exact slip rates, certificate and benign behaviour; returns the task."""
        on_nodes = on_model_nodes if self.compute.sharding == "full" else on_model_node
        return on_nodes(
            certification(
                **self.run,
                dataset=data.outputs["dataset"],
                baseline=aligned.outputs["model"],
                hardened=hardened,
            ),
            self.compute,
            "Certify",
        )

    def decide(
        self,
        data: dsl.PipelineTask,
        aligned: dsl.PipelineTask,
        hardened: _Channel,
        record: _Channel,
        certified: dsl.PipelineTask,
        control: dsl.PipelineTask,
        attack: dsl.PipelineTask,
        audited: _Channel = "",
    ) -> None:
        """Judge everything, then let the gate decide."""
        judged = on_any_node(
            judge_evaluation(
                **self.run,
                dataset=data.outputs["dataset"],
                baseline=aligned.outputs["model"],
                baseline_record=aligned.outputs["record"],
                hardened=hardened,
                defense_record=record,
                certificate=certified.outputs["certificate"],
                behaviour=certified.outputs["sealed"],
                control_sealed=dsl.Collected(control.outputs["sealed"]),
                control_statistics=dsl.Collected(control.outputs["statistics"]),
                attack_sealed=dsl.Collected(attack.outputs["sealed"]),
                attack_statistics=dsl.Collected(attack.outputs["statistics"]),
                audited=audited,
            ),
            self.compute,
            "Judge",
        )
        decided = on_any_node(
            promotion(
                **self.run,
                observations=judged.outputs["observations"],
                evidence=judged.outputs["evidence"],
                hardened=hardened,
            ),
            self.compute,
            "Gate and register",
        )
        may_sign(decided, self.compute)
