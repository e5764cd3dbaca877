"""The run's record in MLflow: what it says of the outcome, and closing it."""

import os
from dataclasses import dataclass, field

from backburn.components.shared.attestation import DECISION
from backburn.components.shared.config import RunConfig
from backburn.components.shared.evidence import Decision, TrackedRun
from backburn.components.shared.tracking import (
    DESCRIPTION_TAG,
    ERROR_TAG,
    FAILED_STEP_TAG,
    OUTCOME_TAG,
    RUN_VARIABLE,
    STEP_TAG,
    client,
    open_parent,
    read_file,
    tracking_uri,
    without_long_retries,
)
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

_STATUS = {"SUCCEEDED": "FINISHED", "CANCELLED": "KILLED"}
_OPEN_STEPS = "tags.`mlflow.parentRunId` = '{parent}' and attributes.status = 'RUNNING'"
_RETRIES = 2


@dataclass
class RunRecord:
    """As far as MLflow says."""

    tracked: TrackedRun | None = None
    tags: dict[str, str] = field(default_factory=dict)
    decision: Decision | None = None
    unknown: list[str] = field(default_factory=list)


def close_and_read(config: RunConfig, run_id: str, state: str) -> RunRecord:
    """Close the parent run and what is still open below it, unless the platform does; read it.

    Args:
        config: Names the server.
        run_id: Id of the pipeline run.
        state: The pipeline's final state.
    """
    with without_long_retries(_RETRIES):
        server = client(config)
        parent = open_parent(config, run_id)
        run = server.get_run(parent)
        uri = tracking_uri(config)
        tracked = TrackedRun(uri=uri, experiment_id=run.info.experiment_id, run_id=parent)
        record = RunRecord(tracked, dict(run.data.tags))
        if RUN_VARIABLE not in os.environ:
            for step in _close_open_steps(server, run):
                record.tags.setdefault(FAILED_STEP_TAG, step)
            server.set_terminated(parent, _STATUS.get(state, "FAILED"))
        if OUTCOME_TAG in record.tags:
            _read_decision(record, tracked, run_id)
        elif state != "SUCCEEDED":
            server.set_tag(parent, DESCRIPTION_TAG, _without_verdict(state, record.tags))
    return record


def _close_open_steps(server: MlflowClient, parent: Run) -> list[str]:
    """Close the runs of tasks that were ended from outside; returns their steps."""
    found = server.search_runs(
        [parent.info.experiment_id], _OPEN_STEPS.format(parent=parent.info.run_id)
    )
    for run in found:
        server.set_terminated(run.info.run_id, "KILLED")
    return [str(run.data.tags.get(STEP_TAG)) for run in found]


def _read_decision(record: RunRecord, tracked: TrackedRun, run_id: str) -> None:
    try:
        decision = Decision.model_validate_json(read_file(tracked.uri, tracked.run_id, DECISION))
    except Exception as error:  # of whatever store the artifacts are in
        record.unknown.append(f"figures and reasons: {DECISION} not read ({type(error).__name__})")
        return
    if decision.run_id == run_id:
        record.decision = decision
    else:
        record.unknown.append(f"figures and reasons: {DECISION} is of another run")


def _without_verdict(state: str, tags: dict[str, str]) -> str:
    step, error = tags.get(FAILED_STEP_TAG), tags.get(ERROR_TAG)
    why = f"`{error}`" if error else "it was ended from outside, or its node was lost"
    where = f"It stopped in step `{step}`: {why}." if step else "No step reported an error."
    return (
        f"## No verdict: the pipeline ended {state}\n\n"
        f"{where} The gate decided nothing, and nothing was registered. What went wrong is in the "
        "log of the task.\n"
    )
