"""Runs in MLflow: opened here, or adopted from the platform; on real stores."""

import subprocess
import sys
from pathlib import Path

import pytest
from backburn.components.shared.config import RunConfig
from backburn.components.shared.errors import InputError
from backburn.components.shared.tracking import StepRun, open_parent, title_of, tracking_uri
from mlflow.tracking import MlflowClient

from tests.test_floors import STEPS


class Store:
    """A store as a platform has it: with an experiment, and variables in every task."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.uri = f"sqlite:///{folder}/platform.db"
        self.mlflow = MlflowClient(self.uri)
        artifacts = (folder / "artifacts").as_uri()
        self.experiment = self.mlflow.create_experiment("platform", artifact_location=artifacts)
        self._monkeypatch = monkeypatch

    def run(self, name: str, **tags: str) -> str:
        given = {key.replace("_", ".", 1): value for key, value in tags.items()}
        run = self.mlflow.create_run(self.experiment, run_name=name, tags=given)
        return str(run.info.run_id)

    def inject(self, run: str) -> None:
        values = {"RUN_ID": run, "TRACKING_URI": self.uri, "EXPERIMENT_ID": self.experiment}
        for name, value in values.items():
            self._monkeypatch.setenv(f"MLFLOW_{name}", value)

    def statuses(self) -> list[str]:
        return [run.info.status for run in self.mlflow.search_runs([self.experiment])]


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    return Store(tmp_path, monkeypatch)


def test_kfps_run_of_a_task_is_adopted_below_kfps_run_of_the_pipeline(
    store: Store, tmp_path: Path
) -> None:
    """As KFP 2.17 does it: a run for the pipeline run, below it one a task, a group between."""
    root = store.run("harden", kfp_pipeline_run_id="job")
    group = store.run("attack-arms", mlflow_parentRunId=root)
    tasks = {
        "baseline": store.run("baseline", mlflow_parentRunId=root),
        "rl_attack control paper/0": store.run("rl-attack", mlflow_parentRunId=group),
    }
    elsewhere = {"uri": f"sqlite:///{tmp_path}/elsewhere.db"}
    config = RunConfig.model_validate({"tracking": elsewhere})
    for name, run in tasks.items():
        store.inject(run)
        with StepRun(config, "job", name) as step:
            step.settings(config, ["gate"])
            step.metrics({"coverage": 1.0})
            step.parent_metrics({name.split()[0]: 2.0})
            step.parent_tags({"backburn.outcome": "passed"})
        assert (step.id, step.parent_id) == (run, root)
    assert store.statuses() == ["RUNNING"] * 4  # none opened, none closed
    assert not (tmp_path / "elsewhere.db").exists()
    parent = store.mlflow.get_run(root)
    assert parent.info.run_name == "harden"
    assert parent.data.params["gate.version"] == "1"
    assert parent.data.tags["backburn.outcome"] == "passed"
    assert parent.data.tags["backburn.run_id"] == "job"
    assert parent.data.metrics == {"baseline": 2.0, "rl_attack": 2.0}
    for name, run in tasks.items():
        found = store.mlflow.get_run(run)
        assert found.data.tags["backburn.step"] == name
        assert set(found.data.metrics) == {"coverage", "seconds"}
        assert found.data.params["gate.version"] == "1"


def test_in_one_run_for_all_tasks_names_carry_the_step(store: Store) -> None:
    run = store.run("everything")
    store.inject(run)
    config = RunConfig()
    for value, name in enumerate(
        ("baseline", "certification", "rl_attack control a/0 " + "b/1 " * 60)
    ):
        with StepRun(config, "job", name) as step:
            step.settings(config, ["gate"])
            step.parameters({"reason": f"reason {value}"})
            step.metrics({"harm": float(value)})
    (found,) = store.mlflow.search_runs([store.experiment])
    assert found.info.status == "RUNNING"
    assert found.data.metrics["baseline/harm"] == 0.0
    assert found.data.metrics["certification/harm"] == 1.0
    assert (
        sorted(n.rpartition("/")[2] for n in found.data.metrics) == ["harm"] * 3 + ["seconds"] * 3
    )
    assert found.data.params["baseline/reason"] == "reason 0"
    assert found.data.params["certification/reason"] == "reason 1"
    assert found.data.params["gate.version"] == "1"


def test_a_retried_task_keeps_the_parameters_of_the_first_attempt(store: Store) -> None:
    store.inject(store.run("everything"))
    for reason in ("one", "another"):
        with StepRun(RunConfig(), "job", "baseline") as step:
            step.parameters({"reason": reason})
    (found,) = store.mlflow.search_runs([store.experiment])
    assert found.data.params["baseline/reason"] == "one"


def test_an_injected_run_holds_one_pipeline_run(store: Store) -> None:
    store.inject(store.run("everything"))
    open_parent(RunConfig(), "first")
    open_parent(RunConfig(), "first")
    with pytest.raises(InputError, match="already holds pipeline run first"):
        open_parent(RunConfig(), "second")


def test_an_injected_run_that_is_not_there_is_bad_input(store: Store) -> None:
    store.inject("0" * 32)
    with pytest.raises(InputError, match=r"MLFLOW_RUN_ID: run 0+.*cannot be read"):
        open_parent(RunConfig(), "job")


def test_a_failing_step_leaves_its_name_and_the_errors_class(store: Store) -> None:
    config = RunConfig.model_validate({"tracking": {"uri": store.uri}})
    with pytest.raises(ValueError, match="secret row"), StepRun(config, "job", "data_prep"):
        raise ValueError("secret row")
    parent = store.mlflow.get_run(open_parent(config, "job"))
    assert parent.data.tags["backburn.failed_step"] == "data_prep"
    assert parent.data.tags["backburn.error"] == "ValueError"
    assert "secret row" not in str(parent.data.tags)


def test_a_database_file_where_none_can_be_made_is_bad_input() -> None:
    config = RunConfig.model_validate({"tracking": {"uri": "sqlite:////proc/no/runs.db"}})
    with pytest.raises(InputError, match=r"tracking\.uri: .*/proc/no/runs\.db cannot be used"):
        open_parent(config, "job")


def test_several_processes_may_fill_a_new_database_file_at_once(tmp_path: Path) -> None:
    config = RunConfig.model_validate({"tracking": {"uri": f"sqlite:///{tmp_path}/new.db"}})
    program = "\n".join(
        [
            "import sys",
            "from backburn.components.shared.config import RunConfig",
            "from backburn.components.shared.tracking import open_parent",
            "print('ready', flush=True)",
            "sys.stdin.readline()",
            "open_parent(RunConfig.from_json(sys.argv[1]), sys.argv[2])",
        ]
    )
    names = ("one", "two", "three")
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program, config.to_json(), name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for name in names
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    ended = []
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    for process in processes:
        _, error = process.communicate(timeout=120)
        ended.append((process.returncode, error[-500:]))
    assert [code for code, _ in ended] == [0, 0, 0], ended
    mlflow = MlflowClient(tracking_uri(config))
    experiment = mlflow.get_experiment_by_name(config.tracking.experiment)
    assert experiment is not None
    runs = mlflow.search_runs([experiment.experiment_id])
    assert {run.info.run_name for run in runs} == set(names)


def test_every_step_has_a_title_in_the_pipelines_order() -> None:
    tracked = [step for step in STEPS if step not in ("notification", "rl_attack")]
    tracked += ["rl_attack control", "rl_attack hardened"]
    for other in ("audited_model", "defense_training"):  # one of them in each pipeline
        numbers = sorted(int(title_of(step).split()[0]) for step in tracked if step != other)
        assert numbers == list(range(1, len(tracked)))
    assert title_of("rl_attack control paper/0") == "4 Attack the unhardened model: paper/0"
    assert title_of("another") == "another"
