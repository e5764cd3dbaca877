"""Steps as two processes: the same results as one, written once, and no hang when one is lost."""

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest
import torch
from backburn.components.data_prep.splits import write_dataset
from backburn.components.shared.config import RunConfig
from backburn.components.shared.domains import load_domain
from backburn.components.shared.errors import ContainmentError, InputError, LostProcessError
from backburn.components.shared.progress import EVENTS_VARIABLE
from backburn.components.shared.scale.job import start
from backburn.components.shared.sealing import open_sealed
from backburn.components.shared.storage import read_json
from backburn.components.shared.tracking import RUN_TAG, STEP_TAG, URI_VARIABLE
from backburn.pipelines.recipes import load_recipe
from mlflow.tracking import MlflowClient
from safetensors.torch import load_file

SHORT = (
    "baseline.steps=3",
    "defense.warm_start.steps=2",
    "defense.neutralization.steps=2",
    "defense.consolidation.min_steps=2",
    "defense.consolidation.max_steps=4",
    "defense.consolidation.settle_steps=2",
    "defense.consolidation.check_every=2",
    "attack.arms.0.steps=3",
    "attack.arms.0.control_steps=3",
    "attack.arms.0.seeds=[0]",
    "attack.checkpoints=[0, 3]",
    "attack.max_completion_tokens=12",
)
"""Few steps: each multiplies the difference that the order of summation makes."""


def configuration(processes: int, *overrides: str) -> str:
    return load_recipe("smoke", [*SHORT, f"compute.processes={processes}", *overrides]).to_json()


class Steps(NamedTuple):
    """Outputs of the steps, run as some number of processes."""

    folder: Path
    returned: dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Tracking, progress and a dataset."""
    folder = tmp_path_factory.mktemp("scale")
    config = RunConfig.from_json(configuration(1))
    write_dataset(folder / "dataset", load_domain(config.domain), config)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(URI_VARIABLE, f"sqlite:///{folder}/mlflow.db")
        yield folder


def all_steps(workplace: Path, processes: int, inputs: Path) -> Steps:
    """Run the steps; each starts from what one process made of the step before."""
    folder = workplace / str(processes)
    config, run_id = configuration(processes), f"run-{processes}"
    dataset = str(workplace / "dataset")
    logic = "backburn.components.{}.step"
    returned = {
        "baseline": start(
            logic.format("baseline"),
            config,
            run_id=run_id,
            dataset=dataset,
            model=str(folder / "baseline"),
            record=str(folder / "baseline.json"),
        ),
        "defense_training": start(
            logic.format("defense_training"),
            config,
            run_id=run_id,
            dataset=dataset,
            baseline=str(inputs / "baseline"),
            hardened=str(folder / "hardened"),
            record=str(folder / "defence.json"),
        ),
        "rl_attack": start(
            logic.format("rl_attack"),
            config,
            run_id=run_id,
            group={"role": "control", "side_by_side": 1, "arms": [{"arm": "paper", "seed": 0}]},
            dataset=dataset,
            target=str(inputs / "baseline"),
            sealed=str(folder / "sealed"),
            statistics=str(folder / "attack.json"),
        ),
    }
    return Steps(folder, returned)


@pytest.fixture
def events(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "events.jsonl"
    monkeypatch.setenv(EVENTS_VARIABLE, str(path))
    return path


def lines(events: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in events.read_text("utf-8").splitlines()]


def same(first: Any, second: Any, tolerance: float, path: str = "") -> None:
    """Equal up to a relative difference of numbers; seconds may differ."""
    assert type(first) is type(second), path
    if isinstance(first, dict):
        assert first.keys() == second.keys(), path
        for name in first.keys() - {"seconds"}:
            same(first[name], second[name], tolerance, f"{path}.{name}")
    elif isinstance(first, list):
        assert len(first) == len(second), path
        for index, pair in enumerate(zip(first, second, strict=True)):
            same(*pair, tolerance, f"{path}[{index}]")
    elif isinstance(first, float):
        assert second == pytest.approx(first, rel=tolerance, abs=tolerance), path
    else:
        assert first == second, path


def runs_of(workplace: Path, run_id: str) -> dict[str, list[Any]]:
    client = MlflowClient(f"sqlite:///{workplace}/mlflow.db")
    experiments = [item.experiment_id for item in client.search_experiments()]
    found: dict[str, list[Any]] = {}
    for run in client.search_runs(experiments, f"tags.`{RUN_TAG}` = '{run_id}'"):
        found.setdefault(run.data.tags[STEP_TAG], []).append(run)
    return found


def test_two_processes_do_the_same_work(tiny_base: Path) -> None:
    """Losses, gradients and draws differ by float32's summation order: 1e-5 of the largest."""
    one, two = (
        start("tests.shared.scale.divided_work", configuration(n), base=str(tiny_base))
        for n in (1, 2)
    )
    assert (one.pop("processes"), two.pop("processes")) == (1, 2)
    assert one.keys() == two.keys()
    for name, expected in one.items():
        if name.endswith("copies") or name.startswith("number"):
            assert two[name] == expected, name
        else:
            first, second = torch.tensor(expected), torch.tensor(two[name])
            assert first.shape == second.shape, name
            assert float((first - second).abs().max() / first.abs().max()) < 1e-5, name


def test_steps_of_two_processes_give_the_results_of_one_and_write_them_once(
    workplace: Path, events: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = all_steps(workplace, 1, workplace / "1")
    alone = lines(events)
    events.unlink()
    two = all_steps(workplace, 2, workplace / "1")
    together = lines(events)

    for name in ("baseline.json", "defence.json", "attack.json"):
        same(read_json(one.folder / name), read_json(two.folder / name), 1e-3, name)
    assert open_sealed(one.folder / "sealed") == open_sealed(two.folder / "sealed")
    for name in ("baseline", "hardened"):
        first, second = (
            load_file(steps.folder / name / "adapter" / "adapter_model.safetensors")
            for steps in (one, two)
        )
        for key, value in first.items():
            torch.testing.assert_close(value, second[key], rtol=0.0, atol=2e-3)
    assert {p.relative_to(one.folder) for p in one.folder.rglob("*")} == {
        p.relative_to(two.folder) for p in two.folder.rglob("*")
    }
    assert one.returned.keys() == two.returned.keys()
    for name, metadata in one.returned.items():
        assert metadata.keys() == two.returned[name].keys()

    assert [(e["task"], e.get("phase"), e.get("done")) for e in alone] == [
        (e["task"], e.get("phase"), e.get("done")) for e in together
    ]
    first_runs, second_runs = (runs_of(workplace, f"run-{n}") for n in (1, 2))
    assert {step: len(runs) for step, runs in first_runs.items()} == {
        step: len(runs) for step, runs in second_runs.items()
    }
    client = MlflowClient(f"sqlite:///{workplace}/mlflow.db")
    for step, (run,) in second_runs.items():
        expected = first_runs[step][0]
        assert run.data.metrics.keys() == expected.data.metrics.keys()
        for metric in run.data.metrics:
            histories = [
                [(point.step, point.value) for point in client.get_metric_history(i, metric)]
                for i in (expected.info.run_id, run.info.run_id)
            ]
            assert [p[0] for p in histories[0]] == [p[0] for p in histories[1]]
        assert run.info.status == expected.info.status


def test_a_lost_process_ends_the_step_soon_with_one_line(
    workplace: Path, events: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    killed: list[float] = []

    def kill() -> None:
        while not events.exists() or "explanatory refusals" not in events.read_text("utf-8"):
            time.sleep(0.1)
        victim = next(
            child
            for child in psutil.Process().children(recursive=True)
            if child.environ().get("RANK") == "1"
        )
        killed.append(time.monotonic())
        os.kill(victim.pid, signal.SIGKILL)

    threading.Thread(target=kill, daemon=True).start()
    model, record = workplace / "lost", workplace / "lost.json"
    with pytest.raises(LostProcessError) as caught:
        start(
            "backburn.components.baseline.step",
            configuration(2, "baseline.steps=2000"),
            run_id="lost",
            dataset=str(workplace / "dataset"),
            model=str(model),
            record=str(record),
        )
    assert time.monotonic() - killed[0] < 20
    message = str(caught.value)
    assert "\n" not in message
    assert "rank 1 of 2 processes was ended by SIGKILL" in message
    assert "compute.memory" in message
    assert Path(message.rpartition("Its log: ")[2]).is_file()
    assert not model.exists()
    assert not record.exists()
    assert not [p for p in psutil.Process().children(recursive=True) if "RANK" in p.environ()]
    (run,) = runs_of(workplace, "lost")["baseline"]
    assert run.info.status == "FAILED"


def test_an_error_of_a_step_is_told_as_by_one_process(workplace: Path) -> None:
    with pytest.raises(ContainmentError, match="no defence lineage"):
        start(
            "backburn.components.rl_attack.step",
            configuration(2),
            run_id="refused",
            group={"role": "hardened", "arms": [{"arm": "paper", "seed": 0}]},
            dataset=str(workplace / "dataset"),
            target=str(workplace / "1" / "baseline"),
            sealed=str(workplace / "refused"),
            statistics=str(workplace / "refused.json"),
        )
    (run,) = runs_of(workplace, "refused")["rl_attack hardened paper/0"]
    assert run.info.status == "FAILED"


def test_processes_want_an_accelerator_each() -> None:
    load_recipe("smoke", ["compute.gpus=4", "compute.processes=4"])
    load_recipe("smoke", ["compute.gpus=0", "compute.processes=4"])
    with pytest.raises(InputError, match=r"processes \(4\) exceeds gpus \(2\)"):
        load_recipe("smoke", ["compute.gpus=2", "compute.processes=4"])
    with pytest.raises(InputError, match=r"compute\.processes"):
        load_recipe("smoke", ["compute.processes=9"])
