"""Bad input by the command: one message, exit code 2, nothing run."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.bad_input.test_recipes import LAUGHS


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["validate", "-r", "laughs.yaml"], "once its aliases are written out"),
        (["run", "-r", "smoke", "--run-id", "../elsewhere"], "a run's id is 1 to 128 letters"),
        (["run", "-r", "smoke", "--set", "domain.name=../domains/cooking"], "no shipped domain"),
        (
            ["run", "-r", "smoke", "--set", "tracking.uri=sqlite:////proc/no/runs.db"],
            "tracking.uri: sqlite:////proc/no/runs.db cannot be used",
        ),
    ],
)
def test_bad_input_by_the_command(arguments: list[str], reason: str, tmp_path: Path) -> None:
    (tmp_path / "laughs.yaml").write_text(LAUGHS, "utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "backburn.pipelines.cli", *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert any(reason in line for line in done.stderr.splitlines())
    assert "Traceback" not in done.stderr
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["laughs.yaml"]
