"""TrainJobs as far as a launcher sees them: the API's objects, and pods that run on this machine.

A pod is the job's command in a process of its own, with the variables that Kubeflow Trainer's torch
runtime adds and those of the object, Secrets' among them, and nothing else of the test's.
"""

import base64
import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Record = dict[str, Any]
_NAME = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_TIME = "2026-01-01T00:00:00Z"
_INHERITED = ("PATH", "PYTHONPATH", "HF_HUB_OFFLINE", "HF_HOME", "MLFLOW_DISABLE_TELEMETRY", "HOME")
_JOBSET, _INDEX = "jobset.sigs.k8s.io/jobset-name", "batch.kubernetes.io/job-completion-index"
RUNTIME: Record = {
    "apiVersion": "trainer.kubeflow.org/v1alpha1",
    "kind": "ClusterTrainingRuntime",
    "metadata": {
        "name": "torch-distributed", "labels": {"trainer.kubeflow.org/framework": "torch"},
    },
    "spec": {
        "mlPolicy": {"numNodes": 1, "torch": {}},
        "template": {"spec": {"replicatedJobs": [{
            "name": "node",
            "template": {
                "metadata": {
                    "labels": {"trainer.kubeflow.org/trainjob-ancestor-step": "trainer"}
                },
                "spec": {"template": {"spec": {
                    "containers": [{"name": "node", "image": "pytorch/pytorch"}]
                }}},
            },
        }]}},
    },
}  # fmt: skip
"""What Kubeflow Trainer installs under this name, as far as the SDK reads it."""


@dataclass
class Pod:
    """One node of a job."""

    name: str
    job: Record
    index: int
    log: Path
    process: subprocess.Popen[bytes] | None = None

    @property
    def phase(self) -> str:
        if self.process is None:
            return "Pending"
        code = self.process.poll()
        return "Running" if code is None else "Failed" if code else "Succeeded"

    def shown(self) -> Record:
        trainer = self.job["spec"]["trainer"]
        (job,) = _patched(self.job)
        labels = {
            _JOBSET: self.job["metadata"]["name"],
            "jobset.sigs.k8s.io/replicatedjob-name": "node",
            _INDEX: str(self.index),
            **job["template"]["spec"]["template"]["metadata"]["labels"],
        }
        container = {"name": "node", "resources": trainer["resourcesPerNode"], "env": []}
        return {
            "metadata": {"name": self.name, "creationTimestamp": _TIME, "labels": labels},
            "spec": {"containers": [container]},
            "status": {"phase": self.phase},
        }


class TrainJobs:
    """The jobs of one namespace.

    Attributes:
        starts: Whether pods are started at once; else by `start`.
        gives_up: Whether a failed pod makes the job failed at once; a runtime with retries waits.
    """

    def __init__(self, secrets: dict[tuple[str, str], Record]) -> None:
        self._secrets = secrets
        self.jobs: dict[str, Record] = {}
        self.pods: list[Pod] = []
        self.created: list[Record] = []
        self.starts = self.gives_up = True
        self._folder = tempfile.TemporaryDirectory()

    def create(self, body: Record) -> tuple[int, Record | str]:
        """What the API answers: a status, and the object or why not."""
        name = body["metadata"]["name"]
        if not _NAME.fullmatch(name) or len(f"{name}-node-0-63-abcde") > 63:
            return 422, f"metadata.name: {name}: the names of its pods would be no DNS labels"
        if name in self.jobs:
            return 409, f"trainjobs {name} already exists"
        for patch in body["spec"]["runtimePatches"]:
            for job in patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]:
                for container in job["template"]["spec"]["template"]["spec"]["containers"]:
                    if container.get("env"):  # as the webhook of Kubeflow Trainer 2.3 has it
                        return 403, "must not have envs for the node container"
        metadata = {**body["metadata"], "namespace": "kubeflow", "creationTimestamp": _TIME}
        job = {**body, "metadata": metadata}
        self.created.append(job)
        self.jobs[name] = job
        for index in range(body["spec"]["trainer"]["numNodes"]):
            pod = f"{name}-node-0-{index}-abcde"
            log = Path(self._folder.name) / f"{pod}-{len(self.pods)}.log"
            self.pods.append(Pod(pod, job, index, log))
        if self.starts:
            self.start()
        return 201, self.shown(name)

    def start(self) -> None:
        """Start the pods that wait."""
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            port = listener.getsockname()[1]
        for pod in self.pods:
            if pod.process is None:
                trainer = pod.job["spec"]["trainer"]
                torchrun = {
                    "PET_NNODES": trainer["numNodes"],
                    "PET_NPROC_PER_NODE": trainer["numProcPerNode"],
                    "PET_NODE_RANK": pod.index,
                    "PET_MASTER_ADDR": "127.0.0.1",
                    "PET_MASTER_PORT": port,
                }
                environment = {name: os.environ[name] for name in _INHERITED if name in os.environ}
                environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
                environment |= self._variables(trainer["env"])
                environment |= {name: str(value) for name, value in torchrun.items()}
                with pod.log.open("wb") as log:
                    pod.process = subprocess.Popen(
                        trainer["command"], env=environment, stdout=log,
                        stderr=subprocess.STDOUT, start_new_session=True,
                    )  # fmt: skip

    def _variables(self, given: list[Record]) -> dict[str, str]:
        found = {item["name"]: item["value"] for item in given if "value" in item}
        for item in given:
            if (source := item.get("valueFrom", {}).get("secretKeyRef")) is not None:
                data = self._secrets["secrets", source["name"]]["data"]
                if source["key"] in data:
                    found[item["name"]] = base64.b64decode(data[source["key"]]).decode()
                elif not source["optional"]:
                    raise AssertionError(f"the pod would not start without {source['key']}")
        return found

    def shown(self, name: str) -> Record:
        """The object, with its status as of now."""
        job = self.jobs[name]
        phases = {pod.phase for pod in self.pods if pod.job is job}
        condition = None
        if phases == {"Succeeded"}:
            condition = {"type": "Complete", "reason": "JobsCompleted", "message": "done"}
        elif "Failed" in phases and self.gives_up:
            condition = {"type": "Failed", "reason": "JobsFailed", "message": "a node failed"}
        if condition is None:
            return job
        stamped = {**condition, "status": "True", "lastTransitionTime": _TIME}
        return {**job, "status": {"conditions": [stamped]}}

    def delete(self, name: str) -> None:
        """The object is gone at once, its pods when they have ended."""
        job = self.jobs.pop(name)
        for pod in self.pods:
            if pod.job is job and pod.process is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(pod.process.pid, signal.SIGTERM)

    def listed(self, selector: str) -> list[Record]:
        """Pods of a job; those of a deleted one while they run."""
        (name,) = re.findall(rf"{_JOBSET}=([-a-z0-9]+)", selector)
        there = [pod for pod in self.pods if pod.job["metadata"]["name"] == name]
        return [
            pod.shown() for pod in there if self.jobs.get(name) is pod.job or pod.phase == "Running"
        ]

    def log(self, pod: str) -> str:
        """What the newest pod of a name has written."""
        found = [item for item in self.pods if item.name == pod and item.process is not None]
        return found[-1].log.read_text(encoding="utf-8")

    def close(self) -> None:
        """End everything."""
        for name in list(self.jobs):
            self.delete(name)
        for pod in self.pods:
            if pod.process is not None:
                pod.process.wait(30)
        self._folder.cleanup()


def _patched(job: Record) -> list[Record]:
    (patch,) = job["spec"]["runtimePatches"]
    found: list[Record] = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    return found
