"""What the compiled YAML gives each task: everything to the steps that need it, and no more."""

from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from backburn.components.shared.errors import InputError
from backburn.pipelines.compilation import compile_pipeline
from backburn.pipelines.recipes import load_recipe

MODEL_STEPS = {"baseline", "defense-training", "certification", "rl-attack"}
TOOLS = {
    "preflight", "data-prep", "judge-evaluation", "promotion", "notification", "audited-model",
}  # fmt: skip
EVERYTHING = (
    "compute.image=registry/train:1",
    "compute.tools_image=registry/tools:1",
    "compute.image_pull_policy=IfNotPresent",
    "compute.image_pull_secrets=[registry]",
    "compute.gpus=4",
    "compute.gpu_type=nvidia.com/gpu",
    "compute.cpu=16",
    "compute.memory=64Gi",
    "compute.node_selector={pool: h100}",
    "compute.node_affinity=[{key: zone, values: [a, b]}, {key: spot, operator: DoesNotExist}]",
    "compute.toleration_keys=[nvidia.com/gpu]",
    "compute.shared_memory=8Gi",
    "compute.scratch=4Gi",
    "compute.cache_claim=models",
    "compute.queue=team",
    "compute.priority=high",
    "compute.timeout_hours=1.5",
    "compute.retries=3",
    "compute.secret_name=ours",
    "compute.pod_labels={cost-centre: safety}",
    "notification.webhooks=[{}]",
)


class Tasks(NamedTuple):
    """By executor, `exec-` left out."""

    containers: dict[str, dict[str, Any]]
    settings: dict[str, dict[str, Any]]
    policies: list[dict[str, Any]]


def compiled(tmp_path: Path, *overrides: str) -> Tasks:
    config = load_recipe("smoke", overrides)
    text = compile_pipeline(config, tmp_path / "pipeline.yaml").read_text("utf-8")
    spec, platform = yaml.load_all(text, yaml.CSafeLoader)
    executors = spec["deploymentSpec"]["executors"]
    settings = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    tasks = [
        task
        for part in (spec["root"], *spec["components"].values())
        for task in part.get("dag", {}).get("tasks", {}).values()
        if f"exec-{task['componentRef']['name'].removeprefix('comp-')}" in executors
    ]
    return Tasks(
        {name.removeprefix("exec-"): item["container"] for name, item in executors.items()},
        {name.removeprefix("exec-"): item for name, item in settings.items()},
        tasks,
    )


def step_of(name: str) -> str:
    """Executors of a component that is used twice have a number at the end."""
    return name.rstrip("0123456789").rstrip("-")


def variables(container: dict[str, Any]) -> dict[str, str]:
    return {item["name"]: item["value"] for item in container["env"]}


@pytest.mark.parametrize("pipeline", ["harden", "audit"])
def test_every_setting_reaches_every_model_step(pipeline: str, tmp_path: Path) -> None:
    audit = ("audit={}",) if pipeline == "audit" else ()
    tasks = compiled(tmp_path, *EVERYTHING, *audit)
    found = {name for name in tasks.containers if step_of(name) in MODEL_STEPS}
    absent = {"defense-training"} if audit else set()
    assert {step_of(name) for name in found} == MODEL_STEPS - absent
    for name in found:
        container, settings = tasks.containers[name], tasks.settings[name]
        assert container["image"] == "registry/train:1"
        resources = container["resources"]
        assert resources["accelerator"]["resourceCount"] == "4"
        assert resources["accelerator"]["resourceType"] == "nvidia.com/gpu"
        assert resources["resourceCpuRequest"] == "16"
        assert resources["resourceMemoryLimit"] == "64Gi"
        assert settings["nodeSelector"]["labels"] == {"pool": "h100"}
        (affinity,) = settings["nodeAffinity"]
        assert affinity["matchExpressions"] == [
            {"key": "zone", "operator": "In", "values": ["a", "b"]},
            {"key": "spot", "operator": "DoesNotExist"},
        ]
        (toleration,) = settings["tolerations"]
        assert toleration["key"] == "nvidia.com/gpu"
        mounts = {item["mountPath"]: item for item in settings["emptyDirMounts"]}
        assert mounts["/dev/shm"]["sizeLimit"] == "8Gi"
        assert mounts["/scratch"]["medium"] == "Memory"
        (claim,) = settings["pvcMount"]
        assert (claim["constant"], claim["mountPath"]) == ("models", "/cache")
        assert variables(container)["TMPDIR"] == "/scratch"
        assert variables(container)["HF_HOME"].startswith("/cache/")
        assert variables(container)["BACKBURN_CACHE"].startswith("/cache/")
        labels = settings["podMetadata"]["labels"]
        assert labels["kueue.x-k8s.io/queue-name"] == "team"
        assert labels["kueue.x-k8s.io/priority-class"] == "high"
        assert settings["activeDeadlineSeconds"] == "5400"


@pytest.mark.parametrize("pipeline", ["harden", "audit"])
def test_other_steps_have_no_accelerator_and_wait_in_no_queue(
    pipeline: str, tmp_path: Path
) -> None:
    audit = ("audit={}",) if pipeline == "audit" else ()
    tasks = compiled(tmp_path, *EVERYTHING, *audit)
    found = {name for name in tasks.containers if step_of(name) not in MODEL_STEPS}
    absent = set() if audit else {"audited-model"}
    assert {step_of(name) for name in found} == TOOLS - absent
    for name in found:
        container, settings = tasks.containers[name], tasks.settings[name]
        assert container["image"] == "registry/tools:1"
        assert "accelerator" not in container["resources"]
        unwanted = {
            "nodeSelector", "nodeAffinity", "tolerations", "pvcMount", "emptyDirMounts",
            "activeDeadlineSeconds",
        }  # fmt: skip
        assert not unwanted & set(settings)
        assert not any("kueue" in label for label in settings["podMetadata"]["labels"])


def test_what_every_task_has(tmp_path: Path) -> None:
    tasks = compiled(tmp_path, *EVERYTHING)
    for name, settings in tasks.settings.items():
        labels = settings["podMetadata"]["labels"]
        assert labels["app.kubernetes.io/part-of"] == "backburn"
        assert labels["backburn.io/step"] == step_of(name)
        assert labels["cost-centre"] == "safety"
        assert settings["imagePullPolicy"] == "IfNotPresent"
        (pull,) = settings["imagePullSecret"]
        assert "registry" in str(pull)
        assert {item["secretName"] for item in settings["secretAsEnv"]} == {"ours"}
        environment = variables(tasks.containers[name])
        assert environment["HF_HUB_DISABLE_TELEMETRY"] == "1"
        assert environment["MLFLOW_DISABLE_TELEMETRY"] == "true"
    for task in tasks.policies:
        assert task.get("cachingOptions", {}) == {}
        assert task["retryPolicy"]["maxRetryCount"] == 3


def keys_of(settings: dict[str, Any]) -> dict[str, bool]:
    """Key of the Secret -> whether it may be missing."""
    return {
        item["envVar"]: secret["optional"]
        for secret in settings["secretAsEnv"]
        for item in secret["keyToEnv"]
    }


def test_keys_go_only_where_they_are_used(tmp_path: Path) -> None:
    tasks = compiled(tmp_path, *EVERYTHING)
    signing = {n for n, s in tasks.settings.items() if "BACKBURN_SIGNING_KEY" in keys_of(s)}
    assert signing == {"preflight", "promotion"}
    hooks = {n for n, s in tasks.settings.items() if "BACKBURN_WEBHOOK_URL" in keys_of(s)}
    assert hooks == {"notification"}
    for settings in tasks.settings.values():
        keys = keys_of(settings)
        assert keys["BACKBURN_SEAL_KEY"] is False
        assert keys["MLFLOW_TRACKING_TOKEN"] is True
        assert keys["HF_TOKEN"] is True


@pytest.mark.parametrize("pipeline", ["harden", "audit"])
def test_with_several_nodes_a_small_task_launches_what_has_the_settings(
    pipeline: str, tmp_path: Path
) -> None:
    audit = ("audit={}",) if pipeline == "audit" else ()
    several = ("compute.nodes=4", "compute.workspace_claim=shared")
    tasks = compiled(tmp_path, *EVERYTHING, *several, *audit)
    launched = {"baseline", "defense-training", "rl-attack"} - (
        {"defense-training"} if audit else set()
    )
    found = {name for name in tasks.containers if step_of(name) in launched}
    assert {step_of(name) for name in found} == launched
    for name in found:
        container, settings = tasks.containers[name], tasks.settings[name]
        assert container["image"] == "registry/tools:1"
        resources = container["resources"]
        assert "accelerator" not in resources
        assert (resources["resourceCpuRequest"], resources["resourceMemoryLimit"]) == (
            "500m",
            "2Gi",
        )
        (claim,) = settings["pvcMount"]
        assert (claim["constant"], claim["mountPath"]) == ("shared", "/workspace")
        assert variables(container)["BACKBURN_WORKSPACE"] == "/workspace"
        assert not {"nodeSelector", "tolerations", "emptyDirMounts", "activeDeadlineSeconds"} & set(
            settings
        )
        assert not any("kueue" in label for label in settings["podMetadata"]["labels"])
    resources = tasks.containers["certification"]["resources"]
    assert resources["accelerator"]["resourceCount"] == "4", "certification stays on one node"


def test_a_cache_can_live_as_long_as_the_pod(tmp_path: Path) -> None:
    tasks = compiled(tmp_path, "compute.cache_size=50Gi")
    for step in ("baseline", "rl-attack"):
        (volume,) = tasks.settings[step]["genericEphemeralVolume"]
        assert (volume["mountPath"], volume["size"]) == ("/cache", "50Gi")
        assert variables(tasks.containers[step])["HF_HOME"].startswith("/cache/")


def test_nothing_is_set_that_was_not_asked_for(tmp_path: Path) -> None:
    tasks = compiled(tmp_path)
    for name, settings in tasks.settings.items():
        assert set(settings) == {"podMetadata", "secretAsEnv"}, name
        assert "accelerator" not in tasks.containers[name]["resources"]


@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        (["compute.priority=high"], "set `queue` too"),
        (["compute.cache_claim=a", "compute.cache_size=1Gi"], "not both"),
        (["compute.nodes=2"], "set workspace_claim to a ReadWriteMany claim"),
        (["compute.nodes=65", "compute.workspace_claim=a"], "compute.nodes"),
    ],
)
def test_settings_that_do_not_fit_are_refused(setting: list[str], reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        load_recipe("smoke", setting)
