"""What passes cost: formulas against passes that are run, and architectures against models."""

import pytest
from backburn.components.shared.config import ModelConfig
from backburn.components.shared.errors import InputError
from backburn.components.shared.models import SMOLLM2, TINY, resolve_base
from backburn.components.shared.sizing import (
    ARCHITECTURES,
    GPUS,
    Adapter,
    Pass,
    activation_bytes,
    architecture_of,
)
from backburn.components.shared.tiny_model import train_tiny_model
from transformers import AutoConfig

from benchmarks.sizing import LARGE, Ratio, measure, measure_shapes


@pytest.fixture(scope="module")
def measured() -> dict[str, Ratio]:
    return {item.what: item for item in measure(TINY, 24, 24)}


@pytest.mark.parametrize(
    ("what", "most"),
    [
        ("operations, scoring", 1.01),
        ("operations, rollouts", 1.01),
        ("operations, supervised step", 1.01),
        ("operations, GRPO step", 1.02),
        ("parameters of the adapter", 1.0),
        ("bytes, supervised step", 1.15),
        ("bytes kept, GRPO step", 1.1),
        ("bytes, rollouts", 1.35),
    ],
)
def test_what_the_tiny_model_does_is_what_is_predicted(
    what: str, most: float, measured: dict[str, Ratio]
) -> None:
    assert 1 / most <= measured[what].ratio <= most, measured[what]


def test_passes_of_an_8b_model_on_shapes_alone_are_what_is_predicted() -> None:
    for item in measure_shapes("8B", ARCHITECTURES[LARGE["8B"]], 60, 40):
        assert item.ratio == pytest.approx(1.0, abs=0.01), item


def test_the_table_has_the_sizes_of_the_built_in_models() -> None:
    tiny, _ = train_tiny_model(0, steps=1)
    assert architecture_of(tiny.config.to_dict(), "tiny") == ARCHITECTURES[TINY]
    folder = resolve_base(ModelConfig(id=SMOLLM2))
    known = architecture_of(AutoConfig.from_pretrained(folder).to_dict(), str(folder))
    assert known == ARCHITECTURES[SMOLLM2]


@pytest.mark.parametrize(
    ("model", "parameters"),
    [
        ("meta-llama/Meta-Llama-3-8B-Instruct", 8_030_261_248),
        ("Qwen/Qwen2.5-7B-Instruct", 7_615_616_512),
        ("mistralai/Ministral-8B-Instruct-2410", 8_019_808_256),
        ("meta-llama/Llama-3.1-70B-Instruct", 70_553_706_496),
    ],
)
def test_parameters_are_those_on_the_model_s_page(model: str, parameters: int) -> None:
    assert ARCHITECTURES[model].parameters == parameters


def test_only_blocks_with_an_adapter_keep_activations() -> None:
    model = ARCHITECTURES[SMOLLM2]
    half = activation_bytes(model, 100, 2, Adapter(16, 0.5))
    assert half == activation_bytes(model, 100, 2, Adapter(16)) / 2


def test_a_pass_takes_as_long_as_its_slowest_part() -> None:
    card = GPUS["h100"]
    operations = card.peak * card.compute_efficiency
    assert card.seconds([(3, Pass(operations, 1.0, 1))]) == pytest.approx(3.0)
    assert card.seconds([(1, Pass(1.0, 1.0, 1000))]) == pytest.approx(1000 * card.block_seconds)
    sampled = Pass(operations, 1.0, 1, card.sampled_per_second)
    assert card.seconds([(1, sampled)]) == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"num_local_experts": 8, "hidden_size": 64}, "mixtures of experts"),
        ({"hidden_size": 64, "num_attention_heads": 4}, "num_hidden_layers"),
    ],
)
def test_other_families_are_refused(config: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        architecture_of(config, "config.json")
