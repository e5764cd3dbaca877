"""The launcher: runs a step as a Kubeflow TrainJob, waits for it, and brings its outputs back.

The job's pods see none of KFP's artifacts, so inputs and outputs pass through a folder of its own
on a volume that launcher and nodes share. A launcher that is started again finds its job by name
and goes on waiting. Outside a cluster the SDK runs the job as processes of this machine, which it
remembers no longer than the launcher lives: there the job ends with its launcher instead.
"""

import os
import re
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from backburn.components.shared.config import ComputeConfig
from backburn.components.shared.errors import BackburnError, InputError
from backburn.components.shared.scale import delivery, local_trainjob, pod
from backburn.components.shared.scale.job import Job
from backburn.components.shared.scale.manifest import train_job
from backburn.components.shared.storage import canonical_json, read_json, sha256_text
from kfp.dsl.types.type_utils import is_parameter_type
from kubeflow.common.utils import is_running_in_k8s
from kubeflow.trainer import LocalProcessBackendConfig, TrainerClient
from kubeflow.trainer.backends.kubernetes.backend import KubernetesBackend
from kubeflow.trainer.constants import constants as trainer
from kubeflow.trainer.types.types import TrainJob
from kubernetes.client.exceptions import ApiException

_WORKER = "backburn.components.shared.scale.worker"
_LONGEST_NAME = 47
"""JobSet wants names of pods, such as NAME-node-0-63-abcde, to be DNS labels of at most 63."""
_DIGEST_CHARACTERS = 10
_POLL_SECONDS = 5.0
_PATIENCE_SECONDS = 600.0
"""How long the Kubernetes API may be out of reach, or an old job may take to go."""
_EXIT_SECONDS = 20.0
"""How long an ending launcher waits for the job's pods; a pod has 30 s from SIGTERM to SIGKILL."""
_TAIL = 30
_TORCHRUN_GIVES_UP = re.compile(r"E\d{4} .*torch/distributed/elastic/.*failed \(exitcode")
"""What follows in a log is torchrun's own traceback, which says nothing of the cause."""


def launch(job: Job, compute: ComputeConfig, client: TrainerClient | None = None) -> dict[str, Any]:
    """Run a step as a TrainJob; the job is gone and its folder empty when this returns or raises.

    Args:
        job: The step's call; of its arguments those are files that its KFP face says are.
        compute: Settings of model steps.
        client: Of Kubeflow Trainer; default: this cluster, outside a cluster this machine.

    Returns:
        What the step returned.

    Raises:
        InputError: if there is no shared folder, no such runtime, or the API refuses the job.
        BackburnError: if the job fails, with the end of its log, or its outputs do not come whole.
    """
    client = client or TrainerClient(None if is_running_in_k8s() else LocalProcessBackendConfig())
    name = job_name(job)
    exchange = Exchange(_workspace(client), job, name, compute)
    attached = _attach(client, exchange)
    with _ends(client, exchange):
        if not attached:
            exchange.send()
            _create(client, exchange)
        _wait(client, exchange)
        return exchange.receive()


def job_name(job: Job) -> str:
    """Name of a task's TrainJob: equal for a task that is tried again, else different.

    A DNS label that leaves room for the names of its pods: step, run id and a digest of both and of
    the arguments that tell tasks of one step apart; not of files, which may move.
    """
    package = job.module.rpartition(".")[0]
    files = {name for names in artifacts(job.module) for name in names}
    told = {k: v for k, v in job.arguments.items() if k not in files | {"config_json"}}
    digest = sha256_text(canonical_json([job.module, told]))[:_DIGEST_CHARACTERS]
    title = _label(f"{package.rpartition('.')[2]}-{job.arguments['run_id']}")
    return f"{title[: _LONGEST_NAME - _DIGEST_CHARACTERS - 1].rstrip('-')}-{digest}"


def artifacts(module: str) -> tuple[list[str], list[str]]:
    """Names of the arguments that are files, as the step's KFP face declares them.

    Args:
        module: The step, such as `backburn.components.baseline.step`.

    Returns:
        Names of inputs, names of outputs.
    """
    package = module.rpartition(".")[0]
    face = getattr(import_module(f"{package}.component"), package.rpartition(".")[2])
    inputs, outputs = face.component_spec.inputs, face.component_spec.outputs
    return [n for n, item in inputs.items() if not is_parameter_type(item.type)], list(outputs)


class Exchange:
    """The folder over which a job gets its inputs and returns its outputs.

    Attributes:
        name: Of the job.
        step: Name of the component, such as rl-attack.
        root: The shared volume.
        compute: Settings of model steps.
        folder: Below `root`, of this job alone.
        command: Arguments of torchrun.
    """

    def __init__(self, root: Path, job: Job, name: str, compute: ComputeConfig) -> None:
        """Plan it; nothing is written yet."""
        self.name, self.root, self.compute = name, root.resolve(), compute
        self.step = job.module.split(".")[-2].replace("_", "-")
        self.folder = self.root / _label(str(job.arguments["run_id"])) / name
        self._job, self._result = self.folder / "job.json", self.folder / "result.json"
        self.command = ["-m", _WORKER, str(self._job), str(self._result)]
        inputs, outputs = artifacts(job.module)
        self._here = {item: Path(job.arguments[item]).resolve() for item in (*inputs, *outputs)}
        self._there = {item: self.folder / item for item in self._here}
        self._inputs, self._outputs = inputs, outputs
        there = {item: str(path) for item, path in self._there.items()}
        self._sent = Job(
            delivery.__name__,
            {
                "module": job.module,
                "arguments": {**job.arguments, **there},
                "inputs": {item: delivery.digests(self._here[item]) for item in inputs},
                "outputs": outputs,
            },
        )

    def holds_this_job(self) -> bool:
        """Whether the folder was filled for the same call on the same inputs."""
        return self._job.is_file() and Job.read(self._job) == self._sent

    def send(self) -> None:
        """Fill the folder, which was another job's if there was one."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        for item in self._inputs:
            _copy(self._here[item], self._there[item])
        self._sent.write(self._job)

    def receive(self) -> dict[str, Any]:
        """Bring the outputs to where the task wants them, each whole or not at all.

        Raises:
            BackburnError: if an output is not what the node says it wrote.
        """
        answer = read_json(self._result)
        for item in self._outputs:
            here = self._here[item]
            arriving = here.with_name(f".{here.name}.arriving")
            _copy(self._there[item], arriving)
            if delivery.digests(arriving) != answer["outputs"][item]:
                raise BackburnError(
                    f"{self._there[item]}: the launcher sees other files than TrainJob {self.name} "
                    "wrote. Is compute.workspace_claim one volume that all nodes share "
                    "(ReadWriteMany)?"
                )
            arriving.replace(here)
        metadata: dict[str, Any] = answer["metadata"]
        return metadata

    def remove(self) -> None:
        """Leave nothing of this job on the volume."""
        shutil.rmtree(self.folder, ignore_errors=True)
        if self.folder.parent.is_dir() and not any(self.folder.parent.iterdir()):
            self.folder.parent.rmdir()


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target)
    elif source.is_file():
        shutil.copyfile(source, target)
    else:
        raise BackburnError(f"{source}: no such file or folder")


def _label(text: str) -> str:
    """Text as part of a DNS label."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def _workspace(client: TrainerClient) -> Path:
    if not isinstance(client.backend, KubernetesBackend):
        return Path(tempfile.gettempdir()) / f"backburn-workspace-{os.getuid()}"
    if pod.WORKSPACE_VARIABLE not in os.environ:
        raise InputError(
            "compute.nodes is more than 1, but this task was compiled for one node and has no "
            "shared volume: compile the pipeline with these settings, or set compute.nodes to 1"
        )
    return Path(os.environ[pod.WORKSPACE_VARIABLE])


def _attach(client: TrainerClient, exchange: Exchange) -> bool:
    """Whether the job is there already; one that is of no use is deleted."""
    try:
        job = _find(client, exchange.name)
    except RuntimeError as error:
        raise BackburnError(
            f"{error}: {_reason(error.__cause__)}. This task's service account needs the rights "
            "that trainJobs.enabled of the chart gives"
        ) from error
    if job is None:
        return False
    if job.status == trainer.TRAINJOB_FAILED:
        fault = "failed before"
    elif not exchange.holds_this_job():
        fault = "was started with other arguments or inputs"
    else:
        _say(exchange, f"is there already ({job.status}): waiting for it")
        return True
    _say(exchange, f"{fault}: deleting it and starting it anew")
    if not _delete(client, exchange, _PATIENCE_SECONDS):
        raise BackburnError(
            f"TrainJob {exchange.name} was deleted, but its pods are still there after "
            f"{_PATIENCE_SECONDS:.0f} s: see kubectl describe, and try again"
        )
    return False


def _find(client: TrainerClient, name: str) -> TrainJob | None:
    try:
        return client.get_job(name)
    except ValueError:  # the local backend's word for it
        return None
    except RuntimeError as error:
        if isinstance(error.__cause__, ApiException) and error.__cause__.status == 404:
            return None
        raise


def _create(client: TrainerClient, exchange: Exchange) -> None:
    compute, backend = exchange.compute, client.backend
    if not isinstance(backend, KubernetesBackend):
        local_trainjob.create(client, exchange.name, exchange.folder, exchange.command, compute)
        return
    try:
        kind = client.get_runtime(compute.training_runtime).kind.value
    except RuntimeError as error:
        raise InputError(
            f"compute.training_runtime: {error}: {_reason(error.__cause__)}. Install Kubeflow "
            "Trainer with its runtimes, or let this task's service account read them"
        ) from error
    command = ["torchrun", *exchange.command]
    body = train_job(exchange.name, exchange.step, command, str(exchange.root), kind, compute)
    try:
        backend.custom_api.create_namespaced_custom_object(
            trainer.GROUP, trainer.VERSION, backend.namespace, trainer.TRAINJOB_PLURAL, body
        )
    except ApiException as error:
        raise InputError(
            f"the cluster refuses TrainJob {exchange.name}: {_reason(error)}. Correct `compute`, "
            "or allow it (trainJobs.enabled of the chart)"
        ) from error
    _say(exchange, f"is created: {compute.nodes} nodes, {compute.processes} processes each")


def _reason(error: BaseException | None) -> str:
    """What the API says, in one line."""
    if not isinstance(error, ApiException):
        return str(error)
    found = re.search(r'"message":\s*"((?:[^"\\]|\\.)*)"', str(error.body))
    return f"{error.status} {found[1] if found else error.reason}"


def _wait(client: TrainerClient, exchange: Exchange) -> None:
    """Show the log of the first node until the job is done.

    Raises:
        BackburnError: if it failed, was deleted, or the API stays out of reach.
    """
    shown, state, answered = 0, "", time.monotonic()
    while True:
        try:
            job = _find(client, exchange.name)
            lines = [] if job is None else list(client.get_job_logs(exchange.name))
            answered = time.monotonic()
        except (RuntimeError, TimeoutError) as error:
            _say(exchange, f"cannot be asked for: {error}: {_reason(error.__cause__)}")
            if time.monotonic() - answered > _PATIENCE_SECONDS:
                raise
            time.sleep(_POLL_SECONDS)
            continue
        if job is None:
            raise BackburnError(f"TrainJob {exchange.name} was deleted by somebody else")
        shown = shown if shown <= len(lines) else 0  # the node began a new log
        for line in lines[shown:]:
            print(line, flush=True)
        shown = len(lines)
        phases = Counter(step.status for step in job.steps)
        now = ", ".join([job.status, *(f"{n} x {phase}" for phase, n in phases.items())])
        if now != state:
            _say(exchange, f"is {now}")
        state = now
        failed = [step.name for step in job.steps if step.status == "Failed"]
        if job.status == trainer.TRAINJOB_FAILED or failed:
            raise _failure(client, exchange, failed)
        if job.status == trainer.TRAINJOB_COMPLETE:
            return
        time.sleep(_POLL_SECONDS)


def _failure(client: TrainerClient, exchange: Exchange, failed: list[str]) -> BackburnError:
    node = failed[0] if failed else "node-0"
    why = f"on {node}"
    backend = client.backend
    if isinstance(backend, KubernetesBackend):
        body = backend.custom_api.get_namespaced_custom_object(
            trainer.GROUP,
            trainer.VERSION,
            backend.namespace,
            trainer.TRAINJOB_PLURAL,
            exchange.name,
        )
        for condition in body.get("status", {}).get("conditions", []):
            if (condition["type"], condition["status"]) == (trainer.TRAINJOB_FAILED, "True"):
                why += f" ({condition.get('reason')}: {condition.get('message')})"
    try:
        lines = list(client.get_job_logs(exchange.name, step=node))
    except RuntimeError as error:
        lines = [f"cannot be read: {_reason(error.__cause__)}"]
    end = next((n for n, line in enumerate(lines) if _TORCHRUN_GIVES_UP.match(line)), len(lines))
    tail = "".join(f"\n  {line}" for line in lines[max(0, end - _TAIL) : end])
    return BackburnError(f"TrainJob {exchange.name} failed {why}; the end of its log:{tail}")


@contextmanager
def _ends(client: TrainerClient, exchange: Exchange) -> Iterator[None]:
    """Delete job and folder at the end, also when this process is told to go."""

    def leave(number: int, _frame: Any) -> None:
        sys.exit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        try:
            if not _delete(client, exchange, _EXIT_SECONDS):
                _say(exchange, "is deleted, but its pods have not ended yet")
        except (RuntimeError, TimeoutError, ApiException) as error:
            _say(exchange, f"may be left over: {error}. kubectl delete trainjob {exchange.name}")
        exchange.remove()
        signal.signal(signal.SIGTERM, before)


def _delete(client: TrainerClient, exchange: Exchange, patience: float) -> bool:
    """Delete the job; whether it and its pods were gone after `patience` seconds."""
    deadline = time.monotonic() + patience
    backend = client.backend
    if not isinstance(backend, KubernetesBackend):
        return local_trainjob.delete(client, exchange.name, exchange.folder, deadline)
    try:
        client.delete_job(exchange.name)
    except RuntimeError as error:
        if not (isinstance(error.__cause__, ApiException) and error.__cause__.status == 404):
            raise
    selector = f"{trainer.JOBSET_NAME_LABEL}={exchange.name}"
    while True:
        pods = backend.core_api.list_namespaced_pod(backend.namespace, label_selector=selector)
        if not pods.items and _find(client, exchange.name) is None:
            return True
        if time.monotonic() > deadline:
            return False
        time.sleep(1.0)


def _say(exchange: Exchange, what: str) -> None:
    print(f"[launcher] TrainJob {exchange.name} {what}", flush=True)
