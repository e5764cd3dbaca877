"""The architecture's rules, read from the source."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
STEPS = sorted(path.parent.name for path in ROOT.glob("components/*/component.py"))


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


def test_there_are_the_steps_of_the_design() -> None:
    assert set(STEPS) == {
        "preflight", "data_prep", "baseline", "defense_training", "certification", "rl_attack",
        "judge_evaluation", "promotion", "notification", "audited_model",
    }  # fmt: skip


@pytest.mark.parametrize("path", sorted(ROOT.glob("components/shared/**/*.py")), ids=str)
def test_shared_imports_no_step(path: Path) -> None:
    for module in imports(path):
        if module.startswith("backburn."):
            assert module.startswith("backburn.components.shared"), f"{path}: {module}"


@pytest.mark.parametrize("step", STEPS)
def test_steps_import_no_other_step(step: str) -> None:
    allowed = ("backburn.components.shared", f"backburn.components.{step}")
    for path in (ROOT / "components" / step).glob("**/*.py"):
        for module in imports(path):
            if module.startswith("backburn."):
                assert module.startswith(allowed), f"{path}: {module}"


@pytest.mark.parametrize(
    "name", ["hardening.py", "audit.py", "stages.py", "rejudge.py", "schedules.py"]
)
def test_pipelines_import_only_faces_of_steps(name: str) -> None:
    for module in imports(ROOT / "pipelines" / name):
        if module.startswith("backburn.components.") and ".shared." not in module:
            assert module.endswith(".component"), module


@pytest.mark.parametrize("step", STEPS)
def test_faces_hold_a_call_and_no_logic(step: str) -> None:
    folder = ROOT / "components" / step
    tree = ast.parse((folder / "component.py").read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            module = node.module if isinstance(node, ast.ImportFrom) else node.names[0].name
            assert module in ("kfp", "typing"), f"{step} imports {module} at module level"
    face = next(node for node in tree.body if isinstance(node, ast.FunctionDef))
    statements = [
        n for n in ast.walk(face) if isinstance(n, ast.For | ast.While | ast.If | ast.Try)
    ]
    assert not statements
    assert len(face.body) - 1 <= 8
    assert (folder / "README.md").is_file()
    assert (folder / "metadata.yaml").is_file()


def test_attacked_weights_have_no_way_out() -> None:
    face = (ROOT / "components/rl_attack/component.py").read_text(encoding="utf-8")
    assert "Output[dsl.Model]" not in face
    for path in (ROOT / "components/rl_attack").glob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        called = {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute)}
        forbidden = {"save_pretrained", "save_model", "push_to_hub", "merge_and_unload"}
        forbidden |= {"save_artifact", "log_model", "state_dict"}
        assert not called & forbidden, path


def test_what_is_checked_before_a_run_does_not_wait_for_fsdp() -> None:
    program = (
        "import sys, backburn.components.preflight.checks;"
        "sys.exit('torch.distributed.fsdp' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
