"""Who may reach what: the rules of all policies that select a pod, added up as Kubernetes does."""

from pathlib import Path
from typing import Any

import pytest

from tests.charts.rendering import CASES, INTERNET, Object, Values, render
from tests.charts.test_objects import selects

ROOT = Path(__file__).parents[2]
STEPS = sorted(
    path.parent.name.replace("_", "-") for path in ROOT.glob("components/*/component.py")
)
ASKING = ("make_judge(", "require_evaluation_judge(")
KFP, LAUNCHER, METADATA = "kubeflow app=ml-pipeline", 8887, "component=metadata-grpc-server"
DNS = {"kube-system k8s-app=kube-dns:53", "kube-system k8s-app=kube-dns:53/UDP"}
PLATFORM = {
    *DNS,
    *(f"{cidr}:6443" for cidr in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16")),
    f"{KFP}:{LAUNCHER}",
    f"kubeflow {METADATA}:8080",
    "kubeflow app=seaweedfs:8333",
}
NODES = {
    "matchLabels": {"app.kubernetes.io/part-of": "backburn"},
    "matchExpressions": [{"key": "jobset.sigs.k8s.io/jobset-name", "operator": "Exists"}],
}
OWN_JUDGE, OWN_MLFLOW = "component=judge:8000", "component=mlflow:5000"


def task(step: str) -> dict[str, str]:
    """Labels of a task's pod."""
    return {
        "app.kubernetes.io/part-of": "backburn",
        "backburn.io/step": step,
        "pipeline/runid": "1",
    }


def own(component: str) -> dict[str, str]:
    """Labels of a pod of the chart."""
    return {
        "app.kubernetes.io/name": "backburn",
        "app.kubernetes.io/instance": "backburn",
        "app.kubernetes.io/component": component,
    }


def egress(values: Values, labels: dict[str, str]) -> set[str]:
    """Every destination a pod may reach, written as short text."""
    found, restricted = set(), False
    for policy in policies(values):
        if "Egress" in policy["policyTypes"] and selects(policy["podSelector"], labels):
            restricted = True
            for rule in policy.get("egress") or []:
                assert rule["to"], "an empty `to` is everywhere"
                assert rule["ports"]
                found |= {peer(to) + port(p) for to in rule["to"] for p in rule["ports"]}
    assert restricted, "no policy: it may reach everything"
    return found


def policies(values: Values) -> list[Object]:
    return [item["spec"] for item in render(values) if item["kind"] == "NetworkPolicy"]


def peer(to: dict[str, Any]) -> str:
    if "ipBlock" in to:
        return str(to["ipBlock"]["cidr"])
    labels = dict(to["podSelector"]["matchLabels"])
    if to["podSelector"].get("matchExpressions") == NODES["matchExpressions"]:
        assert to["podSelector"] == NODES
        return "nodes of TrainJobs"
    if "app.kubernetes.io/component" in labels:
        assert labels == own(labels["app.kubernetes.io/component"])
        return f"component={labels['app.kubernetes.io/component']}"
    (pod,) = labels.items()
    namespace = to.get("namespaceSelector", {}).get("matchLabels", {})
    names = [f"{name} " for name in namespace.values()]
    return f"{''.join(names)}{pod[0]}={pod[1]}"


def port(rule: dict[str, Any]) -> str:
    last = f"-{rule['endPort']}" if "endPort" in rule else ""
    return f":{rule['port']}{last}" + ("" if rule["protocol"] == "TCP" else f"/{rule['protocol']}")


@pytest.mark.parametrize("step", ["rl-attack", "judge-evaluation"])
def test_attack_and_judge_reach_the_platform_mlflow_and_the_judge_and_nothing_else(
    step: str,
) -> None:
    mlflow = "app.kubernetes.io/name=mlflow:5000"
    assert egress(CASES["default"], task(step)) == {*PLATFORM, mlflow}
    assert egress(CASES["judge"], task(step)) == {*PLATFORM, mlflow, OWN_JUDGE}
    everything = {*PLATFORM, OWN_MLFLOW, OWN_JUDGE, "0.0.0.0/0:443"}
    assert egress(CASES["everything"], task(step)) == everything, "443 is the judge elsewhere"


@pytest.mark.parametrize("step", STEPS)
def test_no_step_is_open_to_the_internet_unless_asked_for(step: str) -> None:
    assert not any("0.0.0.0/0" in to for to in egress(CASES["default"], task(step)))


@pytest.mark.parametrize("step", STEPS)
def test_the_hub_and_webhooks_open_only_the_steps_that_need_them(step: str) -> None:
    hub = {"networkPolicy": {"hub": {"to": INTERNET}}}
    webhooks = {"networkPolicy": {"webhooks": {"to": INTERNET}}}
    fetching = {"preflight", "data-prep", "baseline", "defense-training", "certification"}
    assert ("0.0.0.0/0:443" in egress(hub, task(step))) == (step in fetching)
    assert ("0.0.0.0/0:443" in egress(webhooks, task(step))) == (step == "notification")


@pytest.mark.parametrize("step", STEPS)
def test_steps_that_ask_a_judge_may_reach_it_and_no_others(step: str) -> None:
    folder = ROOT / "components" / step.replace("-", "_")
    code = "".join(path.read_text(encoding="utf-8") for path in folder.glob("*.py"))
    asks = any(name in code for name in ASKING)
    assert (OWN_JUDGE in egress(CASES["judge"], task(step))) == asks


def test_nobody_reaches_a_task() -> None:
    for policy in policies(CASES["everything"]):
        if selects(policy["podSelector"], task("rl-attack")) and "Ingress" in policy["policyTypes"]:
            assert not policy.get("ingress")


def test_nodes_of_a_trainjob_reach_each_other_and_what_their_step_reaches() -> None:
    values, step = CASES["train jobs"], task("rl-attack")
    node = {**step, "jobset.sigs.k8s.io/jobset-name": "rl-attack-1"}
    assert egress(values, node) == {*egress(values, step), "nodes of TrainJobs:1024-65535"}
    assert egress(values, step) == egress(CASES["default"], step), "the launcher"
    admitted = [
        rule["from"]
        for policy in policies(values)
        if selects(policy["podSelector"], node) and "Ingress" in policy["policyTypes"]
        for rule in policy.get("ingress") or []
    ]
    assert admitted == [[{"podSelector": NODES}]]


def test_emptied_destinations_open_nothing() -> None:
    names = ("kubernetesApi", "kfp", "kfpMetadata", "objectStore", "mlflow", "postgres", "judge")
    closed = {"networkPolicy": {name: {"to": []} for name in (*names, "dns", "hub", "webhooks")}}
    for step in STEPS:
        assert egress(closed, task(step)) == set()


def test_the_test_pod_is_bound_by_the_policy_of_an_attack() -> None:
    values = CASES["everything"]
    jobs = {item["metadata"]["name"]: item for item in render(values) if item["kind"] == "Job"}
    labels = jobs["backburn-test-egress"]["spec"]["template"]["metadata"]["labels"]
    assert egress(values, labels) == egress(values, task("rl-attack"))


@pytest.mark.parametrize("component", ["hook", "test"])
def test_hooks_reach_kfp_over_http_and_what_they_look_at(component: str) -> None:
    looked_at = {"kubeflow app=seaweedfs:8333", "app.kubernetes.io/name=mlflow:5000"}
    assert egress(CASES["default"], own(component)) == {*DNS, f"{KFP}:8888", *looked_at}


def test_the_judge_server_is_for_steps_that_ask_it_and_reaches_the_hub_at_most() -> None:
    assert egress(CASES["judge"], own("judge")) == DNS
    opened = {**CASES["judge"], "networkPolicy": {"hub": {"to": INTERNET}}}
    assert egress(opened, own("judge")) == {*DNS, "0.0.0.0/0:443"}
    assert admits("judge", task("rl-attack"))
    assert not admits("judge", task("promotion"))
    assert not admits("judge", {"app": "somebody-else"})


def test_mlflow_reaches_its_database_and_store_and_is_for_pipelines_only() -> None:
    stores = {"app.kubernetes.io/name=postgresql:5432", "kubeflow app=seaweedfs:8333"}
    assert egress(CASES["mlflow"], own("mlflow")) == {*DNS, *stores}
    assert admits("mlflow", task("promotion"))
    assert admits("mlflow", {"pipeline/runid": "1"}), "KFP's driver"
    assert not admits("mlflow", {"app": "somebody-else"})


def admits(component: str, labels: dict[str, str]) -> bool:
    """Whether the policy of a pod of the chart lets a pod of the same namespace in."""
    (policy,) = [
        policy
        for policy in policies(CASES["everything"])
        if selects(policy["podSelector"], own(component)) and "Ingress" in policy["policyTypes"]
    ]
    return any(
        selects(from_["podSelector"], labels)
        for rule in policy["ingress"]
        for from_ in rule["from"]
        if "namespaceSelector" not in from_
    )
