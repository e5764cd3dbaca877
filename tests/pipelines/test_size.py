"""`backburn size`: what a run needs follows from its configuration."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from backburn.components.shared.errors import InputError
from backburn.components.shared.sizing import ARCHITECTURES, GPUS
from backburn.pipelines.cli import app
from backburn.pipelines.recipes import load_recipe, shipped_recipes
from backburn.pipelines.sizing import (
    Sizing,
    fewest_gpus,
    gpus_at_once,
    growth,
    read_architecture,
    read_prompts,
    sharded,
    size_run,
)
from typer.testing import CliRunner

CARD = GPUS["h100"]
LLAMA = "meta-llama/Meta-Llama-3-8B-Instruct"


def sized(*overrides: str) -> Sizing:
    config = load_recipe("llama3-8b", overrides)
    return size_run(config, read_architecture(config), read_prompts(config))


def invoked(*arguments: str) -> Any:
    done = CliRunner().invoke(app, ["size", *arguments, "--json"], catch_exceptions=False)
    assert done.exit_code == 0
    return json.loads(done.stdout)


@pytest.mark.parametrize("recipe", shipped_recipes())
def test_every_shipped_recipe_can_be_sized(recipe: str) -> None:
    config = load_recipe(recipe)
    found = size_run(config, read_architecture(config), read_prompts(config))
    assert [step.name.partition(",")[0] for step in found.steps] == [
        "baseline", "defense_training", "certification", "rl_attack", "rl_attack",
    ]  # fmt: skip
    least, most = found.hours(CARD)
    assert 0 < least < most


def test_arms_that_keep_still_cost_nothing_and_moving_ones_full_steps() -> None:
    config = load_recipe("llama3-8b")
    hours = {
        title: size_run(changed, ARCHITECTURES[LLAMA], read_prompts(config)).hours(CARD)
        for title, changed in growth(config)
    }
    least, most = hours["as configured"]
    assert hours["twice the seeds"] == pytest.approx((least, 2 * most - least), rel=0.01)
    assert hours["half the steps"][0] == pytest.approx(least, rel=0.01)
    assert hours["half the steps"][1] < 0.7 * most
    assert hours["one control seed an arm"][0] < least
    moving = sized("attack.arms.0.entropy_coefficient=0.01").hours(CARD)
    assert moving[0] == pytest.approx(most, rel=0.01)


def test_an_audit_hardens_nothing() -> None:
    assert "defense_training" not in [step.name for step in sized("audit={}").steps]
    assert sized("audit={}").store["hardened adapter, MLflow"] == 0


def test_rows_at_once_are_bounded_by_their_tokens_and_rows_that_fit_are_named() -> None:
    few, many = sized("attack.arms.0.prompts_per_step=1"), sized()
    step, wide = few.steps[-1], many.steps[-1]
    assert step.rows == wide.rows == 8
    assert "of 8 rows at once" in step.largest()
    assert "of 40 rows at once" in wide.largest()
    assert many.gpu_bytes(wide) < CARD.usable * CARD.memory
    small = replace(CARD, memory=40e9)
    assert 0 < many.fitting_rows(wide, small) < wide.rows
    longer = sized("attack.max_completion_tokens=600")
    assert longer.steps[-1].rows < wide.rows


def test_full_training_holds_gradients_and_moments_of_every_weight() -> None:
    found = sized("attack.arms.0.adapter=full", "attack.arms.0.prompts_per_step=1")
    step = found.steps[-1]
    trained, _ = step.passes[step.largest()]
    assert trained == 16 * found.model.parameters


def test_gpus_at_once() -> None:
    assert gpus_at_once(load_recipe("llama3-8b")) == 4
    assert gpus_at_once(load_recipe("smoke")) == 2


def test_json_has_the_same_figures() -> None:
    found = invoked("-r", "llama3-8b", "--gpu", "h200", "--set", "attack.arms.0.prompts_per_step=1")
    own = sized("attack.arms.0.prompts_per_step=1")
    assert found["parameters"] == 8_030_261_248
    assert [step["gpu_bytes"] for step in found["steps"]] == [
        own.gpu_bytes(step) for step in own.steps
    ]
    assert found["gpu_hours"]["all_move"] == own.hours(GPUS["h200"])[1]


def test_another_peak_and_another_model() -> None:
    slow = invoked("-r", "llama3-8b", "--tflops", "10")
    assert slow["gpu_hours"]["none_moves"] > sized().hours(CARD)[0]
    large = invoked("-r", "llama3-8b", "--architecture", "meta-llama/Llama-3.1-70B-Instruct")
    assert not any(step["fits"] for step in large["steps"])


def test_the_table_says_what_does_not_fit() -> None:
    large = ["--architecture", "meta-llama/Llama-3.1-70B-Instruct"]
    done = CliRunner().invoke(app, ["size", "-r", "llama3-8b", *large], catch_exceptions=False)
    assert done.exit_code == 0
    assert "defense_training: a GRPO step holds 5 rows at once; on this card not one" in done.stdout
    assert "GPUs at once: 4" in done.stdout
    assert "divided over 6 of these cards or more" in " ".join(done.stdout.split())


def test_weights_divided_over_enough_gpus_fit() -> None:
    model = ARCHITECTURES["meta-llama/Llama-3.1-70B-Instruct"]
    config = load_recipe("llama3-8b")
    prompts = read_prompts(config)
    needed = fewest_gpus(config, model, prompts, CARD)
    assert needed is not None
    assert 1 < needed <= 8
    alone = size_run(config, model, prompts)
    enough, few = (size_run(sharded(config, n), model, prompts) for n in (needed, needed - 1))
    assert not any(alone.fits(step, CARD) for step in alone.steps)
    assert all(enough.fits(step, CARD) for step in enough.steps)
    assert not all(few.fits(step, CARD) for step in few.steps)
    assert enough.weights == alone.weights / needed
    assert fewest_gpus(config, ARCHITECTURES[LLAMA], prompts, CARD) == 1
    assert fewest_gpus(config, model, prompts, replace(CARD, memory=1e9)) is None
    assert enough.hours(CARD)[0] > alone.hours(CARD)[0], "weights come from other GPUs"
    slow = replace(CARD, link=CARD.link / 2)
    assert enough.hours(slow)[0] > enough.hours(CARD)[0]
    assert alone.hours(slow) == alone.hours(CARD)


def test_sizes_are_read_from_config_json(tmp_path: Path) -> None:
    values = {
        "num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4,
        "intermediate_size": 128, "vocab_size": 1000, "model_type": "qwen2",
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(values), "utf-8")
    config = load_recipe("llama3-8b", [f"model.id={tmp_path}"])
    found = read_architecture(config)
    assert (found.layers, found.kv_heads, found.head_size, found.qkv_bias) == (2, 4, 16, True)
    assert read_architecture(load_recipe("smoke"), str(tmp_path)) == found


@pytest.mark.parametrize("model", ["s3://bucket/model", "owner/unknown", "./absent"])
def test_unknown_sizes_are_bad_input(model: str) -> None:
    with pytest.raises(InputError, match="Give --architecture the model's config"):
        read_architecture(load_recipe("llama3-8b", [f"model.id={model}"]))
