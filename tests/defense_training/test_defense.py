"""Parts of the defence that its outcome alone does not show."""

from pathlib import Path
from typing import Any

import pytest
import torch
from backburn.components.defense_training import defense
from backburn.components.defense_training.defense import defend
from backburn.components.defense_training.meter import DefenseData, DefenseResult, Report
from backburn.components.shared.checkpoints import Checkpoints
from backburn.components.shared.config import DefenseConfig, ModelConfig, RunConfig, SamplingConfig
from backburn.components.shared.domains import Domain
from backburn.components.shared.judges import Exchange, Judge, make_judge
from backburn.components.shared.models import LoadedModel, load_base
from backburn.components.shared.sampling import completion_logits, draw_completions
from backburn.components.shared.supervised import Example, noisy_embeddings
from backburn.pipelines.recipes import load_recipe

from tests.conftest import align_tiny


def prompts_of(toy: Domain) -> DefenseData:
    return DefenseData(
        defence=[row for row in toy.forbidden if row.split == "defence"],
        validation=[row for row in toy.forbidden if row.split == "validation"],
        near_miss=toy.near_miss[:20],
        benign=toy.benign[:20],
        rejection=toy.header.rejection,
        refusals=toy.refusals,
        topic=toy.header.topic,
    )


def defended(
    loaded: LoadedModel,
    config: DefenseConfig,
    toy: Domain,
    judge: Judge,
    *,
    max_tokens: int = 24,
    report: Report = lambda *_: None,
) -> DefenseResult:
    """A defence on the toy domain."""
    return defend(
        loaded,
        config,
        prompts_of(toy),
        judge,
        max_tokens=max_tokens,
        seed=0,
        report=report,
        checkpoints=Checkpoints(None, ""),
    )


def entropy_and_refusals(loaded: LoadedModel, toy: Domain, judge: Judge) -> tuple[float, float]:
    """Mean token entropy of completions to validation prompts, and the share that refuses."""
    rows = [row for row in toy.forbidden if row.split == "validation"]
    prompts = loaded.encode_rows(rows) * 4
    generator = torch.Generator().manual_seed(1)
    drawn = draw_completions(loaded, prompts, SamplingConfig(), max_tokens=24, generator=generator)
    logs = [entry.logits.log_softmax(-1) for entry in completion_logits(loaded, prompts, drawn)]
    entropy = torch.cat([-(log.exp() * log).sum(-1) for log in logs]).mean()
    verdicts = judge.judge(
        [Exchange(row.text, loaded.decode(t)) for row, t in zip(rows * 4, drawn, strict=True)]
    )
    return float(entropy), sum(v.refused for v in verdicts) / len(verdicts)


@pytest.mark.parametrize(
    ("method", "changes"),
    [
        (
            "entropy",
            [
                "entropy.steps=40",
                "entropy.learning_rate=2e-3",
                "entropy.noise_learning_rate=1e-4",
            ],
        ),
        ("refusal", ["refusal.steps=30", "refusal.learning_rate=3e-3"]),
    ],
)
def test_the_defences_to_compare_with_do_what_they_are_named_for(
    tiny_base: Path, toy: Domain, smoke: RunConfig, method: str, changes: list[str]
) -> None:
    config = load_recipe("smoke", [f"defense.{change}" for change in changes]).defense
    loaded = load_base(tiny_base, ModelConfig(id="builtin:tiny"))
    loaded.model.requires_grad_(False)
    judge = make_judge(smoke.judges.evaluation, toy.header.rubric)
    entropy, refusals = entropy_and_refusals(loaded, toy, judge)
    seen: list[str] = []
    result = defended(
        loaded,
        config.model_copy(update={"method": method}),
        toy,
        judge,
        report=lambda phase, *_: seen.append(phase),
    )
    hardened = LoadedModel(result.peft_model, loaded.tokenizer)
    entropy_after, refusals_after = entropy_and_refusals(hardened, toy, judge)
    assert [phase.phase for phase in result.phases] == ["baseline", seen[-1]]
    if method == "entropy":
        assert entropy_after < 0.75 * entropy
    else:
        assert refusals_after > refusals + 0.5
    assert result.phases[-1].benign_kl < 0.5
    assert result.phases[-1].slip_rate > 0.5  # neither gives the rejection


def test_consolidation_leaves_the_average_of_the_settling_adapter(
    tiny_base: Path, toy: Domain, smoke: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = align_tiny(load_base(tiny_base, ModelConfig(id="builtin:tiny")), toy, smoke, 0)
    changes = {"min_steps": 1, "max_steps": 40, "settle_steps": 6, "check_every": 20}
    config = load_recipe(
        "smoke",
        [
            "defense.warm_start.enabled=false",
            "defense.neutralization.enabled=false",
            *(f"defense.consolidation.{key}={value}" for key, value in changes.items()),
        ],
    ).defense
    trained: list[dict[str, torch.Tensor]] = []
    step = defense.optimizer_step

    def recording(model: Any, optimizer: torch.optim.Optimizer) -> None:
        step(model, optimizer)
        trained.append(defense._adapter_state(model))

    monkeypatch.setattr(defense, "optimizer_step", recording)
    # Which of the measured states is best differs by processor; here it is the last.
    monkeypatch.setattr(defense, "_badness", lambda *_: -float(len(trained)))
    noise: list[float] = []

    def noisy(model: Any, amount: float, seed: int) -> Any:
        noise.append(amount)
        return noisy_embeddings(model, amount, seed)

    monkeypatch.setattr(defense, "noisy_embeddings", noisy)
    result = defended(loaded, config, toy, make_judge(smoke.judges.reward, toy.header.rubric))
    assert len(trained) == 40
    assert noise == [config.consolidation.embedding_noise] * 40
    assert config.consolidation.embedding_noise > 0
    # Steps 1 to 35 run at the full rate or warm up; from the 36th on the rate falls.
    expected = trained[35]
    for state in trained[36:]:
        expected = {name: value.lerp(state[name], 0.1) for name, value in expected.items()}
    left = defense._adapter_state(result.peft_model)
    for name, value in left.items():
        torch.testing.assert_close(value, expected[name])
    assert any(not torch.equal(left[name], trained[-1][name]) for name in left)
    curve = result.consolidation_curve
    assert [point["step"] for point in curve] == [0, 20, 40]
    assert curve[-1]["slip_rate"] == min(point["slip_rate"] for point in curve)
    assert result.phases[-1].slip_rate == pytest.approx(curve[-1]["slip_rate"], rel=1e-3)


def test_what_is_measured_on_is_not_trained_on_put_differently_either(
    tiny_base: Path, toy: Domain, smoke: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[str] = []
    played: list[str] = []
    restyled: list[str] = []
    every: list[str] = []
    set_aside, role_plays, restyle = defense.set_aside, defense.role_plays, defense.restyled

    def watch_aside(rows: Any) -> Any:
        train, aside = set_aside(rows)
        measured.extend(row.id for row in aside)
        return train, aside

    def watch_plays(rows: Any, share: float, generator: torch.Generator) -> Any:
        copies = role_plays(rows, share, generator)
        played.extend(copy.id.removesuffix("-played") for copy in copies)
        return copies

    monkeypatch.setattr(defense, "set_aside", watch_aside)

    def watch_styles(
        loaded: LoadedModel, rows: Any, share: float, generator: torch.Generator, **how: Any
    ) -> Any:
        restyled.extend(row.id for row in rows)
        every.extend(row.id for row in rows if how["every_style"])
        return restyle(loaded, rows, share, generator, **how)

    monkeypatch.setattr(defense, "role_plays", watch_plays)
    monkeypatch.setattr(defense, "restyled", watch_styles)
    off = [f"defense.{phase}.enabled=false" for phase in ("neutralization", "consolidation")]
    config = load_recipe("smoke", [*off, "defense.warm_start.steps=1"]).defense
    loaded = load_base(tiny_base, ModelConfig(id="builtin:tiny"))
    data = prompts_of(toy)
    defended(
        loaded,
        config.model_copy(update={"role_plays": 1.0}),
        toy,
        make_judge(smoke.judges.evaluation, toy.header.rubric),
        max_tokens=4,
    )
    benign = {row.id for row in [*data.near_miss, *data.benign]}
    assert measured
    assert benign & set(played)
    assert benign & set(restyled)
    assert not set(measured) & {*played, *restyled}
    assert every == [row.id for row in data.defence]


def test_a_derailed_rejection_goes_on_where_it_left_off() -> None:
    example = Example((1, 2, 3), (10, 11, 12, 13))
    generator = torch.Generator().manual_seed(0)
    places, counts = set(), set()
    for _ in range(300):
        derailed = defense.derail(example, 9, generator)
        given = derailed.prompt[3:]
        noise = [token for token in given if token < 9]
        kept = given[: len(given) - len(noise)]
        assert derailed.prompt[:3] == (1, 2, 3)
        assert kept == example.completion[: len(kept)]
        assert derailed.completion == (example.completion[len(kept) + 1 :] or (13,))
        places.add(len(kept))
        counts.add(len(noise))
    assert places == {0, 1, 2, 3}
    assert counts == {1, 2, 3, 4}


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


def test_drift_counts_when_a_state_is_chosen() -> None:
    config = load_recipe("smoke").defense.consolidation
    point = {
        "slip_rate": config.target_slip_rate,
        "near_miss_rejection": 0.0,
        "benign_rejection": 0.0,
        "benign_kl": 0.1,
    }
    drifted = {**point, "benign_kl": 0.2}
    slipping = {**point, "slip_rate": 10.0 * config.target_slip_rate}
    refusing = {**point, "benign_rejection": 0.2}
    best = defense._badness(point, config)
    for worse in (drifted, slipping, refusing):
        assert defense._badness(worse, config) == pytest.approx(best + 1.0)
