"""A registered model is handed out with sound evidence, and otherwise not at all."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from backburn.components.shared.attestation import ATTESTATION, FILES
from backburn.components.shared.config import ModelConfig
from backburn.components.shared.consumption import pull
from backburn.components.shared.errors import InputError, VerificationError
from backburn.components.shared.models import load_artifact, read_manifest
from backburn.components.shared.signing import new_key, public_key_of, read_statement
from backburn.components.shared.verification import verify_bundle
from mlflow.tracking import MlflowClient
from transformers import AutoModelForCausalLM

NAME = "backburn-tiny-toy_kitchen"
REFERENCE = f"models:/{NAME}@candidate"


@pytest.fixture(scope="module")
def uri(smoke_run: tuple[Path, subprocess.CompletedProcess[str]]) -> str:
    return f"sqlite:///{smoke_run[0] / 'mlflow.db'}"


@pytest.fixture
def stored(uri: str) -> dict[str, Path]:
    """Where the store keeps the version's files: `model`, `run`."""
    version = MlflowClient(tracking_uri=uri).get_model_version_by_alias(NAME, "candidate")
    run = MlflowClient(tracking_uri=uri).get_run(version.run_id)
    return {
        "model": Path(str(version.source).removeprefix("file://")),
        "run": Path(str(run.info.artifact_uri).removeprefix("file://")),
    }


def test_a_passed_model_is_fetched_with_its_evidence(
    smoke_run: tuple[Path, subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    runs = smoke_run[0]
    key = tmp_path / "key.pem"
    signed = read_statement((runs / "one" / ATTESTATION).read_bytes())
    key.write_text(signed["predicate"]["public_key"], "utf-8")
    command = [sys.executable, "-m", "backburn.pipelines.cli", "pull", REFERENCE, "--merged"]
    options = ["--runs", str(runs), "-o", str(tmp_path / "out"), "--key", str(key)]
    done = subprocess.run(
        [*command, *options], capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    out = tmp_path / "out"
    assert {path.name for path in out.iterdir()} == {
        *FILES, ATTESTATION, "adapter", "base", "manifest.json", "merged",
    }  # fmt: skip
    assert verify_bundle(out, key.read_text("utf-8"), out).sound
    trained = next((runs / "one").glob("artifacts/*/defense-training/hardened"))
    assert read_manifest(out).digest() == read_manifest(trained).digest()
    assert not [path for path in out.rglob("*") if path.suffix in (".bin", ".pt", ".pkl")]
    expected = load_artifact(trained, ModelConfig(id="builtin:tiny")).model
    merged = AutoModelForCausalLM.from_pretrained(out / "merged")
    ids = torch.arange(4, 24)[None]
    with torch.inference_mode():
        torch.testing.assert_close(merged(ids).logits, expected(ids).logits)


def _append(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b" ")


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda at: _append(at["model"] / "adapter/adapter_model.safetensors"), "other content"),
        (lambda at: (at["model"] / "adapter/model.bin").touch(), "not among the files"),
        (lambda at: _append(at["model"] / "base/model.safetensors"), "other weights"),
        (lambda at: _append(at["run"] / "evidence.json"), "changed since it was signed"),
        (lambda at: (at["run"] / ATTESTATION).unlink(), f"no {ATTESTATION}"),
        (lambda at: (at["run"] / "decision.json").unlink(), "no decision.json"),
    ],
    ids=["weights", "pickle", "base", "evidence", "unsigned", "no decision"],
)
def test_what_was_changed_in_the_store_is_refused(
    spoil: Callable[[dict[str, Path]], None],
    reason: str,
    uri: str,
    stored: dict[str, Path],
    tmp_path: Path,
) -> None:
    kept = {name: shutil.copytree(path, tmp_path / "kept" / name) for name, path in stored.items()}
    try:
        spoil(stored)
        with pytest.raises(VerificationError, match=reason):
            pull(REFERENCE, tmp_path / "out", uri)
        assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    finally:
        for name, path in stored.items():
            shutil.rmtree(path)
            shutil.copytree(kept[name], path)


def test_another_key_is_not_trusted(uri: str, tmp_path: Path) -> None:
    with pytest.raises(VerificationError, match="signature is not one of key"):
        pull(REFERENCE, tmp_path / "out", uri, public_key_of(new_key()))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("reference", "reason"),
    [
        ("backburn", "names no model version"),
        ("models:/x@", "names no model version"),
        (f"models:/{NAME}@absent", "absent"),
        (f"models:/{NAME}/99", "99"),
        ("models:/absent/1", "absent"),
    ],
)
def test_what_is_not_there_is_said_so(
    reference: str, reason: str, uri: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=reason):
        pull(reference, tmp_path / "out", uri)


def test_a_folder_is_never_overwritten(uri: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="exists already"):
        pull(REFERENCE, tmp_path, uri)
