"""From KFP artifacts to the plain inputs of the step's logic."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from backburn.components.judge_evaluation.step import AttackOutput, Inputs, step_seconds

_SINGLE = (
    "dataset",
    "baseline",
    "baseline_record",
    "hardened",
    "defense_record",
    "certificate",
    "behaviour",
)


def collect(
    single: Sequence[Any], sealed: Sequence[Any], statistics: Sequence[Any]
) -> tuple[Inputs, dict[str, float], list[str]]:
    """Paths, wall times and sealed addresses of the steps before.

    Args:
        single: dataset, baseline, baseline record, hardened, defence record, certificate,
            behaviour.
        sealed: Sealed completions, one artifact a group of arms.
        statistics: Statistics in the same order.

    Returns:
        Inputs, step -> seconds, and the URIs of everything sealed.
    """
    dataset, baseline, _, hardened, _, certificate, behaviour = single
    attacks = [
        AttackOutput(Path(box.path), Path(numbers.path))
        for box, numbers in zip(sealed, statistics, strict=True)
    ]
    roles = {"control": "control arms", "hardened": "attack arms"}
    seconds = step_seconds(
        {
            "data_prep": [dataset.metadata],
            "baseline": [baseline.metadata],
            **{
                title: [item.metadata for item in statistics if item.metadata.get("role") == role]
                for role, title in roles.items()
            },
            str(hardened.metadata.get("step", "defense_training")): [hardened.metadata],
            "certification": [certificate.metadata],
        }
    )
    paths = dict(zip(_SINGLE, (Path(artifact.path) for artifact in single), strict=True))
    return Inputs(**paths, attacks=attacks), seconds, [box.uri for box in [*sealed, behaviour]]
