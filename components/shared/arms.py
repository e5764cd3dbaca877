"""Dividing the arms of a run into groups; each group is attacked by one task."""

from typing import Any

from backburn.components.shared.config import RunConfig


def arm_groups(config: RunConfig, role: str) -> list[dict[str, Any]]:
    """Divide the arms of one role into groups; each group is one task.

    Args:
        config: Of the run.
        role: `control` or `hardened`.

    Returns:
        Groups as plain data: role, number of groups side by side, and (recipe, seed) pairs.
    """
    arms = [
        {"arm": arm.name, "seed": seed}
        for arm in config.attack.arms
        for seed in (arm.control_seeds if role == "control" else arm.seeds)
    ]
    count = min(len(arms), config.attack.parallel_groups)
    return [
        {"role": role, "side_by_side": count, "arms": arms[index::count]} for index in range(count)
    ]
