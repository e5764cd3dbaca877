"""MLflow: adopt the run the platform injected, or open a nested one below the parent.

- MLFLOW_RUN_ID set: log to that run and leave it open; never open a second one. A KFP server makes
  one such run a task, below a run of its own for the whole pipeline run: that one is the parent
  then. Without it, all tasks share the injected run, and names in it carry the step.
- Otherwise: one parent run a pipeline run, found by its tag, and a nested run per task.
"""

import os
import re
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import TracebackType
from typing import Any, Self

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")

import mlflow.artifacts
from backburn.components.shared.config import RunConfig, without_password
from backburn.components.shared.errors import InputError
from backburn.components.shared.storage import sha256_text
from filelock import FileLock
from mlflow.entities import Metric, Param, Run, RunTag, ViewType
from mlflow.environment_variables import MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

RUN_TAG = "backburn.run_id"
STEP_TAG = "backburn.step"
PIPELINE_TAG = "backburn.pipeline"
OUTCOME_TAG = "backburn.outcome"
CLAIM_TAG = "backburn.claim"
FAILED_STEP_TAG = "backburn.failed_step"
ERROR_TAG = "backburn.error"
AUDITED_TAG = "backburn.audited"
AUDIT_ACTION_TAG = "backburn.audit_action"
DESCRIPTION_TAG = "mlflow.note.content"
"""What MLflow's pages show as a run's description, in Markdown."""
PIPELINE_URL_TAG = "kfp.pipeline_run_url"
"""Set by a KFP server on the run it makes for the whole pipeline run."""
PIPELINE_STEP = "pipeline"
RUN_VARIABLE = "MLFLOW_RUN_ID"
URI_VARIABLE = "BACKBURN_TRACKING_URI"
_KFP_TAG = "kfp.pipeline_run_id"
_PARENT_TAG = "mlflow.parentRunId"
_PROBE_SECONDS = 10
_DATABASE_FILE = "sqlite:///"
_TITLES = {
    "preflight": "1 Preflight",
    "data_prep": "2 Prepare data",
    "baseline": "3 Align baseline",
    "rl_attack control": "4 Attack the unhardened model",
    "defense_training": "5 Harden",
    "audited_model": "5 Fetch the model",
    "certification": "6 Certify",
    "rl_attack hardened": "7 Attack the hardened model",
    "judge_evaluation": "8 Judge",
    "promotion": "9 Gate and register",
}
_LONGEST_PREFIX = 80
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
    given = os.environ.get("MLFLOW_TRACKING_URI")
    injected = given if RUN_VARIABLE in os.environ else None  # the injected run is there
    uri = injected or config.tracking.uri or given or ""
    try:
        without_password(uri)
    except ValueError as error:
        raise InputError(f"MLFLOW_TRACKING_URI: {error}") from None
    return uri


def client(config: RunConfig) -> MlflowClient:
    """MLflow client of the run.

    MLflow fills a new database file without a lock, so that of two processes one fails: here one
    waits for the other.

    Raises:
        InputError: if the folder of a database file cannot be made or written to.
    """
    uri = tracking_uri(config)
    with _database_lock(uri):
        return MlflowClient(tracking_uri=uri)


@contextmanager
def _database_lock(uri: str) -> Iterator[None]:
    """Hold the lock beside a database file; nothing for other stores."""
    file = uri.removeprefix(_DATABASE_FILE)
    try:
        with nullcontext() if file == uri else FileLock(f"{file}.lock"):
            yield
    except OSError as error:
        raise InputError(
            f"tracking.uri: {uri} cannot be used: {error}. Name a file in a folder that can be "
            "written to, or a server"
        ) from error


def check_server(config: RunConfig) -> None:
    """Ask a run's tracking server whether it answers; of a database file, try the folder.

    Raises:
        InputError: if no server answers, it refuses the credentials, its name holds a password, or
            the folder of a database file cannot be made or written to.
    """
    uri = _named_uri(config)
    with _database_lock(uri):
        check_address(uri)


def check_address(uri: str) -> None:
    """Ask a remote tracking server for one experiment, without the client's long retries.

    A store that is not a server (SQLite, a folder) is made on first use and needs no check.

    Raises:
        InputError: if no server answers, or it refuses the credentials.
    """
    if not _is_server(uri):
        return
    try:
        with without_long_retries():
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


@contextmanager
def without_long_retries(retries: int = 0) -> Iterator[None]:
    """Let MLflow's client fail in seconds instead of minutes while this context is open."""
    values = {
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": str(retries),
        "MLFLOW_HTTP_REQUEST_TIMEOUT": str(_PROBE_SECONDS),
    }
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def download(folder: Path, uri: str, **what: str) -> Path:
    """Fetch artifacts into a folder, without a progress bar; returns where what was asked for lies.

    Args:
        folder: Exists.
        uri: Of the tracking server.
        what: `run_id` and `artifact_path`, or `artifact_uri`, of
            `mlflow.artifacts.download_artifacts`.

    Raises:
        MlflowException, OSError: of whatever store the artifacts are in.
    """
    MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR.set(False)
    return Path(mlflow.artifacts.download_artifacts(dst_path=str(folder), tracking_uri=uri, **what))


def read_file(uri: str, run_id: str, path: str) -> bytes:
    """Content of one file of a run; raises what `download` does."""
    with tempfile.TemporaryDirectory(prefix="backburn-") as folder:
        return download(Path(folder), uri, run_id=run_id, artifact_path=path).read_bytes()


def _is_server(uri: str) -> bool:
    return uri.startswith(("http://", "https://"))


def open_parent(
    config: RunConfig, run_id: str, artifact_root: Path | None = None, pipeline: str | None = None
) -> str:
    """Find, adopt or create the parent run of a pipeline run; returns its MLflow id.

    Args:
        config: Names server and experiment.
        run_id: The pipeline run's id.
        artifact_root: Folder for a new experiment's artifacts, with a database as the store. A
            server keeps them itself, where others can fetch them.
        pipeline: Its name, for a run that has none yet; default: the configuration's.

    Raises:
        InputError: if MLFLOW_RUN_ID names no run, or the run of another pipeline run.
    """
    mlflow = client(config)
    tags = {
        RUN_TAG: run_id,
        STEP_TAG: PIPELINE_STEP,
        PIPELINE_TAG: pipeline or config.pipeline,
        "backburn.model": config.model.id,
        "backburn.domain": config.domain_name,
        "backburn.config_digest": config.digest(),
    }
    if RUN_VARIABLE in os.environ:
        parent = _adopted(mlflow, os.environ[RUN_VARIABLE], tracking_uri(config))
        holder = parent.data.tags.get(RUN_TAG)
        if holder == run_id:
            return str(parent.info.run_id)
        if holder is not None:
            raise InputError(
                f"{RUN_VARIABLE}: run {parent.info.run_id} already holds pipeline run {holder}, so "
                f"{run_id} cannot be logged to it: give every pipeline run an MLflow run of its "
                f"own, or unset {RUN_VARIABLE}"
            )
    else:
        root = None if _is_server(tracking_uri(config)) else artifact_root
        experiment = _experiment(mlflow, config.tracking.experiment, root)
        found = mlflow.search_runs(
            [experiment],
            f"tags.`{RUN_TAG}` = '{run_id}' and tags.`{STEP_TAG}` = '{PIPELINE_STEP}'",
            run_view_type=ViewType.ACTIVE_ONLY,
            max_results=1,
        )
        if found:
            return str(found[0].info.run_id)
        parent = mlflow.create_run(experiment, run_name=run_id, tags=tags)
    identity = str(parent.info.run_id)
    _log_parameters(mlflow, identity, _flat(config.model_dump(mode="json")))
    mlflow.log_batch(identity, tags=[RunTag(key, value) for key, value in tags.items()])
    return identity


def _adopted(mlflow: MlflowClient, injected: str, uri: str) -> Run:
    """The injected run, or the one of KFP's above it that stands for the whole pipeline run."""
    try:
        run = found = mlflow.get_run(injected)
        while _KFP_TAG not in found.data.tags:
            above = found.data.tags.get(_PARENT_TAG)
            if above is None:
                return run
            found = mlflow.get_run(above)
        return found
    except MlflowException as error:
        raise InputError(
            f"{RUN_VARIABLE}: run {injected}, or one above it, cannot be read at {uri}: {error}. "
            f"Correct {RUN_VARIABLE} or MLFLOW_TRACKING_URI, or unset both"
        ) from error


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


def title_of(step: str) -> str:
    """A step as the list of runs shows it: numbered in the order of the pipeline.

    Args:
        step: Its name, perhaps followed by what it works on.
    """
    for name, title in _TITLES.items():
        if step == name or step.startswith(f"{name} "):
            rest = step.removeprefix(name).strip()
            return f"{title}: {rest}" if rest else title
    return step


class StepRun:
    """The MLflow run of one task; use as a context manager."""

    def __init__(self, config: RunConfig, run_id: str, name: str) -> None:
        self._mlflow = client(config)
        self._start = time.monotonic()
        self._name = name
        self.parent_id = open_parent(config, run_id)
        injected = os.environ.get(RUN_VARIABLE)
        self._adopted = injected is not None
        tags = {RUN_TAG: run_id, STEP_TAG: name}
        if injected is None:
            run = self._mlflow.create_run(
                self.parent_experiment(),
                run_name=title_of(name),
                tags={_PARENT_TAG: self.parent_id, **tags},
            )
            self.id = str(run.info.run_id)
            return
        self.id = injected
        if self.id != self.parent_id:
            self.tags(tags)

    @property
    def _prefix(self) -> str:
        """Of names in a run that the step shares with others."""
        if self.id != self.parent_id:
            return ""
        name = metric_name(self._name)
        if len(name) > _LONGEST_PREFIX:
            name = f"{name[:_LONGEST_PREFIX]} {sha256_text(name)[:8]}"
        return f"{name}/"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.metrics({"seconds": time.monotonic() - self._start})
        if kind is not None:  # its class and no more: a message may quote rows
            self.parent_tags({FAILED_STEP_TAG: self._name, ERROR_TAG: kind.__name__})
        elif self.parent_tag(FAILED_STEP_TAG) == self._name:  # an earlier attempt
            for tag in (FAILED_STEP_TAG, ERROR_TAG):
                self._mlflow.delete_tag(self.parent_id, tag)
        if not self._adopted:
            self._mlflow.set_terminated(self.id, "FINISHED" if kind is None else "FAILED")

    def parameters(self, values: dict[str, Any]) -> None:
        """Log parameters; nested mappings become dotted names."""
        _log_parameters(self._mlflow, self.id, _flat(values, self._prefix))

    def settings(self, config: RunConfig, sections: Sequence[str]) -> None:
        """Log sections of the configuration as parameters; the parent has all of it already."""
        if self.id != self.parent_id:
            self.parameters(config.model_dump(mode="json", include=set(sections)))

    def metrics(self, values: dict[str, float | None], step: int = 0) -> None:
        """Log metrics of one step; None is left out."""
        self.series({name: [(step, value)] for name, value in values.items()})

    def series(self, values: dict[str, list[tuple[int, float | None]]]) -> None:
        """Log curves: metric name -> (step, value) pairs.

        MLflow shows names with the same text before the last slash as one section of charts.
        """
        self._log(self.id, {f"{self._prefix}{name}": points for name, points in values.items()})

    def tags(self, values: dict[str, str]) -> None:
        """Set tags."""
        self._mlflow.log_batch(self.id, tags=[RunTag(key, value) for key, value in values.items()])

    def parent_experiment(self) -> str:
        """Id of the parent's experiment."""
        return str(self._mlflow.get_run(self.parent_id).info.experiment_id)

    def parent_metrics(self, values: dict[str, float | None]) -> None:
        """Log figures of the whole run to the parent."""
        self.parent_series({name: [(0, value)] for name, value in values.items()})

    def parent_series(self, values: dict[str, list[tuple[int, float | None]]]) -> None:
        """Log curves of the whole run to the parent; no two steps may use the same name."""
        self._log(self.parent_id, values)

    def parent_tag(self, name: str) -> str | None:
        """The value of a tag of the parent."""
        value = self._mlflow.get_run(self.parent_id).data.tags.get(name)
        return None if value is None else str(value)

    def parent_tags(self, values: dict[str, str]) -> None:
        """Tag the parent."""
        tags = [RunTag(key, value) for key, value in values.items()]
        self._mlflow.log_batch(self.parent_id, tags=tags)

    def artifact(self, path: Path, *, parent: bool = False) -> None:
        """Attach a file, to the parent's run if asked."""
        self._mlflow.log_artifact(self.parent_id if parent else self.id, str(path))

    def _log(self, run: str, values: dict[str, list[tuple[int, float | None]]]) -> None:
        now = int(time.time() * 1000)
        metrics = [
            Metric(name, float(value), now, step)
            for name, points in values.items()
            for step, value in points
            if value is not None
        ]
        for first in range(0, len(metrics), _MOST_METRICS):
            self._mlflow.log_batch(run, metrics=metrics[first : first + _MOST_METRICS])


class UntrackedRun(StepRun):
    """Logs nothing: of several processes of a step, one does."""

    def __init__(self) -> None:
        """Open no run."""

    def __exit__(self, *_: object) -> None:
        """Close none."""

    def __getattribute__(self, name: str) -> Any:
        """Every other method does nothing."""
        return super().__getattribute__(name) if name.startswith("__") else lambda *_, **__: None


def _log_parameters(mlflow: MlflowClient, run: str, values: dict[str, str]) -> None:
    """Log what the run does not have yet: MLflow takes no second value, as of a retried task."""
    known = mlflow.get_run(run).data.params
    parameters = [
        Param(name, text[:_MOST_PARAMETER_CHARACTERS])
        for name, text in values.items()
        if name not in known
    ]
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
