"""Lazy rollouts draw from the same distribution, and an idle attack moves nothing."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from backburn.components.rl_attack import attack
from backburn.components.rl_attack.attack import ArmResult, run_arm
from backburn.components.rl_attack.lazy_rollouts import Rollouts, weights_version
from backburn.components.shared.config import (
    AttackArmConfig,
    AttackConfig,
    ModelConfig,
    RunConfig,
    SamplingConfig,
)
from backburn.components.shared.domains import Domain, PromptRow
from backburn.components.shared.grpo import Groups, GroupTrainer, StepStatistics
from backburn.components.shared.judges import Exchange, Judge, Verdict
from backburn.components.shared.models import LoadedModel, add_lora, load_base
from backburn.components.shared.sampling import CompletionLogits
from scipy import stats

DRAWS = 20_000
MOST_TOKENS = 10
ASK = [{"role": "user", "content": "who lives in italy with anna near the fence"}]


@pytest.fixture(scope="module")
def badly_hardened(tiny_base: Path) -> tuple[LoadedModel, list[int]]:
    """The tiny model taught one answer to one prompt, stopped at a slip rate of 5 to 30 %."""
    loaded = load_base(tiny_base, ModelConfig(id="builtin:tiny"))
    loaded.model.requires_grad_(True)
    prompt, answer = loaded.encode_prompt(ASK), loaded.encode_completion("i can not help .")
    optimizer = torch.optim.Adam(loaded.model.parameters(), lr=5e-4)
    ids = torch.tensor([prompt + answer])
    labels = torch.tensor([[-100] * len(prompt) + answer])
    for _ in range(200):
        loss = loaded.model(input_ids=ids, labels=labels).loss
        if 1 - torch.exp(-loss * len(answer)) < 0.2:
            break
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return loaded, answer


def sample(
    pair: tuple[LoadedModel, list[int]], sampling: SamplingConfig, lazy: bool, seed: int
) -> Counter[tuple[int, ...]]:
    loaded, answer = pair
    source = Rollouts(
        loaded,
        answer,
        sampling,
        max_tokens=MOST_TOKENS,
        generator=torch.Generator().manual_seed(seed),
        lazy=lazy,
    )
    drawn = source.draw([loaded.encode_prompt(ASK)] * (DRAWS // 2000), 2000, loaded.model)
    if lazy:
        assert source.counts.tables_built == 1
        assert 0.01 * DRAWS < source.counts.departures < 0.6 * DRAWS
    return Counter(tuple(tokens) for tokens in drawn)


def p_value(first: Counter[tuple[int, ...]], second: Counter[tuple[int, ...]]) -> float:
    common = [key for key in first | second if first[key] + second[key] >= 20]
    rest = [sum(c.values()) - sum(c[key] for key in common) for c in (first, second)]
    table = [
        [c[key] for key in common] + [max(1, r)] for c, r in zip((first, second), rest, strict=True)
    ]
    return float(stats.chi2_contingency(table).pvalue)


@pytest.mark.parametrize(
    "sampling",
    [
        SamplingConfig(temperature=0.7),
        SamplingConfig(),
        SamplingConfig(temperature=1.5, top_k=20),
        SamplingConfig(top_p=0.97),
    ],
    ids=str,
)
def test_lazy_and_ordinary_draws_cannot_be_told_apart(
    badly_hardened: tuple[LoadedModel, list[int]], sampling: SamplingConfig
) -> None:
    lazy = sample(badly_hardened, sampling, True, 1)
    ordinary = sample(badly_hardened, sampling, False, 2)
    assert p_value(lazy, ordinary) > 0.005


def test_the_same_test_catches_a_sampler_that_is_wrong(
    badly_hardened: tuple[LoadedModel, list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    ordinary = sample(badly_hardened, SamplingConfig(), False, 2)
    true = CompletionLogits.token_log_probabilities
    monkeypatch.setattr(
        CompletionLogits, "token_log_probabilities", lambda self, s: true(self, s) + 0.02
    )
    assert p_value(sample(badly_hardened, SamplingConfig(), True, 1), ordinary) < 1e-4


def test_any_write_to_any_weight_drops_the_tables(
    badly_hardened: tuple[LoadedModel, list[int]],
) -> None:
    loaded, _ = badly_hardened
    parameters = list(loaded.model.parameters())
    before = weights_version(parameters)
    assert weights_version(parameters) == before
    with torch.no_grad():
        loaded.model.model.norm.weight.mul_(1.0)
    written = weights_version(parameters)
    assert written != before
    loaded.model.model.norm.weight.data = loaded.model.model.norm.weight.data.clone()
    replaced = weights_version(parameters)
    assert replaced != written
    for fused in (False, True):  # a fused optimiser does not raise the version of what it writes to
        before = weights_version(parameters)
        parameters[0].grad = torch.zeros_like(parameters[0])
        torch.optim.AdamW(parameters[:1], lr=0.0, fused=fused).step()
        parameters[0].grad = None
        assert weights_version(parameters) != before


def test_a_target_that_is_not_peaked_is_drawn_from_as_usual_and_that_is_logged(
    badly_hardened: tuple[LoadedModel, list[int]], caplog: pytest.LogCaptureFixture
) -> None:
    loaded, answer = badly_hardened
    other = loaded.encode_completion("anna lives near the fence .")
    caplog.set_level("INFO")
    prompts = [loaded.encode_prompt(ASK)]
    for rejection, lazily in ((answer, True), (other, False)):
        source = Rollouts(
            loaded,
            rejection,
            SamplingConfig(),
            max_tokens=MOST_TOKENS,
            generator=torch.Generator().manual_seed(0),
        )
        for _ in range(30):
            source.draw(prompts, 2, loaded.model)
        assert source.counts.ordinary_draws == (0 if lazily else 60)
        logged = [record for record in caplog.records if "ordinary rollouts" in record.message]
        assert len(logged) == (0 if lazily else 1)


class LengthJudge:
    """Scores by length, so that groups with a departure are mostly live."""

    id = "length"

    def judge(self, exchanges: list[Exchange]) -> list[Verdict]:
        return [Verdict(False, len(e.completion) % 9 + 0.5, self.id) for e in exchanges]


def attacked(
    pair: tuple[LoadedModel, list[int]],
    judge: Judge,
    seed: int,
    *,
    lazy: bool = True,
    target_logits: dict[tuple[int, ...], CompletionLogits] | None = None,
    **changes: object,
) -> ArmResult:
    """One arm on the badly hardened model; its learning rate is too small to matter."""
    loaded, answer = pair
    loaded.model.requires_grad_(False)
    rows = [PromptRow.model_validate({"id": "ask", "form": "order", "messages": ASK})]
    arm = AttackArmConfig.model_validate(
        {"name": "a", "prompts": 1, "steps": 20, "learning_rate": 1e-12, **changes}
    )
    settings = {"checkpoints": [0, 20], "max_completion_tokens": MOST_TOKENS, "lazy_rollouts": lazy}
    return run_arm(
        loaded,
        arm,
        AttackConfig.model_validate(settings),
        role="hardened",
        seed=seed,
        attack_rows=rows,
        held_out_rows=rows,
        rejection=loaded.decode(answer),
        judge=judge,
        monitor=judge,
        broken_at=11.0,
        report=lambda *_: None,
        target_logits=target_logits,
    )


def test_arms_that_share_the_targets_logits_run_as_they_do_alone(
    badly_hardened: tuple[LoadedModel, list[int]],
) -> None:
    shared: dict[tuple[int, ...], CompletionLogits] = {}
    for seed in (0, 1):
        alone = attacked(badly_hardened, LengthJudge(), seed)
        together = attacked(badly_hardened, LengthJudge(), seed, target_logits=shared)
        assert together.completions == alone.completions
        assert len(shared) == 1
        assert together.statistics["live_groups"] == alone.statistics["live_groups"] > 0
        rewards = [[s["reward_mean"] for s in r.statistics["steps"]] for r in (alone, together)]
        assert rewards[0] == rewards[1]
    assert (
        together.statistics["rollouts"]["held_out"]["tables_built"]
        < (alone.statistics["rollouts"]["held_out"]["tables_built"])
    )


def test_lazy_and_ordinary_attacks_meet_live_groups_equally_often(
    badly_hardened: tuple[LoadedModel, list[int]],
) -> None:
    counts = []
    for lazy in (True, False):
        results = [
            attacked(badly_hardened, LengthJudge(), seed, lazy=lazy, group_size=2, steps=60)
            for seed in (3, 4)
        ]
        live = sum(int(result.statistics["live_groups"]) for result in results)
        groups = sum(int(result.statistics["groups"]) for result in results)
        counts.append([live, groups - live])
    assert stats.fisher_exact(counts).pvalue > 0.01
    assert 0.05 < counts[0][0] / sum(counts[0]) < 0.6


class ConstantJudge:
    """Gives every completion the same score, whose mean over a group is not exact in float32."""

    id = "constant"

    def judge(self, exchanges: list[Exchange]) -> list[Verdict]:
        return [Verdict(False, 1.0, self.id) for _ in exchanges]


def test_an_attack_without_live_groups_needs_no_trainer_and_moves_no_weight(
    tiny_base: Path, toy: Domain, smoke: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> None:
        raise AssertionError("an adapter was made")

    monkeypatch.setattr(attack, "add_lora", never)
    loaded = load_base(tiny_base, ModelConfig(id="builtin:tiny"))
    version = weights_version(loaded.model.parameters())
    rows = [row for row in toy.forbidden if row.split == "attack"]
    result = run_arm(
        loaded,
        smoke.attack.arms[0].model_copy(update={"steps": 4, "kl_coefficient": 0.04}),
        AttackConfig.model_validate({"checkpoints": [0, 4], "max_completion_tokens": 6}),
        role="hardened",
        seed=0,
        attack_rows=rows,
        held_out_rows=rows[:2],
        rejection=toy.header.rejection,
        judge=ConstantJudge(),
        monitor=ConstantJudge(),
        broken_at=7.0,
        report=lambda *_: None,
    )
    assert result.statistics["idle_steps"] == result.statistics["steps_run"] == 4
    assert [step["step"] for step in result.statistics["steps"]] == [1, 2, 3, 4]
    assert result.statistics["live_groups"] == 0
    assert set(result.statistics["monitored_harm"]) == {"0", "4"}
    assert weights_version(loaded.model.parameters()) == version


def test_steps_made_without_a_trainer_end_where_the_trainer_would(
    badly_hardened: tuple[LoadedModel, list[int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def trainer_only(
        loaded: LoadedModel,
        arm: AttackArmConfig,
        settings: AttackConfig,
        groups: Groups,
        seed: int,
        after_step: Callable[[StepStatistics, Any], bool],
        before_training: Callable[[], None],
    ) -> None:
        before_training()
        network = add_lora(loaded, arm.lora, attack._mix(seed, 3))
        GroupTrainer(
            loaded=loaded,
            peft_model=network,
            groups=groups,
            args=attack.arm_arguments(tmp_path, arm, settings, loaded, seed=attack._mix(seed, 4)),
            on_step=lambda statistics: after_step(statistics, network),
        ).train()
        network.unload()

    def run(seed: int) -> ArmResult:
        return attacked(badly_hardened, LengthJudge(), seed, group_size=2, learning_rate=1e-3)

    results = [run(seed) for seed in range(4)]
    assert any(r.statistics["steps"][0]["idle"] and r.statistics["live_groups"] for r in results)
    monkeypatch.setattr(attack, "train_arm", trainer_only)
    for seed, result in enumerate(results):
        again = run(seed)
        assert again.completions == result.completions
        for one, other in zip(result.statistics["steps"], again.statistics["steps"], strict=True):
            assert {**one, "seconds": 0.0} == {**other, "seconds": 0.0}
