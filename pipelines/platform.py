"""What the platform gives a task: image, resources, node choice, secrets, retries, caching.

The one place that sets them. They matter on a cluster; local runs ignore them.
"""

from backburn.components.shared import sealing, signing
from backburn.components.shared.config import ComputeConfig, NotificationConfig
from kfp import dsl, kubernetes

PART_OF, STEP = "app.kubernetes.io/part-of", "backburn.io/step"
"""Labels of every task's pod, by which NetworkPolicies choose."""
_OPTIONAL_SECRETS = (
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
_QUEUE, _PRIORITY = "kueue.x-k8s.io/queue-name", "kueue.x-k8s.io/priority-class"
_CACHE, _SCRATCH, _SHARED_MEMORY = "/cache", "/scratch", "/dev/shm"
_CACHE_VARIABLES = {"HF_HOME": f"{_CACHE}/huggingface", "BACKBURN_CACHE": f"{_CACHE}/backburn"}


def on_any_node(task: dsl.PipelineTask, compute: ComputeConfig, title: str) -> dsl.PipelineTask:
    """Settings of a step that needs no accelerator."""
    _on_node(task, compute, title)
    task.set_container_image(compute.tools_image or compute.image)
    return task


def on_model_node(task: dsl.PipelineTask, compute: ComputeConfig, title: str) -> dsl.PipelineTask:
    """Settings of a step that loads the model: accelerators, nodes, queue and volumes on top."""
    _on_node(task, compute, title)
    task.set_container_image(compute.image)
    if compute.gpus:
        task.set_accelerator_type(compute.gpu_type).set_accelerator_limit(compute.gpus)
    for label, value in compute.node_selector.items():
        kubernetes.add_node_selector(task, label, value)
    if compute.node_affinity:
        required = [item.model_dump(exclude_defaults=True) for item in compute.node_affinity]
        expressions = [{"operator": "In", **item} for item in required]
        kubernetes.add_node_affinity(task, match_expressions=expressions)
    for key in compute.toleration_keys:
        kubernetes.add_toleration(task, key=key, operator="Exists", effect="NoSchedule")
    if compute.queue is not None:
        kubernetes.add_pod_label(task, _QUEUE, compute.queue)
    if compute.priority is not None:
        kubernetes.add_pod_label(task, _PRIORITY, compute.priority)
    if compute.timeout_hours is not None:
        kubernetes.set_timeout(task, round(compute.timeout_hours * 3600))
    _mount(task, compute)
    return task


def _on_node(task: dsl.PipelineTask, compute: ComputeConfig, title: str) -> None:
    task.set_display_name(title)
    task.set_caching_options(False)  # every step samples, or reads what was sampled
    task.set_env_variable("HF_HUB_DISABLE_TELEMETRY", "1")
    task.set_env_variable("MLFLOW_DISABLE_TELEMETRY", "true")
    task.set_cpu_request(compute.cpu).set_memory_request(compute.memory)
    task.set_memory_limit(compute.memory)
    if compute.retries:
        task.set_retry(compute.retries, backoff_duration="30s", backoff_factor=2.0)
    labels = {PART_OF: "backburn", STEP: str(task.component_spec.name)}
    for label, value in {**compute.pod_labels, **labels}.items():
        kubernetes.add_pod_label(task, label, value)
    if compute.image_pull_policy is not None:
        kubernetes.set_image_pull_policy(task, compute.image_pull_policy)
    if compute.image_pull_secrets:
        kubernetes.set_image_pull_secrets(task, compute.image_pull_secrets)
    kubernetes.use_secret_as_env(task, compute.secret_name, _same(sealing.KEY_VARIABLE))
    kubernetes.use_secret_as_env(
        task, compute.secret_name, _same(*_OPTIONAL_SECRETS), optional=True
    )


def _mount(task: dsl.PipelineTask, compute: ComputeConfig) -> None:
    """Volumes of a model step."""
    if compute.shared_memory is not None:
        kubernetes.empty_dir_mount(
            task, "shared-memory", _SHARED_MEMORY, medium="Memory", size_limit=compute.shared_memory
        )
    if compute.scratch is not None:
        kubernetes.empty_dir_mount(
            task, "scratch", _SCRATCH, medium="Memory", size_limit=compute.scratch
        )
        task.set_env_variable("TMPDIR", _SCRATCH)
    if compute.cache_claim is not None:
        kubernetes.mount_pvc(task, compute.cache_claim, _CACHE)
    if compute.cache_size is not None:
        kubernetes.add_ephemeral_volume(
            task, "cache", _CACHE, access_modes=["ReadWriteOnce"], size=compute.cache_size
        )
    if compute.cache_claim is not None or compute.cache_size is not None:
        for name, folder in _CACHE_VARIABLES.items():
            task.set_env_variable(name, folder)


def may_sign(task: dsl.PipelineTask, compute: ComputeConfig) -> None:
    """Give a task the key that signs evidence; tasks that run a model never get it."""
    kubernetes.use_secret_as_env(task, compute.secret_name, _same(signing.KEY_VARIABLE))


def may_notify(
    task: dsl.PipelineTask, compute: ComputeConfig, settings: NotificationConfig
) -> None:
    """Give a task the webhooks' addresses and keys, as far as the Secret has them."""
    for webhook in settings.webhooks:
        names = _same(webhook.url_variable, webhook.key_variable)
        kubernetes.use_secret_as_env(task, compute.secret_name, names, optional=True)


def _same(*names: str) -> dict[str, str]:
    """Keys of a Secret become variables of the same names."""
    return {name: name for name in names}
