"""Rule 1: attacked weights, looked for by their bytes, are nowhere once the attack has ended."""

import gzip
import signal
import sqlite3
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from backburn.components.rl_attack.component import rl_attack
from safetensors.torch import save_file

from tests.containment.attack_alone import run_alone
from tests.containment.conftest import EndedAttack, WholeRun
from tests.containment.patterns import FLOATS, find, read_patterns
from tests.containment.runs import Sandbox


def test_the_search_finds_weights_in_whatever_they_are_packed(tmp_path: Path) -> None:
    weights = torch.randn(40, generator=torch.Generator().manual_seed(1))
    part = weights[8 : 8 + FLOATS]
    patterns = {
        str(dtype): part.to(dtype).view(torch.uint8).numpy().tobytes()
        for dtype in (torch.float32, torch.bfloat16)
    }
    save_file({"a": weights}, tmp_path / "a.safetensors")
    save_file({"a": weights.bfloat16()}, tmp_path / "b.bin")
    torch.save({"a": weights}, tmp_path / "c.pt")
    content = (tmp_path / "a.safetensors").read_bytes()
    (tmp_path / "d.gz").write_bytes(gzip.compress(content))
    with zipfile.ZipFile(tmp_path / "e.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("inner", content)
    with tarfile.open(tmp_path / "f.tgz", "w:gz") as tar:
        tar.add(tmp_path / "a.safetensors", "inner")
    with sqlite3.connect(tmp_path / "g.db") as database:
        database.execute("CREATE TABLE t (b BLOB)")
        database.execute("INSERT INTO t VALUES (?)", (content,))
    (tmp_path / "none").write_bytes(b"nothing of the kind")
    found = {Path(name.split("!")[0]).name for name in find(patterns, [tmp_path])}
    assert found == {"a.safetensors", "b.bin", "c.pt", "d.gz", "e.zip", "f.tgz", "g.db"}


def test_a_whole_run_leaves_no_attacked_weights(whole_run: WholeRun) -> None:
    patterns = read_patterns(whole_run.sandbox.patterns)
    assert len(patterns) > 30, "the control arm moved no weights"
    assert find(patterns, whole_run.sandbox.places()) == {}
    baseline = next(whole_run.folder.rglob("baseline/model/base/model.safetensors"))
    assert find({"known": baseline.read_bytes()[-64:]}, whole_run.sandbox.places())


def test_an_attack_that_ends_well_leaves_no_attacked_weights(ended_attack: EndedAttack) -> None:
    assert ended_attack.done.returncode == 0, ended_attack.done.stderr[-3000:]
    patterns = read_patterns(ended_attack.sandbox.patterns)
    assert len(patterns) > 10
    assert find(patterns, ended_attack.sandbox.places()) == {}


@pytest.mark.parametrize(
    ("fault", "code"),
    [("raise", 1), ("SIGTERM", -signal.SIGTERM), ("SIGKILL", -signal.SIGKILL)],
)
def test_an_attack_that_is_cut_short_leaves_no_attacked_weights(
    tmp_path: Path, tiny_base: Path, fault: str, code: int
) -> None:
    sandbox = Sandbox(tmp_path)
    cut = run_alone(sandbox, tiny_base, CONTAINMENT_FAULT=fault)
    assert cut.returncode == code, cut.stderr[-3000:]
    left = find(read_patterns(sandbox.patterns), sandbox.places())
    if fault == "SIGKILL":
        assert left, "nothing was there to be cleaned"
        assert all(name.startswith(f"{sandbox.memory}/backburn-scratch-") for name in left)
        assert run_alone(sandbox, tiny_base).returncode == 0
    patterns = read_patterns(sandbox.patterns)
    assert len(patterns) > 10
    assert find(patterns, sandbox.places()) == {}


def test_the_attack_has_an_output_for_sealed_text_and_statistics_and_no_other() -> None:
    inner: Any = rl_attack.component_spec  # type: ignore[attr-defined]
    assert {name: item.type for name, item in inner.outputs.items()} == {
        "sealed": "system.Artifact@0.0.1",
        "statistics": "system.Artifact@0.0.1",
    }
