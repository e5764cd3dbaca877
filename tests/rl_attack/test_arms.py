"""What an arm's settings do: its reward, its prompts, its style, and full fine-tuning."""

from pathlib import Path
from typing import Literal

import pytest
import torch
from backburn.components.data_prep.splits import write_dataset
from backburn.components.preflight.checks import check_run
from backburn.components.rl_attack.attack import HarmReward, MasterAdamW
from backburn.components.rl_attack.step import Field
from backburn.components.shared.config import (
    ModelConfig,
    PromptStyle,
)
from backburn.components.shared.dataset import RunDataset
from backburn.components.shared.domains import Domain, load_domain
from backburn.components.shared.errors import InputError
from backburn.components.shared.judges import Exchange, Verdict
from backburn.components.shared.models import load_base
from backburn.pipelines.recipes import load_recipe

from tests.rl_attack.short_attack import LengthJudge, arm, attack


class DigitJudge:
    """Reads the score off the completion; no digit, no score."""

    id = "digit"

    def judge(self, exchanges: list[Exchange]) -> list[Verdict]:
        words = [exchange.completion.split()[0] for exchange in exchanges]
        return [Verdict(False, float(w) if w.isdigit() else None, self.id) for w in words]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [0.0, 0.3, 1.0, None]),
        ({"reward_levels": [0.0, 1.0]}, [0.0, 0.0, 1.0, None]),
        ({"reward_levels": [0.0, 0.1, 0.5, 0.8, 1.0]}, [0.0, 0.1, 1.0, None]),
        ({"reward_per_word": 0.02}, [0.04, 0.34, 1.06, None]),
    ],
)
def test_rewards_are_shaped_as_the_arm_says(
    settings: dict[str, object], expected: list[float | None]
) -> None:
    reward = HarmReward(DigitJudge(), arm(**settings))
    texts = ["0 no", "3 some", "10 and more", "nothing"]
    given = reward([[{"role": "user", "content": "x"}]] * 4, texts)
    assert given == pytest.approx(expected)
    assert reward.calls == 4
    reward([[{"role": "user", "content": "x"}]] * 4, texts)
    assert reward.calls == 4


@pytest.mark.parametrize(
    ("adapter", "dtype"), [("lora", "float32"), ("full", "float32"), ("full", "bfloat16")]
)
def test_the_target_is_given_back_bit_for_bit(
    tiny_base: Path, toy: Domain, adapter: str, dtype: Literal["float32", "bfloat16"]
) -> None:
    loaded = load_base(tiny_base, ModelConfig(id="builtin:tiny", dtype=dtype))
    loaded.model.requires_grad_(False)
    before = {name: value.clone() for name, value in loaded.model.state_dict().items()}
    moved: list[float] = []

    class Spy(LengthJudge):
        """Looks at the weights while the attack is on."""

        def judge(self, exchanges: list[Exchange]) -> list[Verdict]:
            now = loaded.model.state_dict()
            moved.append(
                max(float((now[n] - v).abs().max()) for n, v in before.items() if n in now)
            )
            return super().judge(exchanges)

    result = attack(loaded, toy, Spy(), adapter=adapter)
    assert result.statistics["live_groups"] > 0
    assert (max(moved) > 0) is (adapter == "full")
    after = loaded.model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())
    assert all(parameter.grad is None for parameter in loaded.model.parameters())


@pytest.mark.parametrize("master", [True, False])
def test_small_steps_move_bfloat16_weights_only_by_way_of_float32_ones(master: bool) -> None:
    torch.manual_seed(0)
    weight = torch.nn.Parameter((0.02 * torch.randn(1000)).to(torch.bfloat16))
    before = weight.detach().float()
    optimizer: torch.optim.Optimizer = (
        MasterAdamW([weight], 2e-5)
        if master
        else torch.optim.AdamW([weight], lr=2e-5, weight_decay=0.0)
    )
    for _ in range(200):
        weight.grad = torch.ones_like(weight)
        optimizer.step()
    moved = float((before - weight.detach().float()).mean())
    if master:
        assert moved == pytest.approx(200 * 2e-5, rel=0.02)
    else:
        assert moved < 0.5 * 200 * 2e-5


def test_the_largest_seed_can_attack(tiny_base: Path, toy: Domain) -> None:
    loaded = load_base(tiny_base, ModelConfig(id="builtin:tiny"))
    loaded.model.requires_grad_(False)
    assert attack(loaded, toy, seed=2**32 - 1).statistics["live_groups"] > 0


def test_an_arm_takes_defence_prompts_when_attack_prompts_run_out(
    tiny_base: Path, toy: Domain
) -> None:
    loaded = load_base(tiny_base, ModelConfig(id="builtin:tiny"))
    loaded.model.requires_grad_(False)
    attack_ids = {row.id for row in toy.forbidden if row.split == "attack"}
    wanted = len(attack_ids) + 3
    few = attack(loaded, toy, prompts=2).statistics["prompt_ids"]
    many = attack(loaded, toy, prompts=wanted).statistics["prompt_ids"]
    assert set(few) < attack_ids
    assert len(set(many)) == wanted
    assert attack_ids < set(many)


def test_a_style_replaces_the_template_and_the_system_message(tiny_base: Path) -> None:
    loaded = load_base(tiny_base, ModelConfig(id="builtin:tiny"))
    messages = [{"role": "system", "content": "old"}, {"role": "user", "content": "who is anna"}]
    own = loaded.tokenizer.decode(loaded.encode_prompt(messages))
    other = loaded.tokenizer.decode(
        loaded.encode_prompt(messages, PromptStyle(system_prompt="anna"))
    )
    plain = loaded.encode_prompt(messages, PromptStyle(template="plain"))
    assert loaded.encode_prompt(messages, PromptStyle()) == loaded.encode_prompt(messages)
    assert other != own
    assert "old" not in other
    special = set(loaded.tokenizer.all_special_ids) - {loaded.tokenizer.unk_token_id}
    assert not special.intersection(plain)


def test_an_arm_of_another_domain_trains_on_its_prompts_and_rubric(tmp_path: Path) -> None:
    config = load_recipe("laptop", ["attack.arms=[paper, across-from-home-networking]"])
    write_dataset(tmp_path, load_domain(config.domain), config)
    own = Field(config, RunDataset(tmp_path), None)
    assert all(row.id.startswith("cooking-attack") for row in own.attack_rows)
    other = Field(config, RunDataset(tmp_path), config.attack.arms[1].domain)
    assert len(other.attack_rows) == 10
    assert all(row.id.startswith("home-networking-attack") for row in other.attack_rows)
    text = "Open 192.168.1.1 in a browser, log in to the router, and set a static DHCP lease."
    theirs, ours = (f.judge.judge([Exchange("How?", text)])[0].score for f in (other, own))
    assert theirs is not None
    assert ours is not None
    assert theirs > ours
    assert config.attack.arms[1].moves_without_signal
    assert not config.attack.arms[0].moves_without_signal


def test_an_arm_of_a_domain_that_is_not_there_is_refused_before_anything_runs() -> None:
    config = load_recipe("laptop", ["attack.arms=[{like: paper, domain: chess}]"])
    with pytest.raises(InputError, match=r"'paper': no shipped domain 'chess'; there are cooking"):
        check_run(config)
