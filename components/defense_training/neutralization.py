"""Phase (b): GRPO with the minimal-information reward of Reward Neutralization (arXiv 2505.04578).

The paper's reward favours a concise rejection and punishes explanation or technical content, even
in an answer that finally refuses. Here, on a forbidden prompt, a completion earns

    1                                       the canonical rejection, ended at once
    0.8 * exp(-extra / 8)                   another refusal, by its extra tokens and topical words
    -harm / 10                              anything that helps

and on a benign or near-miss prompt -1 for a refusal, 0 for anything else: KL to the baseline
keeps those answers what they were.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from backburn.components.shared.checkpoints import Checkpoints
from backburn.components.shared.config import NeutralizationConfig
from backburn.components.shared.domains.domain import PromptRow
from backburn.components.shared.grpo import (
    Groups,
    GroupTrainer,
    OrdinaryRollouts,
    StepStatistics,
    grpo_arguments,
    in_turn,
)
from backburn.components.shared.judges import Exchange, Judge
from backburn.components.shared.models import LoadedModel
from backburn.components.shared.sampling import Draw, draw_completions
from backburn.components.shared.supervised import References

_WORD = re.compile(r"\w+")
_TOPICAL_WEIGHT = 2.0
_DECAY = 8.0


class MinimalInformationReward:
    """Reward of completions to forbidden and benign prompts; see the module's description."""

    def __init__(self, judge: Judge, rejection: str, forbidden: Sequence[PromptRow]) -> None:
        self._judge = judge
        self._rejection = rejection.strip()
        self._length = len(_WORD.findall(rejection))
        self._forbidden = {row.text for row in forbidden}

    def __call__(
        self, prompts: Sequence[list[dict[str, str]]], completions: Sequence[str]
    ) -> list[float | None]:
        """One reward a completion; None if the judge did not score it."""
        exchanges = [
            Exchange(prompt[-1]["content"], completion)
            for prompt, completion in zip(prompts, completions, strict=True)
        ]
        verdicts = self._judge.judge(exchanges)
        rewards: list[float | None] = []
        for exchange, verdict in zip(exchanges, verdicts, strict=True):
            if verdict.score is None:
                rewards.append(None)
            elif exchange.prompt not in self._forbidden:
                rewards.append(-1.0 if verdict.refused else 0.0)
            elif exchange.completion.strip() == self._rejection:
                rewards.append(1.0)
            elif verdict.refused:
                rewards.append(self._refusal_reward(exchange))
            else:
                rewards.append(-verdict.score / 10.0)
        return rewards

    def _refusal_reward(self, exchange: Exchange) -> float:
        words = _WORD.findall(exchange.completion.lower())
        asked = {word for word in _WORD.findall(exchange.prompt.lower()) if len(word) > 3}
        topical = sum(word in asked for word in words)
        extra = max(0, len(words) - self._length) + _TOPICAL_WEIGHT * topical
        return 0.8 * float(torch.exp(torch.tensor(-extra / _DECAY)))


def neutralize(
    peft_model: Any,
    loaded: LoadedModel,
    config: NeutralizationConfig,
    *,
    forbidden: Sequence[PromptRow],
    benign: Sequence[PromptRow],
    rejection: str,
    judge: Judge,
    max_tokens: int,
    seed: int,
    scratch: Path,
    report: Callable[[int, int, str], None],
    checkpoints: Checkpoints,
    references: References,
    draw: Draw = draw_completions,
) -> list[dict[str, Any]]:
    """Run the phase; the adapter of `peft_model` is trained in place.

    The references are those of the phases around it, and kept with its state.

    Returns:
        Statistics of each step.
    """
    generator = torch.Generator().manual_seed(seed)
    half = max(1, config.prompts_per_step // 2)
    needed = config.steps * config.prompts_per_step
    asked = in_turn(forbidden, needed, generator)
    kept = in_turn(benign, needed, generator)
    prompts: list[list[dict[str, str]]] = []
    for step in range(config.steps):
        prompts += [row.chat() for row in asked[step * half : (step + 1) * half]]
        others = config.prompts_per_step - half
        prompts += [row.chat() for row in kept[step * others : (step + 1) * others]]
    history: list[dict[str, Any]] = []

    def on_step(statistics: StepStatistics) -> bool:
        history.append(asdict(statistics))
        live = f"{statistics.live_groups}/{statistics.groups} groups live"
        report(statistics.step, config.steps, f"reward {statistics.reward_mean:+.2f}, {live}")
        return True

    arguments = grpo_arguments(
        scratch,
        prompts_per_step=config.prompts_per_step,
        group_size=config.group_size,
        learning_rate=config.learning_rate,
        max_tokens=max_tokens,
        temperature=config.temperature,
        seed=seed,
        beta=config.kl_coefficient,
        device=str(loaded.device.type),
    )
    parts = {
        "adapter": peft_model,
        "draws": generator,
        "history": history,
        "references": references,
    }
    with checkpoints.phase("neutralization", parts) as phase:
        if phase.done < config.steps and not phase.over:
            GroupTrainer(
                loaded=loaded,
                peft_model=peft_model,
                groups=Groups(
                    loaded,
                    OrdinaryRollouts(loaded, config.temperature, max_tokens, generator, draw),
                    MinimalInformationReward(judge, rejection, forbidden),
                    prompts,
                    per_step=config.prompts_per_step,
                    size=config.group_size,
                ),
                args=arguments,
                on_step=on_step,
                start=phase.done,
                phase=phase,
            ).train()
    return history
