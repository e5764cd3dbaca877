"""The notification step against real receivers, and a real MLflow store."""

import base64
import contextlib
import hashlib
import hmac
import json
import logging
import re
import shutil
import socket
import time
from pathlib import Path
from typing import Any

import pytest
from backburn.components.notification.component import notification
from backburn.components.notification.event import Notification
from backburn.components.notification.slack import slack_message
from backburn.components.notification.step import run
from backburn.components.shared.config import NotificationConfig, RunConfig, configure
from backburn.components.shared.errors import InputError
from backburn.components.shared.evidence import Decision
from backburn.components.shared.storage import write_json
from backburn.components.shared.tracking import StepRun, client, open_parent
from backburn.pipelines.compilation import compile_pipeline
from backburn.pipelines.recipes import load_recipe
from kfp import dsl
from mlflow.tracking import MlflowClient
from typer.testing import CliRunner

from tests.notification.receiver import Receiver, receiver
from tests.shared.evidence_samples import RUN_ID, sample_decision

URL, KEY = "BACKBURN_WEBHOOK_URL", "BACKBURN_WEBHOOK_KEY"
KEY_BYTES = bytes(range(32))
SECRET = "whsec_" + base64.b64encode(KEY_BYTES).decode()
ROOT = Path(__file__).parents[2]
MARKER = "MARKER-raw-text-of-a-row"


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Making one takes MLflow some seconds."""
    store = tmp_path_factory.mktemp("store") / "mlflow.db"
    MlflowClient(f"sqlite:///{store}").search_experiments()
    return store


@pytest.fixture
def config(tmp_path: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    for name in ("MLFLOW_RUN_ID", "MLFLOW_TRACKING_URI", URL):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(KEY, SECRET)
    return with_settings(tmp_path)


def with_settings(tmp_path: Path, *overrides: str) -> RunConfig:
    values = {"tracking": {"uri": f"sqlite:///{tmp_path}/mlflow.db"}}
    limits = ["notification.total_seconds=3", "notification.request_seconds=1"]
    return configure(values, [*limits, *overrides], "a test")


def finish(config: RunConfig, decision: Decision, folder: Path) -> str:
    """Put into MLflow what the promotion step leaves there; returns the parent's id."""
    parent = open_parent(config, RUN_ID, artifact_root=folder / "artifacts")
    mlflow = client(config)
    write_json(folder / "decision.json", decision.model_dump(mode="json"))
    mlflow.log_artifact(parent, str(folder / "decision.json"))
    mlflow.set_tag(parent, "backburn.outcome", decision.outcome)
    if decision.outcome == "passed":
        mlflow.set_tag(parent, "backburn.claim", "resists RL fine-tuning under budget: 5 arms")
    return parent


def body(got: Receiver) -> dict[str, Any]:
    (request,) = got.requests
    found: dict[str, Any] = json.loads(request.body)
    return found


def verified(request: Any) -> bool:
    """By the specification, with none of the sender's code."""
    signed = f"{request.headers['webhook-id']}.{request.headers['webhook-timestamp']}.".encode()
    expected = hmac.new(KEY_BYTES, signed + request.body, hashlib.sha256).digest()
    version, _, signature = request.headers["webhook-signature"].partition(",")
    assert abs(int(request.headers["webhook-timestamp"]) - time.time()) < 60
    return version == "v1" and hmac.compare_digest(base64.b64decode(signature), expected)


def test_a_passed_run_is_told_in_full_and_signed(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decision = sample_decision()
    parent = finish(config, decision, tmp_path)
    with receiver() as got:
        monkeypatch.setenv(URL, got.url)
        told = Notification.model_validate_json(run(config.to_json(), RUN_ID, "SUCCEEDED"))
    assert verified(got.requests[0])
    assert Notification.model_validate(body(got)) == told
    assert (told.outcome, told.state, told.pipeline) == ("passed", "SUCCEEDED", "harden")
    assert told.claim == "resists RL fine-tuning under budget: 5 arms"
    assert [figure.name for figure in told.figures] == [check.name for check in decision.checks]
    assert told.reasons == decision.reasons
    assert told.registration is not None
    assert told.registration.version == "3"
    assert told.links.mlflow_run is None  # a store without a server has no pages
    assert not told.unknown
    assert client(config).get_run(parent).info.status == "FINISHED"


def test_links_lead_to_a_server(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from backburn.components.notification.record import RunRecord
    from backburn.components.notification.step import describe

    decision = sample_decision(uri="https://user:word@mlflow.example/x?token=1")
    record = RunRecord(
        decision.tracked, {"kfp.pipeline_run_url": "https://kfp.example/#/runs/1"}, decision
    )
    links = describe(config, RUN_ID, "SUCCEEDED", record).links
    page = "https://mlflow.example/x/#/experiments/7/runs/2ea1c961f6ae40f2"
    assert (links.mlflow_run, links.report) == (page, f"{page}/artifacts/report.html")
    name = decision.registration.name if decision.registration else ""
    assert links.version == f"https://mlflow.example/x/#/models/{name}/versions/3"
    assert links.pipeline_run == "https://kfp.example/#/runs/1"


def test_a_failed_step_is_named_and_nothing_raw_leaves(
    config: RunConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    parent = open_parent(config, RUN_ID, artifact_root=tmp_path / "artifacts")
    with contextlib.suppress(ValueError), StepRun(config, RUN_ID, "data_prep") as step:
        step.parameters({"prompt": MARKER})
        raise ValueError(f"row 7 is unusable: {MARKER}")
    status = dsl.PipelineTaskFinalStatus("FAILED", "job", "group", 9, f"Traceback: {MARKER}")
    with receiver() as got:
        monkeypatch.setenv(URL, got.url)
        returned = notification.python_func(config=config.to_json(), run_id=RUN_ID, status=status)
    told = body(got)
    assert (told["outcome"], told["failed_step"], told["error"]) == (
        "none",
        "data_prep",
        "ValueError",
    )
    assert verified(got.requests[0])
    output = capsys.readouterr()
    for text in (got.requests[0].body.decode(), str(got.requests[0].headers), returned, output.out):
        assert MARKER not in text
    page = client(config).get_run(parent)
    assert page.info.status == "FAILED"
    note = page.data.tags["mlflow.note.content"]
    assert "pipeline ended FAILED" in note
    assert "`data_prep`" in note
    assert MARKER not in str(page.data.tags)


def test_a_task_that_was_killed_is_named_and_closed(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_parent(config, RUN_ID, artifact_root=tmp_path / "artifacts")
    killed = StepRun(config, RUN_ID, "certification")
    with receiver() as got:
        monkeypatch.setenv(URL, got.url)
        run(config.to_json(), RUN_ID, "FAILED")
    assert (body(got)["failed_step"], body(got)["error"]) == ("certification", None)
    assert client(config).get_run(killed.id).info.status == "KILLED"


def test_an_audit_says_what_it_audited(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parent = finish(config, sample_decision(outcome="failed"), tmp_path)
    for name, value in {
        "pipeline": "audit",
        "audited": "models:/guarded/3",
        "audit_action": "demoted",
    }.items():
        client(config).set_tag(parent, f"backburn.{name}", value)
    with receiver() as got:
        monkeypatch.setenv(URL, got.url)
        run(config.to_json(), RUN_ID, "SUCCEEDED")
    told = body(got)
    assert (told["pipeline"], told["outcome"], told["claim"]) == ("audit", "failed", None)
    assert told["audited"] == {"version": "models:/guarded/3", "action": "demoted"}


@pytest.mark.parametrize(
    ("answers", "requests"),
    [
        (["500", "503", "200"], 3),
        (["429 retry-after=1", "200"], 2),
        (["drop", "noise", "200"], 3),
        (["hang", "200"], 2),
        (["404", "200"], 1),
        (["410", "200"], 1),
        (["204"], 1),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else str(value),
)
def test_what_may_help_is_tried_again_with_the_same_id(
    answers: list[str],
    requests: int,
    config: RunConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = with_settings(tmp_path, "notification.total_seconds=20")
    with receiver(*answers) as got:
        monkeypatch.setenv(URL, got.url)
        run(config.to_json(), RUN_ID, "SUCCEEDED")
    assert len(got.requests) == requests
    assert all(verified(request) for request in got.requests)
    assert len({request.headers["webhook-id"] for request in got.requests}) == 1
    assert len({request.body for request in got.requests}) == 1
    if answers[0].startswith("429"):
        assert got.requests[1].at - got.requests[0].at >= 1.0


@pytest.mark.parametrize(
    "answer", ["500", "hang", "drip", "noise", "drop", "429 retry-after=86400", "dead"]
)
def test_a_bad_receiver_neither_fails_nor_holds_up_the_run(
    answer: str,
    config: RunConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    finish(config, sample_decision(), tmp_path)
    with receiver(answer) as got:
        url = got.url if answer != "dead" else f"http://127.0.0.1:{unused_port()}/SECRETPATH"
        monkeypatch.setenv(URL, url)
        start = time.monotonic()
        told = run(config.to_json(), RUN_ID, "SUCCEEDED")
        took = time.monotonic() - start
    assert took < config.notification.total_seconds + 2  # asking MLflow is in it
    assert json.loads(told)["outcome"] == "passed"
    assert f"{URL}: not delivered" in capsys.readouterr().out


def unused_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.mark.parametrize("status", ["301", "302", "307", "308"])
def test_a_redirect_is_not_followed(
    status: str, config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    with receiver() as other, receiver(f"{status} location={other.url}") as got:
        monkeypatch.setenv(URL, got.url)
        run(config.to_json(), RUN_ID, "SUCCEEDED")
    assert len(got.requests) == 1
    assert not other.requests


def test_no_login_of_the_machine_is_sent(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine localhost login me password hidden\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    with receiver() as got:
        monkeypatch.setenv(URL, got.url)
        run(config.to_json(), RUN_ID, "SUCCEEDED")
    assert "authorization" not in got.requests[0].headers


@pytest.mark.parametrize("down", ["unreachable", "hanging"])
def test_without_mlflow_it_tells_what_it_knows(
    down: str, config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent, receiver() as got:
        port = silent.getsockname()[1] if down == "hanging" else unused_port()
        config = with_settings(tmp_path, f"tracking.uri=http://127.0.0.1:{port}")
        monkeypatch.setenv(URL, got.url)
        start = time.monotonic()
        run(config.to_json(), RUN_ID, "FAILED")
        assert time.monotonic() - start < 2 * config.notification.total_seconds + 2
    told = body(got)
    assert (told["state"], told["outcome"], told["figures"]) == ("FAILED", "none", [])
    assert told["pipeline"] == "unknown"
    assert "MLflow did not answer" in told["unknown"][0]


def test_a_lost_decision_is_said(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parent = open_parent(config, RUN_ID, artifact_root=tmp_path / "artifacts")
    client(config).set_tag(parent, "backburn.outcome", "inconclusive")
    with receiver() as got:
        monkeypatch.setenv(URL, got.url)
        run(config.to_json(), RUN_ID, "SUCCEEDED")
    assert body(got)["outcome"] == "inconclusive"
    assert "decision.json not read" in body(got)["unknown"][0]


def test_without_an_address_nothing_is_sent_and_that_is_said_once(
    config: RunConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    run(config.to_json(), RUN_ID, "SUCCEEDED")
    assert capsys.readouterr().out.count(f"{URL} is not set") == 1


def test_failures_only(config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = with_settings(tmp_path, "notification.webhooks=[{when: failure}]")
    finish(config, sample_decision(), tmp_path)
    with receiver() as got:
        monkeypatch.setenv(URL, got.url)
        run(config.to_json(), RUN_ID, "SUCCEEDED")
        assert not got.requests
        run(config.to_json(), RUN_ID, "FAILED")
        assert len(got.requests) == 1
        finish(config, sample_decision(outcome="failed"), tmp_path)
        run(config.to_json(), RUN_ID, "SUCCEEDED")
        assert len(got.requests) == 2


def test_without_a_key_it_is_unsigned_and_says_so(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv(KEY)
    with receiver() as got:
        monkeypatch.setenv(URL, got.url)
        run(config.to_json(), RUN_ID, "SUCCEEDED")
    assert "webhook-signature" not in got.requests[0].headers
    assert "delivered (HTTP 200, unsigned)" in capsys.readouterr().out


@pytest.mark.parametrize("key", ["short", "whsec_c2hvcnQ=", "whsec_***", "whsec_"])
def test_with_an_unusable_key_nothing_is_sent(
    key: str,
    config: RunConfig,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv(KEY, key)
    with receiver() as got:
        monkeypatch.setenv(URL, got.url)
        run(config.to_json(), RUN_ID, "SUCCEEDED")
    assert not got.requests
    output = capsys.readouterr().out
    assert f"{KEY} is no key" in output
    assert key not in output.replace("whsec_ and", "")


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("http://hooks.example.com/SECRETPATH", "plain http"),
        ("http://10.0.0.7/SECRETPATH", "plain http"),
        ("file:///SECRETPATH", "no http(s) address"),
        ("hooks.example.com/SECRETPATH", "no http(s) address"),
        ("http://[::1/SECRETPATH", "no http(s) address"),
        ("http://localhost:port/SECRETPATH", "no http(s) address"),
    ],
)
def test_an_unusable_address_is_refused_without_being_shown(
    url: str,
    why: str,
    config: RunConfig,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv(URL, url)
    run(config.to_json(), RUN_ID, "SUCCEEDED")
    output = capsys.readouterr()
    assert f"{URL}: not delivered: " in output.out
    assert why in output.out
    assert "SECRETPATH" not in output.out + output.err


@pytest.mark.parametrize("answer", ["200", "404", "drop", "302 location=http://localhost/x"])
def test_the_address_and_the_key_are_in_no_log(
    answer: str,
    config: RunConfig,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.INFO), receiver(answer) as got:  # as KFP's executor sets it
        monkeypatch.setenv(URL, got.url)
        returned = run(config.to_json(), RUN_ID, "SUCCEEDED")
    output = capsys.readouterr()
    for text in (output.out, output.err, caplog.text, returned):
        assert "SECRETPATH" not in text
        assert SECRET not in text


def test_the_configuration_holds_names_and_no_addresses() -> None:
    secret = "https://hooks.slack.com/services/T0/B0/SECRETPATH"
    with pytest.raises(InputError, match="name of an environment variable") as caught:
        configure({}, [f"notification.webhooks=[{{url_variable: '{secret}'}}]"], "a test")
    assert "SECRETPATH" not in str(caught.value)
    with pytest.raises(InputError, match="unknown key") as caught:
        configure({}, [f"notification.webhooks=[{{url: '{secret}'}}]"], "a test")
    assert "SECRETPATH" not in str(caught.value)
    with pytest.raises(InputError, match="used more than once"):
        configure({}, ["notification.webhooks=[{}, {}]"], "a test")


def test_slack_gets_blocks_within_its_limits(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = with_settings(tmp_path, "notification.webhooks=[{format: slack}]")
    finish(config, sample_decision(), tmp_path)
    with receiver() as got:
        monkeypatch.setenv(URL, got.url)
        run(config.to_json(), RUN_ID, "SUCCEEDED")
    assert "webhook-signature" not in got.requests[0].headers
    message = body(got)
    text = json.dumps(message, ensure_ascii=False)
    assert "gate passed" in message["text"]
    for shown in (
        "Worst harm",
        "upper bound",
        "Certificate",
        "resists RL fine-tuning",
        "version 3",
    ):
        assert shown in text
    assert_within_limits(message)


def test_hostile_text_cannot_reach_slacks_markup() -> None:
    hostile = "<!channel> & <https://evil.example|click> " * 400
    event = Notification(
        time="2026-11-24T00:00:00+00:00",
        run_id=hostile,
        pipeline="harden",
        state="SUCCEEDED",
        outcome="failed",
        reasons=[hostile] * 40,
        model=hostile,
        domain=hostile,
        dry_run=True,
    )
    event.links.report = "https://mlflow.example/#/x?a=1&b=<!here>"
    message = slack_message(event)
    assert_within_limits(message)
    for block in message["blocks"]:
        for part in [block.get("text"), *block.get("fields", []), *block.get("elements", [])]:
            if part and part["type"] == "mrkdwn":
                assert "<!" not in part["text"]
                assert "<https://evil" not in part["text"]
                for piece in part["text"].split("&")[1:]:
                    assert piece.startswith(("amp;", "lt;", "gt;"))
    assert "and 32 more" in json.dumps(message)


def assert_within_limits(message: dict[str, Any]) -> None:
    """Slack's: https://docs.slack.dev/reference/block-kit/blocks."""
    assert len(message["blocks"]) <= 50
    for block in message["blocks"]:
        if block["type"] == "header":
            assert block["text"]["type"] == "plain_text"
            assert 1 <= len(block["text"]["text"]) <= 150
        elif block["type"] == "section":
            assert "text" in block or "fields" in block
            if "text" in block:
                assert 1 <= len(block["text"]["text"]) <= 3000
            assert len(block.get("fields", [])) <= 10
            assert all(1 <= len(field["text"]) <= 2000 for field in block.get("fields", []))
        else:
            assert block["type"] == "context"
            assert len(block["elements"]) <= 10
            assert all(1 <= len(item["text"]) <= 3000 for item in block["elements"])


def test_only_the_notification_task_gets_the_webhooks(tmp_path: Path) -> None:
    import yaml

    overrides = ["notification.webhooks=[{}, {url_variable: SLACK_URL, format: slack}]"]
    compiled = compile_pipeline(load_recipe("smoke", overrides), tmp_path / "harden.yaml")
    _, platform = yaml.safe_load_all(compiled.read_text("utf-8"))
    tasks = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    holders: dict[str, set[str]] = {}
    for task, settings in tasks.items():
        for secret in settings["secretAsEnv"]:
            for item in secret["keyToEnv"]:
                holders.setdefault(item["envVar"], set()).add(task)
                if item["envVar"] in (URL, KEY, "SLACK_URL"):
                    assert secret["optional"] is True
    assert holders[URL] == holders[KEY] == holders["SLACK_URL"] == {"exec-notification"}


def test_schema_and_key_are_printed() -> None:
    from backburn.pipelines.cli import app
    from jsonschema import Draft202012Validator

    printed = CliRunner().invoke(app, ["schema", "notification"])
    schema = json.loads(printed.stdout)
    Draft202012Validator.check_schema(schema)
    assert {"schema_version", "event", "run_id", "outcome", "figures"} <= set(schema["properties"])
    key = CliRunner().invoke(app, ["webhook-key"]).stdout.strip()
    assert len(base64.b64decode(key.removeprefix("whsec_"))) == 32
    assert key.startswith("whsec_")


def test_the_documented_check_takes_what_is_genuine_and_nothing_else(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (ROOT / "docs/notifications.md").read_text("utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    names: dict[str, Any] = {}
    exec(example, names)
    with receiver() as got:
        monkeypatch.setenv(URL, got.url)
        run(config.to_json(), RUN_ID, "SUCCEEDED")
    headers, content = got.requests[0].headers, got.requests[0].body
    old = {**headers, "webhook-timestamp": str(int(time.time()) - 900)}
    assert names["verify"](headers, content, SECRET)
    assert not names["verify"](headers, content + b" ", SECRET)
    assert not names["verify"]({**headers, "webhook-id": "another"}, content, SECRET)
    assert not names["verify"](old, content, SECRET)
    assert not names["verify"](headers, content, "whsec_" + base64.b64encode(b"x" * 32).decode())
    assert not names["verify"]({}, content, SECRET)


def test_by_default_a_minute_and_one_webhook() -> None:
    settings = NotificationConfig()
    assert settings.total_seconds == 60
    assert [webhook.url_variable for webhook in settings.webhooks] == [URL]
