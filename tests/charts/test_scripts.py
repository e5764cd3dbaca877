"""The chart's scripts, run for real: the hook against a KFP API, the checks of `helm test`."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from itertools import pairwise
from pathlib import Path
from threading import Thread
from typing import Any

import typer
import yaml
from backburn.components.shared import sealing, signing
from backburn.pipelines.cli import app
from backburn.pipelines.cron import check_cron
from backburn.pipelines.recipes import load_recipe

from tests.charts.rendering import CASES, HOOKED, PUBLIC_KEY, Values, named, render
from tests.kfp_api_server import KfpServer
from tests.servers import free_ports
from tests.serving import serving


def scripts(values: Values, folder: Path) -> dict[str, str]:
    """Write the ConfigMap's files as Kubernetes mounts them; returns their content."""
    data = named(render(values), "ConfigMap", "backburn-scripts")["data"]
    for name, content in data.items():
        (folder / name).write_text(content, encoding="utf-8")
    return dict(data)


def run(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a script with the programs of this environment first."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={**os.environ, "PATH": path, **environment},
        capture_output=True,
        text=True,
    )


def test_the_hook_schedules_and_unschedules_on_a_server_that_wants_its_token(
    tmp_path: Path,
) -> None:
    server = KfpServer(token="sesame", namespaces=("team-a",))
    (tmp_path / "token").write_text("sesame\n")
    schedule = {"name": "weekly", "pipeline": "harden", "recipe": "smoke", "cron": "@weekly"}
    with serving(server) as endpoint:
        kfp = {"endpoint": endpoint, "multiUser": True, "auth": "serviceAccount"}
        values = {
            "kfp": kfp,
            "pipelines": [],
            "schedules": [schedule],
            "gate": {"hardened_harm_max": 1.5},
            "tracking": {"uri": "http://mlflow:5000"},
        }
        scripts(values, tmp_path)
        done = run(tmp_path, "hook.py", "apply", "hook.json", KFP_TOKEN_FILE="token")
        assert done.returncode == 0, done.stdout + done.stderr
        (made,) = server.recurring_runs.values()
        config = json.loads(made["runtime_config"]["parameters"]["config"])
        assert made["display_name"] == "weekly"
        assert config["compute"]["image"] == "backburn/train:0.1.0"
        assert config["compute"]["tools_image"] == "backburn/tools:0.1.0"
        assert config["compute"]["secret_name"] == "backburn"
        assert config["gate"]["hardened_harm_max"] == 1.5
        assert config["tracking"]["uri"] == "http://mlflow:5000"
        assert "sesame" not in done.stdout + done.stderr

        removed = run(tmp_path, "hook.py", "remove", "hook.json", KFP_TOKEN_FILE="token")
        assert removed.returncode == 0, removed.stdout + removed.stderr
        assert server.recurring_runs == {}


def test_a_failed_command_ends_the_hook_and_is_named(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    scripts({**HOOKED, "pipelines": [], "kfp": {"endpoint": f"http://127.0.0.1:{port}"}}, tmp_path)
    done = run(tmp_path, "hook.py", "remove", "hook.json")
    assert done.returncode == 1
    assert "no Kubeflow Pipelines at" in done.stderr
    assert "`backburn schedule` ended with 2" in done.stderr


def test_every_schedule_s_arguments_are_the_command_s(tmp_path: Path) -> None:
    plan = json.loads(scripts(CASES["everything"], tmp_path)["hook.json"])
    parsed = [parse(arguments) for arguments in plan["commands"] if arguments[0] == "schedule"]
    harden, audit = parsed
    assert (harden["name"], audit["name"]) == ("weekly", "nightly")
    assert harden["recipe"] == "/etc/backburn/recipes/ours.yaml"
    assert harden["overrides"][-2:] == ["seed=3", "notification.webhooks=[]"]
    assert (harden["max_concurrency"], harden["catch_up"], harden["enabled"]) == (2, True, False)
    assert harden["namespace"] == "team-a"
    assert str(harden["ca_cert"]) == "/etc/backburn/ca/ca.crt"
    assert (audit["recipe"], audit["report_only"], audit["enabled"]) == ("laptop", True, True)
    assert audit["reference"] == "models:/backburn-x@champion"
    assert str(audit["key"]) == "/etc/backburn/scripts/backburn.pem"
    for arguments in parsed:
        check_cron(arguments["cron"])


def parse(arguments: list[str]) -> dict[str, Any]:
    """Parameters of a command line of Backburn; nothing is run."""
    command: Any = typer.main.get_command(app)
    rest = list(arguments)
    while hasattr(command, "commands"):
        command = command.commands[rest.pop(0)]
    return dict(command.make_context("backburn", rest).params)


def test_uploads_name_recipe_overrides_and_server(tmp_path: Path) -> None:
    values = {"pipelines": [{"recipe": "laptop", "set": ["seed=3"]}]}
    plan = json.loads(scripts(values, tmp_path)["hook.json"])
    assert plan["commands"] == [
        [
            *("upload", "--recipe", "laptop"),
            *("--set", 'compute.image="backburn/train:0.1.0"'),
            *("--set", 'compute.tools_image="backburn/tools:0.1.0"'),
            *("--set", 'compute.secret_name="backburn"'),
            *("--set", "seed=3"),
            *("--endpoint", "http://ml-pipeline.kubeflow.svc.cluster.local:8888"),
        ]
    ]


def test_numbers_of_recipes_and_gate_arrive_as_they_were_written(tmp_path: Path) -> None:
    recipe = {"seed": 123456789, "gate": {"slip_rate_max": 1e-7}, "baseline": {"steps": 1000000}}
    values: Values = {
        "recipes": {"ours": recipe},
        "gate": {"certificate_min": 1e-8, "version": "02"},
        "pipelines": [{"recipe": "ours"}],
    }
    objects, plan = render(values), json.loads(scripts(values, tmp_path)["hook.json"])
    file = tmp_path / "ours.yaml"
    file.write_text(named(objects, "ConfigMap", "backburn-recipes")["data"]["ours.yaml"])
    (upload,) = plan["commands"]
    sets = [after for before, after in pairwise(upload) if before == "--set"]
    config = load_recipe(str(file), sets)
    assert (config.seed, config.baseline.steps) == (123456789, 1000000)
    assert (config.gate.slip_rate_max, config.gate.certificate_min) == (1e-7, 1e-8)
    assert config.gate.version == "02"


def test_recipes_gate_and_key_are_mounted_as_they_were_given(tmp_path: Path) -> None:
    objects = render(HOOKED)
    recipes = named(objects, "ConfigMap", "backburn-recipes")["data"]
    assert yaml.safe_load(recipes["ours.yaml"]) == HOOKED["recipes"]["ours"]
    gate = named(objects, "ConfigMap", "backburn-gate")["data"]["gate.yaml"]
    assert yaml.safe_load(gate) == {"gate": HOOKED["gate"]}
    assert scripts(HOOKED, tmp_path)["backburn.pem"] == PUBLIC_KEY
    spec = named(objects, "Job", "backburn-apply")["spec"]["template"]["spec"]
    mounts = {mount["name"]: mount["mountPath"] for mount in spec["containers"][0]["volumeMounts"]}
    assert mounts["recipes"] == "/etc/backburn/recipes"


@contextmanager
def answering(status: int) -> Iterator[str]:
    """A web server that answers every request with one status."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()

        def log_message(self, *arguments: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def check(folder: Path, plan: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the checks of `helm test`, without patience."""
    secret = {"CHECK_SECRET": str(folder), "CHECK_SECONDS": "0"}
    return run(folder, "check.py", plan, **{**secret, **environment})


def test_services_that_answer_and_keys_that_are_there_pass(tmp_path: Path) -> None:
    for name, key in {
        sealing.KEY_VARIABLE: sealing.new_key(),
        signing.KEY_VARIABLE: signing.new_key(),
        "HF_TOKEN": "hf_x",
    }.items():
        (tmp_path / name).write_text(key)
    with answering(200) as service, answering(403) as store:
        values = {
            "kfp": {"endpoint": service},
            "tracking": {"uri": service},
            "objectStore": {"endpoint": store},
            "secret": {"alsoRequired": ["HF_TOKEN"]},
        }
        scripts(values, tmp_path)
        done = check(tmp_path, "services.json")
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("ok      ") == 6


def test_everything_that_is_wrong_is_said_at_once_and_no_key_is_shown(tmp_path: Path) -> None:
    (tmp_path / sealing.KEY_VARIABLE).write_text("dG9vLXNob3J0")
    (dead,) = free_ports(1)
    with answering(404) as kfp, answering(503) as store:
        values = {
            "kfp": {"endpoint": kfp},
            "tracking": {"uri": f"http://127.0.0.1:{dead}"},
            "objectStore": {"endpoint": store},
        }
        scripts(values, tmp_path)
        done = check(tmp_path, "services.json")
    assert done.returncode == 1
    for message in (
        "BACKBURN_SEAL_KEY in Secret 'backburn' is no key",
        "Secret 'backburn' has no BACKBURN_SIGNING_KEY",
        f"the KFP API answers 404 at {kfp}/apis/v2beta1/healthz: correct kfp.endpoint",
        f"the object store answers 503 at {store}: correct objectStore.endpoint",
        f"MLflow does not answer at http://127.0.0.1:{dead}/health",
    ):
        assert message in done.stdout
    assert "dG9vLXNob3J0" not in done.stdout + done.stderr


def test_a_network_that_is_open_where_it_should_be_closed_fails(tmp_path: Path) -> None:
    with answering(200) as url:
        host = url.removeprefix("http://")
        values: Values = {
            "kfp": {"grpc": host, "metadata": host},
            "tracking": {"uri": url},
            "objectStore": {"endpoint": url},
        }
        (closed,) = free_ports(1)
        kubernetes = dict(
            zip(
                ("KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT"), host.split(":"), strict=True
            )
        )
        scripts({**values, "test": {"forbidden": f"127.0.0.1:{closed}"}}, tmp_path)
        contained = check(tmp_path, "egress.json", **kubernetes)
        scripts({**values, "test": {"forbidden": host}}, tmp_path)
        opened = check(tmp_path, "egress.json", **kubernetes)
        kubernetes["KUBERNETES_SERVICE_PORT"] = str(closed)
        cut = check(tmp_path, "egress.json", **kubernetes)
    assert contained.returncode == 0, contained.stdout
    assert opened.returncode == 1
    assert f"reaches {host}: the cluster's network plugin does not enforce" in opened.stdout
    assert "does not reach the Kubernetes API" in cut.stdout
    assert "correct networkPolicy.kubernetesApi" in cut.stdout
