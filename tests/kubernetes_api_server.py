"""A Kubernetes API server as far as `backburn doctor` and the launcher ask it, over real HTTP."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse

from tests.train_jobs import TrainJobs

Record = dict[str, Any]
_VERSION = (
    "major", "minor", "gitCommit", "gitTreeState", "buildDate", "goVersion", "compiler", "platform",
)  # fmt: skip
_PLURALS = {
    "secrets": ("Secret", "v1"),
    "serviceaccounts": ("ServiceAccount", "v1"),
    "persistentvolumeclaims": ("PersistentVolumeClaim", "v1"),
}
_TRAINER = "apis/trainer.kubeflow.org/v1alpha1/"
_PODS = "api/v1/namespaces/kubeflow/pods"


class KubernetesServer:
    """What the cluster holds.

    Args:
        token: Every request needs it as a bearer token.
    """

    def __init__(self, token: str) -> None:
        self.token = token
        self.namespaces: dict[str, Record] = {"kubeflow": {}}
        self.objects: dict[tuple[str, str], Record] = {}
        """(plural, name) -> object, all of them in namespace kubeflow."""
        self.nodes: list[Record] = []
        self.custom: set[str] = set()
        """group/plural of what is installed."""
        self.forbidden: set[str] = set()
        """Last parts of paths that this user may not read."""
        self.requests: list[str] = []
        self.train_jobs = TrainJobs(self.objects)
        self.runtimes: dict[tuple[str, str], Record] = {}
        """(plural, name) -> object."""
        self.rights: dict[str, set[tuple[str, str]]] = {}
        """Service account -> (verb, resource) it may do."""
        self.away: Callable[[str], bool] = lambda path: False
        """Paths that are answered with an error of the server."""
        self.app = FastAPI()
        self.app.add_api_route("/{path:path}", self._answer, methods=["GET", "POST", "DELETE"])

    def kubeconfig(self, url: str, path: Path) -> Path:
        """Write a kubeconfig for this server."""
        content = {
            "apiVersion": "v1", "kind": "Config", "current-context": "here",
            "clusters": [{"name": "c", "cluster": {"server": url}}],
            "users": [{"name": "u", "user": {"token": self.token}}],
            "contexts": [{"name": "here", "context": {"cluster": "c", "user": "u"}}],
        }  # fmt: skip
        path.write_text(yaml.safe_dump(content), encoding="utf-8")
        return path

    async def _answer(self, path: str, request: Request) -> Response:
        self.requests.append(f"{request.method} /{path}")
        if request.headers.get("authorization") != f"Bearer {self.token}":
            return _status(401, "Unauthorized")
        if self.away(path):
            return _status(500, "InternalError")
        if path.rpartition("/")[2] in self.forbidden:
            return _status(403, "Forbidden")
        if path.startswith(_TRAINER) or path.startswith(_PODS):
            return await self._train(path, request)
        if path == "apis/authorization.k8s.io/v1/subjectaccessreviews":
            spec = (await request.json())["spec"]
            wanted = spec["resourceAttributes"]
            resource = "/".join(filter(None, (wanted["resource"], wanted.get("subresource"))))
            allowed = (wanted["verb"], resource) in self.rights.get(spec["user"], set())
            return JSONResponse({"spec": spec, "status": {"allowed": allowed}}, status_code=201)
        if path == "version/":
            return JSONResponse(dict.fromkeys(_VERSION, "x") | {"gitVersion": "v1.33.1"})
        if path == "api/v1/nodes":
            return JSONResponse({"apiVersion": "v1", "kind": "NodeList", "items": self.nodes})
        if found := re.fullmatch(r"api/v1/namespaces/([^/]+)", path):
            labels = self.namespaces.get(found[1])
            if labels is None:
                return _status(404, "NotFound")
            metadata = {"name": found[1], "labels": labels}
            return JSONResponse({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata})
        if found := re.fullmatch(r"api/v1/namespaces/kubeflow/([^/]+)/([^/]+)", path):
            content = self.objects.get((found[1], found[2]))
            if content is None or found[1] not in _PLURALS:
                return _status(404, "NotFound")
            kind, version = _PLURALS[found[1]]
            named = {"apiVersion": version, "kind": kind, "metadata": {"name": found[2]}}
            return JSONResponse(named | content)
        if found := re.fullmatch(r"apis/([^/]+)/[^/]+/namespaces/kubeflow/([^/]+)(/.+)?", path):
            if f"{found[1]}/{found[2]}" not in self.custom:
                return _status(404, "NotFound")
            name = (found[3] or "").strip("/")
            if name and (found[2], name) not in self.objects:
                return _status(404, "NotFound")
            return JSONResponse({"items": [], "metadata": {"name": name}})
        return _status(404, "NotFound")

    async def _train(self, path: str, request: Request) -> Response:
        """Kubeflow Trainer's objects, and pods."""
        jobs, (plural, name) = self.train_jobs, path.split("/")[-2:]
        if found := re.fullmatch(rf"{_PODS}/([^/]+)/log", path):
            return PlainTextResponse(jobs.log(found[1]))
        if path == _PODS:
            items = jobs.listed(request.query_params["labelSelector"])
            return JSONResponse({"kind": "PodList", "apiVersion": "v1", "items": items})
        if "trainer.kubeflow.org/trainjobs" not in self.custom:
            return _status(404, "NotFound")
        if plural.endswith("runtimes"):
            runtime = self.runtimes.get((plural, name))
            return _status(404, "NotFound") if runtime is None else JSONResponse(runtime)
        if name == "trainjobs":
            if request.method == "GET":
                return JSONResponse({"items": []})
            code, answer = jobs.create(await request.json())
            if isinstance(answer, str):
                return _status(code, answer)
            return JSONResponse(answer, status_code=code)
        if name not in jobs.jobs:
            return _status(404, "NotFound")
        shown = jobs.shown(name)
        if request.method == "DELETE":
            jobs.delete(name)
        return JSONResponse(shown)


def node(name: str, gpus: int, **changes: Any) -> Record:
    """A node as the API shows it, with 16 cores and 128 GiB."""
    offered = {"cpu": "16", "memory": "131072Mi", "nvidia.com/gpu": str(gpus)}
    return {
        "metadata": {"name": name, "labels": changes.get("labels", {})},
        "spec": {
            "taints": changes.get("taints", []),
            "unschedulable": changes.get("unschedulable", False),
        },
        "status": {"allocatable": offered | changes.get("offered", {})},
    }


def _status(code: int, reason: str) -> JSONResponse:
    body = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason}
    return JSONResponse(body | {"code": code, "message": reason}, status_code=code)
