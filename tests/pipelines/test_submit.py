"""`backburn upload`, `submit` and `follow` with kfp's own client, and a store of MLflow."""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from backburn.components.shared.config import RunConfig
from backburn.components.shared.evidence import Summary
from backburn.components.shared.storage import write_json
from backburn.components.shared.tracking import PIPELINE_STEP, RUN_TAG, STEP_TAG
from backburn.pipelines import cli, submission
from mlflow.tracking import MlflowClient

from tests.kfp_api_server import KfpServer
from tests.serving import serving

PATIENCE_SECONDS = 60.0


class Done(NamedTuple):
    code: int
    out: str
    err: str


Command = Callable[..., Done]


@pytest.fixture
def backburn(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    for name in ("KFP_ENDPOINT", "KFP_NAMESPACE", "KFP_TOKEN", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)

    def run(*arguments: str) -> Done:
        monkeypatch.setattr(sys, "argv", ["backburn", *arguments])
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
def endpoint(server: KfpServer) -> Iterator[str]:
    with serving(server) as url:
        yield url


def summary(outcome: str, run_id: str) -> Summary:
    return Summary.model_validate(
        {
            "run_id": run_id, "outcome": outcome, "exit_code": 0 if outcome == "passed" else 1,
            "reasons": [f"it is {outcome}"], "figures": {"certificate": 0.9},
            "thresholds": {"certificate": 0.5}, "sources": {"certificate": "x"},
            "seconds": {"total": 1.0}, "registration": None, "report": "report.html",
            "evidence": "evidence.json", "tracking_uri": "http://mlflow", "tracking_run_id": "r",
        }
    )  # fmt: skip


class Cluster(threading.Thread):
    """Does what the tasks of a run do, as far as server and MLflow show it."""

    def __init__(self, server: KfpServer, store: str, outcome: str | None) -> None:
        super().__init__(daemon=True)
        self.server, self.store, self.outcome = server, store, outcome
        self.failures: list[str] = []

    def run(self) -> None:
        while not self.server.runs:
            time.sleep(0.02)
        (run,) = self.server.runs.values()
        time.sleep(0.3)
        self._show(run, "RUNNING", {"root": "RUNNING", "preflight": "SUCCEEDED"})
        time.sleep(0.3)
        if self.outcome is None:
            self._show(run, "FAILED", {"preflight": "SUCCEEDED", "rl-attack": "FAILED"})
            return
        self._write_result(run["run_id"])
        tasks = {"rl-attack-driver": "SUCCEEDED", "rl-attack": "SUCCEEDED"}
        self._show(run, "SUCCEEDED", {"preflight": "SUCCEEDED", **tasks})

    def _show(self, run: dict[str, Any], state: str, tasks: dict[str, str]) -> None:
        details = [{"display_name": name, "state": shown} for name, shown in tasks.items()]
        run.update(state=state, run_details={"task_details": details})

    def _write_result(self, run_id: str) -> None:
        assert self.outcome is not None
        client = MlflowClient(tracking_uri=self.store)
        folder = Path(self.store.removeprefix("sqlite:///")).parent
        experiment = client.create_experiment("e", artifact_location=(folder / "a").as_uri())
        run = client.create_run(experiment, tags={RUN_TAG: run_id, STEP_TAG: PIPELINE_STEP})
        write_json(folder / "summary.json", summary(self.outcome, run_id).model_dump(mode="json"))
        client.log_artifact(run.info.run_id, str(folder / "summary.json"))


def submit(
    backburn: Command, endpoint: str, server: KfpServer, store: str, outcome: str | None
) -> Done:
    cluster = Cluster(server, store, outcome)
    cluster.start()
    done = backburn(
        "submit", "-r", "smoke", "--endpoint", endpoint, "--interval", "0.1", "--timeout",
        str(PATIENCE_SECONDS), "--tracking-uri", store, "--set", "seed=3",
        "--set", "compute.service_account=runner",
    )  # fmt: skip
    cluster.join()
    return done


@pytest.mark.parametrize(("outcome", "code"), [("passed", 0), ("failed", 1), ("inconclusive", 1)])
def test_a_run_is_followed_to_the_gates_exit_code(
    outcome: str, code: int, backburn: Command, endpoint: str, server: KfpServer, tmp_path: Path
) -> None:
    done = submit(backburn, endpoint, server, f"sqlite:///{tmp_path / 'mlflow.db'}", outcome)
    assert done.code == code, done
    assert f"Gate: {outcome}" in done.out
    assert f"it is {outcome}" in done.out
    (run,) = server.runs.values()
    assert f"{endpoint}/#/runs/details/{run['run_id']}" in done.out
    assert "rl-attack: succeeded" in done.out
    assert "driver" not in done.out
    assert "root" not in done.out
    assert run["service_account"] == "runner"
    (version,) = server.versions.values()
    reference = run["pipeline_version_reference"]
    assert reference["pipeline_version_id"] == version["pipeline_version_id"]
    given = run["runtime_config"]["parameters"]
    inputs = server.spec_of(reference)["root"]["inputDefinitions"]["parameters"]
    assert set(given) == set(inputs)
    assert RunConfig.from_json(given["config"]).seed == 3


def test_a_failed_task_is_named(
    backburn: Command, endpoint: str, server: KfpServer, tmp_path: Path
) -> None:
    done = submit(backburn, endpoint, server, f"sqlite:///{tmp_path / 'mlflow.db'}", None)
    assert done.code == 1
    assert "ended failed: rl-attack" in done.err


def test_an_outcome_that_cannot_be_read_is_no_success(
    backburn: Command, endpoint: str, server: KfpServer, tmp_path: Path
) -> None:
    started = backburn("submit", "-r", "smoke", "--endpoint", endpoint, "--no-wait")
    assert started.code == 0, started
    (run,) = server.runs.values()
    assert f"backburn follow {run['run_id']}" in started.out
    run["state"] = "SUCCEEDED"
    follow = ("follow", run["run_id"], "--endpoint", endpoint, "--interval", "0.1")
    unsaid = backburn(*follow)
    assert unsaid.code == 1
    assert "--tracking-uri" in unsaid.err
    dead = backburn(*follow, "--tracking-uri", "http://127.0.0.1:9")
    assert dead.code == 1
    assert "could not be read" in dead.err
    empty = backburn(*follow, "--tracking-uri", f"sqlite:///{tmp_path / 'mlflow.db'}")
    assert empty.code == 1
    assert "no run there belongs" in empty.err


def test_waiting_survives_a_server_that_fails_for_a_while(
    backburn: Command, endpoint: str, server: KfpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    backburn("submit", "-r", "smoke", "--endpoint", endpoint, "--no-wait")
    (run,) = server.runs.values()
    server.failures[f"GET .*/runs/{run['run_id']}"] = 503
    answers: list[Done] = []
    follow = ("follow", run["run_id"], "--endpoint", endpoint, "--interval", "0.1")

    def mend() -> None:
        while sum(run["run_id"] in line for line in server.requests) < 2:
            time.sleep(0.05)
        run["state"] = "CANCELED"
        server.failures.clear()

    mender = threading.Thread(target=mend, daemon=True)
    mender.start()
    answers.append(backburn(*follow))
    mender.join()
    assert answers[0].code == 1
    assert "ended canceled" in answers[0].err
    monkeypatch.setattr(submission, "_PATIENCE_SECONDS", 0.5)
    server.failures[f"GET .*/runs/{run['run_id']}"] = 503
    assert backburn(*follow).code == 1


def test_time_is_limited_and_the_run_goes_on(
    backburn: Command, endpoint: str, server: KfpServer
) -> None:
    done = backburn(
        "submit", "-r", "smoke", "--endpoint", endpoint, "--interval", "0.1", "--timeout", "0.3"
    )
    assert done.code == 1
    assert "it goes on" in done.err
    (run,) = server.runs.values()
    assert run["state"] == "PENDING"


def test_the_same_content_is_uploaded_once(
    backburn: Command, endpoint: str, server: KfpServer
) -> None:
    first = backburn("upload", "-r", "smoke", "--endpoint", endpoint)
    again = backburn("upload", "-r", "smoke", "--endpoint", endpoint)
    assert (first.code, again.code) == (0, 0)
    assert "(uploaded)" in first.out
    assert "(there already)" in again.out
    backburn("upload", "-r", "smoke", "--set", "audit={}", "--endpoint", endpoint)
    names = {item["name"] for item in server.pipelines.values()}
    assert names == {"backburn-harden", "backburn-audit"}
    assert len(server.versions) == 2
    assert not server.runs


def test_nothing_is_sent_for_a_bad_recipe_or_to_a_dead_server(
    backburn: Command, endpoint: str, server: KfpServer
) -> None:
    bad = backburn("submit", "-r", "smoke", "--set", "attack.arms=[]", "--endpoint", endpoint)
    assert bad.code == 2
    assert not server.requests
    dead = backburn("submit", "-r", "smoke", "--endpoint", "http://127.0.0.1:9")
    assert dead.code == 2
    assert "no Kubeflow Pipelines at http://127.0.0.1:9" in dead.err
