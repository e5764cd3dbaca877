"""Compile the pipeline for a run's compute settings."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from backburn.components.shared.config import RunConfig
from backburn.components.shared.storage import write_text
from backburn.pipelines.audit import build_audit
from backburn.pipelines.hardening import build_harden
from kfp import compiler, dsl

BUILDERS: dict[str, Callable[[RunConfig, str], Any]] = {
    "harden": build_harden,
    "audit": build_audit,
}
"""By `RunConfig.pipeline`; each builds the pipeline named `backburn-<key>`."""


def compile_pipeline(
    config: RunConfig, target: Path, run_id: str = dsl.PIPELINE_JOB_ID_PLACEHOLDER
) -> Path:
    """Compile the pipeline a configuration is for to KFP YAML, whole or not at all.

    Args:
        config: Run configuration; becomes the default of the pipeline's `config` parameter. With
            an `audit` section the pipeline is `audit`, else `harden`.
        target: File to write.
        run_id: Of a local run. On a cluster every run has its own.

    Returns:
        The file.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    building = target.with_name(f".{target.stem}.building.yaml")
    try:
        compiler.Compiler().compile(BUILDERS[config.pipeline](config, run_id), str(building))
        write_text(target, building.read_text(encoding="utf-8"))
    finally:
        building.unlink(missing_ok=True)
    return target
