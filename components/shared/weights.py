"""Whether weights have moved."""

from collections.abc import Iterable
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

_optimizer_steps = 0


def _count_step(*_: Any) -> None:
    global _optimizer_steps
    _optimizer_steps += 1


# Fused optimisers write to weights without raising their version.
register_optimizer_step_post_hook(_count_step)


def weights_version(parameters: Iterable[torch.nn.Parameter]) -> tuple[int, ...]:
    """Changes whenever a weight is written to in place or given other data, or an optimiser steps.

    A step of any optimiser of this process counts.
    """
    return (
        _optimizer_steps,
        *(n for parameter in parameters for n in (parameter._version, parameter.data_ptr())),
    )
