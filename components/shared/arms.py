"""Dividing the arms of a run into groups; each group is attacked by one task."""

from typing import Any

from backburn.components.shared.config import RunConfig


def arm_groups(config: RunConfig, role: str) -> list[dict[str, Any]]:
    """Divide the arms of one role into groups; each group is one task.

    Args:
        config: Of the run.
        role: `control` or `hardened`.

    Returns:
        Groups as plain data: role, number of groups side by side, and (recipe, seed) pairs; the
        sweep is a group of its own.
    """
    arms = [
        {"arm": arm.name, "seed": seed}
        for arm in config.attack.arms
        for seed in (arm.control_seeds if role == "control" else arm.seeds)
    ]
    sweeps = role == "hardened" and config.attack.sweep.trials > 0
    count = min(len(arms), config.attack.parallel_groups)
    side_by_side = min(count + sweeps, config.attack.parallel_groups)
    groups: list[dict[str, Any]] = [
        {"role": role, "side_by_side": side_by_side, "arms": arms[index::count]}
        for index in range(count)
    ]
    if sweeps:
        groups.append({"role": role, "side_by_side": side_by_side, "arms": [], "sweep": True})
    return groups
