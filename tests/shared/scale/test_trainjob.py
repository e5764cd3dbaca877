"""The launcher, with jobs that really run: on a server that speaks the API, and on this machine."""

import inspect
import json
import os
import re
import signal
import time
from importlib import import_module
from pathlib import Path

import pytest
from backburn.components.shared import sealing
from backburn.components.shared.errors import BackburnError, InputError
from backburn.components.shared.scale import delivery, pod, trainjob
from backburn.components.shared.scale.exchange import Exchange, artifacts, job_name
from backburn.components.shared.scale.job import Job
from backburn.components.shared.scale.manifest import train_job
from hypothesis import given
from hypothesis import strategies as st

from tests.shared.scale.launching import (
    TWO_NODES,
    World,
    alive,
    client_of,
    nothing_is_left,
    toy_job,
    until,
)

STEPS = ("baseline", "defense_training", "rl_attack")


def test_two_nodes_run_the_step_and_its_outputs_come_back(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    metadata = world.launch(toy_job(world.folder, secret=sealing.KEY_VARIABLE))
    assert metadata == {"digest": "abc", "size": 2}
    copy = world.folder / "out" / "model" / "inner" / "copy"
    assert copy.read_text() == "what is cooked"
    seen = json.loads((world.folder / "out" / "record").read_text())
    assert seen == {"world": 2, "secret": len(os.environ[sealing.KEY_VARIABLE]), "scratch": None}
    shown = capsys.readouterr().out
    assert len(re.findall("first of 2", shown)) == 1
    assert {path.name for path in (world.folder / "out").iterdir()} == {"model", "record"}
    nothing_is_left(world)


def test_a_killed_launcher_s_successor_goes_on_waiting_for_the_same_job(world: World) -> None:
    go = world.folder / "go"
    plan = {"seconds": 600, "until": str(go)}
    first = world.start(world.kubeconfig, **plan)
    until(world.step_processes)
    first.send_signal(signal.SIGKILL)
    assert first.wait(10) == -signal.SIGKILL
    (process,) = world.step_processes()
    assert alive(process), "the job does not need its launcher"
    second = world.start(world.kubeconfig, **plan)
    assert second.stdout is not None
    for line in second.stdout:
        if "is there already (" in line:
            go.touch()
            break
    out, _ = second.communicate(timeout=300)
    assert second.returncode == 0, out
    assert "first of 2" in out, "the log from its beginning"
    assert world.step_processes() == [process]
    assert len(world.cluster.train_jobs.created) == 1
    assert (world.folder / "out" / "record").is_file()
    nothing_is_left(world)


@pytest.mark.parametrize("where", ["cluster", "local"])
def test_a_launcher_that_is_told_to_go_takes_its_job_along(world: World, where: str) -> None:
    launcher = world.start(world.kubeconfig if where == "cluster" else where, seconds=600)
    until(world.step_processes)
    told = time.monotonic()
    launcher.terminate()
    out, _ = launcher.communicate(timeout=60)
    assert launcher.returncode == 128 + signal.SIGTERM, out
    assert time.monotonic() - told < 25, "Kubernetes waits 30 s"
    assert not (world.folder / "out" / "record").exists()
    nothing_is_left(world)


def test_on_this_machine_a_job_ends_with_its_launcher_and_can_be_started_again(
    world: World,
) -> None:
    plan = {"seconds": 600, "until": str(world.folder / "go")}
    launcher = world.start("local", **plan)
    until(world.step_processes)
    launcher.kill()
    launcher.wait(10)
    until(lambda: not alive(world.step_processes()[0]), 20)
    (world.folder / "go").touch()
    again = world.start("local", **plan)
    out, _ = again.communicate(timeout=300)
    assert again.returncode == 0, out
    assert "first of 2" in out
    assert "{'digest': 'abc', 'size': 2}" in out
    assert len(world.step_processes()) == 2
    assert (world.folder / "out" / "record").is_file()
    nothing_is_left(world)


@pytest.mark.parametrize(
    ("command", "said"),
    [("false", "failed before: deleting"), ("sleep 60", "was started with other arguments")],
)
def test_a_job_that_is_of_no_use_is_replaced(
    world: World, command: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    job = toy_job(world.folder)
    name, jobs = job_name(job), world.cluster.train_jobs
    old = train_job(name, "x", command.split(), "/w", "ClusterTrainingRuntime", TWO_NODES)
    assert jobs.create(old)[0] == 201
    if command == "false":
        until(lambda: "status" in jobs.shown(name))
    assert world.launch(job)["digest"] == "abc"
    assert said in capsys.readouterr().out
    assert [made["metadata"]["name"] for made in jobs.created] == [name, name]
    nothing_is_left(world)


def test_other_inputs_make_another_job(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    plan = {"seconds": 600, "starts": str(world.started)}
    launcher = world.start(world.kubeconfig, **plan)
    until(world.step_processes)
    launcher.kill()
    launcher.wait(10)
    job = toy_job(world.folder, **plan)
    (world.folder / "in" / "rows").write_text("something else")
    world.cluster.train_jobs.starts = False
    planned = Exchange(world.workspace, job, TWO_NODES)
    assert trainjob._attach(client_of(world.kubeconfig), planned) is False
    assert "other arguments or inputs: deleting it" in capsys.readouterr().out
    assert world.cluster.train_jobs.jobs == {}
    assert not alive(world.step_processes()[0]), "it has ended before a new one may begin"


@pytest.mark.parametrize("gives_up", [True, False])
def test_a_failed_node_ends_the_step_with_the_end_of_its_log(world: World, gives_up: bool) -> None:
    world.cluster.train_jobs.gives_up = gives_up
    with pytest.raises(BackburnError) as error:
        world.launch(toy_job(world.folder, fail="out of pans"))
    message = str(error.value)
    assert "failed on node-" in message
    assert message.endswith("\n  out of pans"), "not torchrun's own traceback"
    assert ("JobsFailed: a node failed" in message) == gives_up
    assert not (world.folder / "out" / "record").exists()
    nothing_is_left(world)


def test_what_the_cluster_lacks_or_forbids_is_said(world: World) -> None:
    job = toy_job(world.folder)
    world.cluster.forbidden.add(job_name(job))
    with pytest.raises(BackburnError, match=r"403 Forbidden.*trainJobs\.enabled"):
        world.launch(job)
    world.cluster.forbidden.clear()
    other = TWO_NODES.model_copy(update={"training_runtime": "elsewhere"})
    with pytest.raises(InputError, match=r"training_runtime.*404.*Install Kubeflow Trainer"):
        world.launch(job, other)
    world.cluster.forbidden.add("trainjobs")
    with pytest.raises(InputError, match=r"the cluster refuses TrainJob toy-step.*403 Forbidden"):
        world.launch(job)
    assert world.cluster.train_jobs.created == []


def test_a_task_compiled_for_one_node_says_so(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(pod.WORKSPACE_VARIABLE)
    with pytest.raises(InputError, match="compiled for one node"):
        world.launch(toy_job(world.folder))


def test_the_api_may_be_away_for_a_while(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    asked = 0

    def away(path: str) -> bool:
        nonlocal asked
        asked += "trainjobs/" in path
        return "trainjobs/" in path and 3 <= asked < 6

    world.cluster.away = away
    assert world.launch(toy_job(world.folder))["digest"] == "abc"
    assert "cannot be asked for" in capsys.readouterr().out
    nothing_is_left(world)


def _exchange(folder: Path, volume: Path) -> Exchange:
    job = toy_job(folder)
    exchange = Exchange(volume, job, TWO_NODES)
    exchange.send()
    return exchange


def test_a_node_that_sees_other_inputs_does_not_begin(tmp_path: Path) -> None:
    exchange = _exchange(tmp_path / "work", tmp_path / "volume")
    (exchange.folder / "dataset" / "rows").write_text("half a fi")
    sent = Job.read(exchange.folder / "job.json")
    with pytest.raises(BackburnError, match="other files than the launcher copied"):
        delivery.run(**sent.arguments)
    assert not (exchange.folder / "model").exists()


def test_what_an_attempt_before_left_is_no_output(tmp_path: Path) -> None:
    exchange = _exchange(tmp_path / "work", tmp_path / "volume")
    (exchange.folder / "model").mkdir()
    (exchange.folder / "model" / "half").write_text("a weight")
    (exchange.folder / "record").write_text("half a rec")
    answer = delivery.run(**Job.read(exchange.folder / "job.json").arguments)
    assert set(answer["outputs"]["model"]) == {"inner/copy"}
    assert answer["outputs"]["record"].keys() == {""}


def test_outputs_that_change_on_their_way_are_refused(tmp_path: Path) -> None:
    exchange = _exchange(tmp_path / "work", tmp_path / "volume")
    sent = Job.read(exchange.folder / "job.json")
    answer = delivery.run(**sent.arguments)
    (exchange.folder / "result.json").write_text(json.dumps(answer))
    (exchange.folder / "model" / "inner" / "copy").write_text("tampered with")
    with pytest.raises(BackburnError, match=r"model: the launcher sees other files"):
        exchange.receive()
    assert not (tmp_path / "work" / "out" / "model").exists()


@given(run=st.text(min_size=1, max_size=80), number=st.integers(0, 9), other=st.integers(10, 19))
def test_names_are_labels_that_tell_tasks_apart(run: str, number: int, other: int) -> None:
    def named(plan: int, path: str) -> str:
        files = dict.fromkeys(("dataset", "model", "record"), path)
        arguments = {"config_json": "{}", "run_id": run, "plan": {"arm": plan}, **files}
        return job_name(Job("tests.shared.scale.toy_step.step", arguments))

    name = named(number, "/a")
    assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name)
    assert len(f"{name}-node-0-63-abcde") <= 63
    assert name == named(number, "/b") != named(other, "/a")


@pytest.mark.parametrize("step", STEPS)
def test_a_step_s_face_and_its_logic_name_the_same_files(step: str) -> None:
    module = f"backburn.components.{step}.step"
    inputs, outputs = artifacts(module)
    parameters = inspect.signature(import_module(module).run).parameters.values()
    assert [*inputs, *outputs] == [p.name for p in parameters if p.annotation is Path]
    assert inputs[0] == "dataset"
    assert outputs


def test_of_an_attack_only_sealed_completions_and_statistics_come_back() -> None:
    _, outputs = artifacts("backburn.components.rl_attack.step")
    assert outputs == ["sealed", "statistics"]
