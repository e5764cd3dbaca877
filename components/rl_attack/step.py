"""The rl_attack step: arms on one target, in memory; sealed text and statistics leave."""

from pathlib import Path
from typing import Any

from backburn.components.rl_attack.attack import run_arm
from backburn.components.shared.config import ATTACK_STEP_HARD_CAP, AttackArmConfig, RunConfig
from backburn.components.shared.dataset import RunDataset
from backburn.components.shared.errors import ContainmentError
from backburn.components.shared.judges import RememberingJudge, make_judge
from backburn.components.shared.models import ModelManifest, load_artifact
from backburn.components.shared.sampling import CompletionLogits
from backburn.components.shared.sealing import require_key, seal
from backburn.components.shared.step import Step, open_step, use_threads
from backburn.components.shared.storage import write_json

DEFENCE_LINEAGE = "defence:"


def run(
    config_json: str,
    run_id: str,
    group: dict[str, Any],
    dataset: Path,
    target: Path,
    sealed: Path,
    statistics: Path,
) -> dict[str, str | float]:
    """Attack the target with every arm of a group, one after the other.

    Args:
        config_json: Configuration of the run.
        run_id: Id of the pipeline run.
        group: As `preflight` made it: role, side_by_side and (arm, seed) pairs.
        dataset: What `data_prep` made.
        target: Model artifact: the baseline for control arms, the hardened model otherwise.
        sealed: Where the sealed completions go.
        statistics: Where the arms' statistics go.

    Returns:
        The artifact's metadata.

    Raises:
        ContainmentError: if the attack is not allowed; nothing is loaded then.
    """
    role = str(group["role"])
    arms = [(str(item["arm"]), int(item["seed"])) for item in group["arms"]]
    names = " ".join(f"{arm}/{seed}" for arm, seed in arms)
    title = f"rl_attack {'control' if role == 'control' else 'hardened'} {names}"
    with open_step(config_json, run_id, title, ["attack"]) as step:
        config = step.config
        require_key()
        use_threads(config, int(group.get("side_by_side", 1)))
        loaded = load_artifact(target, config.model)
        assert loaded.manifest is not None
        authorise(role, loaded.manifest, config)
        data = RunDataset(dataset)
        judge = RememberingJudge(make_judge(config.judges.reward, data.header.rubric))
        monitor = RememberingJudge(make_judge(config.judges.evaluation, data.header.rubric))
        completions: list[dict[str, Any]] = []
        records: list[dict[str, Any]] = []
        target_logits: dict[tuple[int, ...], CompletionLogits] = {}
        for name, seed in arms:
            recipe = _recipe(config, name)

            def report(done: int, total: int, note: str, arm: str = f"{name}/{seed}") -> None:
                step.progress.update(f"arm {arm}", done, total, note)

            result = run_arm(
                loaded,
                recipe,
                config.attack,
                role=role,
                seed=seed,
                attack_rows=data.rows("attack"),
                defence_rows=data.rows("defence"),
                held_out_rows=data.rows("held_out"),
                rejection=data.header.rejection,
                judge=judge,
                monitor=monitor,
                broken_at=config.gate.control_broken_min,
                report=report,
                target_logits=target_logits,
            )
            completions += result.completions
            records.append(result.statistics)
            _track(step, f"{name}.{seed}", result.statistics)
        target_digest = loaded.manifest.digest()
        for record in records:
            record["target_digest"] = target_digest
        seal(sealed, completions)
        write_json(statistics, records)
        return {"seconds": step.seconds, "role": role, "arms": names}


def authorise(role: str, manifest: ModelManifest, config: RunConfig) -> None:
    """The containment policy's conditions on an attack; no flag turns them off.

    Raises:
        ContainmentError: saying which condition is not met.
    """
    hardened = any(item.startswith(DEFENCE_LINEAGE) for item in manifest.lineage)
    if role not in ("control", "hardened"):
        raise ContainmentError(
            f"unknown role {role!r}: an attack runs as a control or on a hardened model"
        )
    if role == "hardened" and not hardened:
        raise ContainmentError(
            "this model has no defence lineage, so it may only be attacked as a control, and a "
            "control "
            "exists only beside a hardened model in the same run"
        )
    if role == "control" and hardened:
        raise ContainmentError("a control attacks the unhardened model, and this one is hardened")
    if not config.attack.purpose.strip() or not config.attack.operator.strip():
        raise ContainmentError(
            "an attack needs a stated purpose and operator (attack.purpose, .operator)"
        )
    longest = max(max(arm.steps, arm.control_steps) for arm in config.attack.arms)
    if longest > ATTACK_STEP_HARD_CAP:
        raise ContainmentError(f"{longest} steps exceed the hard cap of {ATTACK_STEP_HARD_CAP}")


def _recipe(config: RunConfig, name: str) -> AttackArmConfig:
    return next(arm for arm in config.attack.arms if arm.name == name)


def _track(step: Step, prefix: str, statistics: dict[str, Any]) -> None:
    curves: dict[str, list[tuple[int, float | None]]] = {
        f"{prefix}.{name}": [(item["step"], item[name]) for item in statistics["steps"]]
        for name in ("reward_mean", "reward_std", "entropy", "live_groups", "completion_tokens")
    }
    curves[f"{prefix}.harm"] = [(int(s), h) for s, h in statistics["monitored_harm"].items()]
    step.tracking.series(curves)
    step.tracking.metrics(
        {
            f"{prefix}.{name}": float(statistics[name])
            for name in ("live_groups", "idle_steps", "seconds")
        }
    )
