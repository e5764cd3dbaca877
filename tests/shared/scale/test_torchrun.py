"""Steps as two processes: the same results as one, written once, and no hang when one is lost."""

import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import optuna
import psutil
import pytest
import torch
from backburn.components.data_prep.splits import write_dataset
from backburn.components.shared.config import RunConfig
from backburn.components.shared.domains import load_domain
from backburn.components.shared.errors import ContainmentError, InputError, LostProcessError
from backburn.components.shared.progress import EVENTS_VARIABLE
from backburn.components.shared.scale.job import start
from backburn.components.shared.sealing import KEY_VARIABLE, new_key, open_sealed
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
CLOSE = 1e-4
"""Of figures after those steps. Gradients differ by 1e-6 of the largest, but Adam divides each by
its own size, so that the smallest ones, all rounding, move a weight as far as the others do."""
STEP = 5e-3
"""The largest learning rate. Rounding moves single weights by as much, not all of them."""
SOON = 20.0
"""Seconds, on a busy machine."""
SHARDINGS = pytest.mark.parametrize("sharding", ["none", "full"])


def configuration(processes: int, *overrides: str) -> str:
    return load_recipe("smoke", [*SHORT, f"compute.processes={processes}", *overrides]).to_json()


class Steps(NamedTuple):
    """What the steps left behind when they were run as some number of processes."""

    folder: Path
    returned: dict[str, dict[str, Any]]
    events: list[dict[str, Any]]


@pytest.fixture(scope="module", autouse=True)
def _keys() -> Iterator[None]:
    """One key for all tests, instead of one each: some open what others sealed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(KEY_VARIABLE, new_key())
        yield


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Tracking and a dataset."""
    folder = tmp_path_factory.mktemp("scale")
    config = RunConfig.from_json(configuration(1))
    write_dataset(folder / "dataset", load_domain(config.domain), config)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(URI_VARIABLE, f"sqlite:///{folder}/mlflow.db")
        yield folder


@pytest.fixture(scope="module")
def one(workplace: Path) -> Steps:
    return all_steps(workplace, 1)


def all_steps(workplace: Path, processes: int, sharding: str = "none") -> Steps:
    """Run the steps; each starts from what one process made of the step before."""
    name = f"{processes}-{sharding}"
    folder, alone = workplace / name, workplace / "1-none"
    call: dict[str, Any] = {
        "config_json": configuration(processes, f"compute.sharding={sharding}"),
        "run_id": f"run-{name}",
        "dataset": str(workplace / "dataset"),
    }
    events = workplace / f"events-{name}.jsonl"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(EVENTS_VARIABLE, str(events))
        returned = {
            "baseline": start(
                "backburn.components.baseline.step",
                **call,
                model=str(folder / "baseline"),
                record=str(folder / "baseline.json"),
            ),
            "defense_training": start(
                "backburn.components.defense_training.step",
                **call,
                baseline=str(alone / "baseline"),
                hardened=str(folder / "hardened"),
                record=str(folder / "defence.json"),
            ),
            "rl_attack": start(
                "backburn.components.rl_attack.step",
                **call,
                group={"role": "control", "arms": [{"arm": "paper", "seed": 0}]},
                target=str(alone / "baseline"),
                sealed=str(folder / "sealed"),
                statistics=str(folder / "attack.json"),
            ),
        }
    return Steps(folder, returned, [json.loads(line) for line in events.read_text().splitlines()])


def same(first: Any, second: Any, path: str) -> None:
    """Equal, numbers up to a small difference; seconds may differ."""
    if isinstance(first, dict):
        assert first.keys() == second.keys(), path
        for name in first:
            if not name.endswith("seconds"):
                same(first[name], second[name], f"{path}.{name}")
    elif isinstance(first, list):
        assert len(first) == len(second), path
        for index, pair in enumerate(zip(first, second, strict=True)):
            same(*pair, f"{path}[{index}]")
    elif isinstance(first, float):
        assert second == pytest.approx(first, rel=CLOSE, abs=CLOSE), path
    else:
        assert first == second, path


def tracked(workplace: Path, run_id: str) -> dict[str, tuple[str, dict[str, list[float]]]]:
    """Status and curves of each step's MLflow run; there has to be one a step."""
    client = MlflowClient(f"sqlite:///{workplace}/mlflow.db")
    experiments = [item.experiment_id for item in client.search_experiments()]
    found: dict[str, tuple[str, dict[str, list[float]]]] = {}
    for run in client.search_runs(experiments, f"tags.`{RUN_TAG}` = '{run_id}'"):
        curves = {
            name: [point.value for point in client.get_metric_history(run.info.run_id, name)]
            for name in run.data.metrics
        }
        assert run.data.tags[STEP_TAG] not in found
        found[run.data.tags[STEP_TAG]] = run.info.status, curves
    return found


def children() -> list[psutil.Process]:
    return psutil.Process().children(recursive=True)


@SHARDINGS
def test_two_processes_do_the_same_work(tiny_base: Path, sharding: str) -> None:
    """Losses, gradients and draws differ by float32's summation order: 1e-5 of the largest."""
    configurations = configuration(1), configuration(2, f"compute.sharding={sharding}")
    one, two = (
        start("tests.shared.scale.divided_work", config, base=str(tiny_base))
        for config in configurations
    )
    assert (one.pop("processes"), two.pop("processes")) == (1, 2)
    whole, held = one.pop("weights"), two.pop("weights")
    assert whole["held"] == [whole["all"]] == [held["all"]]
    share = 0.5 if sharding == "full" else 1.0
    assert held["held"] == pytest.approx(2 * [share * held["all"]], rel=0.01)
    assert one.keys() == two.keys()
    for name, expected in one.items():
        if ":" not in name:
            assert two[name] == expected, name
        else:
            first, second = torch.tensor(expected), torch.tensor(two[name])
            assert first.shape == second.shape, name
            assert float((first - second).abs().max() / first.abs().max()) < 1e-5, name


@SHARDINGS
def test_steps_of_two_processes_give_the_results_of_one_and_write_them_once(
    workplace: Path, one: Steps, sharding: str
) -> None:
    two = all_steps(workplace, 2, sharding)
    before, after = "run-1-none", f"run-2-{sharding}"
    for name in ("baseline.json", "defence.json", "attack.json"):
        same(read_json(one.folder / name), read_json(two.folder / name), name)
    assert open_sealed(one.folder / "sealed") == open_sealed(two.folder / "sealed")
    for name in ("baseline", "hardened"):
        first, second = (
            load_file(steps.folder / name / "adapter" / "adapter_model.safetensors")
            for steps in (one, two)
        )
        for key, value in first.items():
            assert float((value - second[key]).abs().mean()) < STEP / 1000, key
    assert {path.relative_to(one.folder) for path in one.folder.rglob("*")} == {
        path.relative_to(two.folder) for path in two.folder.rglob("*")
    }
    assert {step: data.keys() for step, data in one.returned.items()} == {
        step: data.keys() for step, data in two.returned.items()
    }
    assert [(e["task"], e.get("phase"), e.get("done")) for e in one.events] == [
        (e["task"], e.get("phase"), e.get("done")) for e in two.events
    ]
    assert tracked(workplace, before).keys() == tracked(workplace, after).keys()
    for step, (status, metrics) in tracked(workplace, before).items():
        expected, found = metrics, tracked(workplace, after)[step][1]
        assert tracked(workplace, after)[step][0] == status
        same(expected, found, step)


def test_a_hardened_model_is_certified_and_attacked_with_its_weights_divided(
    workplace: Path, one: Steps, tmp_path: Path
) -> None:
    hardened = ["attack.lazy_rollouts=true", "attack.lazy_rollouts=false"]
    short = ["certification.trainability.sft_steps=2", "certification.trainability.rl_steps=2"]
    for processes, sharding in ((1, "none"), (2, "full")):
        folder = tmp_path / str(processes)
        setting = f"compute.sharding={sharding}"
        inputs = {"dataset": str(workplace / "dataset"), "run_id": f"hardened-{processes}"}
        for kind, rollouts in zip(("lazily", "live"), hardened, strict=True):
            start(
                "backburn.components.rl_attack.step",
                configuration(processes, setting, rollouts),
                **inputs,
                group={"role": "hardened", "arms": [{"arm": "paper", "seed": 0}]},
                target=str(one.folder / "hardened"),
                sealed=str(folder / f"{kind}-sealed"),
                statistics=str(folder / f"{kind}.json"),
            )
        start(
            "backburn.components.certification.step",
            configuration(processes, setting, *short),
            divides_work=False,
            **inputs,
            baseline=str(one.folder / "baseline"),
            hardened=str(one.folder / "hardened"),
            certificate=str(folder / "certificate.json"),
            sealed=str(folder / "sealed"),
        )
    for name in ("lazily.json", "live.json", "certificate.json"):
        first, second = (read_json(tmp_path / folder / name) for folder in "12")
        same(first, second, name)
    for name in ("lazily-sealed", "live-sealed", "sealed"):
        assert open_sealed(tmp_path / "1" / name) == open_sealed(tmp_path / "2" / name)


@SHARDINGS
def test_one_process_of_a_sweep_searches_and_all_attack(
    workplace: Path, one: Steps, tmp_path: Path, sharding: str
) -> None:
    storage = f"sqlite:///{tmp_path}/sweep.db"
    sweep = [f"attack.sweep={{trials: 2, steps: 2, storage: '{storage}'}}"]
    start(
        "backburn.components.rl_attack.step",
        configuration(2, *sweep, "attack.checkpoints=[0, 2]", f"compute.sharding={sharding}"),
        run_id="sweep",
        group={"role": "hardened", "arms": [], "sweep": True},
        dataset=str(workplace / "dataset"),
        target=str(one.folder / "hardened"),
        sealed=str(tmp_path / "sealed"),
        statistics=str(tmp_path / "statistics.json"),
    )
    found = read_json(tmp_path / "statistics.json")
    (name,) = optuna.get_all_study_names(storage)
    assert [trial["number"] for trial in found["sweep"]] == [0, 1]
    assert len(optuna.load_study(study_name=name, storage=storage).trials) == 2
    assert [arm["arm"] for arm in found["arms"]] == ["sweep-worst"]
    assert any(trial["live_groups"] for trial in found["sweep"])


@SHARDINGS
def test_a_lost_process_ends_the_step_soon_with_one_line(
    workplace: Path, one: Steps, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sharding: str
) -> None:
    events = tmp_path / "events.jsonl"
    monkeypatch.setenv(EVENTS_VARIABLE, str(events))
    killed: list[float] = []

    def kill() -> None:
        while not events.exists() or '"warm start", "done": 3' not in events.read_text("utf-8"):
            time.sleep(0.05)
        victim = next(child for child in children() if child.environ().get("RANK") == "1")
        os.kill(victim.pid, signal.SIGKILL)
        killed.append(time.monotonic())

    threading.Thread(target=kill, daemon=True).start()
    with pytest.raises(LostProcessError) as caught:
        start(
            "backburn.components.defense_training.step",
            configuration(2, "defense.warm_start.steps=5000", f"compute.sharding={sharding}"),
            run_id=f"lost-{sharding}",
            dataset=str(workplace / "dataset"),
            baseline=str(one.folder / "baseline"),
            hardened=str(tmp_path / "hardened"),
            record=str(tmp_path / "record"),
        )
    assert time.monotonic() - killed[0] < SOON
    message = str(caught.value)
    assert "\n" not in message
    assert "rank 1 of 2 processes was ended by SIGKILL" in message
    assert "compute.memory" in message
    log = Path(message.rpartition("Its log: ")[2])
    assert log.is_file()
    shutil.rmtree(log.parents[3])
    assert {path.name for path in tmp_path.iterdir()} == {"events.jsonl"}
    assert not [child for child in children() if "RANK" in child.environ()]
    assert tracked(workplace, f"lost-{sharding}")["defense_training"][0] == "FAILED"


def test_an_error_of_a_step_is_told_as_by_one_process(workplace: Path, one: Steps) -> None:
    with pytest.raises(ContainmentError, match="no defence lineage"):
        start(
            "backburn.components.rl_attack.step",
            configuration(2),
            run_id="refused",
            group={"role": "hardened", "arms": [{"arm": "paper", "seed": 0}]},
            dataset=str(workplace / "dataset"),
            target=str(one.folder / "baseline"),
            sealed=str(workplace / "refused"),
            statistics=str(workplace / "refused.json"),
        )
    assert tracked(workplace, "refused")["rl_attack hardened paper/0"][0] == "FAILED"


def test_processes_want_an_accelerator_each() -> None:
    load_recipe("smoke", ["compute.gpus=4", "compute.processes=4"])
    load_recipe("smoke", ["compute.gpus=0", "compute.processes=4"])
    with pytest.raises(InputError, match=r"processes \(4\) exceeds gpus \(2\)"):
        load_recipe("smoke", ["compute.gpus=2", "compute.processes=4"])
    with pytest.raises(InputError, match=r"compute\.processes"):
        load_recipe("smoke", ["compute.processes=9"])


def test_sharding_wants_several_processes_and_frozen_weights() -> None:
    load_recipe("smoke", ["compute.processes=2", "compute.sharding=full"])
    with pytest.raises(InputError, match="there is one process: raise processes or nodes"):
        load_recipe("smoke", ["compute.sharding=full"])
    full = ["compute.processes=2", "compute.sharding=full", "attack.arms.0.adapter=full",
            "attack.arms.0.kl_coefficient=0"]  # fmt: skip
    with pytest.raises(InputError, match="arm 'paper' trains them all"):
        load_recipe("smoke", full)
