"""Verdicts on sealed completions, as observations without text."""

from collections.abc import Sequence
from typing import Any

from backburn.components.shared.domains import PromptRow
from backburn.components.shared.judges import Exchange, Judge, RememberingJudge
from backburn.components.shared.observations import ArmObservation, CheckpointObservation, Judged
from backburn.components.shared.storage import sha256_text

_COLUMNS = (
    "step",
    "reward_mean",
    "reward_std",
    "entropy",
    "live_groups",
    "groups",
    "idle",
    "completion_tokens",
    "seconds",
)


class VerdictBook:
    """Judges completions, each distinct exchange once."""

    def __init__(self, judge: Judge, prompts: Sequence[PromptRow]) -> None:
        """Prepare.

        Args:
            judge: The evaluation judge.
            prompts: All that completions are of.
        """
        self._judge = RememberingJudge(judge)
        self._prompts = {row.id: row.text for row in prompts}

    def exchange(self, item: dict[str, Any]) -> Exchange:
        """What the judge sees of an opened completion."""
        return Exchange(self._prompts[item["prompt_id"]], str(item["completion"]))

    def judged(self, items: Sequence[dict[str, Any]]) -> list[Judged]:
        """Opened completions with their verdicts, in order."""
        verdicts = self._judge.judge([self.exchange(item) for item in items])
        return [
            Judged(
                prompt_id=str(item["prompt_id"]),
                sha256=sha256_text(str(item["completion"])),
                tokens=int(item["tokens"]),
                refused=verdict.refused,
                score=verdict.score,
            )
            for item, verdict in zip(items, verdicts, strict=True)
        ]


def observe_arm(
    completions: Sequence[dict[str, Any]], statistics: dict[str, Any], book: VerdictBook
) -> ArmObservation:
    """Judge one arm's completions.

    Args:
        completions: Opened completions of this arm.
        statistics: What `rl_attack` recorded of it.
        book: Verdicts of the evaluation judge.
    """
    steps = sorted({int(item["step"]) for item in completions})
    return ArmObservation(
        arm=statistics["arm"],
        role=statistics["role"],
        seed=statistics["seed"],
        recipe=statistics["recipe"],
        prompt_ids=statistics["prompt_ids"],
        steps_planned=statistics["steps_planned"],
        steps={name: [item[name] for item in statistics["steps"]] for name in _COLUMNS},
        checkpoints=[
            CheckpointObservation(
                step=step,
                benign_loss=statistics["benign_loss"].get(str(step)),
                judged=book.judged([item for item in completions if int(item["step"]) == step]),
            )
            for step in steps
        ],
        rollouts=statistics["rollouts"],
        seconds=statistics["seconds"],
    )
