"""Configuration: everything wrong at once, with dotted paths and a fix."""

from pathlib import Path

import pytest
from backburn.components.shared.config import RunConfig, config_schema, configure
from backburn.components.shared.errors import InputError
from backburn.pipelines.recipes import load_recipe, shipped_recipes
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
    "override", ["seed", "=3", "model.id.x=3", "attack.arms.9.steps=3", "attack.arms.first.steps=3"]
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
