"""The notification step: runs last, whatever happened, and closes the run's record."""

import json
import os
from typing import Any

from backburn.components.shared.config import RunConfig
from backburn.components.shared.progress import Progress
from backburn.components.shared.tracking import client, open_parent

_MLFLOW_STATUS = {"SUCCEEDED": "FINISHED", "CANCELLED": "KILLED"}


def run(config_json: str, run_id: str, state: str, error: str) -> str:
    """Close the parent MLflow run with the pipeline's final state; returns the message given out.

    Args:
        config_json: Configuration of the run.
        run_id: Id of the pipeline run.
        state: KFP's final state, such as SUCCEEDED or FAILED.
        error: KFP's error message, empty on success.
    """
    progress = Progress("notification")
    config = RunConfig.from_json(config_json)
    mlflow = client(config)
    if "MLFLOW_RUN_ID" in os.environ:
        parent = os.environ["MLFLOW_RUN_ID"]
    else:
        parent = open_parent(config, run_id)
        mlflow.set_terminated(parent, _MLFLOW_STATUS.get(state, "FAILED"))
    outcome = mlflow.get_run(parent).data.tags.get("backburn.outcome", "none")
    message: dict[str, Any] = {"run_id": run_id, "state": state, "outcome": outcome}
    if error:
        message["error"] = error
    text = json.dumps(message)
    progress.finish(text)
    return text
