"""The judge_evaluation step: open the seals, judge, and bind everything into one evidence file."""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple

from backburn.components.judge_evaluation.evaluation import VerdictBook, observe_arm
from backburn.components.shared.dataset import RunDataset, over_refusal_split
from backburn.components.shared.derivation.figures import derive
from backburn.components.shared.errors import InputError
from backburn.components.shared.evidence import (
    AuditedRecord,
    BaselineRecord,
    Evidence,
    ExampleRecord,
    PhaseRecord,
    RejudgedRecord,
    TrialRecord,
)
from backburn.components.shared.judges import PanelJudge, make_judge
from backburn.components.shared.judges.calibration import observe_calibration
from backburn.components.shared.judges.rubrics import keep_rubrics
from backburn.components.shared.models import read_manifest
from backburn.components.shared.observations import (
    ArmObservation,
    CertificationObservation,
    Observations,
)
from backburn.components.shared.provenance import code_digest, environment, version_of
from backburn.components.shared.sealing import open_sealed
from backburn.components.shared.step import Step, open_step, use_threads
from backburn.components.shared.storage import (
    delete,
    json_bytes,
    read_json,
    sha256_bytes,
    write_json,
)
from backburn.components.shared.tracking import client

MODELS: tuple[Literal["baseline", "hardened"], ...] = ("baseline", "hardened")
BENIGN_SPLITS = ("near_miss", "benign")
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
    observations: Path,
    evidence: Path,
    rejudges: str = "",
    audited: str = "",
) -> dict[str, str | float]:
    """Judge everything and write the evidence; returns the artifact's metadata.

    Args:
        config_json: Configuration of the run.
        run_id: Id of the pipeline run.
        inputs: Artifacts of the steps before.
        seconds: Step -> wall time of the steps before.
        sealed_uris: Where the sealed files really are; deleted after judging unless retention is
            asked for.
        observations: Where everything that was measured goes.
        evidence: Where the evidence goes.
        rejudges: A `RejudgedRecord` as JSON if the completions are another run's, else empty.
        audited: An `AuditedRecord` as JSON if a registered model was attacked, else empty.
    """
    with open_step(config_json, run_id, "judge_evaluation", ["judges"]) as step:
        use_threads(step.config)
        before = RejudgedRecord.model_validate_json(rejudges) if rejudges else None
        registered = AuditedRecord.model_validate_json(audited) if audited else None
        observed, found = _gather(step, run_id, inputs, seconds, before, registered)
        write_json(observations, observed.model_dump(mode="json"))
        write_json(evidence, found.model_dump(mode="json"))
        if not step.config.judges.retain_sealed:
            for uri in sealed_uris:
                delete(uri)
        for arm in found.arms:
            step.tracking.series(
                {
                    f"{arm.role} {arm.arm} seed {arm.seed}/{name}": [
                        (point.step, getattr(point, name)) for point in arm.curve
                    ]
                    for name in ("harm", "low", "high", "refusal_rate")
                }
            )
        step.tracking.parent_series(
            {
                f"{title}/{arm.role} {arm.arm} seed {arm.seed}": [
                    (point.step, getattr(point, name)) for point in arm.curve
                ]
                for title, name in (("harm", "harm"), ("refusal rate", "refusal_rate"))
                for arm in found.arms
            }
        )
        for record in found.calibration:
            step.tracking.metrics(
                {
                    f"calibration/{record.role}.spearman": record.spearman,
                    f"calibration/{record.role}.weighted_kappa": record.weighted_kappa,
                    f"calibration/{record.role}.drift": record.drift,
                    f"calibration/{record.role}.injection_drop": record.injection_drop,
                }
            )
        for item in found.over_refusal:
            step.tracking.metrics(
                {
                    f"over_refusal/{item.name}.{name}": getattr(item, name)
                    for name in ("baseline", "hardened", "increase", "low", "high")
                }
            )
        step.tracking.metrics({"coverage": found.coverage})
        if found.rubrics:
            used = found.rubrics[0]  # all judges of a run are told the same
            step.tracking.parent_tags(
                {"backburn.rubric": used.uri, "backburn.rubric_sha256": used.sha256}
            )
        if before is not None:
            step.tracking.parent_tags({"backburn.rejudges": before.run_id})
        return {"seconds": step.seconds, "config_digest": found.config_digest}


def _gather(
    step: Step,
    run_id: str,
    inputs: Inputs,
    seconds: dict[str, float],
    rejudges: RejudgedRecord | None,
    audited: AuditedRecord | None,
) -> tuple[Observations, Evidence]:
    config = step.config
    data = RunDataset(inputs.dataset)
    rubric, calibration = data.header.rubric, data.calibration()
    judge = make_judge(config.judges.evaluation, rubric)
    fresh = make_judge(config.judges.evaluation, rubric, afresh=True)
    reward = make_judge(config.judges.reward, rubric)
    step.progress.update("calibrate", 0, 2)
    calibrations = [
        observe_calibration(reward, "reward", calibration),
        observe_calibration(fresh, "evaluation", calibration, before=judge),
    ]
    held_out = data.rows("held_out")
    rows = [*held_out, *data.rows("near_miss"), *data.rows("benign")]
    sets = {item.name: over_refusal_split(item.name) for item in config.certification.over_refusal}
    rows += [row for split in sets.values() for row in data.rows(split)]
    book = VerdictBook(judge, rows)
    hardened, baseline = read_manifest(inputs.hardened), read_manifest(inputs.baseline)
    if audited is not None and hardened.base_digests != baseline.base_digests:
        raise InputError(
            f"model.id: {audited.name} version {audited.version} was made from other base weights "
            "than the control arms attacked, so they show nothing about it"
        )
    arms, trials, opened = _arms(step, inputs, book, baseline.digest(), hardened.digest())
    items = open_sealed(inputs.behaviour)
    observed = Observations(
        run_id=run_id,
        config_digest=config.digest(),
        forms={row.id: row.form for row in held_out},
        arms=arms,
        certification=CertificationObservation.model_validate(read_json(inputs.certificate)),
        behaviour={
            model: {split: book.judged(_of(items, model, split)) for split in BENIGN_SPLITS}
            for model in MODELS
        },
        over_refusal={
            name: {model: book.judged(_of(items, model, split)) for model in MODELS}
            for name, split in sets.items()
        },
        calibration=calibrations,
        members=judge.scores() if isinstance(judge, PanelJudge) else {},
    )
    figures = derive(observed, config)
    defense = read_json(inputs.defense_record)
    evidence = Evidence(
        run_id=run_id,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        backburn_version=version_of("backburn"),
        code_sha256=code_digest(),
        image=config.compute.image,
        config=config.model_dump(mode="json"),
        config_digest=config.digest(),
        environment=environment(),
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
        sweep=trials,
        judge_usage={
            "evaluation": judge.usage.as_dict(),
            "evaluation, calibration": fresh.usage.as_dict(),
            "reward, calibration": reward.usage.as_dict(),
        },
        rubrics=keep_rubrics(config.judges, data.header, client(config)),
        rejudges=rejudges,
        audited=audited,
        observations_sha256=sha256_bytes(json_bytes(observed.model_dump(mode="json"))),
        examples=_examples(opened, items, book, arms) if data.header.stand_in else [],
        seconds={**seconds, "judge_evaluation": step.seconds},
        **figures.as_dict(),
    )
    return observed, evidence


def _arms(
    step: Step, inputs: Inputs, book: VerdictBook, baseline: str, hardened: str
) -> tuple[list[ArmObservation], list[TrialRecord], list[dict[str, Any]]]:
    """Judged arms, the sweep's trials, and the opened completions."""
    digests = {"control": baseline, "hardened": hardened}
    arms: list[ArmObservation] = []
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
                    "this run's: artefacts of different runs were mixed"
                )
            mine = [
                item
                for item in completions
                if (item["arm"], item["seed"]) == (statistics["arm"], statistics["seed"])
            ]
            arms.append(observe_arm(mine, statistics, book))
            opened += mine
        step.progress.update("judge arms", done + 1, len(inputs.attacks))
    return arms, trials, opened


def _of(items: list[dict[str, Any]], model: str, split: str) -> list[dict[str, Any]]:
    return [item for item in items if (item["model"], item["split"]) == (model, split)]


def _examples(
    attacked: list[dict[str, Any]],
    behaviour: list[dict[str, Any]],
    book: VerdictBook,
    arms: Sequence[ArmObservation],
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
        for step in (0, arm.checkpoints[-1].step):
            at_step = [item for item in of_arm if item["step"] == step]
            wanted.append((f"{title} model after {step} attack steps", at_step[:_EXAMPLES]))
    for split, title in (("near_miss", "Near-miss prompt"), ("benign", "Benign prompt")):
        for model in MODELS:
            chosen = _of(behaviour, model, split)
            wanted.append((f"{title}, {model} model", chosen[:_EXAMPLES]))
    return [
        ExampleRecord(
            title=title,
            prompt=book.exchange(item).prompt,
            completion=book.exchange(item).completion,
            refused=judged.refused,
            score=judged.score,
        )
        for title, items in wanted
        for item, judged in zip(items, book.judged(items), strict=True)
    ]


def step_seconds(metadatas: dict[str, Sequence[dict[str, Any]]]) -> dict[str, float]:
    """Wall time of each step; of tasks side by side, the longest counts."""
    return {
        name: max((float(item.get("seconds", 0.0)) for item in items), default=0.0)
        for name, items in metadatas.items()
    }
