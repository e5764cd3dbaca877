"""`backburn doctor` against servers that speak the APIs it asks, well, broken and dead."""

import base64
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from backburn.components.shared import sealing, signing
from backburn.pipelines import cli
from fastapi import FastAPI
from fastapi.responses import JSONResponse

from tests.kfp_api_server import KfpServer
from tests.kubernetes_api_server import KubernetesServer, node
from tests.serving import serving
from tests.train_jobs import RUNTIME

TOKEN = "a-secret-token"
SEAL_KEY, SIGNING_KEY = sealing.new_key(), signing.new_key()
SETTINGS = (
    "compute.gpus=2",
    "compute.cpu=8",
    "compute.memory=64Gi",
    "compute.node_selector={pool: h100}",
    "compute.node_affinity=[{key: zone, values: [a, b]}]",
    "compute.toleration_keys=[nvidia.com/gpu]",
    "compute.service_account=runner",
    "compute.cache_claim=models",
    "compute.queue=team",
    "compute.image_pull_secrets=[registry]",
)

ON_NODES = (*SETTINGS, "compute.nodes=2", "compute.workspace_claim=shared")


class Done(NamedTuple):
    code: int
    out: str
    err: str


class Judge:
    """An OpenAI-compatible server that lists one model."""

    def __init__(self) -> None:
        self.app = FastAPI()
        self.app.add_api_route("/v1/models", lambda: JSONResponse({"data": [{"id": "judge-7b"}]}))


class Mlflow:
    """As much of MLflow as its client's search for experiments."""

    def __init__(self) -> None:
        self.app = FastAPI()
        path = "/api/2.0/mlflow/experiments/search"
        self.app.add_api_route(path, lambda: JSONResponse({"experiments": []}), methods=["POST"])
        self.app.add_api_route(path, lambda: JSONResponse({"experiments": []}), methods=["GET"])


class World(NamedTuple):
    cluster: KubernetesServer
    pipelines: str
    mlflow: str
    judge: str
    backburn: Callable[..., Done]


def encoded(**values: str) -> dict[str, str]:
    return {name: base64.b64encode(value.encode()).decode() for name, value in values.items()}


@pytest.fixture
def world(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Iterator[World]:
    """A cluster on which a run with SETTINGS finds everything."""
    cluster = KubernetesServer(TOKEN)
    keys = {"BACKBURN_SEAL_KEY": SEAL_KEY, "BACKBURN_SIGNING_KEY": SIGNING_KEY}
    cluster.objects = {
        ("secrets", "backburn"): {"data": encoded(**keys)},
        ("secrets", "registry"): {"data": {}},
        ("serviceaccounts", "runner"): {},
        ("persistentvolumeclaims", "models"): {"status": {"phase": "Bound"}},
        ("localqueues", "team"): {},
        ("persistentvolumeclaims", "shared"): {"spec": {"accessModes": ["ReadWriteMany"]}},
    }
    cluster.custom = {
        "argoproj.io/workflows", "kueue.x-k8s.io/localqueues", "trainer.kubeflow.org/trainjobs",
    }  # fmt: skip
    cluster.runtimes = {("clustertrainingruntimes", "torch-distributed"): RUNTIME}
    cluster.rights["system:serviceaccount:kubeflow:runner"] = {
        ("create", "trainjobs"), ("get", "trainjobs"), ("delete", "trainjobs"),
        ("get", "trainingruntimes"), ("get", "clustertrainingruntimes"),
        ("list", "pods"), ("get", "pods/log"),
    }  # fmt: skip
    taint = {"key": "nvidia.com/gpu", "effect": "NoSchedule"}
    cluster.nodes = [
        node("plain", 0),
        node("good", 8, labels={"pool": "h100", "zone": "a"}, taints=[taint]),
    ]
    for name in ("KFP_ENDPOINT", "KFP_NAMESPACE", "KFP_TOKEN", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    with (
        serving(cluster) as url, serving(KfpServer()) as pipelines,
        serving(Mlflow()) as mlflow, serving(Judge()) as judge,
    ):  # fmt: skip
        monkeypatch.setenv("KUBECONFIG", str(cluster.kubeconfig(url, tmp_path / "config")))

        def backburn(*arguments: str, settings: tuple[str, ...] = SETTINGS) -> Done:
            chat = f"{{kind: chat, chat: {{base_url: '{judge}/v1', model: judge-7b}}}}"
            given = (*settings, f"tracking.uri={mlflow}", f"judges.evaluation={chat}")
            overrides = [f"--set={item}" for item in given]
            command = ["backburn", "doctor", "-r", "smoke", "--endpoint", pipelines]
            monkeypatch.setattr(sys, "argv", [*command, *overrides, *arguments])
            capsys.readouterr()
            code = 0
            try:
                cli.main()
            except SystemExit as end:
                code = int(end.code or 0)
            return Done(code, *capsys.readouterr())

        yield World(cluster, pipelines, mlflow, judge, backburn)


def test_a_ready_cluster_has_no_problem(world: World) -> None:
    done = world.backburn()
    assert done.code == 0, done.out
    assert "✗" not in done.out
    for answer in (
        "Kubeflow Pipelines: answers", "MLflow: answers", "judge chat:judge-7b: answers",
        "answers, v1.33.1", "has BACKBURN_SEAL_KEY, BACKBURN_SIGNING_KEY", "models: is there, B",
        "LocalQueue team: is there", "nodes with nvidia.com/gpu: 1 of 2 take", "runner: is there",
    ):  # fmt: skip
        assert answer in done.out, answer
    assert all(line.startswith("GET ") for line in world.cluster.requests)
    for secret in (TOKEN, SEAL_KEY, SIGNING_KEY, *encoded(a=SEAL_KEY, b=SIGNING_KEY).values()):
        assert secret not in done.out + done.err


def test_a_run_without_gpus_needs_nodes_too(world: World) -> None:
    settings = tuple(item for item in SETTINGS if "gpu" not in item)
    done = world.backburn(settings=(*settings, "compute.gpus=0"))
    assert "nodes for model steps: none of 2" in done.out
    assert "good: taint nvidia.com/gpu:NoSchedule" in done.out
    world.cluster.nodes = [node("cpu", 0, labels={"pool": "h100", "zone": "a"})]
    done = world.backburn(settings=(*settings, "compute.gpus=0"))
    assert "nodes for model steps: 1 of 1 take a model step" in done.out


def _lose(plural: str, name: str) -> Callable[[World], None]:
    return lambda world: world.cluster.objects.pop((plural, name)) and None


def _secret(**keys: str) -> Callable[[World], None]:
    def change(world: World) -> None:
        world.cluster.objects["secrets", "backburn"] = {"data": encoded(**keys)}

    return change


def _nodes(**changes: object) -> Callable[[World], None]:
    fitting = {"labels": {"pool": "h100", "zone": "a"}, "gpus": 8}

    def change(world: World) -> None:
        world.cluster.nodes = [node("n1", **{**fitting, **changes})]  # type: ignore[arg-type]

    return change


def _forbid(name: str) -> Callable[[World], None]:
    return lambda world: world.cluster.forbidden.add(name)


def _uninstall(name: str) -> Callable[[World], None]:
    return lambda world: world.cluster.custom.discard(name)


@pytest.mark.parametrize(
    ("fault", "answer", "fix"),
    [
        (_lose("secrets", "backburn"), "Secret backburn: is missing", "create secret generic"),
        (_secret(BACKBURN_SEAL_KEY=SEAL_KEY), "lacks BACKBURN_SIGNING_KEY", "backburn signing-key"),
        (
            _secret(BACKBURN_SEAL_KEY="no key", BACKBURN_SIGNING_KEY=SIGNING_KEY),
            "BACKBURN_SEAL_KEY is no usable key",
            "backburn seal-key",
        ),
        (_lose("secrets", "registry"), "Secret registry: is missing", "correct `compute`"),
        (_lose("serviceaccounts", "runner"), "account runner: is missing", "create it"),
        (_lose("persistentvolumeclaims", "models"), "claim models: is missing", "create it"),
        (_lose("localqueues", "team"), "LocalQueue team: is missing", "compute.queue"),
        (_uninstall("kueue.x-k8s.io/localqueues"), "no localqueues.kueue", "install Kueue"),
        (_uninstall("argoproj.io/workflows"), "no workflows.argoproj", "install Kubeflow"),
        (_nodes(gpus=1), "n1: 1 nvidia.com/gpu", "add such a node"),
        (_nodes(labels={"pool": "h100", "zone": "c"}), "label zone is c", "node_affinity"),
        (_nodes(labels={"zone": "a"}), "label pool is not set", "node_selector"),
        (_nodes(offered={"memory": "32Gi"}), "n1: 32Gi memory", "memory"),
        (_nodes(unschedulable=True), "n1: cordoned", "add such a node"),
        (
            _nodes(taints=[{"key": "other", "effect": "NoSchedule"}]),
            "taint other:NoSchedule",
            "toleration_keys",
        ),
        (_forbid("nodes"), "not allowed (403)", "ask for the right"),
        (lambda world: world.cluster.namespaces.clear(), "kubeflow: is missing", "create"),
    ],
)  # fmt: skip
def test_each_fault_is_named_with_its_fix(
    fault: Callable[[World], None], answer: str, fix: str, world: World
) -> None:
    fault(world)
    _is_the_one_problem(world.backburn(), answer, fix)


def _is_the_one_problem(done: Done, answer: str, fix: str) -> None:
    assert done.code == 1, done.out
    lines = done.out.splitlines()
    places = [place for place, line in enumerate(lines) if line.startswith("✗")]
    assert len(places) == 1, done.out
    assert answer in lines[places[0]]
    assert fix in lines[places[0] + 1]


def test_several_nodes_need_trainer_a_runtime_rights_and_a_shared_claim(world: World) -> None:
    done = world.backburn(settings=ON_NODES)
    assert done.code == 0, done.out
    for answer in (
        "claim shared: is there", "Kubeflow Trainer: is installed",
        "torch-distributed: is there", "rights to run TrainJobs: runner has them",
    ):  # fmt: skip
        assert answer in done.out, done.out
    assert "Trainer" not in world.backburn().out, "one node needs none of it"
    nobody = tuple(item for item in ON_NODES if "service_account" not in item)
    unasked = world.backburn(settings=nobody)
    assert unasked.code == 0
    assert "name it in compute.service_account" in unasked.out


def _one_node_at_a_time(world: World) -> None:
    claim = {"spec": {"accessModes": ["ReadWriteOnce"]}}
    world.cluster.objects["persistentvolumeclaims", "shared"] = claim


def _no_rights(world: World) -> None:
    world.cluster.rights.clear()


@pytest.mark.parametrize(
    ("fault", "answer", "fix"),
    [
        (_lose("persistentvolumeclaims", "shared"), "claim shared: is missing", "create it"),
        (_one_node_at_a_time, "offers ReadWriteOnce", "ReadWriteMany"),
        (lambda world: world.cluster.runtimes.clear(), "torch-distributed: is missing", "runtime"),
        (_no_rights, "runner may not create trainjobs, get trainjobs, delete", "trainJobs.enabled"),
    ],
)
def test_each_fault_of_several_nodes_is_named_with_its_fix(
    fault: Callable[[World], None], answer: str, fix: str, world: World
) -> None:
    fault(world)
    _is_the_one_problem(world.backburn(settings=ON_NODES), answer, fix)


def test_everything_dead(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dead = "http://127.0.0.1:9"
    monkeypatch.setenv("KUBECONFIG", str(world.cluster.kubeconfig(dead, tmp_path / "dead")))
    chat = f"judges.evaluation={{kind: chat, chat: {{base_url: '{dead}/v1', model: m}}}}"
    done = world.backburn("--endpoint", dead, "--set", f"tracking.uri={dead}", "--set", chat)
    assert done.code == 1
    assert "Traceback" not in done.out + done.err
    for question in ("Kubeflow Pipelines", "MLflow", "judge chat:m", "Kubernetes"):
        assert f"✗ {question}" in done.out, done.out
    assert done.out.endswith("4 problem(s)\n")


def test_no_kubeconfig_is_said_so(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    done = world.backburn()
    assert done.code == 1
    assert "no cluster is named" in done.out


def test_json_is_for_scripts(world: World) -> None:
    world.cluster.objects.pop(("serviceaccounts", "runner"))
    done = world.backburn("--json")
    assert done.code == 1
    found = json.loads(done.out)
    assert [item["question"] for item in found if item["state"] == "problem"] == [
        "service account runner"
    ]
