"""The launcher, with jobs that really run: on a server that speaks the API, and on this machine."""

import base64
import inspect
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from backburn.components.shared.config import ComputeConfig, NodeRequirement
from backburn.components.shared.errors import BackburnError, InputError
from backburn.components.shared.scale import delivery, pod, trainjob
from backburn.components.shared.scale.job import Job
from backburn.components.shared.scale.manifest import train_job
from hypothesis import given
from hypothesis import strategies as st
from kubeflow_trainer_api.models import TrainerV1alpha1TrainJob

from tests.kubernetes_api_server import KubernetesServer
from tests.serving import serving
from tests.shared.scale.launching import TWO_NODES, client_of, toy_job
from tests.train_jobs import RUNTIME

ROOT = Path(__file__).parents[3]
SEAL_KEY = "a-key-that-seals"
RUN_LABEL = "run-1"
STEPS = ("baseline", "defense_training", "rl_attack")
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
    "tools_image", "retries", "launcher_cpu", "launcher_memory", "threads", "image_pull_policy",
}  # fmt: skip
"""Of the launcher's task, read by the step itself, or beyond what a TrainJob can say (the last)."""


class World(NamedTuple):
    cluster: KubernetesServer
    kubeconfig: str
    folder: Path
    workspace: Path

    def launch(self, job: Job, compute: ComputeConfig = TWO_NODES) -> dict[str, Any]:
        return trainjob.launch(job, compute, client_of(self.kubeconfig))

    def start(self, where: str, **plan: Any) -> subprocess.Popen[str]:
        """A launcher in a process of its own; the step tells of itself in the file `started`."""
        plan = {"starts": str(self.started), **plan}
        command = [sys.executable, "-u", "-m", "tests.shared.scale.launching", where]
        return subprocess.Popen(
            [*command, str(self.folder), json.dumps(plan)],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT,
        )  # fmt: skip

    @property
    def started(self) -> Path:
        return self.folder / "started"

    def step_processes(self) -> list[int]:
        """Ids of the processes that ran the step, oldest first."""
        if not self.started.is_file():
            return []
        return [int(line) for line in self.started.read_text().splitlines()]


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.setattr(trainjob, "_POLL_SECONDS", 0.2)
    monkeypatch.setenv(pod.WORKSPACE_VARIABLE, str(tmp_path / "volume"))
    (tmp_path / "temporary").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
    cluster = KubernetesServer("token")
    cluster.custom = {"trainer.kubeflow.org/trainjobs"}
    cluster.runtimes = {("clustertrainingruntimes", "torch-distributed"): RUNTIME}
    key = base64.b64encode(SEAL_KEY.encode()).decode()
    cluster.objects["secrets", "ours"] = {"data": {"BACKBURN_SEAL_KEY": key}}
    try:
        with serving(cluster) as url:
            kubeconfig = str(cluster.kubeconfig(url, tmp_path / "kubeconfig"))
            (tmp_path / "work").mkdir()
            yield World(cluster, kubeconfig, tmp_path / "work", tmp_path / "volume")
    finally:
        cluster.train_jobs.close()


def until(true: Callable[[], Any], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)


def alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def nothing_is_left(world: World) -> None:
    assert world.cluster.train_jobs.jobs == {}
    assert not any(world.workspace.rglob("*"))
    temporary = world.folder.parent / "temporary"
    assert not [path for path in temporary.rglob("*") if RUN_LABEL in path.name]
    until(lambda: not any(alive(process) for process in world.step_processes()), 20)


def test_two_nodes_run_the_step_and_its_outputs_come_back(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    metadata = world.launch(toy_job(world.folder, secret="BACKBURN_SEAL_KEY"))
    assert metadata == {"digest": "abc", "size": "2"}
    copy = world.folder / "out" / "model" / "inner" / "copy"
    assert copy.read_text() == "what is cooked"
    seen = json.loads((world.folder / "out" / "record").read_text())
    assert seen == {"world": "2", "secret": len(SEAL_KEY), "scratch": None}
    shown = capsys.readouterr().out
    assert len(re.findall("rank 0 of 2", shown)) == 1
    assert {path.name for path in (world.folder / "out").iterdir()} == {"model", "record"}
    nothing_is_left(world)


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
    name = trainjob.job_name(job)
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
    folder = world.workspace / "run-1" / name
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


def test_a_killed_launcher_s_successor_goes_on_waiting_for_the_same_job(world: World) -> None:
    go = world.folder / "go"
    plan = {"seconds": 120, "until": str(go)}
    first = world.start(world.kubeconfig, **plan)
    until(world.step_processes)
    first.send_signal(signal.SIGKILL)
    assert first.wait(10) == -signal.SIGKILL
    (process,) = world.step_processes()
    assert alive(process), "the job does not need its launcher"
    second = world.start(world.kubeconfig, **plan)
    assert second.stdout is not None
    for line in second.stdout:
        if "is there already (" in line:
            go.touch()
            break
    out, _ = second.communicate(timeout=60)
    assert second.returncode == 0, out
    assert "rank 0 of 2" in out, "the log from its beginning"
    assert world.step_processes() == [process]
    assert len(world.cluster.train_jobs.created) == 1
    assert (world.folder / "out" / "record").is_file()
    nothing_is_left(world)


@pytest.mark.parametrize("where", ["cluster", "local"])
def test_a_launcher_that_is_told_to_go_takes_its_job_along(world: World, where: str) -> None:
    launcher = world.start(world.kubeconfig if where == "cluster" else where, seconds=120)
    until(world.step_processes)
    told = time.monotonic()
    launcher.terminate()
    out, _ = launcher.communicate(timeout=30)
    assert launcher.returncode == 128 + signal.SIGTERM, out
    assert time.monotonic() - told < 25, "Kubernetes waits 30 s"
    assert not (world.folder / "out" / "record").exists()
    nothing_is_left(world)


def test_on_this_machine_a_job_ends_with_its_launcher_and_can_be_started_again(
    world: World,
) -> None:
    plan = {"seconds": 120, "until": str(world.folder / "go")}
    launcher = world.start("local", **plan)
    until(world.step_processes)
    launcher.kill()
    launcher.wait(10)
    until(lambda: not alive(world.step_processes()[0]), 20)
    (world.folder / "go").touch()
    again = world.start("local", **plan)
    out, _ = again.communicate(timeout=120)
    assert again.returncode == 0, out
    assert "rank 0 of 2" in out
    assert "{'digest': 'abc', 'size': '2'}" in out
    assert len(world.step_processes()) == 2
    assert (world.folder / "out" / "record").is_file()
    nothing_is_left(world)


@pytest.mark.parametrize(
    ("command", "said"),
    [("false", "failed before: deleting"), ("sleep 60", "was started with other arguments")],
)
def test_a_job_that_is_of_no_use_is_replaced(
    world: World, command: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    job = toy_job(world.folder)
    name, jobs = trainjob.job_name(job), world.cluster.train_jobs
    old = train_job(name, "x", command.split(), "/w", "ClusterTrainingRuntime", TWO_NODES)
    assert jobs.create(old)[0] == 201
    if command == "false":
        until(lambda: "status" in jobs.shown(name))
    assert world.launch(job)["digest"] == "abc"
    assert said in capsys.readouterr().out
    assert [made["metadata"]["name"] for made in jobs.created] == [name, name]
    nothing_is_left(world)


def test_other_inputs_make_another_job(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    plan = {"seconds": 120, "starts": str(world.started)}
    launcher = world.start(world.kubeconfig, **plan)
    until(world.step_processes)
    launcher.kill()
    launcher.wait(10)
    job = toy_job(world.folder, **plan)
    (world.folder / "in" / "rows").write_text("something else")
    world.cluster.train_jobs.starts = False
    planned = trainjob.Exchange(world.workspace, job, trainjob.job_name(job), TWO_NODES)
    assert trainjob._attach(client_of(world.kubeconfig), planned) is False
    assert "other arguments or inputs: deleting it" in capsys.readouterr().out
    assert world.cluster.train_jobs.jobs == {}
    assert not alive(world.step_processes()[0]), "it has ended before a new one may begin"


@pytest.mark.parametrize("gives_up", [True, False])
def test_a_failed_node_ends_the_step_with_the_end_of_its_log(world: World, gives_up: bool) -> None:
    world.cluster.train_jobs.gives_up = gives_up
    with pytest.raises(BackburnError) as error:
        world.launch(toy_job(world.folder, fail="out of pans"))
    message = str(error.value)
    assert "failed on node-" in message
    assert message.endswith("\n  out of pans"), "not torchrun's own traceback"
    assert ("JobsFailed: a node failed" in message) == gives_up
    assert not (world.folder / "out" / "record").exists()
    nothing_is_left(world)


def test_what_the_cluster_lacks_or_forbids_is_said(world: World) -> None:
    job = toy_job(world.folder)
    world.cluster.forbidden.add(trainjob.job_name(job))
    with pytest.raises(BackburnError, match=r"403 Forbidden.*trainJobs\.enabled"):
        world.launch(job)
    world.cluster.forbidden.clear()
    other = TWO_NODES.model_copy(update={"training_runtime": "elsewhere"})
    with pytest.raises(InputError, match=r"training_runtime.*404.*Install Kubeflow Trainer"):
        world.launch(job, other)
    world.cluster.forbidden.add("trainjobs")
    with pytest.raises(InputError, match=r"the cluster refuses TrainJob toy-step.*403 Forbidden"):
        world.launch(job)
    assert world.cluster.train_jobs.created == []


def test_a_task_compiled_for_one_node_says_so(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(pod.WORKSPACE_VARIABLE)
    with pytest.raises(InputError, match="compiled for one node"):
        world.launch(toy_job(world.folder))


def test_the_api_may_be_away_for_a_while(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    asked = 0

    def away(path: str) -> bool:
        nonlocal asked
        asked += "trainjobs/" in path
        return "trainjobs/" in path and 3 <= asked < 6

    world.cluster.away = away
    assert world.launch(toy_job(world.folder))["digest"] == "abc"
    assert "cannot be asked for" in capsys.readouterr().out
    nothing_is_left(world)


def _exchange(folder: Path, volume: Path) -> trainjob.Exchange:
    job = toy_job(folder)
    exchange = trainjob.Exchange(volume, job, trainjob.job_name(job), TWO_NODES)
    exchange.send()
    return exchange


def test_a_node_that_sees_other_inputs_does_not_begin(tmp_path: Path) -> None:
    exchange = _exchange(tmp_path / "work", tmp_path / "volume")
    (exchange.folder / "dataset" / "rows").write_text("half a fi")
    sent = Job.read(exchange.folder / "job.json")
    with pytest.raises(BackburnError, match="other files than the launcher copied"):
        delivery.run(**sent.arguments)
    assert not (exchange.folder / "model").exists()


def test_outputs_that_change_on_their_way_are_refused(tmp_path: Path) -> None:
    exchange = _exchange(tmp_path / "work", tmp_path / "volume")
    sent = Job.read(exchange.folder / "job.json")
    answer = delivery.run(**sent.arguments)
    (exchange.folder / "result.json").write_text(json.dumps(answer))
    (exchange.folder / "model" / "inner" / "copy").write_text("tampered with")
    with pytest.raises(BackburnError, match=r"model: the launcher sees other files"):
        exchange.receive()
    assert not (tmp_path / "work" / "out" / "model").exists()


@given(run=st.text(min_size=1, max_size=80), number=st.integers(0, 9), other=st.integers(10, 19))
def test_names_are_labels_that_tell_tasks_apart(run: str, number: int, other: int) -> None:
    def named(plan: int, path: str) -> str:
        files = dict.fromkeys(("dataset", "model", "record"), path)
        arguments = {"config_json": "{}", "run_id": run, "plan": {"arm": plan}, **files}
        return trainjob.job_name(Job("tests.shared.scale.toy_step.step", arguments))

    name = named(number, "/a")
    assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name)
    assert len(f"{name}-node-0-63-abcde") <= 63
    assert name == named(number, "/b") != named(other, "/a")


@pytest.mark.parametrize("step", STEPS)
def test_a_step_s_face_and_its_logic_name_the_same_files(step: str) -> None:
    module = f"backburn.components.{step}.step"
    inputs, outputs = trainjob.artifacts(module)
    parameters = inspect.signature(import_module(module).run).parameters.values()
    assert [*inputs, *outputs] == [p.name for p in parameters if p.annotation is Path]
    assert inputs[0] == "dataset"
    assert outputs


def test_of_an_attack_only_sealed_completions_and_statistics_come_back() -> None:
    _, outputs = trainjob.artifacts("backburn.components.rl_attack.step")
    assert outputs == ["sealed", "statistics"]
