"""The command line: bad input is one message and exit code 2, before anything is trained."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def backburn(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "backburn.pipelines.cli", *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def pickled_model(folder: Path) -> str:
    model = folder / "pickled"
    model.mkdir()
    (model / "config.json").write_text("{}", "utf-8")
    (model / "pytorch_model.bin").write_bytes(b"x")
    return str(model)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-r", "nothing"], "no recipe 'nothing'"),
        (["-r", "smoke", "--set", "atack.arms=1"], "atack: unknown key. Did you mean 'attack'?"),
        (["-r", "smoke", "--set", "judges.evaluation.kind=lexical"], "the same judge"),
        (["-r", "laptop", "--set", "model.id=./absent"], "no folder"),
        (["-r", "smoke", "--set", "domain.name=cooking"], "only reads the toy grammar"),
        (["-r", "laptop", "--set", "data.near_duplicate_threshold=0.2"], "nearly the same prompt"),
        (["-r", "smoke", "--set", "tracking.uri=http://127.0.0.1:9"], "no usable MLflow server"),
    ],
)
def test_bad_input(arguments: list[str], message: str, tmp_path: Path) -> None:
    done = backburn("run", *arguments, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) <= 24
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    "command",
    [
        ["pull", "models:/m@champion", "-o", "out"],
        ["promote", "models:/m@candidate", "--any-key"],
        ["approve", "models:/m/1", "--any-key"],
        ["rollback", "m", "--reason", "x"],
        ["ledger", "m"],
    ],
    ids=lambda command: command[0],
)
def test_a_dead_registry_is_said_so(command: list[str], tmp_path: Path) -> None:
    done = backburn(*command, "--tracking-uri", "http://127.0.0.1:9", cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert "no usable MLflow server" in done.stderr
    assert not list(tmp_path.iterdir())


def test_pickled_weights(tmp_path: Path) -> None:
    done = backburn("run", "--set", f"model.id={pickled_model(tmp_path)}", cwd=tmp_path)
    assert done.returncode == 2
    assert "pickled weights only" in done.stderr.replace("\n", " ")


def test_empty_dataset(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("", "utf-8")
    cooking = ROOT / "components/shared/domains/cooking"
    source = {"path": str(tmp_path / "empty.jsonl"), "licence": "MIT"}
    custom = {
        "rubric": str(cooking / "domain.yaml"),
        "forbidden": source,
        "near_miss": {**source, "path": str(cooking / "near_miss.jsonl")},
        "calibration": {**source, "path": str(cooking / "calibration.jsonl")},
    }
    (tmp_path / "own.yaml").write_text(json.dumps({"domain": {"custom": custom}}), "utf-8")
    done = backburn("validate", "-r", "own.yaml", cwd=tmp_path)
    assert done.returncode == 2
    assert "has no rows" in done.stderr


def test_help_teaches_and_domains_are_listed(tmp_path: Path) -> None:
    shown = backburn("--help", cwd=tmp_path)
    assert shown.returncode == 0
    for word in ("run", "validate", "compile", "report", "domains", "backburn run -r smoke"):
        assert word in shown.stdout
    listed = backburn("domains", cwd=tmp_path).stdout
    for name in ("cooking", "home_networking", "toy_kitchen"):
        assert name in listed


def test_schemas_are_published(tmp_path: Path) -> None:
    for kind in ("config", "evidence", "decision", "summary"):
        assert "properties" in json.loads(backburn("schema", kind, cwd=tmp_path).stdout)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no-model", "--any-key"], "audit.model: "),
        (["--key", "absent.pem"], "--key absent.pem: cannot be read"),
        ([], "say whose signature counts"),
        (["models:/m@champion", "--any-key"], "no MLflow server"),
    ],
)
def test_an_audit_s_bad_input(arguments: list[str], message: str, tmp_path: Path) -> None:
    done = backburn("audit", "-r", "smoke", *arguments, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "runs").exists()
