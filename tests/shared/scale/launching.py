"""Launching the toy step, from a test or as a process: its kubeconfig (or local), folder, plan."""

import json
import sys
from pathlib import Path
from typing import Any

from backburn.components.shared.config import ComputeConfig
from backburn.components.shared.scale import trainjob
from backburn.components.shared.scale.job import Job
from kubeflow.trainer import KubernetesBackendConfig, LocalProcessBackendConfig, TrainerClient

TWO_NODES = ComputeConfig(nodes=2, workspace_claim="shared", secret_name="ours")
RUN = "Run_1"


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


def main() -> None:
    trainjob._POLL_SECONDS = 0.2
    where, folder, plan = sys.argv[1:]
    local = TrainerClient(LocalProcessBackendConfig()) if where == "local" else None
    job = toy_job(Path(folder), **json.loads(plan))
    print(trainjob.launch(job, TWO_NODES, local or client_of(where)))


if __name__ == "__main__":
    main()
