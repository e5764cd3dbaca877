"""MLflow: adopt the run the platform injected, or open a nested one below the parent.

- MLFLOW_RUN_ID set (KFP servers inject it): log to that run and leave it open; never open a second
one. - Otherwise: one parent run a pipeline run, found by its tag, and a nested run per task.
"""

import os
import re
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")

from backburn.components.shared.config import RunConfig, without_password
from backburn.components.shared.errors import InputError
from mlflow.entities import Metric, Param, Run, RunTag, ViewType
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

RUN_TAG = "backburn.run_id"
STEP_TAG = "backburn.step"
URI_VARIABLE = "BACKBURN_TRACKING_URI"
_PARENT_TAG = "mlflow.parentRunId"
_PROBE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}
_MOST_METRICS = 900
_MOST_PARAMETERS = 90
_MOST_PARAMETER_CHARACTERS = 500


def tracking_uri(config: RunConfig) -> str:
    """Where runs are tracked: tracking.uri, MLFLOW_TRACKING_URI, or the local runner's store.

    Raises:
        InputError: if nothing names a tracking server, or the name holds a password.
    """
    uri = _named_uri(config) or os.environ.get(URI_VARIABLE)
    if not uri:
        raise InputError(
            "no MLflow server: set tracking.uri, or MLFLOW_TRACKING_URI in the environment of the "
            "tasks"
        )
    return uri


def _named_uri(config: RunConfig) -> str:
    uri = config.tracking.uri or os.environ.get("MLFLOW_TRACKING_URI") or ""
    try:
        without_password(uri)
    except ValueError as error:
        raise InputError(f"MLFLOW_TRACKING_URI: {error}") from None
    return uri


def client(config: RunConfig) -> MlflowClient:
    """MLflow client of the run."""
    return MlflowClient(tracking_uri=tracking_uri(config))


def check_server(config: RunConfig) -> None:
    """Ask a run's tracking server whether it answers; see `check_address`.

    Raises:
        InputError: if no server answers, it refuses the credentials, or its name holds a password.
    """
    check_address(_named_uri(config))


def check_address(uri: str) -> None:
    """Ask a remote tracking server for one experiment, without the client's long retries.

    A store that is not a server (SQLite, a folder) is made on first use and needs no check.

    Raises:
        InputError: if no server answers, or it refuses the credentials.
    """
    if not _is_server(uri):
        return
    before = {name: os.environ.get(name) for name in _PROBE}
    os.environ.update(_PROBE)
    try:
        MlflowClient(tracking_uri=uri).search_experiments(max_results=1)
    except MlflowException as error:
        if error.get_http_status_code() in (401, 403):
            raise InputError(
                f"tracking.uri: the MLflow server at {uri} refuses these credentials. Set "
                "MLFLOW_TRACKING_TOKEN, or MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, "
                "to ones it takes"
            ) from error
        raise InputError(
            f"tracking.uri: no usable MLflow server at {uri}: {error}. Start it, correct "
            "tracking.uri, MLFLOW_TRACKING_URI or --tracking-uri"
        ) from error
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _is_server(uri: str) -> bool:
    return uri.startswith(("http://", "https://"))


def open_parent(config: RunConfig, run_id: str, artifact_root: Path | None = None) -> str:
    """Find or create the parent run of a pipeline run; returns its MLflow id.

    Args:
        config: Names server and experiment.
        run_id: The pipeline run's id.
        artifact_root: Folder for a new experiment's artifacts, with a database as the store. A
            server keeps them itself, where others can fetch them.
    """
    mlflow = client(config)
    root = None if _is_server(tracking_uri(config)) else artifact_root
    experiment = _experiment(mlflow, config.tracking.experiment, root)
    found = mlflow.search_runs(
        [experiment],
        f"tags.`{RUN_TAG}` = '{run_id}' and tags.`{STEP_TAG}` = 'pipeline'",
        run_view_type=ViewType.ACTIVE_ONLY,
        max_results=1,
    )
    if found:
        return str(found[0].info.run_id)
    run = mlflow.create_run(
        experiment,
        run_name=run_id,
        tags={RUN_TAG: run_id, STEP_TAG: "pipeline", "backburn.config_digest": config.digest()},
    )
    _log_parameters(mlflow, run.info.run_id, _flat(config.model_dump(mode="json")))
    return str(run.info.run_id)


def _experiment(mlflow: MlflowClient, name: str, artifact_root: Path | None) -> str:
    existing = mlflow.get_experiment_by_name(name)
    if existing is not None:
        return str(existing.experiment_id)
    location = artifact_root.resolve().as_uri() if artifact_root is not None else None
    try:
        return str(mlflow.create_experiment(name, artifact_location=location))
    except MlflowException:  # another task was first
        existing = mlflow.get_experiment_by_name(name)
        if existing is None:
            raise
        return str(existing.experiment_id)


def metric_name(text: str) -> str:
    """A name as a part of an MLflow metric's name, which takes few special characters."""
    return re.sub(r"[^\w. -]", "_", text, flags=re.ASCII)


class StepRun:
    """The MLflow run of one task; use as a context manager."""

    def __init__(self, config: RunConfig, run_id: str, name: str) -> None:
        self._mlflow = client(config)
        self._start = time.monotonic()
        injected = os.environ.get("MLFLOW_RUN_ID")
        self._adopted = injected is not None
        if injected is not None:
            self.parent_id = self.id = injected
            return
        self.parent_id = open_parent(config, run_id)
        parent: Run = self._mlflow.get_run(self.parent_id)
        run = self._mlflow.create_run(
            parent.info.experiment_id,
            run_name=name,
            tags={_PARENT_TAG: self.parent_id, RUN_TAG: run_id, STEP_TAG: name},
        )
        self.id = str(run.info.run_id)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.metrics({"seconds": time.monotonic() - self._start})
        if not self._adopted:
            self._mlflow.set_terminated(self.id, "FINISHED" if kind is None else "FAILED")

    def parameters(self, values: dict[str, Any]) -> None:
        """Log parameters; nested mappings become dotted names."""
        _log_parameters(self._mlflow, self.id, _flat(values))

    def metrics(self, values: dict[str, float | None], step: int = 0) -> None:
        """Log metrics of one step; None is left out."""
        self.series({name: [(step, value)] for name, value in values.items()})

    def series(self, values: dict[str, list[tuple[int, float | None]]]) -> None:
        """Log curves: metric name -> (step, value) pairs."""
        now = int(time.time() * 1000)
        metrics = [
            Metric(name, float(value), now, step)
            for name, points in values.items()
            for step, value in points
            if value is not None
        ]
        for first in range(0, len(metrics), _MOST_METRICS):
            self._mlflow.log_batch(self.id, metrics=metrics[first : first + _MOST_METRICS])

    def tags(self, values: dict[str, str]) -> None:
        """Set tags."""
        self._mlflow.log_batch(self.id, tags=[RunTag(key, value) for key, value in values.items()])

    def parent_experiment(self) -> str:
        """Id of the parent's experiment."""
        return str(self._mlflow.get_run(self.parent_id).info.experiment_id)

    def parent_metrics(self, values: dict[str, float | None]) -> None:
        """Log figures of the whole run to the parent."""
        now = int(time.time() * 1000)
        metrics = [Metric(n, float(v), now, 0) for n, v in values.items() if v is not None]
        self._mlflow.log_batch(self.parent_id, metrics=metrics)

    def parent_tags(self, values: dict[str, str]) -> None:
        """Tag the parent."""
        tags = [RunTag(key, value) for key, value in values.items()]
        self._mlflow.log_batch(self.parent_id, tags=tags)

    def artifact(self, path: Path, *, parent: bool = False) -> None:
        """Attach a file, to the parent's run if asked."""
        self._mlflow.log_artifact(self.parent_id if parent else self.id, str(path))


def _log_parameters(mlflow: MlflowClient, run: str, values: dict[str, str]) -> None:
    parameters = [Param(name, text[:_MOST_PARAMETER_CHARACTERS]) for name, text in values.items()]
    for first in range(0, len(parameters), _MOST_PARAMETERS):
        mlflow.log_batch(run, params=parameters[first : first + _MOST_PARAMETERS])


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict):
            flat.update(_flat(value, f"{name}."))
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            for index, item in enumerate(value):
                flat.update(_flat(item, f"{name}.{index}."))
        elif value is not None:
            flat[name] = str(value)
    return flat
