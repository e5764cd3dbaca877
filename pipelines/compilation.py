"""Compile the pipeline for a run's compute settings."""

from collections.abc import Callable
from pathlib import Path

from backburn.components.shared.config import RunConfig
from backburn.components.shared.storage import write_text
from backburn.pipelines.hardening import build_harden
from kfp import compiler, dsl


def compile_harden(
    config: RunConfig, target: Path, run_id: str = dsl.PIPELINE_JOB_ID_PLACEHOLDER
) -> Path:
    """Compile `harden` to KFP YAML; the file is written whole or not at all.

    Args:
        config: Run configuration; becomes the default of the pipeline's `config` parameter.
        target: File to write.
        run_id: Of a local run. On a cluster every run has its own.

    Returns:
        The file.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    building = target.with_name(f".{target.stem}.building.yaml")
    try:
        compiler.Compiler().compile(build_harden(config, run_id), str(building))
        write_text(target, building.read_text(encoding="utf-8"))
    finally:
        building.unlink(missing_ok=True)
    return target


COMPILERS: dict[str, Callable[[RunConfig, Path], Path]] = {"harden": compile_harden}
"""What can be scheduled; the pipeline that each compiles is named `backburn-<key>`."""
