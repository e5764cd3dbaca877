"""The launcher: runs a step as a Kubeflow TrainJob, waits for it, and brings its outputs back.

The job's pods see none of KFP's artifacts, so inputs and outputs pass through a folder of its own
on a volume that launcher and nodes share. A launcher that is started again finds its job by name
and goes on waiting. Outside a cluster the SDK runs the job as processes of this machine, which it
remembers no longer than the launcher lives: there the job ends with its launcher instead.
"""

import os
import re
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from backburn.components.shared.config import ComputeConfig
from backburn.components.shared.errors import BackburnError, InputError
from backburn.components.shared.scale import local_trainjob, pod
from backburn.components.shared.scale.exchange import Exchange
from backburn.components.shared.scale.job import Job
from backburn.components.shared.scale.manifest import NODE, train_job
from kubeflow.common.utils import is_running_in_k8s
from kubeflow.trainer import LocalProcessBackendConfig, TrainerClient
from kubeflow.trainer.backends.kubernetes.backend import KubernetesBackend
from kubeflow.trainer.constants import constants as trainer
from kubeflow.trainer.types.types import TrainJob
from kubernetes.client.exceptions import ApiException

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
    exchange = Exchange(_workspace(client), job, compute)
    attached = _attach(client, exchange)
    with _ends(client, exchange):
        if not attached:
            exchange.send()
            _create(client, exchange)
        _wait(client, exchange)
        return exchange.receive()


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
    fell: list[str] = []
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
        # Seen twice: a pod that Kueue preempts may look failed until it is gone.
        if job.status == trainer.TRAINJOB_FAILED or (failed and failed == fell):
            raise _failure(client, exchange, failed)
        fell = failed
        if job.status == trainer.TRAINJOB_COMPLETE:
            return
        time.sleep(_POLL_SECONDS)


def _failure(client: TrainerClient, exchange: Exchange, failed: list[str]) -> BackburnError:
    node = failed[0] if failed else f"{NODE}-0"
    why, lines = "", list[str]()
    try:
        lines += client.get_job_logs(exchange.name, step=node)
        why = _conditions(client, exchange.name)
    except (RuntimeError, ApiException) as error:
        lines.append(f"cannot be read: {_reason(error.__cause__ or error)}")
    end = next((n for n, line in enumerate(lines) if _TORCHRUN_GIVES_UP.match(line)), len(lines))
    tail = "".join(f"\n  {line}" for line in lines[max(0, end - _TAIL) : end])
    return BackburnError(f"TrainJob {exchange.name} failed on {node}{why}; end of its log:{tail}")


def _conditions(client: TrainerClient, name: str) -> str:
    """Why the cluster calls a job failed, which the SDK leaves out."""
    backend = client.backend
    if not isinstance(backend, KubernetesBackend):
        return ""
    body = backend.custom_api.get_namespaced_custom_object(
        trainer.GROUP, trainer.VERSION, backend.namespace, trainer.TRAINJOB_PLURAL, name
    )
    return "".join(
        f" ({condition.get('reason')}: {condition.get('message')})"
        for condition in body.get("status", {}).get("conditions", [])
        if (condition["type"], condition["status"]) == (trainer.TRAINJOB_FAILED, "True")
    )


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
        except Exception as error:  # whatever it is, how the step ended matters more
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
        active = [item for item in pods.items if item.status.phase in ("Pending", "Running")]
        if not active and _find(client, exchange.name) is None:
            return True
        if time.monotonic() > deadline:
            return False
        time.sleep(1.0)


def _say(exchange: Exchange, what: str) -> None:
    print(f"[launcher] TrainJob {exchange.name} {what}", flush=True)
