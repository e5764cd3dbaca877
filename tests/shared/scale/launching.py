"""Launching the toy step, from a test or as a process: its kubeconfig (or local), folder, plan."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from backburn.components.shared.config import ComputeConfig
from backburn.components.shared.scale import trainjob
from backburn.components.shared.scale.job import Job
from kubeflow.trainer import KubernetesBackendConfig, LocalProcessBackendConfig, TrainerClient

from tests.kubernetes_api_server import KubernetesServer

ROOT = Path(__file__).parents[3]
TWO_NODES = ComputeConfig(nodes=2, workspace_claim="shared", secret_name="ours")
RUN, RUN_LABEL = "Run_1", "run-1"


def toy_job(folder: Path, **plan: Any) -> Job:
    """A job whose input and outputs are below a folder."""
    (folder / "in").mkdir(parents=True, exist_ok=True)
    (folder / "out").mkdir(exist_ok=True)
    (folder / "in" / "rows").write_text("what is cooked", encoding="utf-8")
    paths = {"dataset": "in", "model": "out/model", "record": "out/record"}
    there = {name: str(folder / path) for name, path in paths.items()}
    arguments = {"config_json": "{}", "run_id": RUN, "plan": plan, **there}
    return Job("tests.shared.scale.toy_step.step", arguments)


def client_of(kubeconfig: str) -> TrainerClient:
    """A client of the test's cluster."""
    return TrainerClient(KubernetesBackendConfig(config_file=kubeconfig, namespace="kubeflow"))


class World(NamedTuple):
    cluster: KubernetesServer
    kubeconfig: str
    folder: Path
    workspace: Path

    def launch(self, job: Job, compute: ComputeConfig = TWO_NODES) -> dict[str, Any]:
        return trainjob.launch(job, compute, client_of(self.kubeconfig))

    def start(self, where: str, **plan: Any) -> subprocess.Popen[str]:
        """A launcher in a process of its own; the step tells of itself in the file `started`."""
        plan = {"starts": str(self.started), **plan}
        command = [sys.executable, "-u", "-m", "tests.shared.scale.launching", where]
        return subprocess.Popen(
            [*command, str(self.folder), json.dumps(plan)],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT,
        )  # fmt: skip

    @property
    def started(self) -> Path:
        return self.folder / "started"

    def step_processes(self) -> list[int]:
        """Ids of the processes that ran the step, oldest first."""
        if not self.started.is_file():
            return []
        return [int(line) for line in self.started.read_text().splitlines()]


def until(true: Callable[[], Any], seconds: float = 180.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)


def alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def nothing_is_left(world: World) -> None:
    assert world.cluster.train_jobs.jobs == {}
    assert not any(world.workspace.rglob("*"))
    temporary = world.folder.parent / "temporary"
    assert not [path for path in temporary.rglob("*") if RUN_LABEL in path.name]
    until(lambda: not any(alive(process) for process in world.step_processes()), 20)


def main() -> None:
    trainjob._POLL_SECONDS = 0.2
    where, folder, plan = sys.argv[1:]
    local = TrainerClient(LocalProcessBackendConfig()) if where == "local" else None
    job = toy_job(Path(folder), **json.loads(plan))
    print(trainjob.launch(job, TWO_NODES, local or client_of(where)))


if __name__ == "__main__":
    main()
