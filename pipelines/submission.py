"""Run a pipeline on a Kubeflow Pipelines server, follow it, and read what its gate decided."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import kfp
import kfp_server_api
import urllib3
from backburn.components.shared.config import RunConfig
from backburn.components.shared.errors import BackburnError
from backburn.components.shared.evidence import Summary
from backburn.components.shared.tracking import (
    PIPELINE_STEP,
    RUN_TAG,
    STEP_TAG,
    check_address,
    read_file,
    without_long_retries,
)
from backburn.pipelines.kfp_server import quietly
from backburn.pipelines.uploads import Uploaded
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_random_exponential

ENDED = ("SUCCEEDED", "FAILED", "CANCELED", "SKIPPED")
_PATIENCE_SECONDS = 600.0
_INTERNAL = ("root-driver", "-driver")
"""Ends of the names of tasks that KFP adds."""


class Task(NamedTuple):
    """One task of a run, as the server shows it."""

    name: str
    state: str


class Progress(NamedTuple):
    """A run at one moment."""

    state: str
    tasks: list[Task]

    @property
    def failed(self) -> list[str]:
        """Names of the tasks that failed."""
        return [task.name for task in self.tasks if task.state == "FAILED"]


def start(
    client: kfp.Client,
    namespace: str | None,
    uploaded: Uploaded,
    experiment: str,
    name: str,
    service_account: str | None,
) -> str:
    """Start a run of a pipeline version with every parameter explicit; returns its id.

    Args:
        client: Connected.
        namespace: Whose run it is; None on a server without them.
        uploaded: The version.
        experiment: Of KFP; made if there is none.
        name: Of the run.
        service_account: Of its pods; None is the server's own choice.
    """
    with quietly():
        found = client.create_experiment(experiment, namespace=namespace)
        run = client.run_pipeline(
            experiment_id=found.experiment_id,
            job_name=name,
            pipeline_id=uploaded.pipeline_id,
            version_id=uploaded.version_id,
            params=uploaded.parameters,
            service_account=service_account,
        )
    return str(run.run_id)


def follow(
    client: kfp.Client,
    run_id: str,
    report: Callable[[Progress], None],
    interval: float,
    timeout: float | None,
) -> Progress:
    """Wait until a run has ended.

    A server that does not answer for a while is asked again, for ten minutes.

    Args:
        client: Connected.
        run_id: Of the run.
        report: Called with each new state.
        interval: Seconds between questions.
        timeout: Seconds to wait at most; None waits for ever.

    Returns:
        The run at its end.

    Raises:
        BackburnError: if the time is over; the run goes on.
    """
    began = time.monotonic()
    patiently = Retrying(
        retry=retry_if_exception(_passes),
        stop=stop_after_delay(_PATIENCE_SECONDS),
        wait=wait_random_exponential(multiplier=1.0, max=30.0),
        reraise=True,
    )
    while True:
        found = _progress(patiently(client.get_run, run_id))
        report(found)
        if found.state in ENDED:
            return found
        if timeout is not None and time.monotonic() - began > timeout:
            raise BackburnError(
                f"run {run_id} has not ended after {timeout:g} s; it goes on, and `backburn "
                f"follow {run_id}` waits for it again"
            )
        time.sleep(interval)


def _passes(error: BaseException) -> bool:
    """Whether it may be over when asked again."""
    if isinstance(error, kfp_server_api.ApiException):
        return bool(error.status == 429 or error.status >= 500)
    return isinstance(error, urllib3.exceptions.HTTPError)


def _progress(run: Any) -> Progress:
    details = run.run_details.task_details if run.run_details else None
    tasks = [
        Task(str(task.display_name), str(task.state or "PENDING"))
        for task in details or ()
        if not str(task.display_name).endswith(_INTERNAL) and task.display_name != "root"
    ]
    return Progress(str(run.state or "PENDING"), tasks)


def read_summary(uri: str, run_id: str) -> Summary:
    """What the gate decided about a run, from MLflow.

    Args:
        uri: Of the MLflow server.
        run_id: Of the KFP run.

    Raises:
        InputError: if the server does not answer.
        BackburnError: if it has no such run, or no result of it.
    """
    check_address(uri)
    client = MlflowClient(tracking_uri=uri)
    experiments = [item.experiment_id for item in client.search_experiments()]
    found = client.search_runs(
        experiments,
        f"tags.`{RUN_TAG}` = '{run_id}' and tags.`{STEP_TAG}` = '{PIPELINE_STEP}'",
        max_results=1,
    )
    if not found:
        raise BackburnError(f"{uri}: no run there belongs to pipeline run {run_id}")
    try:
        with without_long_retries():
            content = read_file(uri, found[0].info.run_id, "summary.json")
        return Summary.model_validate_json(content)
    except (MlflowException, OSError, ValueError) as error:
        raise BackburnError(
            f"{uri}: run {found[0].info.run_id} has no readable summary.json: {error}"
        ) from error


def run_name(config: RunConfig, recipe: str) -> str:
    """Name of a run on the server."""
    return f"{config.pipeline} {Path(recipe).stem} {config.domain_name}"
