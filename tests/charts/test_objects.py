"""What the chart renders, with Helm 3 and 4, for every switch on and off: valid, closed, tidy."""

from typing import Any

import kubernetes_validate
import pytest

from tests.charts.rendering import (
    CASES,
    DIGEST,
    NAMESPACE,
    RELEASE,
    Object,
    Values,
    named,
    pod_specs,
    refusal,
    render,
    run_helm,
)

KUBERNETES = "1.37"
NAMESPACED = {
    "ConfigMap", "Deployment", "Job", "LocalQueue", "NetworkPolicy", "PersistentVolumeClaim",
    "ResourceQuota", "Role", "RoleBinding", "Service", "ServiceAccount",
}  # fmt: skip
CLUSTER_WIDE = {"ClusterRole", "ClusterRoleBinding"}
AUDIT = {"name": "x", "pipeline": "audit", "recipe": "laptop", "cron": "@daily"}
every_case = pytest.mark.parametrize("values", CASES.values(), ids=CASES)


@pytest.mark.parametrize("major", [3, 4])
@every_case
def test_helm_lint_is_strict_and_content(values: Values, major: int) -> None:
    done = run_helm(major, ["lint", "--strict"], values)
    assert done.returncode == 0, done.stdout + done.stderr


@every_case
def test_both_helms_render_the_same(values: Values) -> None:
    assert render(values, 3) == render(values, 4)


@every_case
def test_every_object_is_valid_in_kubernetes(values: Values) -> None:
    for item in render(values):
        if item["kind"] == "LocalQueue":  # a CRD: its schema is Kueue's
            assert set(item) == {"apiVersion", "kind", "metadata", "spec"}
            assert item["spec"] == {"clusterQueue": "gpus"}
            continue
        kubernetes_validate.validate(item, KUBERNETES, strict=True)


@every_case
def test_every_object_is_in_the_namespace_and_labelled(values: Values) -> None:
    objects = render(values)
    for item in objects:
        if item["kind"] in CLUSTER_WIDE and values.get("trainJobs", {}).get("enabled"):
            assert item["metadata"]["name"] == "team-a-backburn-trainjobs", "one a namespace"
        else:
            assert item["kind"] in NAMESPACED, "no rights and objects beyond it, no Secret"
            assert item["metadata"]["namespace"] == NAMESPACE
        assert item["metadata"]["labels"]["app.kubernetes.io/part-of"] == "backburn"
        assert item["metadata"]["labels"]["app.kubernetes.io/instance"] == RELEASE
    names = [(item["kind"], item["metadata"]["name"]) for item in objects]
    assert len(names) == len(set(names))


@every_case
def test_every_pod_meets_the_restricted_standard(values: Values) -> None:
    for name, template in pod_specs(render(values)).items():
        assert list(restricted_problems(template["spec"])) == [], name


def restricted_problems(spec: Object) -> Any:
    """What Pod Security `restricted` (1.37) would refuse."""
    if any(spec.get(key) for key in ("hostNetwork", "hostPID", "hostIPC")):
        yield "host namespaces"
    pod = spec.get("securityContext", {})
    if pod.get("seccompProfile", {}).get("type") != "RuntimeDefault":
        yield "seccomp profile"
    if pod.get("runAsNonRoot") is not True or pod.get("runAsUser", 0) == 0:
        yield "root"
    kinds = {"configMap", "emptyDir", "persistentVolumeClaim", "projected", "secret"}
    for volume in spec.get("volumes", []):
        if not (set(volume) - {"name"}) <= kinds:
            yield f"volume {volume}"
    for container in [*spec.get("initContainers", []), *spec["containers"]]:
        context = container["securityContext"]
        if context["allowPrivilegeEscalation"] is not False:
            yield "escalation"
        if context["capabilities"] != {"drop": ["ALL"]}:
            yield "capabilities"
        if context["readOnlyRootFilesystem"] is not True:
            yield "writable file system"
        if any("hostPort" in port for port in container.get("ports", [])):
            yield "host port"


@every_case
def test_every_pod_has_an_account_of_its_own_without_a_token_and_has_limits(values: Values) -> None:
    objects = render(values)
    for name, template in pod_specs(objects).items():
        spec = template["spec"]
        assert spec["automountServiceAccountToken"] is False, name
        account = named(objects, "ServiceAccount", spec["serviceAccountName"])
        assert account["automountServiceAccountToken"] is False
        for container in [*spec.get("initContainers", []), *spec["containers"]]:
            for kind in ("requests", "limits"):
                assert {"cpu", "memory"} <= set(container["resources"][kind]), name


@every_case
def test_every_pod_of_the_chart_has_a_network_policy_unless_they_are_off(values: Values) -> None:
    objects = render(values)
    policies = [item["spec"]["podSelector"] for item in objects if item["kind"] == "NetworkPolicy"]
    if not values.get("networkPolicy", {}).get("enabled", True):
        assert policies == []
        return
    for name, template in pod_specs(objects).items():
        labels = template["metadata"]["labels"]
        assert any(selects(policy, labels) for policy in policies), name


def selects(selector: Object, labels: dict[str, str]) -> bool:
    """Whether a label selector selects a pod."""
    for key, value in selector.get("matchLabels", {}).items():
        if labels.get(key) != value:
            return False
    for rule in selector.get("matchExpressions", []):
        there, value = rule["key"] in labels, labels.get(rule["key"])
        holds = {"Exists": there, "In": value in rule.get("values", [])}
        if not holds[rule["operator"]]:
            return False
    return True


@every_case
def test_an_uninstall_leaves_nothing_but_claims_that_are_to_be_kept(values: Values) -> None:
    for item in render(values):
        notes = item["metadata"].get("annotations", {})
        if "helm.sh/hook" in notes:  # Helm does not delete hooks with the release
            assert item["kind"] == "Job"
            policy = set(notes["helm.sh/hook-delete-policy"].split(","))
            assert policy == {"before-hook-creation", "hook-succeeded"}
            assert item["spec"]["ttlSecondsAfterFinished"] <= 3600
        if "helm.sh/resource-policy" in notes:
            assert item["kind"] == "PersistentVolumeClaim"
            setting = {"backburn-model-cache": "modelCache", "backburn-workspace": "workspace"}
            assert values[setting[item["metadata"]["name"]]]["keep"] is True


@every_case
def test_secrets_are_named_and_never_written(values: Values) -> None:
    for template in pod_specs(render(values)).values():
        spec = template["spec"]
        for container in [*spec.get("initContainers", []), *spec["containers"]]:
            for variable in container.get("env", []):
                if any(word in variable["name"] for word in ("TOKEN", "PASSWORD", "KEY", "SECRET")):
                    assert "secretKeyRef" in variable.get("valueFrom", {}) or variable[
                        "name"
                    ].endswith("_FILE"), variable


def test_a_database_password_is_in_no_list_of_processes() -> None:
    deployment = named(render(CASES["mlflow"]), "Deployment", "backburn-mlflow")
    spec = deployment["spec"]["template"]["spec"]
    url = "postgresql+psycopg://mlflow@postgres.databases:5432/mlflow"
    assert spec["initContainers"][0]["args"] == [url]
    assert f"--backend-store-uri={url}" in spec["containers"][0]["args"]
    env = {item["name"]: item for item in spec["initContainers"][0]["env"]}
    wanted = {"name": "mlflow-database", "key": "password"}
    assert env["PGPASSWORD"]["valueFrom"]["secretKeyRef"] == wanted


def test_the_service_account_of_the_hook_may_use_kfp_in_its_namespace_and_nothing_else() -> None:
    objects = render(CASES["several users"])
    roles = [item for item in objects if item["kind"] == "Role"]
    assert [role["metadata"]["name"] for role in roles] == ["backburn-hook"]
    for rule in roles[0]["rules"]:
        assert rule["apiGroups"] == ["pipelines.kubeflow.org"]
        assert set(rule["verbs"]) <= {"get", "list", "create", "delete"}
    bindings = [item for item in objects if item["kind"] == "RoleBinding"]
    subjects = [subject for item in bindings for subject in item["subjects"]]
    assert subjects == [{"kind": "ServiceAccount", "name": "backburn-hook", "namespace": NAMESPACE}]
    token = named(objects, "Job", "backburn-apply")["spec"]["template"]["spec"]["volumes"]
    sources = [s for v in token for s in v.get("projected", {}).get("sources", [])]
    assert [s["serviceAccountToken"]["audience"] for s in sources] == ["pipelines.kubeflow.org"]


def test_tasks_may_run_trainjobs_and_nothing_more_if_it_is_asked_for() -> None:
    objects = render(CASES["train jobs"])
    may = {
        (resource, verb)
        for item in objects
        if item["kind"] in ("Role", "ClusterRole")
        for rule in item["rules"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    job = ("create", "get", "list", "watch", "delete")
    read = ("pods", "pods/log", "trainingruntimes", "clustertrainingruntimes")
    assert may == {
        *(("trainjobs", verb) for verb in job),
        *((resource, verb) for resource in read for verb in ("get", "list")),
    }
    account = {"kind": "ServiceAccount", "name": "default-editor", "namespace": NAMESPACE}
    bindings = [item for item in objects if item["kind"].endswith("Binding")]
    assert [item["subjects"] for item in bindings] == [[account], [account]]
    for item in bindings:
        named(objects, item["roleRef"]["kind"], item["roleRef"]["name"])


def test_without_a_service_account_s_token_nobody_has_any_rights() -> None:
    for name in ("default", "schedules", "token and certificates", "judge", "mlflow"):
        kinds = {item["kind"] for item in render(CASES[name])}
        assert not kinds & {"Role", "RoleBinding"}, name


def test_images_are_pinned_by_digest_and_pulled_with_the_secrets_that_are_given() -> None:
    for template in pod_specs(render(CASES["names and images"])).values():
        spec = template["spec"]
        assert spec["containers"][0]["image"] == f"backburn/tools@{DIGEST}"
        assert spec["imagePullSecrets"] == [{"name": "registry"}]


def test_a_judge_has_its_gpu_probes_and_cache() -> None:
    objects = render(CASES["judge with cache"])
    spec = named(objects, "Deployment", "backburn-judge")["spec"]["template"]["spec"]
    server = spec["containers"][0]
    assert server["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert {"startupProbe", "readinessProbe", "livenessProbe"} <= set(server)
    assert "--revision=0123abc" in server["args"]
    volumes = {volume["name"]: volume for volume in spec["volumes"]}
    assert volumes["cache"]["persistentVolumeClaim"] == {"claimName": "backburn-model-cache"}
    claim = named(objects, "PersistentVolumeClaim", "backburn-model-cache")
    assert claim["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}


def test_a_claim_that_exists_is_not_made() -> None:
    kinds = {item["kind"] for item in render(CASES["judge with a claim"])}
    assert "PersistentVolumeClaim" not in kinds


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"mlflow": {"enabled": True}}, "mlflow.database.host: name"),
        ({"mlflow": {"enabled": True, "database": {"host": "x"}}}, "mlflow.database.existingSe"),
        ({"kueue": {"enabled": True}}, "kueue.clusterQueue: name the ClusterQueue"),
        ({"kfp": {"multiUser": True}}, "kfp.auth: a KFP with a namespace for each user"),
        ({"kfp": {"auth": "token"}}, "kfp.existingSecret: name the Secret"),
        ({"kfp": {"auth": "userid"}}, "/kfp/auth"),
        ({"judge": {"modle": "x"}}, "additional properties 'modle' not allowed"),
        ({"networkPolicy": {"dns": {"to": [{"cidr": "x"}]}}}, "additional properties 'cidr'"),
        ({"tracking": {"uri": "https://me:secret@mlflow"}}, "/tracking/uri"),
        ({"schedules": [{"name": "x", "pipeline": "harden", "recipe": "y"}]}, "cron"),
        ({"schedules": [{**AUDIT, "cron": "0 3 * * *"}]}, "/schedules/0/cron"),
        ({"schedules": [AUDIT]}, "needs to know whose signature counts: set publicKey"),
        ({"schedules": [{**AUDIT, "anyKey": True}] * 2}, 'the name "x" is used twice'),
        ({"schedules": [{**AUDIT, "pipeline": "harden", "model": "m"}]}, '"x" hardens'),
        ({"networkPolicy": {"extraEgress": [{"ports": [{"port": 443}]}]}}, "'to'"),
    ],
)
def test_wrong_values_are_refused_with_the_setting_s_name(values: Values, message: str) -> None:
    assert message in refusal(values)
