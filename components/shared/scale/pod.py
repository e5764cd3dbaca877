"""What the pod of a model step has, whoever makes it: labels, folders, variables, secrets."""

from backburn.components.shared import sealing
from backburn.components.shared.checkpoints import FOLDER_VARIABLE
from backburn.components.shared.config import ComputeConfig

PART_OF, STEP = "app.kubernetes.io/part-of", "backburn.io/step"
"""Labels of every task's pod, by which NetworkPolicies choose."""
QUEUE, PRIORITY = "kueue.x-k8s.io/queue-name", "kueue.x-k8s.io/priority-class"
CACHE, SCRATCH, SHARED_MEMORY, WORKSPACE = "/cache", "/scratch", "/dev/shm", "/workspace"
WORKSPACE_VARIABLE = "BACKBURN_WORKSPACE"
"""Set where the folder that all nodes share is mounted."""
TELEMETRY = {"HF_HUB_DISABLE_TELEMETRY": "1", "MLFLOW_DISABLE_TELEMETRY": "true"}
KEY = sealing.KEY_VARIABLE
OPTIONAL_SECRETS = (
    "MLFLOW_TRACKING_TOKEN",
    "MLFLOW_TRACKING_USERNAME",
    "MLFLOW_TRACKING_PASSWORD",
    "HF_TOKEN",
    "BACKBURN_JUDGE_API_KEY",
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_ENDPOINT_URL",
    "AWS_DEFAULT_REGION",
)


def labels(compute: ComputeConfig, step: str) -> dict[str, str]:
    """Of a step's pod; `step` is the component's name, such as rl-attack."""
    return {**compute.pod_labels, PART_OF: "backburn", STEP: step}


def kueue_labels(compute: ComputeConfig) -> dict[str, str]:
    """Of what waits in a queue."""
    wanted = {QUEUE: compute.queue, PRIORITY: compute.priority}
    return {name: value for name, value in wanted.items() if value is not None}


def folders(compute: ComputeConfig) -> dict[str, str]:
    """Variables that point a model step to its volumes."""
    found = {}
    if compute.scratch is not None:
        found["TMPDIR"] = SCRATCH
    if compute.cache_claim is not None or compute.cache_size is not None:
        found |= {"HF_HOME": f"{CACHE}/huggingface", "BACKBURN_CACHE": f"{CACHE}/backburn"}
    if compute.cache_claim is not None:  # which outlives the pod
        found[FOLDER_VARIABLE] = f"{CACHE}/checkpoints"
    return found
