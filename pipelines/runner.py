"""Run the compiled pipeline on this machine, by kfp.local: the YAML a cluster gets."""

import contextlib
import logging
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from backburn.components.shared import sealing, signing
from backburn.components.shared.attestation import ATTESTATION, FILES
from backburn.components.shared.config import RunConfig
from backburn.components.shared.errors import BackburnError
from backburn.components.shared.evidence import Summary
from backburn.components.shared.parsing import check_run_id
from backburn.components.shared.progress import EVENTS_VARIABLE
from backburn.components.shared.storage import write_bytes, write_json
from backburn.components.shared.tracking import URI_VARIABLE, open_parent
from backburn.pipelines.compilation import compile_pipeline
from backburn.pipelines.containers import container_tasks
from backburn.pipelines.local_options import NO_NETWORK, Runner
from backburn.pipelines.warm_start import warm_tasks

_RESULTS = (*FILES, ATTESTATION)
_LOG_TAIL = 40
_LAST_FRAMES = 9
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


class RunFailed(BackburnError):  # noqa: N818 - it is an outcome, named as users read it
    """A step of the pipeline failed; the text names it and shows the end of its log."""


@dataclass(frozen=True)
class RunFolder:
    """Layout of `runs/<run id>/`."""

    root: Path

    @property
    def pipeline(self) -> Path:
        """The compiled YAML that ran."""
        return self.root / "pipeline.yaml"

    @property
    def log(self) -> Path:
        """Output of every task."""
        return self.root / "log.txt"

    @property
    def events(self) -> Path:
        """Progress, one JSON line an event."""
        return self.root / "events.jsonl"

    @property
    def artifacts(self) -> Path:
        """KFP's artifacts."""
        return self.root / "artifacts"

    @property
    def summary(self) -> Path:
        """The one file a script needs; written last."""
        return self.root / "summary.json"


def new_run_id(recipe: str) -> str:
    """A run id that sorts by time and never repeats."""
    return stamped(re.sub(r"[^a-z0-9.]+", "-", Path(recipe).stem.lower()).strip("-.")[:80] or "run")


def stamped(name: str) -> str:
    """A name with the time and four digits after it."""
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    return f"{name}-{stamp}-{secrets.token_hex(2)}"


def make_run_folder(runs: Path, run_id: str, config: RunConfig) -> RunFolder:
    """Make a new folder for a run; an existing one is never reused.

    Raises:
        InputError: if the id could name another folder.
        FileExistsError: if the run id was used before.
    """
    check_run_id(run_id, "--run-id")
    folder = RunFolder(runs / run_id)
    folder.root.mkdir(parents=True)
    write_json(folder.root / "config.json", config.model_dump(mode="json"))
    return folder


def run_local(
    config: RunConfig,
    run_id: str,
    folder: RunFolder,
    runner: Runner = Runner.PROCESS,
    network: str = NO_NETWORK,
) -> Summary:
    """Compile and run the pipeline; results are copied into the run's folder at the end.

    Args:
        config: Validated configuration.
        run_id: Id of the run.
        folder: Made by `make_run_folder`.
        runner: What each task runs in.
        network: Docker network of containers, those of attacks excepted.

    Returns:
        The summary, as written.

    Raises:
        RunFailed: if a step failed.
    """
    from kfp import local
    from kfp.components import load_component_from_file

    start = time.perf_counter()
    here = config.compute.model_copy(update={"retries": 0})  # a local failure is not a lost node
    compile_pipeline(config.model_copy(update={"compute": here}), folder.pipeline, run_id)
    with task_environment(folder), quiet(folder.log), ExitStack() as tasks:
        open_parent(config, run_id, artifact_root=folder.root.parent / "mlflow-artifacts")
        folder.artifacts.mkdir()
        if runner is Runner.DOCKER:
            runs = folder.root.parent
            tasks.enter_context(container_tasks(config, runs, run_id, folder.log, network))
        else:
            tasks.enter_context(warm_tasks(folder.log))
        local.init(
            local.DockerRunner()
            if runner is Runner.DOCKER
            else local.SubprocessRunner(use_venv=False),
            pipeline_root=str(folder.artifacts),
            raise_on_error=True,
        )
        try:
            load_component_from_file(str(folder.pipeline))(config=config.to_json())
        except RuntimeError as error:
            raise RunFailed(_explain(error, folder.log)) from error
    return collect(folder, time.perf_counter() - start)


def collect(folder: RunFolder, seconds: float) -> Summary:
    """Copy the bundle out of KFP's artifacts; the summary goes last."""
    bundle = _artifact(folder, "bundle")
    for name in _RESULTS:
        write_bytes(folder.root / name, (bundle / name).read_bytes())
    text = _artifact(folder, "summary").read_text(encoding="utf-8")
    summary = Summary.model_validate_json(text)
    summary = summary.model_copy(update={"seconds": {**summary.seconds, "total": seconds}})
    write_json(folder.summary, summary.model_dump(mode="json"))
    return summary


def _artifact(folder: RunFolder, name: str) -> Path:
    path = next(folder.artifacts.glob(f"*/promotion/{name}"), None)
    if path is None:
        raise RunFailed(f"the pipeline ended without its {name}; see {folder.log}")
    return path


@contextlib.contextmanager
def task_environment(folder: RunFolder) -> Iterator[None]:
    """Variables the tasks read; keys that are not given exist only as long as the run."""
    database = (folder.root.parent / "mlflow.db").resolve()
    values = {
        EVENTS_VARIABLE: str(folder.events.resolve()),
        URI_VARIABLE: f"sqlite:///{database}",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONWARNINGS": "ignore",
    }
    for keys in (sealing, signing):
        if keys.KEY_VARIABLE not in os.environ:
            values[keys.KEY_VARIABLE] = keys.new_key()
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


@contextlib.contextmanager
def quiet(log: Path) -> Iterator[None]:
    """Send what kfp and MLflow print to the run's log instead of the terminal."""
    with log.open("a", encoding="utf-8", buffering=1) as file:
        handler = logging.StreamHandler(file)
        root = logging.getLogger()
        before, level = root.handlers[:], root.level
        root.handlers = [handler]
        root.setLevel(logging.INFO)
        try:
            with contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
                yield
        finally:
            root.handlers = before
            root.setLevel(level)


def _explain(error: Exception, log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    own = [line for line in lines if "backburn.components.shared.errors." in line]
    if own:
        message = own[-1].split("backburn.components.shared.errors.", 1)[1]
        start = len(lines) - 1 - lines[::-1].index(own[-1])
        return "\n".join([message, *_continuation(lines[start + 1 :]), f"(whole log: {log})"])
    traces = [i for i, line in enumerate(lines) if line.startswith("Traceback")]
    tail = _trace(lines[traces[-1] :]) if traces else lines[-_LOG_TAIL:]
    return "\n".join([_COLOUR.sub("", str(error)), *tail, f"(whole log: {log})"])


def _trace(lines: list[str]) -> list[str]:
    """The end of a traceback: its last frames and the error, which is not indented."""
    error = next((i for i, line in enumerate(lines) if i and line[:1].strip()), len(lines) - 1)
    return lines[max(1, error - _LAST_FRAMES) : error + 1]


def _continuation(lines: list[str]) -> list[str]:
    """The rest of a message of several lines: up to the next blank or log line."""
    taken: list[str] = []
    for line in lines:
        if not line.startswith("  "):
            break
        taken.append(line)
    return taken


def discard_unfinished(folder: RunFolder) -> None:
    """Remove what would read as a result after an interrupted run; logs and progress stay."""
    for name in (*_RESULTS, folder.summary.name):
        (folder.root / name).unlink(missing_ok=True)
    shutil.rmtree(folder.artifacts, ignore_errors=True)
    (folder.root / "INTERRUPTED").write_text(
        "This run was interrupted; it has no result.\n", encoding="utf-8"
    )
