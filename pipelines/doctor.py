"""What a run would miss on a cluster, found from a laptop, each with its fix."""

import base64
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import boto3
import botocore.exceptions
import kubernetes.client
import kubernetes.config
import requests
import urllib3
from backburn.components.shared import sealing, signing
from backburn.components.shared.config import JudgeConfig, NodeRequirement, RunConfig
from backburn.components.shared.errors import BackburnError, ContainmentError, InputError
from backburn.components.shared.sealing import check_key as check_seal_key
from backburn.components.shared.signing import public_key_of
from backburn.components.shared.tracking import check_address
from backburn.pipelines.kfp_server import Server, client_of
from kubernetes.client.exceptions import ApiException
from kubernetes.config.config_exception import ConfigException
from kubernetes.utils import parse_quantity

State = Literal["ok", "problem", "not asked"]
_SECONDS = 10
_WORKFLOWS = ("argoproj.io", "v1alpha1", "workflows")
_TRAIN_JOBS = ("trainer.kubeflow.org", "v1alpha1", "trainjobs")
_LAUNCHER_RIGHTS = (
    *(("trainjobs", verb) for verb in ("create", "get", "delete")),
    ("trainingruntimes", "get"), ("clustertrainingruntimes", "get"),
    ("pods", "list"), ("pods/log", "get"),
)  # fmt: skip
_QUEUES = ("kueue.x-k8s.io", "v1beta1", "localqueues")
_PRODUCTS = {
    _WORKFLOWS[0]: "install Kubeflow Pipelines",
    _QUEUES[0]: "install Kueue",
    _TRAIN_JOBS[0]: "install Kubeflow Trainer 2.3 or newer, or set compute.nodes to 1",
}


@dataclass(frozen=True)
class Finding:
    """One question, its answer, and what to do."""

    question: str
    state: State
    answer: str
    fix: str = ""


class Doctor:
    """Asks everything a run with one configuration needs."""

    def __init__(
        self, config: RunConfig, server: Server | None, namespace: str, tracking: str | None
    ) -> None:
        """Prepare.

        Args:
            config: Of the run.
            server: Of Kubeflow Pipelines; None leaves it out.
            namespace: Where the run's pods are.
            tracking: Address of MLflow as this machine reaches it; default: the recipe's.
        """
        self._config = config
        self._compute = config.compute
        self._server = server
        self._namespace = namespace
        self._tracking = tracking or config.tracking.uri

    def findings(self, context: str | None) -> Iterator[Finding]:
        """Every finding, in the order in which things are needed.

        Args:
            context: Of the kubeconfig; None is its current one.
        """
        yield self._ask("Kubeflow Pipelines", self._pipelines)
        yield self._ask("MLflow", self._mlflow)
        for uri in self._buckets():
            yield self._ask(f"object store: {uri}", partial(_bucket, uri))
        for judge in _chat_judges(self._config.judges.reward, self._config.judges.evaluation):
            yield self._ask(f"judge {judge.id}", partial(_judge, judge))
        api = self._connected(context)
        if isinstance(api, Finding):
            yield api
            return
        answers = self._ask("Kubernetes", partial(_version, api))
        yield answers
        if answers.state == "problem":
            return
        yield self._ask("workflow controller", lambda: self._resource(api, *_WORKFLOWS))
        yield self._ask(f"namespace {self._namespace}", lambda: self._namespaced(api))
        yield self._ask(f"Secret {self._compute.secret_name}", lambda: self._secret(api))
        for name in self._compute.image_pull_secrets:
            yield self._ask(f"Secret {name}", partial(self._present, api, "secret", name))
        if account := self._compute.service_account:
            yield self._ask(
                f"service account {account}",
                lambda: self._present(api, "service_account", account),
            )
        if claim := self._compute.cache_claim:
            yield self._ask(
                f"volume claim {claim}",
                lambda: self._present(api, "persistent_volume_claim", claim),
            )
        if queue := self._compute.queue:
            yield self._ask(f"LocalQueue {queue}", lambda: self._queue(api, queue))
        if shared := self._compute.workspace_claim:
            yield self._ask(f"volume claim {shared}", lambda: self._shared_claim(api, shared))
        if self._compute.nodes > 1:
            yield self._ask("Kubeflow Trainer", lambda: self._resource(api, *_TRAIN_JOBS))
            runtime = self._compute.training_runtime
            yield self._ask(f"training runtime {runtime}", lambda: self._runtime(api, runtime))
            yield self._ask("rights to run TrainJobs", lambda: self._rights(api))
        gpu = self._compute.gpu_type if self._compute.gpus else None
        question = "nodes for model steps" if gpu is None else f"nodes with {gpu}"
        yield self._ask(question, lambda: self._nodes(api))

    def _ask(self, question: str, check: Callable[[], str | Finding]) -> Finding:
        """An answer; what goes wrong becomes a problem with its fix."""
        try:
            found = check()
        except _Problem as problem:
            return Finding(question, "problem", problem.what, problem.fix)
        except (BackburnError, InputError) as error:
            return Finding(question, "problem", str(error))
        except ApiException as error:
            return Finding(question, "problem", *_refusal(error))
        except (urllib3.exceptions.HTTPError, OSError) as error:
            reason = str(error).rpartition("): ")[2] or type(error).__name__
            return Finding(question, "problem", f"no answer: {reason}", _NO_CLUSTER)
        return found if isinstance(found, Finding) else Finding(question, "ok", found)

    def _pipelines(self) -> str | Finding:
        if self._server is None:
            return Finding("Kubeflow Pipelines", "not asked", "give --endpoint")
        with client_of(self._server) as client:
            client.get_kfp_healthz()
        return "answers"

    def _mlflow(self) -> str | Finding:
        if not self._tracking:
            raise _Problem(
                "no address",
                "set tracking.uri in the recipe to what the pods reach, and give --tracking-uri or "
                "MLFLOW_TRACKING_URI if this machine reaches it by another name",
            )
        if not self._tracking.startswith(("http://", "https://")):
            raise _Problem(
                f"{self._tracking} is no server", "pods share no files: give a tracking server"
            )
        check_address(self._tracking)
        pods = self._config.tracking.uri
        if pods is None:
            raise _Problem(
                "answers, but the recipe has no tracking.uri",
                "set tracking.uri to MLflow's address as the pods reach it",
            )
        return "answers" if pods == self._tracking else f"answers here; pods will use {pods}"

    def _buckets(self) -> list[str]:
        custom = self._config.domain.custom
        sources = [] if custom is None else [
            item.path
            for item in (custom.forbidden, custom.near_miss, custom.benign, custom.refusals,
                         custom.calibration)
            if item is not None
        ]  # fmt: skip
        named = [self._config.model.id, *(path for path in sources if path is not None)]
        return [uri for uri in named if uri.startswith("s3://")]

    def _connected(self, context: str | None) -> "kubernetes.client.ApiClient | Finding":
        settings = kubernetes.client.Configuration()
        try:
            kubernetes.config.load_kube_config(
                os.environ.get("KUBECONFIG"), context, client_configuration=settings
            )
        except ConfigException as error:
            try:
                if context is not None:
                    raise
                kubernetes.config.load_incluster_config(client_configuration=settings)
            except ConfigException:
                reason = str(error).strip().splitlines()[0]
                fix = "point KUBECONFIG at a kubeconfig of the cluster, or name its --context"
                return Finding("Kubernetes", "problem", f"no cluster is named: {reason}", fix)
        settings.retries = False
        api = kubernetes.client.ApiClient(settings)
        plain = api.rest_client.pool_manager.connection_pool_kw
        plain["timeout"] = urllib3.Timeout(_SECONDS)
        return api

    def _resource(self, api: Any, group: str, version: str, plural: str) -> str:
        try:
            kubernetes.client.CustomObjectsApi(api).list_namespaced_custom_object(
                group, version, self._namespace, plural, limit=1
            )
        except ApiException as error:
            if error.status != 404:
                raise
            raise _Problem(f"the cluster knows no {plural}.{group}", _PRODUCTS[group]) from error
        return "is installed"

    def _namespaced(self, api: Any) -> str:
        core = kubernetes.client.CoreV1Api(api)
        labels = core.read_namespace(self._namespace).metadata.labels or {}
        level = labels.get("pod-security.kubernetes.io/enforce", "not set")
        return f"is there; Pod Security: {level}"

    def _secret(self, api: Any) -> str:
        """Present, with usable keys; their values are read and never shown."""
        name = self._compute.secret_name
        try:
            found = kubernetes.client.CoreV1Api(api).read_namespaced_secret(name, self._namespace)
        except ApiException as error:
            if error.status != 404:
                raise
            raise _Problem("is missing", _secret_fix(self._namespace, name)) from error
        data = found.data or {}
        wanted: dict[str, Callable[[str], object]] = {
            sealing.KEY_VARIABLE: check_seal_key,
            signing.KEY_VARIABLE: public_key_of,
        }
        if missing := [key for key in wanted if not data.get(key)]:
            raise _Problem(f"lacks {', '.join(missing)}", _secret_fix(self._namespace, name))
        for key, check in wanted.items():
            try:
                check(base64.b64decode(data[key]).decode())
            except (ContainmentError, UnicodeDecodeError) as error:
                fix = _secret_fix(self._namespace, name)
                raise _Problem(f"{key} is no usable key", fix) from error
        return f"has {', '.join(sorted(data))}"

    def _present(self, api: Any, kind: str, name: str) -> str:
        read = getattr(kubernetes.client.CoreV1Api(api), f"read_namespaced_{kind}")
        try:
            found = read(name, self._namespace)
        except ApiException as error:
            if error.status != 404:
                raise
            raise _Problem(
                "is missing", f"create it in namespace {self._namespace}, or correct `compute`"
            ) from error
        phase = getattr(getattr(found, "status", None), "phase", None)
        return f"is there{f', {phase}' if phase else ''}"

    def _shared_claim(self, api: Any, name: str) -> str:
        found = self._present(api, "persistent_volume_claim", name)
        claim = kubernetes.client.CoreV1Api(api).read_namespaced_persistent_volume_claim(
            name, self._namespace
        )
        modes = (claim.spec and claim.spec.access_modes) or []
        if "ReadWriteMany" not in modes:
            raise _Problem(
                f"offers {', '.join(modes) or 'no access mode'}, and several nodes mount it",
                "make a claim with ReadWriteMany, of a storage class that has it",
            )
        return found

    def _runtime(self, api: Any, name: str) -> str:
        """In the namespace or cluster-wide, in the order in which the SDK looks."""
        custom = kubernetes.client.CustomObjectsApi(api)
        group, version, _ = _TRAIN_JOBS
        try:
            custom.get_namespaced_custom_object(
                group, version, self._namespace, "trainingruntimes", name
            )
            return "is there, in the namespace"
        except ApiException as error:
            if error.status != 404:
                raise
        try:
            custom.get_cluster_custom_object(group, version, "clustertrainingruntimes", name)
        except ApiException as error:
            if error.status != 404:
                raise
            raise _Problem(
                "is missing", "install the runtimes of Trainer, or correct compute.training_runtime"
            ) from error
        return "is there"

    def _rights(self, api: Any) -> str | Finding:
        """Of the service account that starts TrainJobs, as the cluster sees them."""
        account = self._compute.service_account
        if account is None:
            return Finding(
                "rights to run TrainJobs", "not asked",
                "the KFP server chooses the service account; name it in compute.service_account",
            )  # fmt: skip
        reviews = kubernetes.client.AuthorizationV1Api(api)
        missing = []
        for resource, verb in _LAUNCHER_RIGHTS:
            kind, _, part = resource.partition("/")
            asked = {
                "verb": verb, "resource": kind, "subresource": part or None,
                "group": "" if kind == "pods" else _TRAIN_JOBS[0],
                "namespace": None if kind.startswith("cluster") else self._namespace,
            }  # fmt: skip
            user = f"system:serviceaccount:{self._namespace}:{account}"
            review = {"spec": {"user": user, "resourceAttributes": asked}}
            if not reviews.create_subject_access_review(review).status.allowed:
                missing.append(f"{verb} {resource}")
        if missing:
            raise _Problem(
                f"{account} may not {', '.join(missing)}",
                f"helm upgrade with trainJobs.enabled=true,trainJobs.serviceAccount={account}",
            )
        return f"{account} has them"

    def _queue(self, api: Any, name: str) -> str:
        self._resource(api, *_QUEUES)
        group, version, plural = _QUEUES
        try:
            kubernetes.client.CustomObjectsApi(api).get_namespaced_custom_object(
                group, version, self._namespace, plural, name
            )
        except ApiException as error:
            if error.status != 404:
                raise
            raise _Problem(
                "is missing", f"create it in {self._namespace}, or correct compute.queue"
            ) from error
        return "is there"

    def _nodes(self, api: Any) -> str:
        """Nodes on which a model step could run."""
        why: list[str] = []
        fit = 0
        nodes = kubernetes.client.CoreV1Api(api).list_node().items
        for node in nodes:
            reason = _unfit(node, self._config)
            fit += reason is None
            if reason is not None:
                why.append(f"{node.metadata.name}: {reason}")
        if not fit:
            shown = "; ".join(why[:4]) or "the cluster has no node"
            raise _Problem(
                f"none of {len(nodes)} node(s) takes a model step: {shown}",
                "correct compute.gpu_type, gpus, memory, node_selector, node_affinity or "
                "toleration_keys, or add such a node (its device plugin must run)",
            )
        return f"{fit} of {len(nodes)} take a model step"


class _Problem(Exception):  # noqa: N818 - an answer, not a failure of this program
    def __init__(self, what: str, fix: str) -> None:
        super().__init__(what)
        self.what, self.fix = what, fix


_NO_CLUSTER = "start it, forward its port, or correct its address"


def _refusal(error: ApiException) -> tuple[str, str]:
    if error.status in (401, 403):
        return (
            f"not allowed ({error.status})",
            "ask for the right to read it, or let somebody who has it run this",
        )
    if error.status == 404:
        return "is missing", "create it, or correct its name"
    return f"the API answers {error.status} {error.reason}", _NO_CLUSTER


def _secret_fix(namespace: str, name: str) -> str:
    return (
        f"kubectl -n {namespace} create secret generic {name} --from-literal="
        f'{sealing.KEY_VARIABLE}="$(backburn seal-key)" --from-literal='
        f'{signing.KEY_VARIABLE}="$(backburn signing-key --public backburn.pem)"'
    )


def _version(api: Any) -> str:
    return f"answers, {kubernetes.client.VersionApi(api).get_code().git_version}"


def _unfit(node: Any, config: RunConfig) -> str | None:
    """Why a node takes no model step; None if it does."""
    compute = config.compute
    labels = node.metadata.labels or {}
    offered = node.status.allocatable or {}
    if node.spec.unschedulable:
        return "cordoned"
    if int(offered.get(compute.gpu_type, 0)) < compute.gpus:
        return f"{offered.get(compute.gpu_type, 0)} {compute.gpu_type}"
    for name, wanted in (("cpu", compute.cpu), ("memory", compute.memory)):
        if parse_quantity(offered.get(name, 0)) < parse_quantity(wanted):
            return f"{offered.get(name, 0)} {name}"
    for key, value in compute.node_selector.items():
        if labels.get(key) != value:
            return f"label {key} is {labels.get(key, 'not set')}"
    for requirement in compute.node_affinity:
        if not _fulfils(labels, requirement):
            return f"label {requirement.key} is {labels.get(requirement.key, 'not set')}"
    for taint in node.spec.taints or []:
        if taint.effect in ("NoSchedule", "NoExecute") and not (
            taint.effect == "NoSchedule" and taint.key in compute.toleration_keys
        ):
            return f"taint {taint.key}:{taint.effect}"
    return None


def _fulfils(labels: dict[str, str], requirement: NodeRequirement) -> bool:
    value = labels.get(requirement.key)
    match requirement.operator:
        case "In":
            return value in requirement.values
        case "NotIn":
            return value not in requirement.values
        case "Exists":
            return value is not None
        case "DoesNotExist":
            return value is None
        case "Gt":
            return value is not None and int(value) > int(requirement.values[0])
        case "Lt":
            return value is not None and int(value) < int(requirement.values[0])


def _bucket(uri: str) -> str:
    bucket, _, prefix = uri.removeprefix("s3://").partition("/")
    try:
        found = boto3.client("s3").list_objects_v2(Bucket=bucket, Prefix=prefix, MaxKeys=1)
    except (botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError) as error:
        raise _Problem(
            str(error),
            "correct the address, AWS_ENDPOINT_URL or the credentials; this machine's may differ "
            "from the pods'",
        ) from error
    if not found.get("KeyCount"):
        raise _Problem("nothing is there", "upload it, or correct the address")
    return "is there, as this machine sees it"


def _chat_judges(*judges: JudgeConfig) -> list[JudgeConfig]:
    members = [member for judge in judges for member in (judge.members or [judge])]
    return [judge for judge in members if judge.chat is not None]


def _judge(judge: JudgeConfig) -> str:
    chat = judge.chat
    assert chat is not None
    key = os.environ.get(chat.api_key_variable)
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        answer = requests.get(
            f"{chat.base_url.rstrip('/')}/models", headers=headers, timeout=_SECONDS
        )
        answer.raise_for_status()
        served = [str(item["id"]) for item in answer.json()["data"]]
    except (requests.RequestException, ValueError, KeyError, TypeError) as error:
        status = getattr(getattr(error, "response", None), "status_code", None)
        raise _Problem(
            f"no list of models at {chat.base_url}" + (f" ({status})" if status else ""),
            f"start the server, correct base_url, or set {chat.api_key_variable}; the pods may "
            "reach it where this machine does not",
        ) from error
    if chat.model not in served:
        raise _Problem(
            f"serves {', '.join(served) or 'nothing'}, not {chat.model}",
            "correct the judge's model, or serve it",
        )
    return "answers, as this machine sees it"
