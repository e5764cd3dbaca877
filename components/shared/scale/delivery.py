"""A step on a node of a TrainJob: its inputs are what was sent, its outputs are named by digest."""

import shutil
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from backburn.components.shared.errors import BackburnError
from backburn.components.shared.scale import distributed
from backburn.components.shared.storage import digests


def run(
    module: str,
    arguments: dict[str, Any],
    inputs: Mapping[str, dict[str, str]],
    outputs: Sequence[str],
) -> dict[str, Any]:
    """Run a step on a shared folder.

    Args:
        module: The step.
        arguments: Keyword arguments of its `run`; paths are strings.
        inputs: Arguments that are read, with the digests that the launcher copied.
        outputs: Arguments that name what is made.

    Returns:
        `metadata`, which the step returned, and `outputs`: the digests of each, on rank 0.

    Raises:
        BackburnError: if an input is not what the launcher copied.
    """
    paths = {name: Path(arguments[name]) for name in (*inputs, *outputs)}
    for name, expected in inputs.items():
        if digests(paths[name]) != expected:
            raise BackburnError(
                f"{paths[name]}: this node sees other files than the launcher copied there. Is "
                "compute.workspace_claim one volume that all nodes share (ReadWriteMany)?"
            )
    if distributed.is_primary():
        for name in outputs:  # of an attempt that the cluster ended
            shutil.rmtree(paths[name], ignore_errors=True)
            paths[name].unlink(missing_ok=True)
    metadata = import_module(module).run(**{**arguments, **paths})
    made = {name: digests(paths[name]) for name in outputs} if distributed.is_primary() else {}
    return {"metadata": metadata, "outputs": made}
