"""A defence that is interrupted, however often, ends with the bytes of one that was left alone."""

from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from backburn.components.defense_training import defense
from backburn.components.defense_training.defense import defend
from backburn.components.defense_training.meter import DefenseResult
from backburn.components.shared.checkpoints import Checkpoints, Folder
from backburn.components.shared.config import DefenseConfig, ModelConfig, RunConfig
from backburn.components.shared.domains import Domain
from backburn.components.shared.judges import make_judge
from backburn.components.shared.models import load_base
from backburn.pipelines.recipes import load_recipe

from tests.defense_training.test_defense import prompts_of

SHORT = [
    "warm_start.steps=3",
    "neutralization.steps=3",
    "consolidation.min_steps=4",
    "consolidation.max_steps=9",
    "consolidation.settle_steps=4",
    "consolidation.check_every=3",
    "consolidation.embedding_noise=0.1",
    "entropy.steps=4",
    "refusal.steps=5",
]
SECONDS = {"seconds"}


class CutError(Exception):
    """Ends a defence in the middle."""


@pytest.mark.parametrize("method", ["neutralization", "entropy", "refusal"])
def test_an_interrupted_defence_ends_as_one_that_was_left_alone(
    tiny_base: Path, toy: Domain, smoke: RunConfig, tmp_path: Path, method: str
) -> None:
    changes = [f"defense.{change}" for change in [*SHORT, f"method={method}"]]
    config = load_recipe("smoke", changes).defense
    judge = make_judge(smoke.judges.reward, toy.header.rubric)

    def run(checkpoints: Checkpoints, cut_after: int | None) -> DefenseResult:
        """Defend; the steps of training that are reported are counted, and the last one cut."""
        steps = count(1)

        def report(phase: str, done: int, total: int, note: str) -> None:
            if phase != "answers to keep" and done and next(steps) == cut_after:
                raise CutError

        return defended(tiny_base, toy, config, judge, report, checkpoints)

    whole = run(Checkpoints(None, ""), None)
    place = Folder(tmp_path / "kept")
    attempts = 0
    while True:
        try:
            resumed = run(Checkpoints(place, "i"), 4)
            break
        except CutError:
            attempts += 1
            assert attempts < 30
    assert attempts >= 1
    expected, got = (defense._adapter_state(r.peft_model) for r in (whole, resumed))
    assert all(torch.equal(got[name], value) for name, value in expected.items())
    assert resumed.consolidation_curve == whole.consolidation_curve
    for mine, theirs in zip(resumed.phases, whole.phases, strict=True):
        assert mine.model_dump(exclude=SECONDS) == theirs.model_dump(exclude=SECONDS)
    assert without_seconds(resumed.neutralization_steps) == without_seconds(
        whole.neutralization_steps
    )


def defended(
    base: Path, toy: Domain, config: DefenseConfig, judge: Any, report: Any, kept: Checkpoints
) -> DefenseResult:
    loaded = load_base(base, ModelConfig(id="builtin:tiny"))
    loaded.model.requires_grad_(False)
    return defend(
        loaded,
        config,
        prompts_of(toy),
        judge,
        max_tokens=24,
        seed=0,
        report=report,
        checkpoints=kept,
    )


def without_seconds(steps: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in step.items() if k not in SECONDS} for step in steps]
