"""Rule 3 at the step's own entry, and all there is to set about an attack."""

import inspect
import json
import re
from pathlib import Path
from typing import Any

import pytest
import typer
from backburn.components.rl_attack import step
from backburn.components.rl_attack.attack import ArmResult
from backburn.components.rl_attack.step import authorise, run
from backburn.components.shared import sealing
from backburn.components.shared.checkpoints import FOLDER_VARIABLE
from backburn.components.shared.config import (
    ATTACK_STEP_HARD_CAP,
    AttackArmConfig,
    AttackConfig,
    JudgesConfig,
    LoraSettings,
    RunConfig,
    SweepConfig,
)
from backburn.components.shared.errors import ContainmentError, InputError
from backburn.components.shared.models import ModelManifest
from backburn.components.shared.step import Step
from backburn.pipelines.cli import app

from tests.containment.attack_alone import GROUP, prepare
from tests.containment.runs import ROOT


class LoadedError(AssertionError):
    """The step went on to load the model."""


@pytest.fixture
def given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for the step, whose model counts as loaded when it is asked for."""
    monkeypatch.setenv("BACKBURN_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")

    def load(*_: object, **__: object) -> None:
        raise LoadedError

    monkeypatch.setattr(step, "load_artifact", load)
    return tmp_path


def enter(given: Path, config: str, role: str, lineage: list[str]) -> None:
    """Call the step as KFP does."""
    manifest = ModelManifest(
        base="builtin:tiny", base_digests={}, adapter_digests={}, lineage=lineage
    )
    (given / "manifest.json").write_text(manifest.model_dump_json(), "utf-8")
    run(config, "x", GROUP | {"role": role}, given, given, given / "sealed", given / "statistics")


def changed(config: RunConfig, name: str, value: Any) -> str:
    """Configuration as JSON with one value of the attack section, or of its first arm, replaced."""
    content = json.loads(config.to_json())
    section = content["attack"]
    (section if name in section else section["arms"][0])[name] = value
    return json.dumps(content)


@pytest.mark.parametrize(
    ("role", "lineage", "problem"),
    [
        ("hardened", [], "no defence lineage"),
        ("hardened", ["baseline:refusals"], "no defence lineage"),
        ("control", ["defence:neutralization"], "this one is hardened"),
        ("anything", ["defence:neutralization"], "unknown role"),
    ],
)
def test_the_target_must_fit_the_role(
    given: Path, smoke: RunConfig, role: str, lineage: list[str], problem: str
) -> None:
    with pytest.raises(ContainmentError, match=problem):
        enter(given, smoke.to_json(), role, lineage)


def test_a_permitted_attack_is_let_in(given: Path, smoke: RunConfig) -> None:
    for role, lineage in (("control", []), ("hardened", ["defence:neutralization"])):
        with pytest.raises(LoadedError):
            enter(given, smoke.to_json(), role, lineage)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("purpose", ""),
        ("purpose", " " * 20),
        ("operator", ""),
        ("operator", "   "),
        ("steps", ATTACK_STEP_HARD_CAP + 1),
        ("control_steps", ATTACK_STEP_HARD_CAP + 1),
        ("no_containment", True),
        ("save_weights", True),
    ],
)
def test_no_configuration_gets_an_attack_past_the_entry(
    given: Path, smoke: RunConfig, name: str, value: Any
) -> None:
    with pytest.raises((ContainmentError, InputError)):
        enter(given, changed(smoke, name, value), "control", [])


def test_an_attack_that_is_cut_short_keeps_sealed_arms_and_no_weights(
    tmp_path: Path, tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = tmp_path / "kept"
    monkeypatch.setenv(FOLDER_VARIABLE, str(kept))
    monkeypatch.setenv("BACKBURN_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    monkeypatch.setenv(sealing.KEY_VARIABLE, sealing.new_key())
    prepare(tmp_path / "given", tiny_base, "smoke")
    steps: list[Step] = []

    def attack(*_: object, **__: object) -> ArmResult:
        return ArmResult([{"completion": "a marked answer"}], {"steps": []})

    def cut(opened: Step, *_: object) -> None:
        steps.append(opened)
        raise KeyboardInterrupt

    monkeypatch.setattr(step, "run_arm", attack)
    monkeypatch.setattr(step, "_track", cut)  # comes after the first arm
    config = (tmp_path / "given/config.json").read_text("utf-8")
    with pytest.raises(KeyboardInterrupt):
        run(
            config, "x", GROUP, tmp_path / "given/dataset", tmp_path / "given/target",
            tmp_path / "sealed", tmp_path / "statistics",
        )  # fmt: skip
    files = [path for path in kept.rglob("*") if path.is_file()]
    assert files
    assert not any(b"marked" in path.read_bytes() for path in files)
    with (
        pytest.raises(ContainmentError, match="never written"),
        steps[0].checkpoints.phase("attack", {}),
    ):
        pass


def test_without_a_key_to_seal_with_nothing_is_attacked(
    given: Path, smoke: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    for value in (None, "", "no key"):
        monkeypatch.delenv(sealing.KEY_VARIABLE, raising=False)
        if value is not None:
            monkeypatch.setenv(sealing.KEY_VARIABLE, value)
        with pytest.raises(ContainmentError, match=sealing.KEY_VARIABLE):
            enter(given, smoke.to_json(), "control", [])


@pytest.mark.parametrize("where", ["steps", "control_steps", "sweep"])
def test_the_cap_holds_for_a_configuration_that_nothing_validated(
    smoke: RunConfig, where: str
) -> None:
    attack = smoke.attack
    over = {"steps": ATTACK_STEP_HARD_CAP + 1}
    update: dict[str, Any] = (
        {"sweep": attack.sweep.model_copy(update=over)}
        if where == "sweep"
        else {"arms": [attack.arms[0].model_copy(update={where: over["steps"]})]}
    )
    config = smoke.model_copy(update={"attack": attack.model_copy(update=update)})
    manifest = ModelManifest(base="b", base_digests={}, adapter_digests={}, lineage=[])
    with pytest.raises(ContainmentError, match="hard cap of 1000"):
        authorise("control", manifest, config)


def test_lora_is_the_default_and_the_cap_is_a_thousand_steps() -> None:
    assert AttackArmConfig(name="a").adapter == "lora"
    assert ATTACK_STEP_HARD_CAP == 1000


def test_what_can_be_set_about_an_attack_is_all_that_was_looked_at() -> None:
    """A new setting, option or variable fails here: can it let weights, text or a key out?"""
    fields = {
        kind.__name__: set(kind.model_fields)
        for kind in (AttackConfig, AttackArmConfig, SweepConfig, LoraSettings, JudgesConfig)
    }
    assert fields == {
        "AttackConfig": {
            "purpose", "operator", "arms", "checkpoints", "max_completion_tokens",
            "completions_per_prompt", "held_out_sampling", "parallel_groups", "sweep",
            "lazy_rollouts",
        },
        "AttackArmConfig": {
            "name", "source", "seeds", "control_seeds", "steps", "control_steps", "prompts",
            "domain", "prompts_per_step", "group_size", "learning_rate", "loss", "scale_rewards",
            "exact_ties", "kl_coefficient", "entropy_coefficient", "sampling", "reward_levels",
            "reward_per_word", "style", "adapter", "lora",
        },
        "SweepConfig": {"trials", "steps", "benign_loss_max", "storage"},
        "LoraSettings": {"rank", "alpha", "upper_share"},
        "JudgesConfig": {
            "reward", "evaluation", "retain_sealed", "calibration_floor", "injection_drop_max",
            "drift_max",
        },
    }  # fmt: skip
    assert list(inspect.signature(run).parameters) == [
        "config_json", "run_id", "group", "dataset", "target", "sealed", "statistics",
    ]  # fmt: skip


def test_what_the_command_can_be_told_about_a_run_is_all_that_was_looked_at() -> None:
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    options = {name: {option.name for option in commands[name].params} for name in ("run", "audit")}
    assert options == {
        "run": {"recipe", "overrides", "runs", "run_id", "runner", "network"},
        "audit": {
            "reference", "recipe", "overrides", "key", "any_key", "report_only", "runs", "run_id",
        },
    }  # fmt: skip


def test_no_other_variable_of_the_environment_is_read() -> None:
    source = "".join(
        path.read_text("utf-8") for name in ("components", "pipelines")
        for path in sorted((ROOT / name).rglob("*.py"))
    )  # fmt: skip
    assert set(re.findall(r"BACKBURN_[A-Z_]+[A-Z]", source)) == {
        "BACKBURN_ACTOR", "BACKBURN_CACHE", "BACKBURN_CHECKPOINTS", "BACKBURN_EVENTS",
        "BACKBURN_JUDGE_API_KEY", "BACKBURN_RUNS", "BACKBURN_SEAL_KEY", "BACKBURN_SIGNING_KEY",
        "BACKBURN_TRACKING_URI", "BACKBURN_WEBHOOK_KEY", "BACKBURN_WEBHOOK_URL",
        "BACKBURN_WORKSPACE",
    }  # fmt: skip
