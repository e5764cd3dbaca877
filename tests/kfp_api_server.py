"""A Kubeflow Pipelines server that speaks its v2beta1 API over real HTTP, and runs nothing.

Routes, fields and enums are those of the installed `kfp_server_api`; what is not theirs is refused.
Answers have the shape of the real server's: false and empty fields left out, 64-bit integers as
text, whole numbers without a fraction, gRPC's error bodies.
"""

import asyncio
import base64
import json
import re
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import kfp_server_api
import yaml
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from google.protobuf import json_format
from kfp.pipeline_spec import pipeline_spec_pb2
from starlette.exceptions import HTTPException
from starlette.middleware.base import RequestResponseEndpoint

API = "/apis/v2beta1"
_LONG = {"max_concurrency", "interval_second"}
_LISTING = {"page_token", "page_size", "sort_by", "filter"}
_CODES = {400: 3, 401: 16, 403: 7, 404: 5, 409: 6, 500: 13}
_SORTABLE = {"created_at", "display_name", "recurring_run_id", "run_id", "pipeline_id"}
_FILTERED = {*_SORTABLE, "name", "experiment_id", "namespace", "state", "storage_state"}
Record = dict[str, Any]


class RefusedError(Exception):
    """An HTTP status and the reason."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class KfpServer:
    """What the server holds, and how it misbehaves.

    Args:
        token: Every request needs it as a bearer token.
        namespaces: With some, the server has several users, and only these namespaces exist.
        largest_page: A page never holds more.
    """

    def __init__(
        self,
        token: str | None = None,
        namespaces: tuple[str, ...] = (),
        largest_page: int = 200,
    ) -> None:
        self.token, self.namespaces, self.largest_page = token, namespaces, largest_page
        self.pipelines: dict[str, Record] = {}
        self.versions: dict[str, Record] = {}
        self.experiments: dict[str, Record] = {}
        self.recurring_runs: dict[str, Record] = {}
        self.runs: dict[str, Record] = {}
        self.requests: list[str] = []
        self.failures: dict[str, int] = {}
        """A pattern of "METHOD path" -> the status to fail with."""
        self.delay = 0.0
        self.app = _application(self)

    def fire(self, recurring_run_id: str) -> str:
        """Do what the controller does when a recurring run is due; returns the run's id."""
        job = self.recurring_runs[recurring_run_id]
        names = ("experiment_id", "pipeline_version_reference", "runtime_config")
        body = {name: job[name] for name in names if name in job}
        body["display_name"] = f"{job['display_name']}-{len(self.runs)}"
        return str(self.create_run({**body, "recurring_run_id": recurring_run_id})["run_id"])

    def spec_of(self, reference: Mapping[str, str]) -> Record:
        """Compiled pipeline of a version, or of the newest one if none is named."""
        versions = [
            v for v in self.versions.values() if v["pipeline_id"] == reference["pipeline_id"]
        ]
        if identity := reference.get("pipeline_version_id"):
            versions = [v for v in versions if v["pipeline_version_id"] == identity]
        if not versions:
            raise RefusedError(404, f"PipelineVersion {reference} not found")
        spec: Record = versions[-1]["pipeline_spec"]
        return spec.get("pipeline_spec", spec)

    def create_run(self, body: Record) -> Record:
        """Start a run, as far as the API shows it."""
        self._check_source(body)
        self._namespace_of(body)
        run = {
            **body,
            "run_id": str(uuid.uuid4()),
            "state": "PENDING",
            "storage_state": "AVAILABLE",
            "created_at": _now(),
        }
        self.runs[run["run_id"]] = run
        return run

    def create_recurring_run(self, body: Record) -> Record:
        """Keep a recurring run."""
        if not body.get("display_name"):
            raise RefusedError(400, "Recurring run's name cannot be empty")
        if not 1 <= int(body.get("max_concurrency", 0)) <= 10:
            raise RefusedError(
                400, "Max concurrency of a recurring run must be at least 1 and at most 10"
            )
        trigger = body.get("trigger", {})
        cron = trigger.get("cron_schedule", {}).get("cron", "")
        timed = "periodic_schedule" in trigger or cron.startswith("@")
        if not timed and len(cron.split()) not in (5, 6):  # as the real one, which takes five too
            raise RefusedError(400, f"Schedule cron is not a supported format: {cron!r}")
        self._check_source(body)
        body["namespace"] = self._namespace_of(body) or "kubeflow"
        enabled = body.get("mode") == "ENABLE"
        job = {
            **body,
            "recurring_run_id": str(uuid.uuid4()),
            "status": "ENABLED" if enabled else "DISABLED",
            "mode": "ENABLE" if enabled else "DISABLE",
            "max_concurrency": str(body["max_concurrency"]),
            "created_at": _now(),
            "updated_at": _now(),
        }
        self.recurring_runs[job["recurring_run_id"]] = job
        return job

    def create_pipeline(self, body: Record) -> Record:
        """Keep a pipeline without versions."""
        name = body.get("name") or body.get("display_name")
        if not name:
            raise RefusedError(400, "name is required")
        namespace = body.get("namespace", "") if self.namespaces else ""
        self.require_namespace(namespace)
        if any((p["name"], p["namespace"]) == (name, namespace) for p in self.pipelines.values()):
            raise RefusedError(409, f"Pipeline {name} already exists")
        pipeline = {
            "display_name": name,
            **body,
            "name": name,
            "namespace": namespace,
            "pipeline_id": str(uuid.uuid4()),
            "created_at": _now(),
        }
        self.pipelines[pipeline["pipeline_id"]] = pipeline
        return pipeline

    def create_version(self, pipeline_id: str, name: str, content: bytes, **more: str) -> Record:
        """Parse and keep a compiled pipeline."""
        if pipeline_id not in self.pipelines:
            raise RefusedError(400, "Failed to create a pipeline version")
        if any(
            (v["pipeline_id"], v["name"]) == (pipeline_id, name) for v in self.versions.values()
        ):
            raise RefusedError(409, f"PipelineVersion {name} already exists")
        version = {
            "display_name": name,
            **more,
            "name": name,
            "pipeline_id": pipeline_id,
            "pipeline_version_id": str(uuid.uuid4()),
            "pipeline_spec": _parse_package(content),
            "created_at": _now(),
        }
        self.versions[version["pipeline_version_id"]] = version
        return version

    def create_experiment(self, body: Record) -> Record:
        """Keep an experiment."""
        namespace = body.get("namespace", "") if self.namespaces else ""
        self.require_namespace(namespace)
        name = body.get("display_name")
        if not name:
            raise RefusedError(400, "Experiment's name cannot be empty")
        held = self.experiments.values()
        if any((e["display_name"], e["namespace"]) == (name, namespace) for e in held):
            raise RefusedError(409, f"Experiment {name} already exists")
        experiment = {
            **body,
            "namespace": namespace,
            "experiment_id": str(uuid.uuid4()),
            "storage_state": "AVAILABLE",
            "created_at": _now(),
        }
        self.experiments[experiment["experiment_id"]] = experiment
        return experiment

    def require_namespace(self, namespace: str) -> None:
        """With several users: refuse a namespace that is not there, as the real server does."""
        if self.namespaces and namespace not in self.namespaces:
            raise RefusedError(403, f"User 'reader' is not authorized in namespace {namespace!r}")

    def _namespace_of(self, body: Record) -> str:
        experiment = self.experiments.get(body.get("experiment_id", ""))
        if experiment is None:
            raise RefusedError(404, f"Experiment {body.get('experiment_id')} not found")
        return str(experiment["namespace"])

    def visible(self, held: dict[str, Record], query: Mapping[str, str]) -> list[Record]:
        """Runs or recurring runs of the experiment or namespace that a query names."""
        if experiment := query.get("experiment_id"):
            return [item for item in held.values() if item["experiment_id"] == experiment]
        if not self.namespaces:
            return list(held.values())
        self.require_namespace(query.get("namespace", ""))
        return [i for i in held.values() if self._namespace_of(i) == query["namespace"]]

    def _check_source(self, body: Record) -> None:
        """Check parameters as the real server does, in validatePipelineJobInputs."""
        if "pipeline_spec" in body:
            spec = body["pipeline_spec"]
            spec = spec.get("pipeline_spec", spec)
        elif "pipeline_version_reference" in body:
            spec = self.spec_of(body["pipeline_version_reference"])
        else:
            raise RefusedError(400, "Pipeline spec source is missing")
        check_parameters(spec, body.get("runtime_config", {}).get("parameters", {}))


def check_parameters(spec: Record, given: Record) -> None:
    """Refuse parameters that a compiled pipeline lacks, does not know or types differently."""
    known = spec["root"].get("inputDefinitions", {}).get("parameters", {})
    kinds: dict[str, type | tuple[type, ...]] = {
        "STRING": str, "LIST": list, "STRUCT": dict, "BOOLEAN": bool,
        "NUMBER_INTEGER": (int, float), "NUMBER_DOUBLE": (int, float),
    }  # fmt: skip
    for name, definition in known.items():
        kind = definition["parameterType"]
        if name in given:
            if not isinstance(given[name], kinds[kind]):
                raise RefusedError(400, f"input parameter {name} requires type {kind}")
        elif not definition.get("isOptional") and "defaultValue" not in definition:
            raise RefusedError(
                400, f"parameter {name} has neither default value nor user provided value"
            )
    if extra := sorted(set(given) - set(known)):
        raise RefusedError(400, f"parameter(s) provided are not required by pipeline: {extra}")


def check_body(value: Any, kind: str, path: str = "") -> None:
    """Refuse what is not a `kfp_server_api` model's: unknown fields, wrong types and enums."""
    if inner := re.fullmatch(r"list\[(.*)\]", kind):
        _require(isinstance(value, list), f"{path}: a list")
        for index, item in enumerate(value):
            check_body(item, inner[1], f"{path}[{index}]")
    elif inner := re.fullmatch(r"dict\(str, (.*)\)", kind):
        _require(isinstance(value, dict), f"{path}: an object")
        for key, item in value.items():
            check_body(item, inner[1], f"{path}.{key}")
    elif kind == "str" and path.rpartition(".")[2] in _LONG:
        _require(str(value).isdigit(), f"{path}: an integer")
    elif kind in ("str", "datetime"):
        _require(isinstance(value, str), f"{path}: text")
    elif kind == "bool":
        _require(isinstance(value, bool), f"{path}: true or false")
    elif kind in ("int", "float"):
        _require(isinstance(value, int | float), f"{path}: a number")
    elif kind != "object":
        model = getattr(kfp_server_api, kind)
        if values := getattr(model, "allowable_values", None):
            _require(value in values, f"{path}: one of {values}")
            return
        _require(isinstance(value, dict), f"{path}: an object")
        fields = {model.attribute_map[name]: kind for name, kind in model.openapi_types.items()}
        for key, item in value.items():
            _require(key in fields, f"{path}: no field {key!r}; known are {sorted(fields)}")
            check_body(item, fields[key], f"{path}.{key}")


def _require(holds: bool, wanted: str) -> None:
    if not holds:
        raise RefusedError(400, f"invalid body: wanted {wanted}")


def _application(server: KfpServer) -> FastAPI:
    app = FastAPI(openapi_url=None)

    @app.middleware("http")
    async def gate(request: Request, call_next: RequestResponseEndpoint) -> Response:
        line = f"{request.method} {request.url.path}"
        server.requests.append(line)
        await asyncio.sleep(server.delay)
        if server.token and request.headers.get("authorization") != f"Bearer {server.token}":
            return _error(401, "Request header error: there is no user identity header")
        for pattern, status in server.failures.items():
            if re.fullmatch(pattern, line):
                return _error(status, "made to fail")
        return await call_next(request)

    @app.exception_handler(RefusedError)
    async def refused(_: Request, error: RefusedError) -> Response:
        return _error(error.status, str(error))

    @app.exception_handler(HTTPException)
    async def unknown(_: Request, error: HTTPException) -> Response:
        return _error(error.status_code, error.detail)

    @app.get(f"{API}/healthz")
    async def healthz(request: Request) -> Response:
        _query(request, set())
        return _answer(
            {"multi_user": bool(server.namespaces), "pipeline_store": "database"},
            "V2beta1GetHealthzResponse",
        )

    _add_pipelines(app, server)
    _add_experiments(app, server)
    _add_recurring_runs(app, server)
    _add_runs(app, server)
    return app


def _add_pipelines(app: FastAPI, server: KfpServer) -> None:
    @app.post(f"{API}/pipelines")
    async def create(request: Request) -> Response:
        return _answer(
            server.create_pipeline(await _body(request, "V2beta1Pipeline")), "V2beta1Pipeline"
        )

    @app.get(f"{API}/pipelines")
    async def list_pipelines(request: Request) -> Response:
        query = _query(request, _LISTING | {"namespace"})
        namespace = query.get("namespace", "") if server.namespaces else ""
        server.require_namespace(namespace)
        held = [p for p in server.pipelines.values() if p["namespace"] == namespace]
        return _page(server, held, query, "Pipelines")

    @app.post(f"{API}/pipelines/upload")
    async def upload(request: Request) -> Response:
        query = _query(request, {"name", "display_name", "description", "namespace", "tags"})
        content = await _file(request)
        pipeline = server.create_pipeline({k: v for k, v in query.items() if k != "tags"})
        server.create_version(pipeline["pipeline_id"], pipeline["name"], content)
        return _answer(pipeline, "V2beta1Pipeline")

    @app.post(f"{API}/pipelines/upload_version")
    async def upload_version(request: Request) -> Response:
        query = _query(request, {"name", "display_name", "pipelineid", "description", "tags"})
        identity, name = query.pop("pipelineid", ""), query.pop("name", "")
        query.pop("tags", None)
        return _answer(
            server.create_version(identity, name, await _file(request), **query),
            "V2beta1PipelineVersion",
        )

    @app.get(f"{API}/pipelines/{{pipeline_id}}")
    async def get(pipeline_id: str, request: Request) -> Response:
        _query(request, set())
        return _answer(_get(server.pipelines, pipeline_id), "V2beta1Pipeline")

    @app.get(f"{API}/pipelines/{{pipeline_id}}/versions")
    async def list_versions(pipeline_id: str, request: Request) -> Response:
        query = _query(request, _LISTING)
        _get(server.pipelines, pipeline_id)
        held = [v for v in server.versions.values() if v["pipeline_id"] == pipeline_id]
        return _page(server, held, query, "PipelineVersions")

    @app.get(f"{API}/pipelines/{{pipeline_id}}/versions/{{version_id}}")
    async def get_version(pipeline_id: str, version_id: str, request: Request) -> Response:
        _query(request, set())
        version = _get(server.versions, version_id)
        if version["pipeline_id"] != pipeline_id:
            raise RefusedError(404, f"{version_id} not found in {pipeline_id}")
        return _answer(version, "V2beta1PipelineVersion")

    @app.delete(f"{API}/pipelines/{{pipeline_id}}/versions/{{version_id}}")
    async def delete_version(pipeline_id: str, version_id: str, request: Request) -> Response:
        _query(request, set())
        _get(server.pipelines, pipeline_id)
        _get(server.versions, version_id)
        del server.versions[version_id]
        return _answer({}, "object")


def _add_experiments(app: FastAPI, server: KfpServer) -> None:
    @app.post(f"{API}/experiments")
    async def create(request: Request) -> Response:
        return _answer(
            server.create_experiment(await _body(request, "V2beta1Experiment")), "V2beta1Experiment"
        )

    @app.get(f"{API}/experiments")
    async def list_experiments(request: Request) -> Response:
        query = _query(request, _LISTING | {"namespace"})
        namespace = query.get("namespace", "") if server.namespaces else ""
        server.require_namespace(namespace)
        held = [e for e in server.experiments.values() if e["namespace"] == namespace]
        return _page(server, held, query, "Experiments")

    @app.get(f"{API}/experiments/{{experiment_id}}")
    async def get(experiment_id: str, request: Request) -> Response:
        _query(request, set())
        return _answer(_get(server.experiments, experiment_id), "V2beta1Experiment")


def _add_recurring_runs(app: FastAPI, server: KfpServer) -> None:
    def switch(identity: str, word: str) -> Response:
        job = _get(server.recurring_runs, identity)
        job.update(mode=word, status=f"{word}D", updated_at=_now())
        return _answer({}, "object")

    @app.post(f"{API}/recurringruns")
    async def create(request: Request) -> Response:
        return _answer(
            server.create_recurring_run(await _body(request, "V2beta1RecurringRun")),
            "V2beta1RecurringRun",
        )

    @app.get(f"{API}/recurringruns")
    async def list_recurring_runs(request: Request) -> Response:
        query = _query(request, _LISTING | {"namespace", "experiment_id"})
        held = server.visible(server.recurring_runs, query)
        return _page(server, held, query, "RecurringRuns")

    @app.post(f"{API}/recurringruns/{{identity}}:enable")
    async def enable(identity: str, request: Request) -> Response:
        _query(request, set())
        return switch(identity, "ENABLE")

    @app.post(f"{API}/recurringruns/{{identity}}:disable")
    async def disable(identity: str, request: Request) -> Response:
        _query(request, set())
        return switch(identity, "DISABLE")

    @app.get(f"{API}/recurringruns/{{identity}}")
    async def get(identity: str, request: Request) -> Response:
        _query(request, set())
        return _answer(_get(server.recurring_runs, identity), "V2beta1RecurringRun")

    @app.delete(f"{API}/recurringruns/{{identity}}")
    async def delete(identity: str, request: Request) -> Response:
        policy = _query(request, {"propagation_policy"}).get("propagation_policy")
        if policy is not None:
            check_body(policy, "V2beta1DeletePropagationPolicy", "propagation_policy")
        _get(server.recurring_runs, identity)
        del server.recurring_runs[identity]
        if policy != "ORPHAN":  # Kubernetes collects the workflows that the schedule owns
            for run in server.runs.values():
                if run.get("recurring_run_id") == identity and "finished_at" not in run:
                    run.update(state="FAILED", finished_at=_now())
        return _answer({}, "object")


def _add_runs(app: FastAPI, server: KfpServer) -> None:
    @app.post(f"{API}/runs")
    async def create(request: Request) -> Response:
        _query(request, {"experiment_id"})
        return _answer(server.create_run(await _body(request, "V2beta1Run")), "V2beta1Run")

    @app.get(f"{API}/runs")
    async def list_runs(request: Request) -> Response:
        query = _query(request, _LISTING | {"namespace", "experiment_id"})
        return _page(server, server.visible(server.runs, query), query, "Runs")

    @app.post(f"{API}/runs/{{identity}}:terminate")
    async def terminate(identity: str, request: Request) -> Response:
        _query(request, set())
        _get(server.runs, identity).update(state="CANCELED", finished_at=_now())
        return _answer({}, "object")

    @app.get(f"{API}/runs/{{identity}}")
    async def get(identity: str, request: Request) -> Response:
        _query(request, {"experiment_id"})
        return _answer(_get(server.runs, identity), "V2beta1Run")


def _page(server: KfpServer, items: list[Record], query: dict[str, str], kind: str) -> Response:
    """A page of a listing; a token is good only for the criteria that it was made for."""
    model = f"V2beta1List{kind}Response"
    types = getattr(kfp_server_api, model).openapi_types
    listed = next(name for name, its_type in types.items() if its_type.startswith("list"))
    name = getattr(kfp_server_api, model).attribute_map[listed]
    wanted = _predicates(query.get("filter"))
    items = [item for item in items if all(item.get(key) == value for key, value in wanted)]
    key, _, direction = query.get("sort_by", "").partition(" ")
    _require(key in {"", *_SORTABLE} and direction in ("", "asc", "desc"), "a known sort_by")
    items.sort(key=lambda item: str(item.get(key or "created_at")), reverse=direction == "desc")
    criteria = [query.get("sort_by", ""), query.get("filter", "")]
    first = 0
    if query.get("page_token"):
        try:
            first, *made_for = json.loads(base64.b64decode(query["page_token"]))
        except ValueError as error:
            raise RefusedError(400, "Invalid page token") from error
        _require(made_for == criteria, "the page token's own sort_by and filter")
    size = min(int(query.get("page_size", 0)) or 20, server.largest_page)
    rest = len(items) - first - size
    token = base64.b64encode(json.dumps([first + size, *criteria]).encode()).decode()
    page = [_shown(item) for item in items[first : first + size]]
    answer = {name: page, "total_size": len(items), "next_page_token": token if rest > 0 else ""}
    return _answer(answer, model)


def _predicates(text: str | None) -> list[tuple[str, str]]:
    """Keys and values that a filter wants equal, the one operation that is known here."""
    if not text:
        return []
    renamed = text.replace('"stringValue":', '"string_value":')  # as the real server does
    values = json.loads(renamed)
    for predicate in values.get("predicates", []):
        if predicate.get("operation") == 1:
            predicate["operation"] = "EQUALS"
    check_body(values, "V2beta1Filter", "filter")
    for predicate in values["predicates"]:
        _require(predicate["operation"] == "EQUALS", "operation EQUALS")
        _require(predicate["key"] in _FILTERED, f"a key of {sorted(_FILTERED)}")
    return [(predicate["key"], predicate["string_value"]) for predicate in values["predicates"]]


def _query(request: Request, known: set[str]) -> dict[str, str]:
    given = dict(request.query_params)
    _require(set(given) <= known, f"no query but {sorted(known)}, not {sorted(given)}")
    return given


async def _body(request: Request, model: str) -> Record:
    body: Record = await request.json()
    check_body(body, model, model)
    return body


async def _file(request: Request) -> bytes:
    form = await request.form()
    _require(list(form) == ["uploadfile"], "one file, uploadfile")
    file = form["uploadfile"]
    _require(not isinstance(file, str), "a file")
    content: bytes = await file.read()  # type: ignore[union-attr]
    return content


def _parse_package(content: bytes) -> Record:
    documents = [document for document in yaml.load_all(content, yaml.CSafeLoader) if document]
    try:
        json_format.ParseDict(documents[0], pipeline_spec_pb2.PipelineSpec())
        for platform in documents[1:]:
            json_format.ParseDict(platform, pipeline_spec_pb2.PlatformSpec())
    except (IndexError, json_format.ParseError) as error:
        raise RefusedError(400, f"invalid v2 pipeline spec: {error}") from error
    if len(documents) == 1:
        return dict(documents[0])
    return {"pipeline_spec": documents[0], "platform_spec": documents[1]}


def _get(held: dict[str, Record], identity: str) -> Record:
    if identity not in held:
        raise RefusedError(404, f"{identity} not found")
    return held[identity]


def _answer(record: Record, model: str) -> Response:
    shown = _shown(record)
    check_body(shown, model, f"answer {model}")  # what this server says is held to the API too
    return JSONResponse(shown)


def _shown(record: Record) -> Record:
    return {name: _whole(value) for name, value in record.items() if value not in ("", False, None)}


def _whole(value: Any) -> Any:
    """Numbers as Go writes them: 1, not 1.0."""
    if isinstance(value, dict):
        return {key: _whole(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_whole(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _error(status: int, message: str) -> Response:
    body = {"code": _CODES.get(status, 2), "message": message, "details": []}
    return JSONResponse(body, status_code=status)


def _now() -> str:
    return datetime.now(UTC).isoformat().replace("+00:00", "Z")
