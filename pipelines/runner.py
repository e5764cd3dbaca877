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
from backburn.components.shared.checkpoints import FOLDER_VARIABLE
from backburn.components.shared.config import RunConfig
from backburn.components.shared.domains import is_stand_in
from backburn.components.shared.errors import BackburnError, InputError
from backburn.components.shared.evidence import Summary
from backburn.components.shared.parsing import check_run_id
from backburn.components.shared.progress import EVENTS_VARIABLE
from backburn.components.shared.storage import read_bytes, sha256_text, write_bytes, write_json
from backburn.components.shared.tracking import URI_VARIABLE, open_parent
from backburn.pipelines.compilation import compile_pipeline
from backburn.pipelines.containers import container_tasks
from backburn.pipelines.finished_tasks import FinishedTasks
from backburn.pipelines.local_options import NO_NETWORK, Runner
from backburn.pipelines.task_locks import command_lock, wait_for_tasks
from backburn.pipelines.warm_start import warm_tasks

_CONFIG = "config.json"
_MEMORY = Path("/dev/shm")
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
    def checkpoints(self) -> Path:
        """What its steps have done so far; gone at the end."""
        return self.root / "checkpoints"

    @property
    def finished(self) -> Path:
        """Records of the tasks that have ended; gone at the end."""
        return self.root / "finished"

    @property
    def interrupted(self) -> Path:
        """Says that there is no result."""
        return self.root / "INTERRUPTED"

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
    write_json(folder.root / _CONFIG, config.model_dump(mode="json"))
    return folder


def read_config(root: Path) -> RunConfig:
    """The configuration of a run's folder.

    Raises:
        InputError: if it is missing or damaged, naming the file.
    """
    path = root / _CONFIG
    content = read_bytes(str(path))
    try:
        return RunConfig.from_json(content)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def unfinished_run(root: Path) -> tuple[RunFolder, RunConfig]:
    """The folder of a run that was interrupted or has failed, and its configuration.

    Raises:
        InputError: if it is no such folder.
    """
    folder = RunFolder(root.resolve())
    if not (root / _CONFIG).is_file():
        raise InputError(f"{root}: no {_CONFIG}: not the folder of a run. Give runs/<run id>")
    if folder.summary.is_file():
        _forget(folder)  # it may have been killed before it did so itself
        raise InputError(f"{root}: this run has ended; its result is in {folder.summary.name}")
    if not folder.pipeline.is_file():
        raise InputError(
            f"{root}: no {folder.pipeline.name}: its pipeline never ran here. A rejudged run, or "
            "one that ended at once, is started anew instead"
        )
    return folder, read_config(root)


def run_local(
    config: RunConfig,
    run_id: str,
    folder: RunFolder,
    runner: Runner = Runner.PROCESS,
    network: str = NO_NETWORK,
) -> Summary:
    """Compile and run the pipeline; results are copied into the run's folder at the end.

    In the folder of a run that was interrupted, it goes on from where that stopped.

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
        InputError: if another command is at work in the folder.
    """
    from kfp import local
    from kfp.components import load_component_from_file

    start = time.perf_counter()
    at_work, tasks_at_work = folder.root / ".command.lock", folder.root / ".tasks.lock"
    here = config.compute.model_copy(update={"retries": 0})  # a local failure is not a lost node
    with ExitStack() as tasks:
        tasks.enter_context(command_lock(at_work))
        wait_for_tasks(tasks_at_work)
        folder.interrupted.unlink(missing_ok=True)
        compile_pipeline(config.model_copy(update={"compute": here}), folder.pipeline, run_id)
        tasks.enter_context(task_environment(folder, keep_key=is_stand_in(config.domain)))
        tasks.enter_context(quiet(folder.log))
        open_parent(config, run_id, artifact_root=folder.root.parent / "mlflow-artifacts")
        folder.artifacts.mkdir(exist_ok=True)
        finished = FinishedTasks(folder.finished)
        if runner is Runner.DOCKER:
            tasks.enter_context(
                container_tasks(config, folder.root.parent, run_id, folder.log, finished, network)
            )
        else:
            tasks.enter_context(warm_tasks(folder.log, finished, tasks_at_work))
        tasks.enter_context(_same_artifact_paths())
        local.init(
            local.DockerRunner()
            if runner is Runner.DOCKER
            else local.SubprocessRunner(use_venv=False),
            pipeline_root=str(folder.artifacts.resolve()),
            raise_on_error=True,
        )
        try:
            load_component_from_file(str(folder.pipeline))(config=config.to_json())
        except RuntimeError as error:
            again = f"When that is mended, go on with: backburn resume {folder.root}"
            raise RunFailed(f"{_explain(error, folder.log)}\n{again}") from error
        return _ended(folder, time.perf_counter() - start)


@contextlib.contextmanager
def _same_artifact_paths() -> Iterator[None]:
    """Let kfp.local put a pipeline's artifacts where an earlier attempt in this folder put them."""
    from kfp.local import executor_input_utils as inputs

    original = inputs.get_local_pipeline_resource_name
    inputs.get_local_pipeline_resource_name = lambda name: name
    try:
        yield
    finally:
        inputs.get_local_pipeline_resource_name = original


def _ended(folder: RunFolder, seconds: float) -> Summary:
    """Copy the results, then forget what only an interrupted run needs."""
    summary = collect(folder, seconds)
    _forget(folder)
    return summary


def _forget(folder: RunFolder) -> None:
    for path in (folder.checkpoints, folder.finished):
        shutil.rmtree(path, ignore_errors=True)
    _key_file(folder).unlink(missing_ok=True)


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
def task_environment(folder: RunFolder, *, keep_key: bool = False) -> Iterator[None]:
    """Variables the tasks read; keys that are not given exist only as long as the run.

    Args:
        folder: Of the run.
        keep_key: Keep the key of the seals in memory that outlives this process, until the run has
            ended or the machine is restarted: a resumed run can then open them. Only for
            stand-in domains, whose text is no secret.
    """
    database = (folder.root.parent / "mlflow.db").resolve()
    values = {
        EVENTS_VARIABLE: str(folder.events.resolve()),
        URI_VARIABLE: f"sqlite:///{database}",
        FOLDER_VARIABLE: str(folder.checkpoints.resolve()),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONWARNINGS": "ignore",
    }
    for keys in (sealing, signing):
        if keys.KEY_VARIABLE not in os.environ:
            values[keys.KEY_VARIABLE] = keys.new_key()
    if keep_key and sealing.KEY_VARIABLE in values:
        values[sealing.KEY_VARIABLE] = _kept(folder, values[sealing.KEY_VARIABLE])
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


def _kept(folder: RunFolder, new: str) -> str:
    """The key that an interrupted attempt left in memory, else this one, which is left there."""
    path = _key_file(folder)
    with contextlib.suppress(OSError):  # no such memory here, or full: the run works without
        if path.exists() and path.stat().st_uid == os.getuid():
            return path.read_text(encoding="ascii")
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "w", encoding="ascii") as file:
            file.write(new)
    return new


def _key_file(folder: RunFolder) -> Path:
    return _MEMORY / f"backburn-key-{sha256_text(str(folder.root.resolve()))[:16]}"


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


def mark_interrupted(folder: RunFolder) -> None:
    """Remove what would read as a result after an interrupted run; what it has done stays."""
    for name in (*_RESULTS, folder.summary.name):
        (folder.root / name).unlink(missing_ok=True)
    again = f" Go on with: backburn resume {folder.root}" if folder.pipeline.is_file() else ""
    folder.interrupted.write_text(
        f"This run was interrupted; it has no result.{again}\n", encoding="utf-8"
    )
