"""Score a finished run's sealed completions with another judge; nothing is attacked again.

The steps are the pipeline's own, called on the artifacts that the run left.
"""

import os
import re
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from backburn.components.judge_evaluation.component import judge_evaluation
from backburn.components.notification.component import notification
from backburn.components.promotion.component import promotion
from backburn.components.shared.config import RunConfig, configure
from backburn.components.shared.dataset import RunDataset
from backburn.components.shared.errors import ContainmentError, InputError
from backburn.components.shared.evidence import RejudgedRecord, Summary
from backburn.components.shared.judges.calibration import require_evaluation_judge
from backburn.components.shared.parsing import first_problem
from backburn.components.shared.sealing import KEY_VARIABLE, open_sealed
from backburn.components.shared.step import use_threads
from backburn.components.shared.storage import read_json, sha256_file
from backburn.components.shared.tracking import open_parent
from backburn.pipelines.recipes import read_recipe
from backburn.pipelines.runner import RunFolder, collect, quiet, read_config, task_environment
from kfp import dsl
from pydantic import ValidationError

CHANGEABLE = ("judges", "gate")
_FORCED = ("judges.retain_sealed=true", "gate.dry_run=true")
_COPY_NUMBER = re.compile(r"-\d+$")
_DIGITS = re.compile(r"(\d+)")


@dataclass(frozen=True)
class FinishedRun:
    """A local run's folder, with all that judging needs."""

    config: RunConfig
    summary: Summary
    record: RejudgedRecord
    single: dict[str, dsl.Artifact]
    """By parameter of `judge_evaluation`."""
    sealed: list[dsl.Artifact]
    statistics: list[dsl.Artifact]


def read_run(root: Path) -> FinishedRun:
    """Find what a finished run left, and see that its seals open.

    Raises:
        InputError: if it has not finished, kept no sealed completions, lacks an artifact, was
            itself rejudged, or was sealed with another key.
    """
    folder = RunFolder(root)
    if not folder.summary.is_file():
        raise InputError(
            f"{root}: no {folder.summary.name}: not the folder of a finished run. Give "
            "runs/<run id> of a run that has ended"
        )
    try:
        summary = Summary.model_validate(read_json(folder.summary))
    except ValidationError as error:
        raise InputError(f"{folder.summary}: damaged: {first_problem(error)}") from error
    evidence = read_json(root / "evidence.json")  # perhaps of another version: not validated
    if not isinstance(evidence, dict):
        raise InputError(f"{root / 'evidence.json'}: damaged: no JSON object")
    if evidence.get("rejudges") is not None:
        raise InputError(
            f"{root}: it judged the completions of {evidence['rejudges']['run_id']} again and has "
            "none of its own; give that run"
        )
    if evidence.get("audited") is not None:
        raise InputError(
            f"{root}: it audited a registered model; give a run that hardened one, or audit again "
            "with other `judges`"
        )
    config = read_config(root)
    if not config.judges.retain_sealed:
        raise InputError(
            f"{root}: its completions were deleted after judging, as they are by default. Only a "
            "run with judges.retain_sealed=true can be judged again"
        )
    outputs = _outputs(folder)

    def one(task: str, output: str) -> dsl.Artifact:
        found = outputs[task, output]
        if len(found) != 1 or not Path(found[0].path).exists():
            raise InputError(f"{folder.artifacts}: no output {output!r} of {task}: {_LACKING}")
        return found[0]

    run = FinishedRun(
        config=config,
        summary=summary,
        record=RejudgedRecord(
            run_id=summary.run_id,
            evidence_sha256=sha256_file(root / "evidence.json"),
            reward=config.judges.reward.models,
            evaluation=config.judges.evaluation.id,
        ),
        single={
            "dataset": one("data-prep", "dataset"),
            "baseline": one("baseline", "model"),
            "baseline_record": one("baseline", "record"),
            "hardened": one("defense-training", "hardened"),
            "defense_record": one("defense-training", "record"),
            "certificate": one("certification", "certificate"),
            "behaviour": one("certification", "sealed"),
        },
        sealed=outputs["rl-attack", "sealed"],
        statistics=outputs["rl-attack", "statistics"],
    )
    for artifact in (*run.sealed, *run.statistics):
        if not Path(artifact.path).is_file():
            raise InputError(f"{artifact.path}: no such file: {_LACKING}")
    if not run.sealed:
        raise InputError(f"{folder.artifacts}: no output of rl_attack: {_LACKING}")
    _require_its_key(root, Path(run.single["behaviour"].path))
    return run


_LACKING = "judging again needs all artifacts of the run, as it left them"


def rejudge_config(run: FinishedRun, recipe: str | None, overrides: Sequence[str]) -> RunConfig:
    """The run's configuration with other judges or thresholds; dry run, and seals are kept.

    Args:
        run: To be judged again.
        recipe: Its `judges` and `gate` sections replace what they set, entry by entry.
        overrides: `judges.a=value` and `gate.b=value` strings.

    Raises:
        InputError: if anything else would change, or with every problem of the outcome.
    """
    values = run.config.model_dump(mode="json")
    changes = {} if recipe is None else read_recipe(recipe)
    named = [*changes, *(override.partition("=")[0].strip() for override in overrides)]
    if foreign := [name for name in named if name.split(".")[0] not in CHANGEABLE]:
        raise InputError(
            f"{', '.join(foreign)}: only `judges` and `gate` may differ from those of "
            f"{run.record.run_id}: its model, data and attacks are what they were"
        )
    for section, settings in changes.items():
        if not isinstance(settings, dict):
            raise InputError(f"recipe {recipe}: {section}: expected a mapping")
        values[section].update(settings)
    return configure(values, [*overrides, *_FORCED], f"{run.record.run_id}, judged again")


def require_judge(run: FinishedRun, config: RunConfig) -> None:
    """Put the evaluation judge to the run's labelled exchanges before anything is judged.

    Raises:
        InputError: if it agrees too little with the labels, or obeys what it judges.
        JudgeError: if it does not answer.
    """
    use_threads(config)
    data = RunDataset(Path(run.single["dataset"].path))
    require_evaluation_judge(config.judges, data.header.rubric, data.calibration())


def run_rejudge(run: FinishedRun, config: RunConfig, run_id: str, folder: RunFolder) -> Summary:
    """Judge, decide and report into a new folder; the run that is judged again is only read.

    Args:
        run: To be judged again.
        config: Made by `rejudge_config`.
        run_id: Id of the new run.
        folder: Of the new run.

    Returns:
        The summary, as written.
    """
    start = time.perf_counter()

    def output(task: str, name: str) -> dsl.Artifact:
        path = folder.artifacts / "rejudge" / task / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return dsl.Artifact(name=name, uri=str(path.resolve()))

    observations, evidence = (
        output("judge-evaluation", name) for name in ("observations", "evidence")
    )
    bundle, summary, report = (
        output("promotion", name) for name in ("bundle", "summary", "report")
    )
    with task_environment(folder), quiet(folder.log):
        artifacts = folder.root.parent / "mlflow-artifacts"
        open_parent(config, run_id, artifact_root=artifacts, pipeline="rejudge")
        state = "FAILED"
        try:
            judge_evaluation.python_func(
                config=config.to_json(),
                run_id=run_id,
                **run.single,
                control_sealed=run.sealed,
                control_statistics=run.statistics,
                attack_sealed=[],
                attack_statistics=[],
                observations=observations,
                evidence=evidence,
                rejudges=run.record.model_dump_json(),
            )
            promotion.python_func(
                config=config.to_json(),
                run_id=run_id,
                observations=observations,
                evidence=evidence,
                hardened=run.single["hardened"],
                bundle=bundle,
                summary=summary,
                report=report,
            )
            state = "SUCCEEDED"
        finally:
            notification.python_func(
                config=config.to_json(),
                run_id=run_id,
                status=dsl.PipelineTaskFinalStatus(state, run_id, "rejudge", None, None),
            )
    return collect(folder, time.perf_counter() - start)


def _outputs(folder: RunFolder) -> dict[tuple[str, str], list[dsl.Artifact]]:
    """(Task, output) -> artifacts, in the order in which the pipeline collects them."""
    found: dict[tuple[str, str], list[dsl.Artifact]] = defaultdict(list)
    for record in sorted(folder.artifacts.rglob("executor_output.json"), key=_natural):
        task = _COPY_NUMBER.sub("", record.parent.name)
        for output, listed in read_json(record).get("artifacts", {}).items():
            (entry,) = listed["artifacts"]
            uri = str((record.parent / output).resolve())  # the folder may have been moved
            found[task, output].append(
                dsl.Artifact(name=output, uri=uri, metadata=entry["metadata"])
            )
    return found


def _natural(path: Path) -> list[tuple[int, str]]:
    """Sorts numbers in a path by their size."""
    parts = _DIGITS.split(path.as_posix())
    return [(int(part), "") if part.isdigit() else (-1, part) for part in parts]


def _require_its_key(root: Path, sealed: Path) -> None:
    if not os.environ.get(KEY_VARIABLE):
        raise InputError(
            f"{KEY_VARIABLE} is not set: the completions of {root} are sealed. Set it to the key "
            "that the run had"
        )
    try:
        open_sealed(sealed)
    except ContainmentError as error:
        raise InputError(f"{root}: {error}. Set {KEY_VARIABLE} to the key that run had") from error
