"""The real steps on two nodes, through launcher, API server and torchrun."""

import json
from pathlib import Path
from typing import Any

import pytest
from backburn.components.data_prep.step import run as prepare
from backburn.components.shared import sealing
from backburn.components.shared.arms import arm_groups
from backburn.components.shared.scale import trainjob
from backburn.components.shared.scale.exchange import Exchange
from backburn.components.shared.scale.job import start
from backburn.pipelines.recipes import load_recipe

from tests.shared.scale.launching import World, client_of, nothing_is_left

_ARM = (
    "{name: paper, seeds: [0], control_seeds: [0], steps: 2, control_steps: 2, prompts_per_step: 2}"
)


def test_a_baseline_and_an_attack_on_two_nodes_leave_their_outputs_and_nothing_else(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_recipe(
        "smoke",
        [
            "compute.nodes=2", "compute.workspace_claim=shared", "compute.secret_name=ours",
            f"tracking.uri=sqlite:///{tmp_path}/mlflow.db", "baseline.steps=2",
            "attack.checkpoints=[0, 2]",
            f"attack.arms=[{_ARM}]",
        ],
    )  # fmt: skip
    text = config.to_json()
    monkeypatch.setattr(trainjob, "TrainerClient", lambda *_: client_of(world.kubeconfig))
    on_volume: dict[str, set[str]] = {}
    remove = Exchange.remove

    def look_and_remove(exchange: Exchange) -> None:
        files = {
            path.relative_to(exchange.folder).as_posix()
            for path in exchange.folder.rglob("*")
            if path.is_file()
        }
        on_volume[exchange.step] = files
        remove(exchange)

    monkeypatch.setattr(Exchange, "remove", look_and_remove)
    prepare(text, "one", tmp_path / "dataset")
    given: dict[str, Any] = {"run_id": "one", "dataset": tmp_path / "dataset"}
    model = tmp_path / "model"
    metadata = start(
        "backburn.components.baseline.step", text,
        **given, model=model, record=tmp_path / "record",
    )  # fmt: skip
    assert metadata["digest"]
    assert json.loads((tmp_path / "record").read_text())["steps"] == 2
    (group,) = arm_groups(config, "control")
    sealed = tmp_path / "sealed"
    start(
        "backburn.components.rl_attack.step", text, **given,
        group=group, target=model, sealed=sealed, statistics=tmp_path / "statistics",
    )  # fmt: skip
    assert {item["step"] for item in sealing.open_sealed(sealed)} == {0, 2}
    (arm,) = json.loads((tmp_path / "statistics").read_text())["arms"]
    assert arm["target_digest"] == metadata["digest"]
    inputs = ("dataset", "target/")
    assert {name for name in on_volume["rl-attack"] if not name.startswith(inputs)} == {
        "job.json",
        "result.json",
        "sealed",
        "statistics",
    }
    assert any(name.startswith("model/adapter/") for name in on_volume["baseline"])
    nothing_is_left(world)
