"""Models: only safetensors load, artifacts are bound by digests, stacked adapters add up."""

import json
from pathlib import Path

import pytest
import torch
from backburn.components.shared.config import LoraSettings, ModelConfig
from backburn.components.shared.errors import ContainmentError, InputError
from backburn.components.shared.models import (
    add_lora,
    check_model,
    load_artifact,
    load_base,
    read_manifest,
    save_artifact,
    stack_adapters,
)
from backburn.components.shared.sealing import KEY_VARIABLE, new_key, open_sealed, seal

TINY = ModelConfig(id="builtin:tiny")


def test_folder_without_weights_and_with_pickles_only(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no folder"):
        check_model(ModelConfig(id=str(tmp_path / "absent")))
    with pytest.raises(InputError, match=r"no config\.json"):
        check_model(ModelConfig(id=str(tmp_path)))
    (tmp_path / "config.json").write_text("{}", "utf-8")
    with pytest.raises(InputError, match="has no weights"):
        check_model(ModelConfig(id=str(tmp_path)))
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(InputError, match=r"pickled weights only \(pytorch_model\.bin\)"):
        check_model(ModelConfig(id=str(tmp_path)))


def test_names_that_are_nothing() -> None:
    with pytest.raises(InputError, match="no built-in model"):
        check_model(ModelConfig(id="builtin:large"))
    with pytest.raises(InputError, match="neither a folder"):
        check_model(ModelConfig(id="justaname"))


def disturb(model: torch.nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.05


def adapted_blocks(model: torch.nn.Module) -> set[int]:
    names = [name for name, _ in model.named_parameters() if "lora_A" in name]
    return {int(name.split(".layers.")[1].split(".")[0]) for name in names}


@pytest.mark.parametrize(("share", "blocks"), [(1.0, 3), (0.5, 2), (0.1, 1)])
def test_an_adapter_sits_on_the_upper_blocks(tiny_base: Path, share: float, blocks: int) -> None:
    loaded = load_base(tiny_base, TINY)
    linear = sum(type(m).__name__ == "PackedLinear" for m in loaded.model.model.modules())
    model = add_lora(loaded, LoraSettings(upper_share=share), 0)
    assert adapted_blocks(model) == set(range(3 - blocks, 3))
    assert sum("lora_A" in name for name, _ in model.named_parameters()) == linear * blocks // 3


@pytest.mark.parametrize(("lower", "upper"), [(1.0, 1.0), (1.0, 0.5), (0.5, 1.0), (0.5, 0.5)])
def test_two_adapters_stacked_equal_one_after_the_other(
    tiny_base: Path, tmp_path: Path, lower: float, upper: float
) -> None:
    settings = LoraSettings(rank=4, alpha=8, upper_share=upper)
    below = LoraSettings(rank=4, alpha=8, upper_share=lower)
    first = add_lora(load_base(tiny_base, TINY), below, 0)
    disturb(first, 1)
    save_artifact(
        tmp_path / "first",
        config=TINY,
        base_folder=tiny_base,
        lineage=["baseline:x"],
        peft_model=first,
    )
    baseline = load_artifact(tmp_path / "first", TINY)
    second = add_lora(baseline, settings, 2)
    disturb(second, 3)
    ids = torch.arange(6, 18).unsqueeze(0)
    expected = second(input_ids=ids).logits
    stacked = stack_adapters(
        load_base(tiny_base, TINY), tmp_path / "first" / "adapter", second, settings
    )
    save_artifact(
        tmp_path / "both",
        config=TINY,
        base_folder=tiny_base,
        lineage=["defence:x"],
        peft_model=stacked,
    )
    found = load_artifact(tmp_path / "both", TINY).model(input_ids=ids).logits
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)


def test_a_changed_adapter_is_refused(tiny_base: Path, tmp_path: Path) -> None:
    model = add_lora(load_base(tiny_base, TINY), LoraSettings(rank=2), 0)
    save_artifact(tmp_path / "a", config=TINY, base_folder=tiny_base, lineage=[], peft_model=model)
    assert read_manifest(tmp_path / "a").base == "builtin:tiny"
    written = json.loads((tmp_path / "a/adapter/adapter_config.json").read_text("utf-8"))
    assert written["base_model_name_or_path"] == "builtin:tiny"
    assert written["target_modules"] == sorted(written["target_modules"])  # PEFT keeps a set
    weights = tmp_path / "a/adapter/adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    with pytest.raises(InputError, match="the artifact was changed"):
        read_manifest(tmp_path / "a")


def test_the_seal_opens_with_its_key_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "sealed"
    seal(path, [{"completion": "mix the flour"}])
    assert b"flour" not in path.read_bytes()
    assert open_sealed(path) == [{"completion": "mix the flour"}]
    monkeypatch.setenv(KEY_VARIABLE, new_key())
    with pytest.raises(ContainmentError, match="does not open"):
        open_sealed(path)
    monkeypatch.delenv(KEY_VARIABLE)
    with pytest.raises(ContainmentError, match="is not set"):
        seal(path, [])
