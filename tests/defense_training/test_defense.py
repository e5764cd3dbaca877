"""Parts of the defence that its outcome alone does not show."""

from pathlib import Path
from typing import Any

import pytest
import torch
from backburn.components.defense_training import defense
from backburn.components.defense_training.defense import DefenseData, defend
from backburn.components.shared.config import ModelConfig, RunConfig
from backburn.components.shared.domains import Domain
from backburn.components.shared.judges import make_judge
from backburn.components.shared.models import load_base
from backburn.components.shared.supervised import noisy_embeddings
from backburn.pipelines.recipes import load_recipe

from tests.conftest import align_tiny


def test_consolidation_leaves_the_average_of_the_settling_adapter(
    tiny_base: Path, toy: Domain, smoke: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = align_tiny(load_base(tiny_base, ModelConfig(id="builtin:tiny")), toy, smoke, 0)
    loaded.model.requires_grad_(False)
    changes = {"min_steps": 1, "max_steps": 12, "settle_steps": 6, "check_every": 6}
    config = load_recipe(
        "smoke",
        [
            "defense.warm_start.enabled=false",
            "defense.neutralization.enabled=false",
            *(f"defense.consolidation.{key}={value}" for key, value in changes.items()),
        ],
    ).defense
    trained: list[dict[str, torch.Tensor]] = []
    step = defense._step

    def recording(model: Any, optimizer: torch.optim.Optimizer) -> None:
        step(model, optimizer)
        trained.append(defense._adapter_state(model))

    monkeypatch.setattr(defense, "_step", recording)
    noise: list[float] = []

    def noisy(model: Any, amount: float, seed: int) -> Any:
        noise.append(amount)
        return noisy_embeddings(model, amount, seed)

    monkeypatch.setattr(defense, "noisy_embeddings", noisy)
    result = defend(
        loaded,
        config,
        DefenseData(
            defence=[row for row in toy.forbidden if row.split == "defence"],
            validation=[row for row in toy.forbidden if row.split == "validation"],
            near_miss=toy.near_miss[:20],
            benign=toy.benign[:20],
            rejection=toy.header.rejection,
        ),
        make_judge(smoke.judges.reward, toy.header.rubric),
        max_tokens=24,
        seed=0,
        report=lambda *_: None,
    )
    assert len(trained) == 12
    assert noise == [config.consolidation.embedding_noise] * 12
    assert config.consolidation.embedding_noise > 0
    # Steps 1 to 7 run at the full rate or warm up; from the eighth on the rate falls.
    expected = trained[7]
    for state in trained[8:]:
        expected = {name: value.lerp(state[name], 0.1) for name, value in expected.items()}
    left = defense._adapter_state(result.peft_model)
    for name, value in left.items():
        torch.testing.assert_close(value, expected[name])
    assert any(not torch.equal(left[name], trained[-1][name]) for name in left)
    curve = result.consolidation_curve
    assert [point["step"] for point in curve] == [0, 6, 12]
    assert curve[-1]["slip_rate"] == min(point["slip_rate"] for point in curve)
    assert result.phases[-1].slip_rate == pytest.approx(curve[-1]["slip_rate"], rel=1e-3)


def test_embeddings_are_shaken_only_where_a_gradient_is_computed(tiny_base: Path) -> None:
    model = load_base(tiny_base, ModelConfig(id="builtin:tiny")).model
    embedding, ids = model.get_input_embeddings(), torch.arange(40).repeat(50)
    calm = embedding(ids).detach()
    with noisy_embeddings(model, 0.5, 3):
        shaken = embedding(ids).detach()
        with torch.no_grad():
            assert torch.equal(embedding(ids), calm)
    noise = shaken - calm
    assert float(noise.std() / embedding.weight.std()) == pytest.approx(0.5, rel=0.05)
    assert float(noise.mean().abs()) < 0.1 * float(noise.std())
    with noisy_embeddings(model, 0.5, 3):
        assert torch.equal(embedding(ids).detach(), shaken)
    assert torch.equal(embedding(ids).detach(), calm)
    with noisy_embeddings(model, 0.0, 3):
        assert torch.equal(embedding(ids).detach(), calm)
