"""What the platform gives a task: image, resources, node choice, secrets, retries, caching.

The one place that sets them. They matter on a cluster; local runs ignore them.
"""

from backburn.components.shared import signing
from backburn.components.shared.config import ComputeConfig, NotificationConfig
from backburn.components.shared.scale import pod
from kfp import dsl, kubernetes


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
        expressions = [item.expression() for item in compute.node_affinity]
        kubernetes.add_node_affinity(task, match_expressions=expressions)
    for key in compute.toleration_keys:
        kubernetes.add_toleration(task, key=key, operator="Exists", effect="NoSchedule")
    for label, value in pod.kueue_labels(compute).items():
        kubernetes.add_pod_label(task, label, value)
    if compute.timeout_hours is not None:
        kubernetes.set_timeout(task, round(compute.timeout_hours * 3600))
    _mount(task, compute)
    return task


def on_model_nodes(task: dsl.PipelineTask, compute: ComputeConfig, title: str) -> dsl.PipelineTask:
    """Settings of a model step that `shared.scale.job.start` starts.

    With several nodes the task only launches a TrainJob, which has those of `on_model_node`.
    """
    if compute.nodes == 1:
        return on_model_node(task, compute, title)
    assert compute.workspace_claim is not None
    on_any_node(task, compute, title)
    task.set_cpu_request(compute.launcher_cpu).set_memory_request(compute.launcher_memory)
    task.set_memory_limit(compute.launcher_memory)
    task.set_env_variable(pod.WORKSPACE_VARIABLE, pod.WORKSPACE)
    kubernetes.mount_pvc(task, compute.workspace_claim, pod.WORKSPACE)
    return task


def _on_node(task: dsl.PipelineTask, compute: ComputeConfig, title: str) -> None:
    task.set_display_name(title)
    task.set_caching_options(False)  # every step samples, or reads what was sampled
    for name, value in pod.TELEMETRY.items():
        task.set_env_variable(name, value)
    task.set_cpu_request(compute.cpu).set_memory_request(compute.memory)
    task.set_memory_limit(compute.memory)
    if compute.retries:
        task.set_retry(compute.retries, backoff_duration="30s", backoff_factor=2.0)
    for label, value in pod.labels(compute, str(task.component_spec.name)).items():
        kubernetes.add_pod_label(task, label, value)
    if compute.image_pull_policy is not None:
        kubernetes.set_image_pull_policy(task, compute.image_pull_policy)
    if compute.image_pull_secrets:
        kubernetes.set_image_pull_secrets(task, compute.image_pull_secrets)
    kubernetes.use_secret_as_env(task, compute.secret_name, _same(pod.KEY))
    kubernetes.use_secret_as_env(
        task, compute.secret_name, _same(*pod.OPTIONAL_SECRETS), optional=True
    )


def _mount(task: dsl.PipelineTask, compute: ComputeConfig) -> None:
    """Volumes of a model step."""
    for name, path, size in (
        ("shared-memory", pod.SHARED_MEMORY, compute.shared_memory),
        ("scratch", pod.SCRATCH, compute.scratch),
    ):
        if size is not None:
            kubernetes.empty_dir_mount(task, name, path, medium="Memory", size_limit=size)
    if compute.cache_claim is not None:
        kubernetes.mount_pvc(task, compute.cache_claim, pod.CACHE)
    if compute.cache_size is not None:
        kubernetes.add_ephemeral_volume(
            task, "cache", pod.CACHE, access_modes=["ReadWriteOnce"], size=compute.cache_size
        )
    for name, value in pod.folders(compute).items():
        task.set_env_variable(name, value)


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
