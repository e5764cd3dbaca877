"""A cluster that speaks the TrainJob API and runs its pods here."""

import base64
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from backburn.components.shared import sealing
from backburn.components.shared.scale import pod, trainjob

from tests.kubernetes_api_server import KubernetesServer
from tests.serving import serving
from tests.shared.scale.launching import ROOT, World
from tests.train_jobs import RUNTIME


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.setattr(trainjob, "_POLL_SECONDS", 0.2)
    monkeypatch.setenv(pod.WORKSPACE_VARIABLE, str(tmp_path / "volume"))
    (tmp_path / "temporary").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
    cluster = KubernetesServer("token")
    cluster.custom = {"trainer.kubeflow.org/trainjobs"}
    cluster.runtimes = {("clustertrainingruntimes", "torch-distributed"): RUNTIME}
    key = base64.b64encode(os.environ[sealing.KEY_VARIABLE].encode()).decode()
    cluster.objects["secrets", "ours"] = {"data": {"BACKBURN_SEAL_KEY": key}}
    try:
        with serving(cluster) as url:
            kubeconfig = str(cluster.kubeconfig(url, tmp_path / "kubeconfig"))
            (tmp_path / "work").mkdir()
            yield World(cluster, kubeconfig, tmp_path / "work", tmp_path / "volume")
    finally:
        cluster.train_jobs.close()
