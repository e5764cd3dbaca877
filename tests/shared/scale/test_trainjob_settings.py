"""Every setting of a model step, in the TrainJob that the API server received."""

import json

import pytest
from backburn.components.shared.config import ComputeConfig, NodeRequirement
from backburn.components.shared.errors import BackburnError
from backburn.components.shared.scale import pod
from backburn.components.shared.scale.exchange import job_name
from backburn.components.shared.scale.manifest import train_job
from kubeflow_trainer_api.models import TrainerV1alpha1TrainJob

from tests.shared.scale.launching import TWO_NODES, World, toy_job

EVERYTHING = ComputeConfig(
    image="registry/train:1",
    gpus=4,
    gpu_type="nvidia.com/gpu",
    processes=4,
    nodes=3,
    cpu="16",
    memory="64Gi",
    workspace_claim="shared",
    training_runtime="torch-distributed",
    image_pull_secrets=["registry"],
    node_selector={"pool": "h100"},
    node_affinity=[
        NodeRequirement(key="zone", values=["a", "b"]),
        NodeRequirement(key="spot", operator="DoesNotExist"),
    ],
    toleration_keys=["nvidia.com/gpu"],
    shared_memory="8Gi",
    scratch="4Gi",
    cache_claim="models",
    queue="team",
    priority="high",
    timeout_hours=1.5,
    pod_labels={"cost-centre": "safety"},
    secret_name="ours",
    service_account="runner",
)
OTHERWISE = {"cache_size"}
"""Instead of cache_claim."""
NOT_OF_A_NODE = {
    "tools_image", "retries", "launcher_cpu", "launcher_memory", "threads", "hang_minutes",
    "checkpoints", "checkpoint_minutes", "sharding", "rollouts", "vllm_memory_share",
    "image_pull_policy",
}  # fmt: skip
"""Of the launcher's task, read by the step itself, or beyond what a TrainJob can say (the last)."""


def test_every_setting_of_a_model_step_is_in_the_trainjob(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_RUN_ID", "a-run")
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "a-token")
    monkeypatch.setenv("KFP_POD_NAME", "launcher")
    monkeypatch.setenv("KFP_POD_UID", "1-2")
    assert (
        set(ComputeConfig.model_fields) == EVERYTHING.model_fields_set | NOT_OF_A_NODE | OTHERWISE
    )
    job = toy_job(world.folder, fail="at once")
    with pytest.raises(BackburnError, match="at once"):
        world.launch(job, EVERYTHING)
    (body,) = world.cluster.train_jobs.created
    body["metadata"].pop("namespace")
    body["metadata"].pop("creationTimestamp")
    name = job_name(job)
    labels = {
        "app.kubernetes.io/part-of": "backburn",
        "backburn.io/step": "toy-step",
        "cost-centre": "safety",
    }
    kueue = {"kueue.x-k8s.io/queue-name": "team", "kueue.x-k8s.io/priority-class": "high"}
    assert body["metadata"] == {
        "name": name,
        "labels": {**labels, **kueue},
        "ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": "launcher", "uid": "1-2"}],
    }
    spec = body["spec"]
    assert spec["runtimeRef"] == {"name": "torch-distributed", "kind": "ClusterTrainingRuntime"}
    assert spec["activeDeadlineSeconds"] == 5400
    trainer = spec["trainer"]
    folder = world.workspace / name
    worker = "backburn.components.shared.scale.worker"
    files = [str(folder / "job.json"), str(folder / "result.json")]
    assert trainer["command"] == ["torchrun", "-m", worker, *files]
    assert (trainer["image"], trainer["numNodes"], trainer["numProcPerNode"]) == (
        "registry/train:1", 3, 4,
    )  # fmt: skip
    each = {"cpu": "16", "memory": "64Gi", "nvidia.com/gpu": "4"}
    assert trainer["resourcesPerNode"] == {"requests": each, "limits": each}
    variables = {item["name"]: item.get("value") for item in trainer["env"]}
    assert variables["MLFLOW_RUN_ID"] == "a-run"
    assert variables["TMPDIR"] == "/scratch"
    assert variables["HF_HOME"].startswith("/cache/")
    assert variables["HF_HUB_DISABLE_TELEMETRY"] == "1"
    secrets = {
        item["name"]: item["valueFrom"]["secretKeyRef"]
        for item in trainer["env"]
        if "valueFrom" in item
    }
    assert secrets.keys() == {"BACKBURN_SEAL_KEY", *pod.OPTIONAL_SECRETS}
    for key, source in secrets.items():
        assert source == {"name": "ours", "key": key, "optional": key != "BACKBURN_SEAL_KEY"}
    assert "a-token" not in json.dumps(body)
    (patch,) = spec["runtimePatches"]
    (nodes,) = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    assert nodes["name"] == "node"
    pods = nodes["template"]["spec"]["template"]
    assert pods["metadata"]["labels"] == labels, "no queue: Kueue admits the TrainJob, not its pods"
    expressions = [
        {"key": "zone", "operator": "In", "values": ["a", "b"]},
        {"key": "spot", "operator": "DoesNotExist"},
    ]
    terms = {"nodeSelectorTerms": [{"matchExpressions": expressions}]}
    memory = {"medium": "Memory"}
    assert pods["spec"] == {
        "serviceAccountName": "runner",
        "imagePullSecrets": [{"name": "registry"}],
        "nodeSelector": {"pool": "h100"},
        "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": terms}},
        "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
        "volumes": [
            {"name": "workspace", "persistentVolumeClaim": {"claimName": "shared"}},
            {"name": "shared-memory", "emptyDir": {**memory, "sizeLimit": "8Gi"}},
            {"name": "scratch", "emptyDir": {**memory, "sizeLimit": "4Gi"}},
            {"name": "cache", "persistentVolumeClaim": {"claimName": "models"}},
        ],
        "containers": [
            {
                "name": "node",
                "volumeMounts": [
                    {"name": "workspace", "mountPath": str(world.workspace)},
                    {"name": "shared-memory", "mountPath": "/dev/shm"},
                    {"name": "scratch", "mountPath": "/scratch"},
                    {"name": "cache", "mountPath": "/cache"},
                ],
            }
        ],
    }


@pytest.mark.parametrize(
    "compute",
    [TWO_NODES, EVERYTHING, TWO_NODES.model_copy(update={"cache_size": "50Gi"})],
    ids=["least", "everything", "cache"],
)
def test_the_trainjob_is_one_by_the_api_s_own_models(compute: ComputeConfig) -> None:
    body = train_job("a", "baseline", ["torchrun"], "/workspace", "TrainingRuntime", compute)
    assert TrainerV1alpha1TrainJob.from_dict(body).to_dict() == body, "a field is not known"
    cache = [v for v in json.dumps(body).split('"name": "') if v.startswith("cache")]
    assert bool(cache) == bool(compute.cache_claim or compute.cache_size)
