"""A whole pipeline run that logs into an MLflow run made by somebody else."""

import os
import subprocess
import sys
from pathlib import Path

from mlflow.tracking import MlflowClient

QUICK = (
    "certification.trainability.enabled=false",
    "gate.trainability_min=null",
    "attack.arms.0.seeds=[0]",
    "certification.behaviour_completions=2",
)


def test_a_pipeline_run_adopts_one_run_and_leaves_it_open(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/platform.db"
    mlflow = MlflowClient(uri)
    artifacts = (tmp_path / "files").as_uri()
    experiment = mlflow.create_experiment("platform", artifact_location=artifacts)
    made = mlflow.create_run(experiment, run_name="made before").info.run_id
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("BACKBURN_", "MLFLOW_"))}
    injected = {
        "MLFLOW_TRACKING_URI": uri,
        "MLFLOW_RUN_ID": made,
        "MLFLOW_EXPERIMENT_ID": experiment,
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    overrides = [part for setting in QUICK for part in ("--set", setting)]
    command = [sys.executable, "-m", "backburn.pipelines.cli", "run", "-r", "smoke"]
    done = subprocess.run(
        [*command, "--run-id", "one", *overrides],
        cwd=tmp_path,
        env=kept | injected,
        capture_output=True,
        text=True,
        timeout=1500,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    experiments = mlflow.search_experiments()
    (run,) = mlflow.search_runs([found.experiment_id for found in experiments])
    assert run.info.run_id == made
    assert run.info.status == "RUNNING"
    assert run.info.run_name == "made before"
    assert run.data.tags["backburn.outcome"] == "passed"
    assert run.data.tags["backburn.run_id"] == "one"
    assert "backburn.failed_step" not in run.data.tags
    steps = {name.partition("/")[0] for name in run.data.metrics if name.endswith("/seconds")}
    assert {"preflight", "data_prep", "baseline", "defense_training", "certification",
            "judge_evaluation", "promotion"} <= steps  # fmt: skip
    assert run.data.params["baseline/applied"] == "True"
    assert run.data.params["gate.version"] == "1"
    assert "harm/control paper seed 0" in run.data.metrics
    version = mlflow.get_model_version_by_alias("backburn-tiny-toy_kitchen", "candidate")
    assert version.run_id == made
    assert not (tmp_path / "runs/mlflow.db").exists()
    again = subprocess.run(
        [*command, "--run-id", "two", *overrides],
        cwd=tmp_path,
        env=kept | injected,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert again.returncode == 2
    assert "already holds pipeline run one" in again.stderr.replace("\n", " ")
