"""Containers on this machine, as far as no Docker engine is needed; the rest is in tests/images."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from backburn.pipelines.containers import _bytes


def refused(tmp_path: Path, *arguments: str) -> str:
    """What the command says of a run that it does not begin; nothing is left of it."""
    done = subprocess.run(
        [sys.executable, "-m", "backburn.pipelines.cli", "run", "-r", "smoke", *arguments],
        cwd=tmp_path,
        env={**os.environ, "DOCKER_HOST": f"unix://{tmp_path}/no.sock", "COLUMNS": "1000"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 2
    assert list(tmp_path.iterdir()) == []
    assert "Traceback" not in done.stderr
    return done.stderr


def test_a_dead_engine_is_said_so(tmp_path: Path) -> None:
    said = refused(tmp_path, "--runner", "docker")
    assert "--runner docker: no Docker engine answers" in said
    assert "set DOCKER_HOST" in said


def test_a_tracking_server_that_attacks_could_not_reach_is_refused(tmp_path: Path) -> None:
    said = refused(tmp_path, "--runner", "docker", "--set", "tracking.uri=http://mlflow:5000")
    assert "tracking.uri: http://mlflow:5000" in said
    assert "Leave tracking.uri out" in said


def test_a_network_for_processes_is_refused(tmp_path: Path) -> None:
    assert "add --runner docker" in refused(tmp_path, "--network", "bridge")


@pytest.mark.parametrize(
    ("quantity", "size"), [("8Gi", 8 << 30), ("64Mi", 64 << 20), ("1G", 10**9), (None, None)]
)
def test_sizes_are_read_as_kubernetes_writes_them(quantity: str | None, size: int | None) -> None:
    assert _bytes(quantity) == size
