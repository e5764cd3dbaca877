"""The data_prep step: one dataset artifact with disjoint, digested splits."""

from pathlib import Path

from backburn.components.data_prep.splits import write_dataset
from backburn.components.shared.domains import load_domain
from backburn.components.shared.step import open_step


def run(config_json: str, run_id: str, dataset: Path) -> dict[str, str | float]:
    """Make the dataset; returns the artifact's metadata.

    Raises:
        InputError: if a row is unusable or splits overlap.
    """
    with open_step(config_json, run_id, "data_prep", ["data"]) as step:
        record = write_dataset(dataset, load_domain(step.config.domain), step.config)
        step.tracking.parameters(record.model_dump())
        step.tracking.metrics({f"rows/{n}": float(s.rows) for n, s in record.splits.items()})
        rows = sum(split.rows for split in record.splits.values())
        step.progress.update("splits", rows, rows, f"{len(record.splits)} disjoint splits")
        return {"seconds": step.seconds, "domain": record.domain}
