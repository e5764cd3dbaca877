"""The TrainJob of a step: what `pipelines.platform` puts on a task, for each of several nodes.

It is written out, because the SDK's `train` takes plain values as variables only: a Secret's would
stand in the object, and the Trainer's webhook refuses variables of this container in a patch.
"""

import os
from typing import Any

from backburn.components.shared.checkpoints import FOLDER_VARIABLE
from backburn.components.shared.config import ComputeConfig, without_password
from backburn.components.shared.errors import InputError
from backburn.components.shared.scale import pod

NODE = "node"
"""Name of the replicated job and of its container in every torch runtime."""
_MANAGER = "backburn.io/launcher"
_HANDED_ON = (
    "MLFLOW_EXPERIMENT_ID", "MLFLOW_RUN_ID", "MLFLOW_TRACKING_AUTH", "MLFLOW_TRACKING_URI",
    "MLFLOW_WORKSPACE",
)  # fmt: skip
"""Variables that a KFP server gives a task, as far as they are no secrets."""


def train_job(
    name: str, step: str, command: list[str], workspace: str, runtime: str, compute: ComputeConfig
) -> dict[str, Any]:
    """The TrainJob as the API takes it.

    Args:
        name: Of the object.
        step: The component's name, such as rl-attack.
        command: What each node runs; the runtime adds the PET_* variables that torchrun reads.
        workspace: Where the shared volume is mounted.
        runtime: Kind of `compute.training_runtime`: TrainingRuntime or ClusterTrainingRuntime.
        compute: Settings of model steps.

    Raises:
        InputError: if the address of MLflow holds a password.
    """
    requests = {"cpu": compute.cpu, "memory": compute.memory}
    if compute.gpus:
        requests[compute.gpu_type] = str(compute.gpus)
    kueue = pod.kueue_labels(compute)
    spec = {
        "runtimeRef": {"name": compute.training_runtime, "kind": runtime},
        "trainer": {
            "image": compute.image,
            "command": command,
            "env": _variables(workspace, compute),
            "numNodes": compute.nodes,
            "numProcPerNode": compute.processes,
            # cpu among the limits: the SDK cannot read pods whose limits name no device it knows.
            "resourcesPerNode": {"requests": requests, "limits": requests},
        },
        "runtimePatches": [_patch(step, workspace, compute)],
    }
    if compute.timeout_hours is not None:
        spec["activeDeadlineSeconds"] = round(compute.timeout_hours * 3600)
    return {
        "apiVersion": "trainer.kubeflow.org/v1alpha1",
        "kind": "TrainJob",
        "metadata": {
            "name": name,
            "labels": {**pod.labels(compute, step), **kueue},
            **_owner(),
        },
        "spec": spec,
    }


def _owner() -> dict[str, Any]:
    """The launcher's pod: when it is deleted, so is the job, whatever became of the launcher."""
    name, uid = os.environ.get("KFP_POD_NAME"), os.environ.get("KFP_POD_UID")
    if not name or not uid:
        return {}
    return {"ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": name, "uid": uid}]}


def _variables(workspace: str, compute: ComputeConfig) -> list[dict[str, Any]]:
    try:
        without_password(os.environ.get("MLFLOW_TRACKING_URI"))
    except ValueError as error:
        raise InputError(f"MLFLOW_TRACKING_URI: {error}") from None
    handed_on = {name: os.environ[name] for name in _HANDED_ON if name in os.environ}
    checkpoints = {FOLDER_VARIABLE: f"{workspace}/checkpoints"}
    plain = {**pod.TELEMETRY, **pod.folders(compute), **checkpoints, **handed_on}
    secrets = {pod.KEY: False, **dict.fromkeys(pod.OPTIONAL_SECRETS, True)}
    return [
        *({"name": name, "value": value} for name, value in plain.items()),
        *(
            {
                "name": key,
                "valueFrom": {
                    "secretKeyRef": {"name": compute.secret_name, "key": key, "optional": optional}
                },
            }
            for key, optional in secrets.items()
        ),
    ]


def _patch(step: str, workspace: str, compute: ComputeConfig) -> dict[str, Any]:
    """Placing and volumes of the nodes' pods, on top of the runtime's."""
    volumes = _volumes(workspace, compute)
    spec: dict[str, Any] = {
        "volumes": [{"name": name, **source} for name, (_, source) in volumes.items()],
        "containers": [
            {
                "name": NODE,
                "volumeMounts": [
                    {"name": name, "mountPath": path} for name, (path, _) in volumes.items()
                ],
            }
        ],
        "nodeSelector": compute.node_selector,
        "imagePullSecrets": [{"name": name} for name in compute.image_pull_secrets],
        "tolerations": [
            {"key": key, "operator": "Exists", "effect": "NoSchedule"}
            for key in compute.toleration_keys
        ],
        "serviceAccountName": compute.service_account,
    }
    if compute.node_affinity:
        terms = [{"matchExpressions": [item.expression() for item in compute.node_affinity]}]
        required = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}
        spec["affinity"] = {"nodeAffinity": required}
    pods = {
        "metadata": {"labels": pod.labels(compute, step)},
        "spec": {name: value for name, value in spec.items() if value},
    }
    jobs = [{"name": NODE, "template": {"spec": {"template": pods}}}]
    return {
        "manager": _MANAGER,
        "trainingRuntimeSpec": {"template": {"spec": {"replicatedJobs": jobs}}},
    }


def _volumes(workspace: str, compute: ComputeConfig) -> dict[str, tuple[str, dict[str, Any]]]:
    """Name -> where it is mounted and what it is."""
    found = {"workspace": (workspace, _claim(compute.workspace_claim))}
    for name, path, size in (
        ("shared-memory", pod.SHARED_MEMORY, compute.shared_memory),
        ("scratch", pod.SCRATCH, compute.scratch),
    ):
        if size is not None:
            found[name] = (path, {"emptyDir": {"medium": "Memory", "sizeLimit": size}})
    if compute.cache_claim is not None:
        found["cache"] = (pod.CACHE, _claim(compute.cache_claim))
    if compute.cache_size is not None:
        storage = {"requests": {"storage": compute.cache_size}}
        claim = {"spec": {"accessModes": ["ReadWriteOnce"], "resources": storage}}
        found["cache"] = (pod.CACHE, {"ephemeral": {"volumeClaimTemplate": claim}})
    return found


def _claim(name: str | None) -> dict[str, Any]:
    return {"persistentVolumeClaim": {"claimName": name}}
