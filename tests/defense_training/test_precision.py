"""In which precision the steps multiply on a CPU that does so in bfloat16 too."""

from pathlib import Path

import pytest
import torch
from backburn.components.baseline.step import run as align
from backburn.components.data_prep.step import run as prepare
from backburn.components.defense_training.step import run as defend
from backburn.components.rl_attack.step import run as attack
from backburn.components.shared import packed_linear
from backburn.components.shared.arms import arm_groups
from backburn.pipelines.recipes import load_recipe

_ARM = (
    "{name: paper, seeds: [0], control_seeds: [0], steps: 2, control_steps: 2, prompts_per_step: 2}"
)


@pytest.fixture
def multiplied(monkeypatch: pytest.MonkeyPatch) -> set[torch.dtype]:
    """The precisions of packed products from here on; bfloat16 is counted, and not imitated."""
    found: set[torch.dtype] = set()
    multiply, packed = packed_linear._multiply, packed_linear.PackedLinear.packed

    def counted(
        rows: torch.Tensor,
        weights: torch.Tensor,
        bias: torch.Tensor | None,
        dtype: torch.dtype,
    ) -> torch.Tensor:
        found.add(dtype)
        return multiply(rows, weights, bias, torch.float32)

    monkeypatch.setattr(packed_linear, "_multiply", counted)
    monkeypatch.setattr(
        packed_linear.PackedLinear,
        "packed",
        lambda layer, dtype, transposed: packed(layer, torch.float32, transposed),
    )
    monkeypatch.setattr(packed_linear, "_multiplies_bfloat16", lambda: True)
    monkeypatch.setattr(packed_linear, "_LEAST_MIXED", 1)
    return found


def test_models_are_made_in_float32_and_attacked_in_bfloat16(
    multiplied: set[torch.dtype], tmp_path: Path
) -> None:
    config = load_recipe(
        "smoke",
        [
            f"tracking.uri=sqlite:///{tmp_path}/mlflow.db", "model.dtype=auto", "baseline.steps=2",
            "defense.warm_start.steps=1", "defense.neutralization.steps=1",
            "defense.consolidation.max_steps=2", "defense.consolidation.settle_steps=1",
            "attack.checkpoints=[0, 2]", f"attack.arms=[{_ARM}]",
        ],
    )  # fmt: skip
    text = config.to_json()
    dataset, model, record = tmp_path / "dataset", tmp_path / "model", tmp_path / "record"
    prepare(text, "one", dataset)
    align(text, "one", dataset, model, record)
    assert multiplied == {torch.float32}
    defend(text, "one", dataset, model, tmp_path / "hardened", tmp_path / "phases")
    assert multiplied == {torch.float32}
    (group,) = arm_groups(config, "control")
    attack(text, "one", group, dataset, model, tmp_path / "sealed", tmp_path / "statistics")
    assert multiplied == {torch.float32, torch.bfloat16}
