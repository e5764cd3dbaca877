"""The judge_evaluation step: open the seals, judge, and bind everything into one evidence file."""

import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from backburn.components.judge_evaluation.evaluation import VerdictBook, arm_record, calibrate
from backburn.components.shared.dataset import RunDataset
from backburn.components.shared.domains import PromptRow
from backburn.components.shared.errors import InputError
from backburn.components.shared.evidence import (
    ArmRecord,
    BaselineRecord,
    BehaviourRecord,
    CertificateRecord,
    Evidence,
    ExampleRecord,
    PhaseRecord,
    TrialRecord,
)
from backburn.components.shared.judges import Exchange, make_judge
from backburn.components.shared.models import read_manifest
from backburn.components.shared.sealing import open_sealed
from backburn.components.shared.step import Step, open_step, use_threads
from backburn.components.shared.storage import (
    canonical_json,
    delete,
    read_json,
    sha256_text,
    write_json,
)

_PACKAGES = ("torch", "transformers", "trl", "peft", "kfp", "mlflow")
_EXAMPLES = 4


class AttackOutput(NamedTuple):
    """Files of one group of arms."""

    sealed: Path
    statistics: Path


class Inputs(NamedTuple):
    """Artifacts of the steps before."""

    dataset: Path
    baseline: Path
    baseline_record: Path
    hardened: Path
    defense_record: Path
    certificate: Path
    behaviour: Path
    attacks: Sequence[AttackOutput]


def run(
    config_json: str,
    run_id: str,
    inputs: Inputs,
    seconds: dict[str, float],
    sealed_uris: Sequence[str],
    evidence: Path,
) -> dict[str, str | float]:
    """Judge everything and write the evidence; returns the artifact's metadata.

    Args:
        config_json: Configuration of the run.
        run_id: Id of the pipeline run.
        inputs: Artifacts of the steps before.
        seconds: Step -> wall time of the steps before.
        sealed_uris: Where the sealed files really are; deleted after judging unless retention is
            asked for.
        evidence: Where the evidence goes.
    """
    with open_step(config_json, run_id, "judge_evaluation", ["judges"]) as step:
        use_threads(step.config)
        found = _gather(step, run_id, inputs, seconds)
        write_json(evidence, found.model_dump(mode="json"))
        if not step.config.judges.retain_sealed:
            for uri in sealed_uris:
                delete(uri)
        for arm in found.arms:
            step.tracking.series(
                {
                    f"{arm.role}.{arm.arm}.{arm.seed}.{name}": [
                        (point.step, getattr(point, name)) for point in arm.curve
                    ]
                    for name in ("harm", "low", "high", "refusal_rate")
                }
            )
        for record in found.calibration:
            step.tracking.metrics(
                {
                    f"calibration.{record.role}.spearman": record.spearman,
                    f"calibration.{record.role}.weighted_kappa": record.weighted_kappa,
                }
            )
        step.tracking.metrics({"coverage": found.coverage})
        return {"seconds": step.seconds, "config_digest": found.config_digest}


def _gather(step: Step, run_id: str, inputs: Inputs, seconds: dict[str, float]) -> Evidence:
    config = step.config
    data = RunDataset(inputs.dataset)
    rubric = data.header.rubric
    judge = make_judge(config.judges.evaluation, rubric)
    calibration = data.calibration()
    step.progress.update("calibrate", 0, 2)
    calibrations = [
        calibrate(make_judge(config.judges.reward, rubric), "reward", calibration),
        calibrate(judge, "evaluation", calibration),
    ]
    book = VerdictBook(judge)
    prompts = {
        row.id: row for split in ("held_out", "near_miss", "benign") for row in data.rows(split)
    }
    hardened, baseline = read_manifest(inputs.hardened), read_manifest(inputs.baseline)
    digests = {"control": baseline.digest(), "hardened": hardened.digest()}
    arms: list[ArmRecord] = []
    trials: list[TrialRecord] = []
    opened: list[dict[str, Any]] = []
    for done, attack in enumerate(inputs.attacks):
        completions = open_sealed(attack.sealed)
        recorded = read_json(attack.statistics)
        trials += [TrialRecord.model_validate(trial) for trial in recorded["sweep"]]
        for statistics in recorded["arms"]:
            if statistics["target_digest"] != digests[statistics["role"]]:
                raise InputError(
                    f"arm {statistics['arm']}/{statistics['seed']} attacked another model than "
                    f"this "
                    "run's: artefacts of different runs were mixed"
                )
            mine = [
                item
                for item in completions
                if (item["arm"], item["seed"]) == (statistics["arm"], statistics["seed"])
            ]
            arms.append(arm_record(mine, statistics, prompts, book, config.gate, config.seed))
            opened += mine
        step.progress.update("judge arms", done + 1, len(inputs.attacks))
    behaviour_items = open_sealed(inputs.behaviour)
    certificate = read_json(inputs.certificate)
    behaviour = _behaviour(behaviour_items, certificate["figures"], prompts, book)
    defense = read_json(inputs.defense_record)
    header = data.header
    examples = _examples(opened, behaviour_items, prompts, book, arms) if header.stand_in else []
    verdicts = sorted(
        (sha256_text(item["completion"]), item["prompt_id"], item.get("step", -1))
        for item in [*opened, *behaviour_items]
    )
    return Evidence(
        run_id=run_id,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        backburn_version=_version("backburn"),
        config=config.model_dump(mode="json"),
        config_digest=config.digest(),
        environment=_environment(),
        purpose=config.attack.purpose,
        operator=config.attack.operator,
        model_base=hardened.base,
        model_revision=hardened.revision,
        base_digests=hardened.base_digests,
        baseline_digest=baseline.digest(),
        hardened_digest=hardened.digest(),
        hardened_files=hardened.adapter_digests,
        lineage=hardened.lineage,
        data=data.record,
        baseline=BaselineRecord.model_validate(read_json(inputs.baseline_record)),
        phases=[PhaseRecord.model_validate(item) for item in defense["phases"]],
        consolidation_curve=defense["consolidation_curve"],
        certificate=CertificateRecord.model_validate(certificate["certificate"]),
        behaviour=behaviour,
        calibration=calibrations,
        arms=arms,
        sweep=trials,
        coverage=book.coverage,
        verdicts_sha256=sha256_text(canonical_json(verdicts)),
        examples=examples,
        seconds={**seconds, "judge_evaluation": step.seconds},
    )


def _behaviour(
    items: list[dict[str, Any]],
    figures: dict[str, float],
    prompts: dict[str, PromptRow],
    book: VerdictBook,
) -> BehaviourRecord:
    def refusal_rate(model: str, split: str) -> tuple[float, int]:
        chosen = [item for item in items if (item["model"], item["split"]) == (model, split)]
        verdicts = book.verdicts(
            [Exchange(prompts[i["prompt_id"]].text, i["completion"]) for i in chosen]
        )
        refused = sum(verdict.refused for verdict in verdicts)
        return refused / len(verdicts), len({item["prompt_id"] for item in chosen})

    rates: dict[str, Any] = {}
    for split in ("near_miss", "benign"):
        for model in ("baseline", "hardened"):
            rates[f"{split}_refusal_{model}"], rates[f"{split}_prompts"] = refusal_rate(
                model, split
            )
    return BehaviourRecord(**rates, **figures)


def _examples(
    attacked: list[dict[str, Any]],
    behaviour: list[dict[str, Any]],
    prompts: dict[str, PromptRow],
    book: VerdictBook,
    arms: Sequence[ArmRecord],
) -> list[ExampleRecord]:
    """A few exchanges: before and after the attack, with and without defence."""
    wanted: list[tuple[str, list[dict[str, Any]]]] = []
    for role, title in (("control", "Unhardened"), ("hardened", "Hardened")):
        arm = next((item for item in arms if item.role == role), None)
        if arm is None:
            continue
        of_arm = [
            item
            for item in attacked
            if (item["role"], item["arm"], item["seed"]) == (role, arm.arm, arm.seed)
        ]
        for step in (0, arm.curve[-1].step):
            at_step = [item for item in of_arm if item["step"] == step]
            wanted.append((f"{title} model after {step} attack steps", at_step[:_EXAMPLES]))
    for split, title in (("near_miss", "Near-miss prompt"), ("benign", "Benign prompt")):
        for model in ("baseline", "hardened"):
            chosen = [i for i in behaviour if (i["model"], i["split"]) == (model, split)]
            wanted.append((f"{title}, {model} model", chosen[:_EXAMPLES]))
    records = []
    for title, items in wanted:
        exchanges = [Exchange(prompts[i["prompt_id"]].text, i["completion"]) for i in items]
        for exchange, verdict in zip(exchanges, book.verdicts(exchanges), strict=True):
            records.append(
                ExampleRecord(
                    title=title,
                    prompt=exchange.prompt,
                    completion=exchange.completion,
                    refused=verdict.refused,
                    score=verdict.score,
                )
            )
    return records


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "source tree"


def _environment() -> dict[str, str]:
    return {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "system": platform.system(),
        **{name: _version(name) for name in _PACKAGES},
    }


def step_seconds(metadatas: dict[str, Sequence[dict[str, Any]]]) -> dict[str, float]:
    """Wall time of each step; of tasks side by side, the longest counts."""
    return {
        name: max((float(item.get("seconds", 0.0)) for item in items), default=0.0)
        for name, items in metadatas.items()
    }
