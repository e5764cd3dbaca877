"""The defense_training step: the hardened model, as one adapter on the public base."""

from pathlib import Path

from backburn.components.defense_training.defense import defend
from backburn.components.defense_training.meter import DefenseData
from backburn.components.shared.dataset import RunDataset
from backburn.components.shared.judges import make_judge
from backburn.components.shared.models import (
    load_artifact,
    read_base,
    read_manifest,
    resolve_base,
    save_artifact,
    stack_adapters,
)
from backburn.components.shared.packed_linear import full_precision
from backburn.components.shared.scale.distributed import is_primary
from backburn.components.shared.step import open_step, use_threads
from backburn.components.shared.storage import write_json
from backburn.components.shared.vllm_rollouts import drawing

_LINEAGE = {
    "neutralization": "reward-neutralization",
    "entropy": "entropy-as-reward",
    "refusal": "explanatory-refusal",
}


def run(
    config_json: str, run_id: str, dataset: Path, baseline: Path, hardened: Path, record: Path
) -> dict[str, str | float]:
    """Harden the baseline model; returns the artifact's metadata.

    Args:
        config_json: Configuration of the run.
        run_id: Id of the pipeline run.
        dataset: What `data_prep` made.
        baseline: The model to harden.
        hardened: Where the hardened model goes.
        record: Where the phases' measurements go.
    """
    inputs = [dataset, baseline]
    with (
        full_precision(),
        open_step(config_json, run_id, "defense_training", ["defense"], inputs) as step,
    ):
        config = step.config
        use_threads(config)
        data = RunDataset(dataset)
        loaded = load_artifact(baseline, config.model, sharding=config.compute.sharding)
        prompts = DefenseData(
            defence=data.rows("defence"),
            validation=data.rows("validation"),
            near_miss=data.rows("near_miss_defence"),
            benign=data.rows("benign_defence"),
            rejection=data.header.rejection,
            refusals=data.refusals(),
            topic=data.header.topic,
        )
        result = defend(
            loaded,
            config.defense,
            prompts,
            make_judge(config.judges.reward, data.header.rubric),
            max_tokens=config.attack.max_completion_tokens,
            seed=config.seed,
            report=step.progress.update,
            checkpoints=step.checkpoints,
            draw=drawing(config),
        )
        if not is_primary():
            return {}
        before = read_manifest(baseline)
        base_folder = (
            baseline / "base" if (baseline / "base").is_dir() else resolve_base(config.model)
        )
        adapter = baseline / "adapter"
        stacked = stack_adapters(
            read_base(base_folder, config.model),
            adapter if adapter.is_dir() else None,
            result.peft_model,
            config.defense.lora,
        )
        manifest = save_artifact(
            hardened,
            config=config.model,
            base_folder=base_folder,
            lineage=[*before.lineage, f"defence:{_LINEAGE[config.defense.method]}"],
            peft_model=stacked,
            tokenizer=loaded.tokenizer,
            rejection=data.header.rejection,
        )
        phases = [phase.model_dump() for phase in result.phases]
        write_json(
            record,
            {
                "phases": phases,
                "consolidation_curve": result.consolidation_curve,
                "neutralization_steps": result.neutralization_steps,
            },
        )
        step.tracking.series(
            {
                f"consolidation/{name}": [
                    (int(p["step"]), p[name]) for p in result.consolidation_curve
                ]
                for name in ("slip_rate", "near_miss_rejection")
            }
        )
        step.tracking.series(
            {
                f"neutralization/{name}": [
                    (p["step"], p[name]) for p in result.neutralization_steps
                ]
                for name in ("reward_mean", "reward_std", "live_groups", "completion_tokens")
            }
        )
        for index, phase in enumerate(result.phases):
            step.tracking.metrics(
                {
                    f"phase/{name}": float(getattr(phase, name))
                    for name in ("slip_rate", "near_miss_rejection", "benign_kl", "seconds")
                },
                step=index,
            )
        return {"seconds": step.seconds, "digest": manifest.digest()}
