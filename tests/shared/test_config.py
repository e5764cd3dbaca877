"""Configuration: everything wrong at once, with dotted paths and a fix."""

from pathlib import Path

import pytest
from backburn.components.shared.config import RunConfig, config_schema, configure
from backburn.components.shared.errors import InputError
from backburn.components.shared.tracking import check_server, tracking_uri
from backburn.pipelines.recipes import load_recipe, shipped_arms, shipped_recipes
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator


@pytest.mark.parametrize("name", ["smoke", "laptop", "llama3-8b", "qwen2.5-7b", "ministral-8b"])
def test_shipped_recipes_are_valid_and_survive_json(name: str) -> None:
    config = load_recipe(name)
    assert RunConfig.from_json(config.to_json()) == config
    Draft202012Validator(config_schema()).validate(config.model_dump(mode="json"))


def test_all_problems_are_reported_with_paths_and_fixes() -> None:
    values = {
        "atack": {},
        "seed": -1,
        "attack": {"arms": [{"name": "paper", "step": 3}], "checkpoints": [5, 10]},
        "judges": {"reward": {"kind": "lexical"}},
    }
    with pytest.raises(InputError) as caught:
        configure(values, [], "here")
    text = str(caught.value)
    assert "atack: unknown key. Did you mean 'attack'?" in text
    assert "attack.arms.0.step: unknown key. Did you mean 'steps'?" in text
    assert "attack.checkpoints: checkpoints must start at 0" in text
    assert "seed: " in text
    assert "judges: reward and evaluation are the same judge" in text


@pytest.mark.parametrize(
    ("override", "get"),
    [
        ("seed=3", lambda c: c.seed == 3),
        ("attack.arms.0.steps=7", lambda c: c.attack.arms[0].steps == 7),
        ("attack.arms.0.learning_rate=1e-3", lambda c: c.attack.arms[0].learning_rate == 1e-3),
        ("gate.dry_run=true", lambda c: c.gate.dry_run is True),
        ("domain.name=home_networking", lambda c: c.domain.name == "home_networking"),
    ],
)
def test_overrides(override: str, get: object) -> None:
    assert callable(get)
    assert get(load_recipe("laptop", [override]))


@pytest.mark.parametrize(
    "override",
    ["seed", "=3", "model.id.x=3", "attack.arms.99.steps=3", "attack.arms.first.steps=3"],
)
def test_bad_overrides_say_so(override: str) -> None:
    with pytest.raises(InputError, match="--set"):
        load_recipe("laptop", [override])


def test_missing_recipe_suggests_one() -> None:
    with pytest.raises(InputError, match="Did you mean 'laptop'"):
        load_recipe("labtop")


def test_recipe_that_is_no_yaml(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("a: [", encoding="utf-8")
    with pytest.raises(InputError, match="not readable as YAML"):
        load_recipe(str(path))


@given(st.text(max_size=40))
def test_any_override_gives_a_config_or_an_input_error(text: str) -> None:
    values: dict[str, object] = {}
    try:
        config = configure(values, [text], "fuzz")
    except InputError:
        return
    assert isinstance(config, RunConfig)


def test_equal_configurations_have_equal_digests() -> None:
    assert load_recipe("laptop").digest() == load_recipe("laptop").digest()
    assert load_recipe("laptop").digest() != load_recipe("laptop", ["seed=1"]).digest()
    assert set(shipped_recipes()) >= {"smoke", "laptop"}


def test_arms_are_named_and_changed() -> None:
    changed = "attack.arms=[paper, {like: harm-rlvr, steps: 7, seeds: [4]}]"
    paper, other = load_recipe("smoke", [changed]).attack.arms
    assert (paper.name, other.name) == ("paper", "harm-rlvr")
    assert (other.prompts, other.steps, other.seeds) == (64, 7, [4])
    assert other.reward_levels == [0.0, 0.1, 0.5, 0.8, 1.0]
    assert "2510.15499" in other.source


def test_the_matrix_holds_every_shipped_arm_and_arms_keep_their_own_settings() -> None:
    arms = load_recipe(
        "laptop", ["attack.arms=[{like: matrix, learning_rate: 5e-4, seeds: [0]}]"]
    ).attack.arms
    assert [arm.name for arm in arms] == list(shipped_arms())
    rates = {arm.name: arm.learning_rate for arm in arms}
    assert rates["paper"] == 5e-4
    assert rates["rate-high"] == 1e-3
    assert all(arm.seeds == [0] for arm in arms)
    assert {arm.loss for arm in arms} == {"grpo", "dapo", "dr_grpo", "rloo"}
    assert {4, 8, 16} <= {arm.group_size for arm in arms}
    assert {1, 5, 64} <= {arm.prompts for arm in arms}
    assert {"lora", "full"} == {arm.adapter for arm in arms}
    assert {1.0, 1.5, 2.0} <= {arm.sampling.temperature for arm in arms}


def test_an_unknown_arm_is_named_with_its_place() -> None:
    with pytest.raises(
        InputError, match=r"attack\.arms\.1: no shipped arm 'grp-oblitt'.*grp-oblit"
    ):
        load_recipe("smoke", ["attack.arms=[paper, grp-oblitt]"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ("{like: loss-rloo, scale_rewards: group}", "loss rloo does not scale"),
        ("{like: full, kl_coefficient: 0.1}", "needs adapter lora"),
        ("{like: harm-rlvr, prompts: 5000}", "wants 5000 prompts"),
        ("{like: paper, control_seeds: []}", "no arm has control_seeds"),
    ],
)
def test_impossible_arms_are_refused(changes: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_recipe("laptop", [f"attack.arms=[{changes}]"])


def test_the_name_of_the_arm_a_sweep_finds_is_taken() -> None:
    with pytest.raises(InputError, match=r"attack\.arms: sweep-worst is the name of the arm"):
        load_recipe("smoke", ["attack.arms.0.name=sweep-worst"])


def test_a_tracking_server_with_a_password_is_refused_without_showing_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(InputError, match=r"tracking\.uri: .* must not hold a password") as caught:
        load_recipe("smoke", ["tracking.uri=https://me:hidden@mlflow"])
    assert "hidden" not in str(caught.value)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql://me:hidden@db/mlflow")
    for asks in (check_server, tracking_uri):
        with pytest.raises(InputError, match="must not hold a password") as caught:
            asks(load_recipe("smoke"))
        assert "hidden" not in str(caught.value)


def test_a_quoted_number_stays_text() -> None:
    config = configure({}, ['gate.version="2"', "gate.slip_rate_max=1e-5"], "recipe")
    assert (config.gate.version, config.gate.slip_rate_max) == ("2", 1e-5)
