"""`backburn schedule` with kfp's own client, against a server that speaks the v2beta1 API."""

import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import kfp
import kfp_server_api
import pytest
import yaml
from backburn.components.shared.config import RunConfig
from backburn.components.shared.errors import InputError
from backburn.components.shared.signing import new_key, public_key_of
from backburn.pipelines import cli, kfp_server
from backburn.pipelines.compilation import BUILDERS, compile_pipeline
from backburn.pipelines.cron import check_cron
from backburn.pipelines.kfp_server import Server, client_of
from backburn.pipelines.recipes import load_recipe
from backburn.pipelines.schedules import pipeline_name
from fastapi.responses import HTMLResponse, RedirectResponse
from kfp import compiler, dsl

from tests.kfp_api_server import KfpServer
from tests.serving import serving

CRON = "0 0 3 * * 1"
OWN_ID = "{{$.pipeline_job_uuid}}"


class Done(NamedTuple):
    code: int
    out: str
    err: str


Command = Callable[..., Done]


@pytest.fixture
def backburn(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """The command, in this process."""
    for name in ("KFP_ENDPOINT", "KFP_NAMESPACE", "KFP_TOKEN"):
        monkeypatch.delenv(name, raising=False)

    def run(*arguments: str) -> Done:
        monkeypatch.setattr(sys, "argv", ["backburn", "schedule", *arguments])
        capsys.readouterr()
        code = 0
        try:
            cli.main()
        except SystemExit as end:
            code = int(end.code or 0)
        return Done(code, *capsys.readouterr())

    return run


@pytest.fixture
def server() -> KfpServer:
    return KfpServer()


@pytest.fixture
def endpoint(
    server: KfpServer, monkeypatch: pytest.MonkeyPatch, backburn: Command
) -> Iterator[str]:
    with serving(server) as url:
        monkeypatch.setenv("KFP_ENDPOINT", url)
        yield url


@pytest.fixture
def client(endpoint: str) -> Iterator[kfp.Client]:
    with client_of(Server(endpoint)) as client:
        yield client


def put(backburn: Command, name: str, *more: str, cron: str = CRON, code: int = 0) -> Done:
    done = backburn("harden", name, "-r", "smoke", "--cron", cron, *more)
    assert done.code == code, done
    return done


def only(server: KfpServer) -> dict[str, Any]:
    (job,) = server.recurring_runs.values()
    return job


def posts(server: KfpServer) -> list[str]:
    return [line for line in server.requests if not line.startswith("GET ")]


def test_a_schedule_is_pinned_and_has_every_parameter(
    backburn: Command, server: KfpServer, endpoint: str
) -> None:
    done = put(backburn, "weekly", "--max-concurrency", "2", "--set", "seed=7")
    job = only(server)
    (version,) = server.versions.values()
    reference = job["pipeline_version_reference"]
    assert reference["pipeline_version_id"] == version["pipeline_version_id"]
    assert server.pipelines[reference["pipeline_id"]]["name"] == "backburn-harden"
    assert job["display_name"] == "weekly"
    assert job["trigger"] == {"cron_schedule": {"cron": CRON}}
    assert job["mode"] == "ENABLE"
    assert job["max_concurrency"] == "2"
    assert job["no_catchup"] is True

    given = job["runtime_config"]["parameters"]
    inputs = version["pipeline_spec"]["pipeline_spec"]["root"]["inputDefinitions"]["parameters"]
    assert set(given) == set(inputs) - {"run_id"} == {"config", "control_groups", "attack_groups"}
    config = load_recipe("smoke", ["seed=7"])
    assert RunConfig.from_json(given["config"]) == config
    assert server.experiments[job["experiment_id"]]["display_name"] == "backburn-smoke"

    assert "created schedule weekly" in done.out
    assert version["display_name"].removeprefix("backburn-harden-") in done.out
    shown = json.loads(backburn("show", "weekly", "--json").out)
    assert shown[0]["config_digest"] == config.digest()
    assert shown[0]["parameters"]["config"] == config.to_json()
    assert config.digest()[:16] in backburn("show", "weekly").out


def test_the_same_again_changes_nothing(
    backburn: Command, server: KfpServer, endpoint: str
) -> None:
    put(backburn, "weekly")
    before, made = only(server)["recurring_run_id"], posts(server)
    done = put(backburn, "weekly", cron=" 0 0  3 * * 1")
    assert "unchanged schedule weekly" in done.out
    assert only(server)["recurring_run_id"] == before
    assert posts(server) == made
    other = put(backburn, "nightly", cron="@daily")
    assert "created" in other.out
    assert len(server.versions) == 1  # of the same content


def test_an_update_replaces_and_keeps_runs_in_progress(
    backburn: Command, server: KfpServer, endpoint: str
) -> None:
    put(backburn, "weekly")
    old = only(server)["recurring_run_id"]
    run = server.fire(old)
    done = put(backburn, "weekly", cron="0 0 4 * * 1")
    assert "updated schedule weekly" in done.out
    job = only(server)
    assert job["recurring_run_id"] != old
    assert job["trigger"]["cron_schedule"]["cron"] == "0 0 4 * * 1"
    assert len(server.versions) == 1
    assert server.runs[run]["state"] == "PENDING"
    changes = posts(server)[-2:]
    assert changes[0].startswith("POST")  # created first
    assert changes[1].startswith("DELETE")

    put(backburn, "weekly", "--set", "seed=1", cron="0 0 4 * * 1")
    assert len(server.versions) == 2
    newest = list(server.versions)[-1]
    assert only(server)["pipeline_version_reference"]["pipeline_version_id"] == newest


def test_a_failed_update_keeps_the_old(backburn: Command, server: KfpServer, endpoint: str) -> None:
    put(backburn, "weekly")
    before = only(server)
    server.failures["POST .*/recurringruns"] = 500
    done = put(backburn, "weekly", cron="0 0 4 * * 1", code=1)
    assert "the server failed: made to fail" in done.err
    assert only(server) is before
    server.failures = {"POST .*/recurringruns": 400}
    done = put(backburn, "weekly", cron="0 0 4 * * 1", code=2)
    assert "refused: made to fail" in done.err
    assert only(server) is before


def test_an_update_that_could_not_delete_is_ended_by_the_same_command(
    backburn: Command, server: KfpServer, endpoint: str
) -> None:
    put(backburn, "weekly")
    server.failures["DELETE .*"] = 500
    done = put(backburn, "weekly", cron="0 0 4 * * 1", code=1)
    assert "Give the same command again" in done.err
    assert len(server.recurring_runs) == 2
    new = list(server.recurring_runs)[-1]
    server.failures.clear()
    assert "updated" in put(backburn, "weekly", cron="0 0 4 * * 1").out
    assert only(server)["recurring_run_id"] == new


def test_pause_resume_remove(backburn: Command, server: KfpServer, endpoint: str) -> None:
    put(backburn, "weekly")
    run = server.fire(only(server)["recurring_run_id"])
    assert "paused schedule weekly" in backburn("pause", "weekly").out
    assert only(server)["status"] == "DISABLED"
    put(backburn, "weekly", cron="0 0 4 * * 1")
    assert only(server)["status"] == "DISABLED", "an update must not wake a paused schedule"
    assert "resumed schedule weekly" in backburn("resume", "weekly").out
    assert only(server)["status"] == "ENABLED"
    put(backburn, "weekly", "--paused", cron="0 0 4 * * 1")
    assert only(server)["status"] == "DISABLED"
    assert "removed schedule weekly" in backburn("remove", "weekly").out
    assert not server.recurring_runs
    assert server.runs[run]["state"] == "PENDING"
    for action in ("show", "pause", "resume", "remove"):
        done = backburn(action, "weekly")
        assert done.code == 2
        assert "no schedule 'weekly': there is none here" in done.err


@pytest.mark.parametrize("server", [KfpServer(largest_page=2)])
def test_list_reads_every_page_and_no_foreign_schedules(
    backburn: Command, server: KfpServer, endpoint: str, client: kfp.Client, tmp_path: Path
) -> None:
    for number in range(5):
        put(backburn, f"number-{number}", cron=f"0 {number} 3 * * *")
    foreign = client.upload_pipeline(compile_small("other", tmp_path), "other")
    (version,) = client.list_pipeline_versions(foreign.pipeline_id).pipeline_versions
    client.create_recurring_run(
        next(iter(server.experiments)),
        "number-0",
        cron_expression="0 0 0 * * *",
        params={"config": "x"},
        pipeline_id=foreign.pipeline_id,
        version_id=version.pipeline_version_id,
    )
    first = next(iter(server.recurring_runs))
    server.fire(first)
    newest = server.fire(first)
    server.requests.clear()

    listed = json.loads(backburn("list", "--json").out)
    assert [item["name"] for item in listed] == [f"number-{number}" for number in range(5)]
    assert sum(line.endswith("/recurringruns") for line in server.requests) == 3
    assert listed[0]["last_run"]["run_id"] == newest
    assert listed[1]["last_run"] is None
    assert listed[0]["config_digest"] == load_recipe("smoke").digest()
    assert all("parameters" not in item for item in listed)
    table = backburn("list").out
    assert "0 4 3 * * *" in table
    assert "pending" in table
    assert "other" not in table

    backburn("remove", "number-0")
    assert len(server.recurring_runs) == 5, "the foreign one of that name stays"
    done = backburn("pause", "number-9")
    assert "there are number-1, number-2, number-3, number-4" in done.err


def test_a_version_that_was_deleted_is_called_so(
    backburn: Command, server: KfpServer, endpoint: str
) -> None:
    put(backburn, "weekly")
    server.versions.clear()
    assert "deleted: its runs fail" in backburn("list").out
    assert json.loads(backburn("list", "--json").out)[0]["version"] is None


def test_a_clone_gets_the_same_parameters(
    backburn: Command, server: KfpServer, client: kfp.Client
) -> None:
    put(backburn, "weekly")
    job = client.get_recurring_run(only(server)["recurring_run_id"])
    reference = job.pipeline_version_reference
    clone = client.run_pipeline(
        job.experiment_id,
        "clone",
        params=job.runtime_config.parameters,
        pipeline_id=reference.pipeline_id,
        version_id=reference.pipeline_version_id,
    )
    scheduled = client.get_run(server.fire(job.recurring_run_id))
    cloned = client.get_run(clone.run_id)
    assert cloned.runtime_config.parameters == scheduled.runtime_config.parameters
    config = RunConfig.from_json(cloned.runtime_config.parameters["config"])
    assert config == load_recipe("smoke")
    assert OWN_ID not in json.dumps(cloned.runtime_config.parameters)
    with pytest.raises(kfp_server_api.ApiException, match="not required by pipeline"):
        client.run_pipeline(
            job.experiment_id,
            "wrong",
            params={**job.runtime_config.parameters, "run_id": OWN_ID},
            pipeline_id=reference.pipeline_id,
            version_id=reference.pipeline_version_id,
        )


@pytest.mark.parametrize("overrides", [[], ["audit={}"]])
def test_every_task_gets_its_run_s_own_id(overrides: list[str], tmp_path: Path) -> None:
    """KFP's backend resolves the placeholder as a task's constant, and nowhere else."""
    config = load_recipe("smoke", overrides)
    spec = next(
        yaml.safe_load_all(compile_pipeline(config, tmp_path / "p.yaml").read_text("utf-8"))
    )
    assert spec["pipelineInfo"]["name"] == pipeline_name(config.pipeline)
    assert OWN_ID not in json.dumps(spec["root"]["inputDefinitions"])
    dags = [spec["root"], *spec["components"].values()]
    tasks = [task for dag in dags for task in dag.get("dag", {}).get("tasks", {}).values()]
    ids = [
        task["inputs"]["parameters"]["run_id"]
        for task in tasks
        if "run_id" in task.get("inputs", {}).get("parameters", {})
    ]
    assert len(ids) == len([t for t in tasks if "run_id" in inputs_of(spec, t)]) > 3
    assert all(given == {"runtimeValue": {"constant": OWN_ID}} for given in ids)


def inputs_of(spec: dict[str, Any], task: dict[str, Any]) -> dict[str, Any]:
    component = spec["components"][task["componentRef"]["name"]]
    found: dict[str, Any] = component.get("inputDefinitions", {}).get("parameters", {})
    return found


def test_every_pipeline_has_its_command(backburn: Command) -> None:
    for name in BUILDERS:
        assert "Create or update a schedule" in backburn(name, "--help").out


def compile_small(name: str, folder: Path) -> str:
    @dsl.component(base_image="python:3.11")  # type: ignore[untyped-decorator]
    def step(config: str) -> None:
        pass

    @dsl.pipeline(name=name)  # type: ignore[untyped-decorator]
    def small(config: str = "{}") -> None:
        step(config=config)

    path = folder / f"{name}.yaml"
    compiler.Compiler().compile(small, str(path))
    return str(path)


def test_an_audit_s_schedule(
    backburn: Command, server: KfpServer, endpoint: str, tmp_path: Path
) -> None:
    public = tmp_path / "backburn.pem"
    public.write_text(public_key_of(new_key()), "utf-8")
    terms = ("-r", "smoke", "--cron", CRON)
    one_line(backburn("audit", *terms), "say whose signature counts")
    done = backburn(
        "audit", *terms, "--key", str(public), "--model", "models:/m@champion", "--report-only"
    )
    assert "created schedule audit" in done.out
    job = only(server)
    (pipeline,) = server.pipelines.values()
    assert pipeline["name"] == "backburn-audit"
    config = RunConfig.from_json(job["runtime_config"]["parameters"]["config"])
    assert config.audit is not None
    assert config.audit.model == "models:/m@champion"
    assert config.audit.on_failure == "report"
    assert config.audit.trusted_key == public.read_text("utf-8")
    assert config.model_copy(update={"audit": None}) == load_recipe("smoke")

    done = backburn("audit", *terms, "--any-key")
    assert "updated schedule audit" in done.out
    assert RunConfig.from_json(only(server)["runtime_config"]["parameters"]["config"]).audit
    done = put(backburn, "audit", code=2)
    assert "schedule 'audit' runs backburn-audit: choose another name" in done.err
    put(backburn, "weekly")
    listed = json.loads(backburn("list", "--json").out)
    assert [item["pipeline"] for item in listed] == ["backburn-audit", "backburn-harden"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["harden", "--set", "audit={}"], "use `backburn schedule audit`"),
        (["audit", "--any-key", "--model", "m"], "audit.model: "),
        (["audit", "--key", "absent.pem"], "--key absent.pem: cannot be read"),
        (["audit", "--key", __file__], "audit.trusted_key: "),
    ],
)
def test_what_no_audit_can_be(
    arguments: list[str], message: str, backburn: Command, server: KfpServer, endpoint: str
) -> None:
    done = backburn(*arguments, "-r", "smoke", "--cron", CRON)
    assert done.code == 2
    assert message in done.err
    assert not server.requests


def test_parameters_that_somebody_broke(
    backburn: Command, server: KfpServer, client: kfp.Client
) -> None:
    put(backburn, "weekly")
    job = client.get_recurring_run(only(server)["recurring_run_id"])
    client.create_recurring_run(
        job.experiment_id,
        "by-hand",
        interval_second=3600,
        params={**job.runtime_config.parameters, "config": "no JSON"},
        pipeline_id=job.pipeline_version_reference.pipeline_id,
        version_id=job.pipeline_version_reference.pipeline_version_id,
    )
    assert json.loads(backburn("list", "--json").out)[0]["config_digest"] is None
    shown = backburn("show", "by-hand").out
    assert "not JSON" in shown
    assert "by interval" in shown


@pytest.mark.parametrize(
    ("cron", "message"),
    [
        ("0 3 * * 1", "five fields, as crontab has them. KFP wants six, seconds first, and would "
         "read this as another time; write '0 0 3 * * 1'"),
        ("0 0 3 * * 1 2026", "7 field(s) instead of six"),
        ("", "0 field(s) instead of six"),
        ("@noon", "1 field(s) instead of six"),
        ("0 60 3 * * 1", "minute '60': '60' is not within 0 to 59, in ascending order"),
        ("0 0 24 * * 1", "hour '24'"),
        ("0 0 3 0 * ?", "day of month '0'"),
        ("0 0 3 * 13 1", "'13' is not within 1 to 12 or jan to dec"),
        ("0 0 3 * * 7", "day of week '7': '7' is not within 0 to 6 or sun to sat"),
        ("0 0 3 * * fri-mon", "in ascending order"),
        ("0 0 3 L * ?", "day of month 'L'"),
        ("0 */0 3 * * 1", "the step must be at least 1"),
        ("0 0 3,,4 * * 1", "hour '3,,4': '' is not"),
        ("0 0 *-5 * * 1", "hour '*-5'"),
        ("x 61 3 * * 1", "second 'x': 'x' is not within 0 to 59, in ascending order; minute '61'"),
    ],
)  # fmt: skip
def test_a_wrong_cron_text_is_explained_before_any_call(
    cron: str, message: str, backburn: Command, server: KfpServer, endpoint: str
) -> None:
    assert message in " ".join(put(backburn, "weekly", cron=cron, code=2).err.split())
    assert not server.requests


@pytest.mark.parametrize(
    "cron",
    [CRON, "*/10 5/15 1-5,23 ? JAN-mar,12 SUN-6/2", "0 0 0 31 12 *", "@weekly", "59 59 23 1 1 0"],
)
def test_right_cron_texts(cron: str) -> None:
    assert check_cron(f" {cron} ") == cron


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-r", "nothing"], "no recipe 'nothing'"),
        (["-r", "smoke", "--set", "domain.name=cooking"], "only reads the toy grammar"),
        (["-r", "laptop", "--set", "data.near_duplicate_threshold=0.2"], "nearly the same prompt"),
        (["-r", "smoke", "--max-concurrency", "11"], "--max-concurrency"),
    ],
)
def test_a_wrong_recipe_is_refused_before_any_call(
    arguments: list[str], message: str, backburn: Command, server: KfpServer, endpoint: str
) -> None:
    done = backburn("harden", *arguments, "--cron", CRON)
    assert done.code == 2
    assert message in done.err
    assert not server.requests


def test_without_a_name_it_is_the_pipeline_s(
    backburn: Command, server: KfpServer, endpoint: str
) -> None:
    assert backburn("harden", "-r", "smoke", "--cron", CRON).code == 0
    assert only(server)["display_name"] == "harden"
    assert backburn("harden", " ", "-r", "smoke", "--cron", CRON).code == 2


def one_line(done: Done, message: str) -> None:
    assert done.code == 2, done
    assert message in done.err
    assert len(done.err.splitlines()) == 1, done.err


def test_a_dead_server(backburn: Command) -> None:
    start = time.perf_counter()
    one_line(backburn("list", "--endpoint", "http://127.0.0.1:9"), "Connection refused. Correct")
    one_line(backburn("list", "--endpoint", "http://no.such.host.invalid"), "no Kubeflow Pipelines")
    assert time.perf_counter() - start < 10


def test_a_server_that_does_not_answer(
    backburn: Command, server: KfpServer, endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kfp_server, "_SECONDS", (1, 1))
    server.delay = 4
    start = time.perf_counter()
    one_line(backburn("list"), "timed out")
    assert time.perf_counter() - start < 3


def test_what_is_no_kfp_server(backburn: Command, server: KfpServer, endpoint: str) -> None:
    secure = endpoint.replace("http:", "https:")
    one_line(backburn("list", "--endpoint", secure), f"no Kubeflow Pipelines at {secure}: ")
    one_line(backburn("list", "--endpoint", f"{endpoint}/pipeline"), "(404 Not Found): not there")
    one_line(backburn("list", "--endpoint", "127.0.0.1:8888"), "give http://host or https://host")
    done = backburn("list", "--endpoint", "http://me:hunter2@127.0.0.1")
    one_line(done, "without user and password")
    assert "hunter2" not in done.err
    one_line(backburn("list", "--ca-cert", "absent.pem"), "--ca-cert absent.pem: no such file")

    @server.app.get("/ui/apis/v2beta1/healthz")
    async def page() -> HTMLResponse:
        return HTMLResponse("<html>Sign in</html>")

    @server.app.get("/old/apis/v2beta1/healthz")
    async def redirect() -> RedirectResponse:
        return RedirectResponse("/dex/auth?state=s3cret")

    one_line(backburn("list", "--endpoint", f"{endpoint}/ui"), "it answers with text/html")
    done = backburn("list", "--endpoint", f"{endpoint}/old")
    one_line(done, "it redirects to /dex/auth. Give that address, or set KFP_TOKEN")
    server.failures["GET .*"] = 503
    done = backburn("list")
    assert done.code == 1
    assert "(503 Service Unavailable): the server failed: made to fail" in done.err


@pytest.mark.parametrize("server", [KfpServer(token="s3cret")])
def test_tokens(
    backburn: Command, server: KfpServer, endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    one_line(backburn("list"), "(401 Unauthorized): not signed in, set KFP_TOKEN")
    monkeypatch.setenv("KFP_TOKEN", "wr0ng")
    done = backburn("list")
    one_line(done, "not signed in, correct KFP_TOKEN")
    assert "wr0ng" not in done.err
    monkeypatch.setenv("KFP_TOKEN", "s3cret")
    assert "no schedules" in backburn("list").out
    done = put(backburn, "weekly")
    assert "s3cret" not in done.out + done.err + json.dumps([*server.recurring_runs.values()])
    assert "s3cret" not in repr(Server(endpoint))


@pytest.mark.parametrize("server", [KfpServer(namespaces=("team", "others"))])
def test_namespaces(
    backburn: Command, server: KfpServer, endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    one_line(backburn("list"), "has a namespace for each user: give --namespace")
    one_line(backburn("list", "-n", "absent"), "namespace 'absent' is not there or not yours")
    monkeypatch.setenv("KFP_NAMESPACE", "team")
    put(backburn, "weekly")
    put(backburn, "weekly", "-n", "others")
    assert {job["namespace"] for job in server.recurring_runs.values()} == {"team", "others"}
    assert {one["namespace"] for one in server.pipelines.values()} == {"team", "others"}
    assert len(json.loads(backburn("list", "--json").out)) == 1
    assert backburn("remove", "weekly").code == 0
    assert only(server)["namespace"] == "others"


def test_the_server_of_these_tests_is_strict(
    endpoint: str, client: kfp.Client, tmp_path: Path
) -> None:
    api = client.pipelines.api_client
    for path, body in [
        ("recurringruns", {"display_name": "x", "cron": CRON}),
        ("recurringruns", {"display_name": "x", "mode": "ENABLED", "max_concurrency": "1"}),
        ("recurringruns", {"display_name": "x", "max_concurrency": "0"}),
        ("runs", {"display_name": 3}),
        ("experiments", {"display_name": "x", "storage_state": "GONE"}),
        ("jobs", {}),
        ("recurringruns?colour=red", None),
        ("recurringruns?sort_by=colour", None),
        ("recurringruns?page_token=!", None),
        ('pipelines?filter={"predicates":[{"operation":1,"key":"colour"}]}', None),
    ]:
        with pytest.raises(kfp_server_api.ApiException) as refused:
            api.call_api(
                f"/apis/v2beta1/{path}",
                "GET" if body is None else "POST",
                header_params={"Content-Type": "application/json"},
                body=body,
            )
        assert 400 <= refused.value.status < 500, path
    broken = tmp_path / "broken.yaml"
    broken.write_text("pipelineInfo: {name: x}\nroot: {colour: red}\n", "utf-8")
    with pytest.raises(kfp_server_api.ApiException, match="400"):
        client.pipeline_uploads.upload_pipeline(str(broken), name="x")


def test_an_endpoint_is_checked() -> None:
    with pytest.raises(InputError, match="--endpoint"):
        Server("ftp://x")
