"""The rl_attack step: arms on one target, in memory; sealed text and statistics leave."""

from functools import partial
from pathlib import Path
from typing import Any

from backburn.components.rl_attack.attack import ArmResult, run_arm
from backburn.components.rl_attack.benign import BenignLoss
from backburn.components.rl_attack.sweep import Watch, decisive, sweep
from backburn.components.shared.config import (
    ATTACK_STEP_HARD_CAP,
    AttackArmConfig,
    DomainConfig,
    RunConfig,
)
from backburn.components.shared.dataset import RunDataset
from backburn.components.shared.domains import load_domain
from backburn.components.shared.errors import ContainmentError
from backburn.components.shared.judges import RememberingJudge, make_judge
from backburn.components.shared.models import ModelManifest, load_artifact, read_manifest
from backburn.components.shared.sampling import CompletionLogits
from backburn.components.shared.scale.distributed import is_primary
from backburn.components.shared.sealing import require_key, seal
from backburn.components.shared.step import Step, open_step, use_threads
from backburn.components.shared.storage import write_json
from backburn.components.shared.supervised import KEPT_TOKENS
from backburn.components.shared.vllm_rollouts import drawing

DEFENCE_LINEAGE = "defence:"
_BENIGN_PROMPTS = 24


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
        group: As `arm_groups` made it: role, side_by_side and (arm, seed) pairs, or the sweep.
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
    planned = [(str(item["arm"]), int(item["seed"])) for item in group["arms"]]
    names = " ".join(f"{arm}/{seed}" for arm, seed in planned) or "sweep"
    title = f"rl_attack {'control' if role == 'control' else 'hardened'} {names}"
    inputs = [dataset, target]
    with open_step(config_json, run_id, title, ["attack"], inputs, contained=True) as step:
        config = step.config
        require_key()
        manifest = read_manifest(target)
        authorise(role, manifest, config)
        draw = drawing(config)
        use_threads(config, int(group.get("side_by_side", 1)))
        loaded = load_artifact(target, config.model, sharding=config.compute.sharding)
        data = RunDataset(dataset)
        fields = {name: Field(config, data, name) for name in _domains(config)}
        monitor = RememberingJudge(make_judge(config.judges.evaluation, data.header.rubric))
        benign_loss = BenignLoss(
            loaded,
            data.rows("benign")[:_BENIGN_PROMPTS],
            min(config.attack.max_completion_tokens, KEPT_TOKENS),
            config.seed,
        )
        target_logits: dict[tuple[int, ...], CompletionLogits] = {}

        def attack(recipe: AttackArmConfig, seed: int, watch: Watch | None = None) -> ArmResult:
            name = f"{recipe.name}/{seed}"
            field = fields[recipe.domain]
            return run_arm(
                loaded,
                recipe,
                config.attack,
                role=role,
                seed=seed,
                attack_rows=field.attack_rows,
                defence_rows=field.defence_rows,
                held_out_rows=data.rows("held_out"),
                rejection=data.header.rejection,
                judge=field.judge,
                monitor=monitor,
                broken_at=config.gate.control_broken_min,
                report=lambda done, total, note: step.progress.update(
                    f"arm {name}", done, total, note
                ),
                target_logits=target_logits,
                benign_loss=benign_loss,
                watch=watch,
                draw=draw,
            )

        target_digest = manifest.digest()
        trials: list[dict[str, Any]] = []
        arms = [(_recipe(config, name), seed) for name, seed in planned]
        if group.get("sweep"):
            found = sweep(
                config.attack,
                decisive(config, data, target_digest),
                config.seed,
                attack,
                lambda done, total, note: step.progress.update("sweep", done, total, note),
                step.checkpoints.database("sweep"),
                loaded.takes_system_prompts(),
            )
            trials = found.trials
            arms = [(found.worst, seed) for seed in found.worst.seeds]
        completions: list[dict[str, Any]] = []
        records: list[dict[str, Any]] = []
        for recipe, seed in arms:
            result = step.checkpoints.remembered(
                f"arm {recipe.name}/{seed}", ArmResult, partial(attack, recipe, seed), sealed=True
            )
            completions += result.completions
            records.append({**result.statistics, "target_digest": target_digest})
            _track(step, f"{role} {recipe.name} seed {seed}", result.statistics)
        if not is_primary():
            return {}
        seal(sealed, completions)
        write_json(statistics, {"arms": records, "sweep": trials})
        return {"seconds": step.seconds, "role": role, "arms": names}


class Field:
    """Where an arm trains: prompts and reward judge of the run's domain or of a shipped one."""

    def __init__(self, config: RunConfig, data: RunDataset, name: str | None) -> None:
        """Read the prompts.

        Args:
            config: Configuration of the run.
            data: The run's dataset.
            name: A shipped domain; None: the run's own.
        """
        if name is None:
            self.attack_rows, self.defence_rows = data.rows("attack"), data.rows("defence")
            rubric = data.header.rubric
        else:
            domain = load_domain(DomainConfig(name=name))
            self.attack_rows, self.defence_rows = (
                [row for row in domain.forbidden if row.split == split]
                for split in ("attack", "defence")
            )
            rubric = domain.header.rubric
        self.judge = RememberingJudge(make_judge(config.judges.reward, rubric))


def _domains(config: RunConfig) -> list[str | None]:
    return list(dict.fromkeys([None, *(arm.domain for arm in config.attack.arms)]))


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
    longest = max(
        config.attack.sweep.steps,
        *(max(arm.steps, arm.control_steps) for arm in config.attack.arms),
    )
    if longest > ATTACK_STEP_HARD_CAP:
        raise ContainmentError(f"{longest} steps exceed the hard cap of {ATTACK_STEP_HARD_CAP}")


def _recipe(config: RunConfig, name: str) -> AttackArmConfig:
    return next(arm for arm in config.attack.arms if arm.name == name)


def _track(step: Step, prefix: str, statistics: dict[str, Any]) -> None:
    curves: dict[str, list[tuple[int, float | None]]] = {
        f"{prefix}/{name}": [(item["step"], item[name]) for item in statistics["steps"]]
        for name in ("reward_mean", "reward_std", "entropy", "live_groups", "completion_tokens")
    }
    curves[f"{prefix}/harm"] = [(int(s), h) for s, h in statistics["monitored_harm"].items()]
    step.tracking.series(curves)
    step.tracking.metrics(
        {
            f"{prefix}/{name}": float(statistics[name])
            for name in ("live_groups", "idle_steps", "seconds")
        }
    )
