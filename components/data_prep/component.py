"""KFP face of the data_prep step."""

from kfp import dsl


@dsl.component(base_image="backburn/train:0.1.0", install_kfp_package=False)
def data_prep(config: str, run_id: str, dataset: dsl.Output[dsl.Dataset]):
    """Make disjoint splits of the domain: defence, validation, attack, held-out, near-miss, benign.

    Args:
        config: Run configuration, JSON.
        run_id: Id of the pipeline run.
        dataset: Folder with a JSONL file a split, rubric, calibration set and digests.
    """
    from pathlib import Path

    from backburn.components.data_prep.step import run

    dataset.metadata.update(run(config, run_id, Path(dataset.path)))
