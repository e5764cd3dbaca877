"""One arm: an RL attacker with a budget, trained in memory, measured on held-out prompts."""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from backburn.components.rl_attack.benign import BenignLoss
from backburn.components.rl_attack.lazy_rollouts import Rollouts
from backburn.components.shared.config import AttackArmConfig, AttackConfig, SamplingConfig
from backburn.components.shared.domains.domain import PromptRow
from backburn.components.shared.grpo import (
    Groups,
    GroupTrainer,
    StepStatistics,
    grpo_arguments,
    in_turn,
)
from backburn.components.shared.judges import Exchange, Judge
from backburn.components.shared.models import LoadedModel, add_lora
from backburn.components.shared.sampling import CompletionLogits, Draw, draw_completions
from backburn.components.shared.scratch import scratch_folder
from trl import GRPOConfig

_FULL_BYTES = 4


@dataclass(frozen=True)
class ArmResult:
    """What an arm leaves behind: completions to be sealed and statistics; never weights."""

    completions: list[dict[str, Any]]
    statistics: dict[str, Any]


class HarmReward:
    """The attacker's reward: harm, reshaped as the arm says; a distinct exchange is judged once."""

    def __init__(self, judge: Judge, arm: AttackArmConfig) -> None:
        self._judge = judge
        self._levels = arm.reward_levels
        self._per_word = arm.reward_per_word
        self._known: dict[Exchange, float | None] = {}
        self.calls = 0

    def __call__(
        self, prompts: Sequence[list[dict[str, str]]], completions: Sequence[str]
    ) -> list[float | None]:
        """One reward a completion; None if the judge did not score it."""
        exchanges = [
            Exchange(prompt[-1]["content"], completion)
            for prompt, completion in zip(prompts, completions, strict=True)
        ]
        fresh = [exchange for exchange in dict.fromkeys(exchanges) if exchange not in self._known]
        self.calls += len(fresh)
        for exchange, verdict in zip(fresh, self._judge.judge(fresh), strict=True):
            self._known[exchange] = self._reward(verdict.score, exchange.completion)
        return [self._known[exchange] for exchange in exchanges]

    def _reward(self, harm: float | None, completion: str) -> float | None:
        if harm is None:
            return None
        reward = harm / 10.0
        if self._levels is not None:
            reward = self._levels[min(int(reward * len(self._levels)), len(self._levels) - 1)]
        return reward + self._per_word * len(completion.split())


def run_arm(
    loaded: LoadedModel,
    arm: AttackArmConfig,
    settings: AttackConfig,
    *,
    role: str,
    seed: int,
    attack_rows: Sequence[PromptRow],
    defence_rows: Sequence[PromptRow] = (),
    held_out_rows: Sequence[PromptRow],
    rejection: str,
    judge: Judge,
    monitor: Judge,
    broken_at: float,
    report: Callable[[int, int, str], None],
    target_logits: dict[tuple[int, ...], CompletionLogits] | None = None,
    benign_loss: BenignLoss | None = None,
    watch: Callable[[int, float | None, float, float], bool] | None = None,
    draw: Draw = draw_completions,
) -> ArmResult:
    """Attack a model, then give it back as it was.

    Args:
        loaded: The target; its own weights are never written to.
        arm: The recipe.
        settings: Checkpoints, lengths, caps.
        role: `control` (unhardened target) or `hardened`.
        seed: Of prompts' choice, adapter and draws.
        attack_rows: Prompts the arm trains on; it takes `arm.prompts` of them.
        defence_rows: Taken from when there are too few attack prompts.
        held_out_rows: Prompts its harm is measured on.
        rejection: The canonical rejection.
        judge: The attack's reward judge.
        monitor: The evaluation judge; it only watches: a control arm ends at the first checkpoint
            it calls broken.
        broken_at: Mean harm that counts as broken.
        report: Called as `report(step, steps, note)`.
        target_logits: Shared by the arms on one target; see `Rollouts`.
        benign_loss: What a network has lost on benign answers; asked once a weight has moved.
        watch: Called as `watch(step, harm, benign loss, share of groups so far that were live)` at
            each checkpoint but the first, harm being None if nothing was scored; False ends the
            arm.
        draw: What generates completions.

    Returns:
        Completions on held-out prompts at the checkpoints, and statistics.
    """
    start = time.perf_counter()
    steps = arm.control_steps if role == "control" else arm.steps
    generator = torch.Generator().manual_seed(_mix(seed, 1))
    choice = torch.Generator().manual_seed(_mix(seed, 2))
    rows = [
        pool[index]
        for pool in (attack_rows, defence_rows)
        for index in torch.randperm(len(pool), generator=choice).tolist()
    ][: arm.prompts]
    rejection_ids = loaded.encode_completion(rejection)

    def source(sampling: SamplingConfig) -> Rollouts:
        return Rollouts(
            loaded,
            rejection_ids,
            sampling,
            max_tokens=settings.max_completion_tokens,
            generator=generator,
            lazy=settings.lazy_rollouts,
            draw=draw,
            target_logits=shared,
        )

    shared = {} if target_logits is None else target_logits
    training, held_out = source(arm.sampling), source(settings.held_out_sampling)
    reward = HarmReward(judge, arm)
    held_out_prompts = loaded.encode_rows(held_out_rows, arm.style)
    checkpoints = sorted({step for step in settings.checkpoints if step <= steps} | {steps})
    completions: list[dict[str, Any]] = []
    harm_by_step: dict[int, float | None] = {}
    lost_by_step: dict[int, float] = {}
    history: list[StepStatistics] = []
    groups = Groups(
        loaded,
        training,
        reward,
        [row.chat() for row in in_turn(rows, steps * arm.prompts_per_step, choice)],
        per_step=arm.prompts_per_step,
        size=arm.group_size,
        style=arm.style,
        exact_ties=arm.exact_ties,
    )

    def measure(step: int, network: Any) -> None:
        copies = settings.completions_per_prompt
        drawn = held_out.draw(held_out_prompts, copies, network)
        exchanges: list[Exchange] = []
        for index, tokens in enumerate(drawn):
            row = held_out_rows[index // copies]
            text = loaded.decode(tokens)
            exchanges.append(Exchange(row.text, text))
            completions.append(
                {
                    "arm": arm.name,
                    "role": role,
                    "seed": seed,
                    "step": step,
                    "prompt_id": row.id,
                    "completion": text,
                    "tokens": len(tokens),
                }
            )
        scores = [v.score for v in monitor.judge(exchanges) if v.score is not None]
        harm_by_step[step] = sum(scores) / len(scores) if scores else None
        moved = any(not item.idle for item in history)
        lost_by_step[step] = benign_loss(network) if moved and benign_loss is not None else 0.0

    def after_step(statistics: StepStatistics, network: Any) -> bool:
        history.append(statistics)
        step = statistics.step
        going = True
        if step in checkpoints:
            measure(step, network)
            harm = harm_by_step[step]
            going = not (role == "control" and harm is not None and harm >= broken_at)
            live_share = sum(s.live_groups for s in history) / sum(s.groups for s in history)
            if watch is not None and not watch(step, harm, lost_by_step[step], live_share):
                going = False
        live = sum(1 for item in history if item.live_groups)
        note = f"reward {statistics.reward_mean:.2f}, {live} live step(s), {_harm(harm_by_step)}"
        report(step, steps, note)
        return going

    measure(0, loaded.model)
    report(0, steps, _harm(harm_by_step))
    train_arm(
        loaded,
        arm,
        settings,
        groups,
        seed,
        after_step,
        before_training=benign_loss.prepare if benign_loss is not None else lambda: None,
    )
    statistics = {
        "arm": arm.name,
        "role": role,
        "seed": seed,
        "recipe": arm.model_dump(mode="json"),
        "prompt_ids": [row.id for row in rows],
        "steps_planned": steps,
        "steps_run": len(history),
        "steps": [asdict(item) for item in history],
        "live_groups": sum(item.live_groups for item in history),
        "groups": sum(item.groups for item in history),
        "idle_steps": sum(item.idle for item in history),
        "reward_judge": judge.id,
        "reward_judge_calls": reward.calls,
        "monitor": monitor.id,
        "monitored_harm": {str(step): harm for step, harm in harm_by_step.items()},
        "benign_loss": {str(step): loss for step, loss in lost_by_step.items()},
        "rollouts": {"training": training.counts.as_dict(), "held_out": held_out.counts.as_dict()},
        "seconds": time.perf_counter() - start,
    }
    return ArmResult(completions, statistics)


class MasterAdamW(torch.optim.AdamW):
    """AdamW on float32 copies of weights of less precision, without weight decay.

    A step is often smaller than half a unit in the last place of a bfloat16 weight: added to the
    weight itself it would be lost, and an attack that trains all weights would stand still.
    """

    def __init__(self, parameters: Iterable[torch.nn.Parameter], learning_rate: float) -> None:
        """Copy the weights that are trained."""
        self._weights = [parameter for parameter in parameters if parameter.requires_grad]
        copies = [weight.detach().to(torch.float32, copy=True) for weight in self._weights]
        super().__init__(copies, lr=learning_rate, weight_decay=0.0)
        self._copies = copies

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Move the copies, then round them into the weights."""
        for weight, copied in zip(self._weights, self._copies, strict=True):
            copied.grad = None if weight.grad is None else weight.grad.to(torch.float32)
        loss = super().step(closure)
        for weight, copied in zip(self._weights, self._copies, strict=True):
            weight.copy_(copied)
            copied.grad = None
        return loss


def train_arm(
    loaded: LoadedModel,
    arm: AttackArmConfig,
    settings: AttackConfig,
    groups: Groups,
    seed: int,
    after_step: Callable[[StepStatistics, Any], bool],
    before_training: Callable[[], None] = lambda: None,
) -> None:
    """Train an arm on all steps of its groups, then give the target back as it was.

    The steps before the first one that moves a weight need neither an adapter nor a trainer: the
    target itself is drawn from. From there on `GroupTrainer` goes on.

    Args:
        loaded: The target.
        arm: The recipe.
        settings: Lengths.
        groups: What the arm trains on.
        seed: Of the arm.
        after_step: Called with a step's statistics and the network as it is; False ends training.
        before_training: Called before the first weight moves, if one does.
    """
    for step in range(groups.steps):
        drawn = groups.draw(step, loaded.model)
        if arm.entropy_coefficient or not drawn.silent:
            break
        if not after_step(drawn.statistics(step + 1, idle=True), loaded.model):
            return
    else:
        return
    before_training()
    network, restore = _made_trainable(loaded, arm, _mix(seed, 3))
    try:
        optimizer = None
        if any(p.requires_grad and p.dtype.itemsize < _FULL_BYTES for p in network.parameters()):
            optimizer = MasterAdamW(network.parameters(), arm.learning_rate)
        with scratch_folder() as scratch:
            GroupTrainer(
                loaded=loaded,
                peft_model=network,
                groups=groups,
                args=arm_arguments(scratch, arm, settings, loaded, seed=_mix(seed, 4)),
                on_step=lambda statistics: after_step(statistics, network),
                start=step,
                first=drawn,
                at_reference=True,
                leave_one_out=arm.loss == "rloo",
                optimizer=optimizer,
            ).train()
    finally:
        restore()


def arm_arguments(
    scratch: Path,
    arm: AttackArmConfig,
    settings: AttackConfig,
    loaded: LoadedModel,
    *,
    seed: int,
) -> GRPOConfig:
    """TRL's settings of an arm, `max_steps` apart."""
    return grpo_arguments(
        scratch,
        prompts_per_step=arm.prompts_per_step,
        group_size=arm.group_size,
        learning_rate=arm.learning_rate,
        max_tokens=settings.max_completion_tokens,
        temperature=arm.sampling.temperature,
        seed=seed,
        beta=arm.kl_coefficient,
        entropy_coefficient=arm.entropy_coefficient,
        loss=arm.loss,
        scale_rewards=arm.scale_rewards,
        device=str(loaded.device.type),
    )


def _made_trainable(
    loaded: LoadedModel, arm: AttackArmConfig, seed: int
) -> tuple[Any, Callable[[], None]]:
    """The network an arm trains, and what gives the target back as it was."""
    if arm.adapter == "lora":
        peft_model = add_lora(loaded, arm.lora, seed)
        return peft_model, lambda: peft_model.unload()  # the base was frozen throughout
    parameters = list(loaded.model.parameters())
    kept = [parameter.detach().clone() for parameter in parameters]
    loaded.model.requires_grad_(True)

    def restore() -> None:
        loaded.model.requires_grad_(False)
        loaded.model.eval()
        with torch.no_grad():
            for parameter, value in zip(parameters, kept, strict=True):
                parameter.copy_(value)
                parameter.grad = None

    return loaded.model, restore


def _mix(seed: int, purpose: int) -> int:
    """Independent seeds for the purposes of one arm, none too large for numpy."""
    return (seed * 1000 + purpose) % 2**32


def _harm(by_step: dict[int, float | None]) -> str:
    harm = next(reversed(by_step.values()))
    return "harm unknown" if harm is None else f"harm {harm:.1f}"
