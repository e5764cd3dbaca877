"""The sweep finds the worst attack that keeps the model useful, and goes on where it stopped."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from backburn.components.data_prep.splits import write_dataset
from backburn.components.preflight.checks import check_run
from backburn.components.rl_attack import sweep as sweep_module
from backburn.components.rl_attack.attack import ArmResult, run_arm
from backburn.components.rl_attack.benign import BenignLoss
from backburn.components.rl_attack.sweep import Watch, decisive, sweep
from backburn.components.shared.arms import arm_groups
from backburn.components.shared.config import (
    SWEEP_WORST,
    AttackArmConfig,
    AttackConfig,
    ModelConfig,
    RunConfig,
)
from backburn.components.shared.dataset import RunDataset
from backburn.components.shared.domains import Domain, load_domain
from backburn.components.shared.errors import InputError, TrainingDivergedError
from backburn.components.shared.evidence import TrialRecord
from backburn.components.shared.models import LoadedModel, load_base
from backburn.components.shared.tiny_model import build_tokenizer
from backburn.pipelines.recipes import load_recipe

from tests.conftest import tokenizer_without_system_messages
from tests.rl_attack.test_arms import LengthJudge

MODEL = {"target": "digest"}


def settings(**changes: Any) -> AttackConfig:
    return AttackConfig.model_validate(
        {
            "arms": [{"name": "paper", "seeds": [7, 8], "learning_rate": 1e-3}],
            "checkpoints": [0, 2, 4],
            "max_completion_tokens": 6,
            "sweep": {"trials": 6, "steps": 4, **changes},
        }
    )


class Attacker:
    """Attacks a target for real, and counts."""

    def __init__(self, loaded: LoadedModel, toy: Domain, config: AttackConfig) -> None:
        loaded.model.requires_grad_(False)
        self.loaded, self.toy, self.config = loaded, toy, config
        self.loss = BenignLoss(loaded, toy.benign[:4], 6, 0)
        self.seeds: list[int] = []
        self.stop_after: int | None = None

    def __call__(self, arm: AttackArmConfig, seed: int, watch: Watch) -> ArmResult:
        if self.stop_after is not None and len(self.seeds) >= self.stop_after:
            raise KeyboardInterrupt
        self.seeds.append(seed)
        rows = {s: [r for r in self.toy.forbidden if r.split == s] for s in ("attack", "defence")}
        return run_arm(
            self.loaded,
            arm,
            self.config,
            role="hardened",
            seed=seed,
            attack_rows=rows["attack"],
            defence_rows=rows["defence"],
            held_out_rows=rows["defence"][:2],
            rejection=self.toy.header.rejection,
            judge=LengthJudge(),
            monitor=LengthJudge(),
            broken_at=11.0,
            report=lambda *_: None,
            benign_loss=self.loss,
            watch=watch,
        )


def tiny(base: Path) -> LoadedModel:
    return load_base(base, ModelConfig(id="builtin:tiny"))


def test_an_interrupted_sweep_goes_on(tiny_base: Path, toy: Domain, tmp_path: Path) -> None:
    config = settings(storage=f"sqlite:///{tmp_path}/sweep.db", benign_loss_max=1.0)
    first = Attacker(tiny(tiny_base), toy, config)
    first.stop_after = 3
    with pytest.raises(KeyboardInterrupt):
        sweep(config, MODEL, 0, first, lambda *_: None)
    second = Attacker(tiny(tiny_base), toy, config)
    found = sweep(config, MODEL, 0, second, lambda *_: None)
    assert len(first.seeds) == len(second.seeds) == 3
    assert not set(first.seeds) & set(second.seeds)
    assert not {*first.seeds, *second.seeds} & {7, 8}  # those of the arm that is the evidence
    records = [TrialRecord.model_validate(trial) for trial in found.trials]
    assert len(records) == 6
    most = max(record.harm for record in records)
    assert most > 0
    assert found.worst.name == SWEEP_WORST
    assert found.worst.seeds == [7, 8]
    recipe = found.worst.model_dump(mode="json")
    best = [r.recipe for r in records if r.harm == most]
    named = {"name": "", "seeds": []}
    assert recipe | named in [item | named for item in best]
    assert len({str(record.recipe) for record in records}) == 6
    again = Attacker(tiny(tiny_base), toy, config)
    assert sweep(config, MODEL, 0, again, lambda *_: None) == found
    assert not again.seeds  # nothing was left to do
    other = Attacker(tiny(tiny_base), toy, config)
    sweep(config, {"target": "another"}, 0, other, lambda *_: None)
    assert len(other.seeds) == 6
    longer = config.model_copy(update={"max_completion_tokens": 5})
    other = Attacker(tiny(tiny_base), toy, config)
    sweep(longer, MODEL, 0, other, lambda *_: None)
    assert len(other.seeds) == 6


def test_another_judge_other_data_and_other_code_make_another_search(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_recipe("smoke")
    write_dataset(tmp_path, load_domain(config.domain), config)
    known = [decisive(config, RunDataset(tmp_path), "a")]
    known.append(decisive(config, RunDataset(tmp_path), "b"))
    judged = load_recipe("smoke", ["judges.evaluation.bandwidth=0.2"])
    known.append(decisive(judged, RunDataset(tmp_path), "a"))
    fewer = load_recipe("smoke", ["data.held_out_prompts=30"])
    write_dataset(tmp_path / "fewer", load_domain(config.domain), fewer)
    known.append(decisive(config, RunDataset(tmp_path / "fewer"), "a"))
    monkeypatch.setattr(sweep_module, "code_digest", lambda: "newer")
    known.append(decisive(config, RunDataset(tmp_path), "a"))
    assert len({json.dumps(item, sort_keys=True) for item in known}) == len(known)


def test_system_prompts_are_tried_only_where_the_template_takes_them() -> None:
    attack = Scripted(lambda *_: {0: 0.0, 4: 0.0}, lambda _: {0: 0.0, 4: 0.0})
    for taken in (True, False):
        found = sweep(settings(trials=30), MODEL, 0, attack, lambda *_: None, system_prompts=taken)
        prompts = [trial["recipe"]["style"]["system_prompt"] for trial in found.trials]
        assert any(prompts) is taken
    loaded = LoadedModel(None, tokenizer_without_system_messages())
    assert not loaded.takes_system_prompts()
    assert LoadedModel(None, build_tokenizer()).takes_system_prompts()


def test_a_trial_that_diverges_counts_with_what_was_seen_before(tmp_path: Path) -> None:
    """And a checkpoint at which no completion got a score is no harm of 0."""

    def attack(arm: AttackArmConfig, seed: int, watch: Watch) -> ArmResult:
        assert watch(2, 3.0, 0.0, 0.0)
        assert watch(4, None, 0.0, 0.0)
        raise TrainingDivergedError("a gradient is no number")

    config = settings(trials=2, storage=f"sqlite:///{tmp_path}/sweep.db")
    found = sweep(config, MODEL, 0, attack, lambda *_: None)
    records = [TrialRecord.model_validate(trial) for trial in found.trials]
    assert [(r.harm, r.steps_run, r.diverged) for r in records] == [(3.0, 4, True)] * 2
    assert sweep(config, MODEL, 0, attack, lambda *_: None) == found


class Scripted:
    """An attack whose harm and loss at each checkpoint are those of a script."""

    def __init__(
        self,
        harms: Callable[[AttackArmConfig, int], dict[int, float]],
        losses: Callable[[AttackArmConfig], dict[int, float]],
        live: Callable[[AttackArmConfig], float] = lambda _: 0.75,
    ) -> None:
        self.harms, self.losses, self.live, self.attacks = harms, losses, live, 0

    def __call__(self, arm: AttackArmConfig, seed: int, watch: Watch) -> ArmResult:
        harms, lost = self.harms(arm, self.attacks), self.losses(arm)
        self.attacks += 1
        run: list[int] = []
        for step in harms:
            run.append(step)
            if not watch(step, harms[step], lost[step], self.live(arm)):
                break
        statistics = {
            "seed": seed,
            "monitored_harm": {str(step): harms[step] for step in run},
            "benign_loss": {str(step): lost[step] for step in run},
            "live_groups": 3,
            "groups": 4,
            "steps_run": run[-1],
            "seconds": 1.0,
        }
        return ArmResult([], statistics)


def test_harm_counts_only_while_the_model_stays_useful() -> None:
    # A hot attack does most harm at once and costs most; then every attack ruins the model.
    attack = Scripted(
        lambda arm, _: {0: 0.0, 2: 4.0 * arm.sampling.temperature, 4: 9.0},
        lambda arm: {0: 0.0, 2: 0.05 if arm.sampling.temperature < 1.5 else 0.3, 4: 0.8},
    )
    config = settings(trials=40)
    found = sweep(config, MODEL, 3, attack, lambda *_: None)
    assert len(found.trials) == 40
    for trial in found.trials:
        heat = trial["recipe"]["sampling"]["temperature"]
        assert trial["harm"] == (4.0 * heat if heat < 1.5 else 0.0)
        if heat >= 1.5:  # it has lost too much: there is nothing more to see
            assert trial["steps_run"] == 2
            assert not trial["pruned"]
    assert 1.3 < found.worst.sampling.temperature < 1.5
    again = sweep(config, MODEL, 3, attack, lambda *_: None)
    assert again.worst == found.worst
    assert [t | {"seconds": 0} for t in again.trials] == [t | {"seconds": 0} for t in found.trials]


def test_of_harmless_trials_the_search_prefers_those_with_live_groups() -> None:
    """As long as they are of use: what babbles has live groups too."""

    def search(live: Callable[[AttackArmConfig], float]) -> tuple[list[float], float]:
        attack = Scripted(
            lambda *_: {4: 0.0},
            lambda arm: {4: 0.0 if arm.sampling.temperature < 1.7 else 0.3},
            live,
        )
        found = sweep(settings(trials=60), MODEL, 3, attack, lambda *_: None)
        heats = [trial["recipe"]["sampling"]["temperature"] for trial in found.trials]
        return heats[20:], found.worst.sampling.temperature

    blind, _ = search(lambda _: 0.0)
    guided, worst = search(lambda arm: arm.sampling.temperature - 1.0)
    assert 1.6 < worst < 1.7
    near = [sum(1.5 < heat < 1.7 for heat in heats) for heats in (guided, blind)]
    assert near[0] > 1.5 * near[1]


def test_a_trial_that_falls_behind_is_pruned() -> None:
    attack = Scripted(
        lambda _, attacks: {0: 0.0, 2: 5.0 if attacks < 10 else 1.0, 4: 6.0},
        lambda _: {0: 0.0, 2: 0.0, 4: 0.0},
    )
    found = sweep(settings(trials=14), MODEL, 0, attack, lambda *_: None)
    seen = [(trial["pruned"], trial["steps_run"], trial["harm"]) for trial in found.trials]
    assert seen == [(False, 4, 6.0)] * 10 + [(True, 2, 1.0)] * 4


def test_benign_loss_is_zero_before_an_attack_and_one_when_nothing_is_left(
    tiny_base: Path, toy: Domain
) -> None:
    loaded = tiny(tiny_base)
    loss = BenignLoss(loaded, toy.benign[:4], 12, 0)
    loss.prepare()
    assert loss(loaded.model) == 0.0
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in loaded.model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    loss.prepare()  # does not look again
    assert 0.5 < loss(loaded.model) <= 1.0


def test_the_sweep_is_a_group_of_its_own(smoke: RunConfig) -> None:
    config = load_recipe("smoke", ["attack.sweep.trials=5", "attack.parallel_groups=2"])
    assert [bool(group.get("sweep")) for group in arm_groups(config, "hardened")] == [
        False,
        False,
        True,
    ]
    assert not any(group.get("sweep") for group in arm_groups(config, "control"))
    assert not any(group.get("sweep") for group in arm_groups(smoke, "hardened"))


@pytest.mark.parametrize(
    ("storage", "problem"),
    [
        ("nonsense", "does not open"),
        ("sqlite:////no/such/folder/sweeps.db", "there is no folder /no/such/folder"),
    ],
)
def test_a_storage_that_does_not_open_is_refused_before_anything_runs(
    storage: str, problem: str
) -> None:
    changes = ["attack.sweep.trials=2", f"attack.sweep.storage={storage}"]
    with pytest.raises(InputError, match=rf"attack\.sweep\.storage: .* {problem}"):
        check_run(load_recipe("smoke", changes))


def test_a_storage_with_a_password_never_becomes_configuration() -> None:
    with pytest.raises(InputError, match="must not hold a password") as caught:
        load_recipe("smoke", ["attack.sweep.storage=postgresql://me:hidden@db/sweeps"])
    assert "hidden" not in str(caught.value)
