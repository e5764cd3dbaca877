"""What the platform gives a task: image, resources, node choice, secrets, retries, caching.

The one place that sets them. They matter on a cluster; local runs ignore them.
"""

from backburn.components.shared import sealing, signing
from backburn.components.shared.config import ComputeConfig, NotificationConfig
from kfp import dsl, kubernetes

_OPTIONAL_SECRETS = ("MLFLOW_TRACKING_TOKEN", "HF_TOKEN", "BACKBURN_JUDGE_API_KEY")


def on_any_node(task: dsl.PipelineTask, compute: ComputeConfig, title: str) -> dsl.PipelineTask:
    """Settings of a step that needs no accelerator."""
    task.set_display_name(title)
    task.set_container_image(compute.image)
    task.set_caching_options(False)  # every step samples, or reads what was sampled
    task.set_env_variable("HF_HUB_DISABLE_TELEMETRY", "1")
    task.set_env_variable("MLFLOW_DISABLE_TELEMETRY", "true")
    task.set_cpu_request(compute.cpu).set_memory_request(compute.memory)
    task.set_memory_limit(compute.memory)
    if compute.retries:
        task.set_retry(compute.retries, backoff_duration="30s", backoff_factor=2.0)
    kubernetes.use_secret_as_env(task, compute.secret_name, _same(sealing.KEY_VARIABLE))
    kubernetes.use_secret_as_env(
        task, compute.secret_name, _same(*_OPTIONAL_SECRETS), optional=True
    )
    return task


def on_model_node(task: dsl.PipelineTask, compute: ComputeConfig, title: str) -> dsl.PipelineTask:
    """Settings of a step that loads the model: accelerators, node labels and tolerations on top."""
    on_any_node(task, compute, title)
    if compute.gpus:
        task.set_accelerator_type(compute.gpu_type).set_accelerator_limit(compute.gpus)
    for label, value in compute.node_selector.items():
        kubernetes.add_node_selector(task, label, value)
    for key in compute.toleration_keys:
        kubernetes.add_toleration(task, key=key, operator="Exists", effect="NoSchedule")
    return task


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
