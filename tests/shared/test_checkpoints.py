"""Checkpoints give back what was kept, from the newest that is whole, and hold nothing else."""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
import torch
from backburn.components.shared import sealing
from backburn.components.shared.checkpoints import (
    FOLDER_VARIABLE,
    Bucket,
    Checkpoints,
    Folder,
    open_checkpoints,
)
from backburn.components.shared.config import RunConfig
from backburn.components.shared.errors import ContainmentError, StorageError
from backburn.pipelines.recipes import load_recipe
from pydantic import BaseModel

from tests.servers import BUCKET, ObjectStore, serving_objects

STEPS = 6


class Training:
    """A small training whose every number depends on all that was drawn before."""

    def __init__(self) -> None:
        torch.manual_seed(1)
        self.model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 1))
        self.model[0].requires_grad_(False)
        self.optimizer = torch.optim.AdamW(self.model[1].parameters(), lr=0.1)
        self.generator = torch.Generator().manual_seed(2)
        self.curve: list[float] = []
        self.search: dict[str, Any] = {"best": None, "average": None}

    def run(self, checkpoints: Checkpoints, until: int = STEPS) -> list[float]:
        parts = {
            "model": self.model,
            "optimizer": self.optimizer,
            "draws": self.generator,
            "curve": self.curve,
            "search": self.search,
        }
        with checkpoints.phase("training", parts) as phase:
            for step in phase.steps(lambda: STEPS):
                if step > until:
                    raise KeyboardInterrupt
                drawn = torch.randn(5, 3, generator=self.generator) + torch.randn(5, 3)
                self.optimizer.zero_grad()
                loss = self.model(drawn).square().mean()
                loss.backward()
                self.optimizer.step()
                self.curve.append(loss.item())
                if not self.search["best"] or float(loss) < self.search["best"]:
                    self.search["best"] = float(loss)
                    self.search["average"] = self.model[1].weight.detach().clone()
        return [*self.model.state_dict()["1.weight"].flatten().tolist(), *self.curve]


def cut(place: Folder | Bucket, until: int, identity: str = "i") -> None:
    with pytest.raises(KeyboardInterrupt):
        Training().run(Checkpoints(place, identity), until)


@pytest.fixture
def s3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A real server; gives a client that is not ours."""
    with serving_objects(tmp_path / "objects") as store:
        use(store, store.url, monkeypatch)
        yield boto3.session.Session().client("s3")  # the default one remembers other keys


def use(store: ObjectStore, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**store.environment, "AWS_ENDPOINT_URL": url}.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def whole() -> list[float]:
    return Training().run(Checkpoints(None, ""))


@pytest.mark.parametrize("until", [0, 1, 4, 5])
def test_a_training_that_goes_on_ends_as_one_that_was_left_alone(
    tmp_path: Path, whole: list[float], until: int
) -> None:
    place = Folder(tmp_path / "kept")
    cut(place, until)
    resumed = Training()
    assert resumed.run(Checkpoints(place, "i")) == whole
    assert resumed.search["average"] is not None
    # And once more, when nothing is left to do.
    again = Training()
    assert again.run(Checkpoints(place, "i")) == whole
    Checkpoints(place, "i").remove()
    assert not (tmp_path / "kept").exists()


def test_a_later_training_skips_the_one_before(tmp_path: Path) -> None:
    place, seen = Folder(tmp_path), []

    def work(checkpoints: Checkpoints, until: int) -> tuple[float, str]:
        value = torch.zeros(1)
        first, second = {"value": value}, {"value": value, "also": [0.0]}
        with checkpoints.phase("first", {"state": first}) as phase:
            for step in phase.steps(lambda: 3):
                seen.append(("first", step))
                first["value"] = first["value"] + 1
        between = checkpoints.remembered("between", str, lambda: seen.append("asked") or "answer")
        with checkpoints.phase("second", {"state": second}) as phase:
            for step in phase.steps(lambda: 3):
                if step > until:
                    raise KeyboardInterrupt
                seen.append(("second", step))
                second["value"] = second["value"] + 10
        return float(second["value"]), between

    with pytest.raises(KeyboardInterrupt):
        work(Checkpoints(place, "i"), 2)
    done = len(seen)
    assert work(Checkpoints(place, "i"), 3) == (30.0, "answer")
    assert seen[done:] == [("second", 3)]


@pytest.mark.parametrize("damage", ["data", "half", "gone", "manifest", "no manifest"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(
    tmp_path: Path, whole: list[float], damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    cut(Folder(tmp_path), 4)
    newest = max(tmp_path.glob("*.safetensors"), key=lambda path: path.stat().st_mtime_ns)
    content, manifest = newest.read_bytes(), newest.with_suffix(".json")
    if damage == "data":
        newest.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif damage == "half":
        newest.write_bytes(content[: len(content) // 2])
    elif damage == "gone":
        newest.unlink()
    elif damage == "manifest":
        manifest.write_bytes(manifest.read_bytes()[:20])
    else:
        manifest.unlink()
    assert Training().run(Checkpoints(Folder(tmp_path), "i")) == whole
    printed = capsys.readouterr().out
    assert "goes on from a checkpoint: 0 finished result(s), training after step 3" in printed
    assert ("damaged" in printed) == (damage in ("data", "half", "gone"))
    for path in tmp_path.glob("*.safetensors"):
        path.write_bytes(b"nothing of the kind")
    assert Training().run(Checkpoints(Folder(tmp_path), "i")) == whole
    assert "goes on" not in capsys.readouterr().out


def test_a_checkpoint_of_something_else_is_passed_over(
    tmp_path: Path, whole: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    cut(Folder(tmp_path), 4, "another")
    assert Training().run(Checkpoints(Folder(tmp_path), "i")) == whole
    assert "of other inputs, settings or code" in capsys.readouterr().out


def test_inputs_settings_and_the_task_tell_checkpoints_apart(
    tmp_path: Path, smoke: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "kept"))
    given = tmp_path / "given"
    given.write_text("one")

    def answer(config: RunConfig, step: str, text: str) -> str:
        checkpoints = open_checkpoints(config, "run", step, [given])
        return checkpoints.remembered("answer", str, lambda: text)

    assert answer(smoke, "a", "first") == "first"
    assert answer(smoke, "a", "second") == "first"
    assert answer(smoke, "b", "other task") == "other task"
    assert answer(load_recipe("smoke", ["seed=5"]), "a", "other seed") == "other seed"
    given.write_text("two")
    assert answer(load_recipe("smoke", ["seed=5"]), "a", "other input") == "other input"


def test_an_object_store_keeps_them_too(s3: Any, whole: list[float]) -> None:
    place = Bucket(f"s3://{BUCKET}/kept/run")
    cut(place, 4)
    newest = max(("a", "b"), key=lambda slot: (place.manifest(slot) or {"number": 0})["number"])
    assert Training().run(Checkpoints(place, "i")) == whole
    s3.put_object(Bucket=BUCKET, Key=f"kept/run/{newest}.safetensors", Body=b"damaged")
    assert Training().run(Checkpoints(place, "i")) == whole
    Checkpoints(place, "i").remove()
    assert s3.list_objects_v2(Bucket=BUCKET, Prefix="kept").get("Contents", []) == []


def test_a_store_that_does_not_answer_ends_the_step_before_it_begins(
    s3: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(StorageError, match="cannot be reached"):
        Checkpoints(Bucket(f"s3://{BUCKET}/kept"), "i")


def test_what_cannot_be_written_does_not_stop_the_step(
    tmp_path: Path, whole: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("no folder")
    assert Training().run(Checkpoints(Folder(tmp_path / "file"), "i")) == whole
    assert "no checkpoint could be written, the step goes on" in capsys.readouterr().out


class Finding(BaseModel):
    text: str
    values: dict[str, float]


def test_results_are_computed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(sealing.KEY_VARIABLE, sealing.new_key())
    made: list[int] = []

    def make() -> Finding:
        made.append(1)
        return Finding(text="a completion", values={"x": 0.1 + 0.2})

    for _ in range(2):
        found = Checkpoints(Folder(tmp_path), "i").remembered("it", Finding, make, sealed=True)
        assert found == Finding(text="a completion", values={"x": 0.1 + 0.2})
    assert len(made) == 1
    assert not any(b"a completion" in path.read_bytes() for path in tmp_path.iterdir())
    monkeypatch.setenv(sealing.KEY_VARIABLE, sealing.new_key())  # what it is sealed with is lost
    Checkpoints(Folder(tmp_path), "i").remembered("it", Finding, make, sealed=True)
    assert len(made) == 2


def test_an_attack_keeps_no_weights(tmp_path: Path) -> None:
    checkpoints = Checkpoints(Folder(tmp_path), "i", contained=True)
    with pytest.raises(ContainmentError, match="never written to a checkpoint"):
        Training().run(checkpoints)
    assert list(tmp_path.iterdir()) == []


_UNTIL_SIGTERM = """
import sys, time
from pathlib import Path
from backburn.components.shared import checkpoints
from backburn.components.shared.checkpoints import Checkpoints, Folder
checkpoints._GRACE_SECONDS = 2 if float(sys.argv[2]) > 10 else 25
done = []
with Checkpoints(Folder(Path(sys.argv[1])), "i", minutes=60).phase("p", {"done": done}) as phase:
    for step in phase.steps(lambda: 1000):
        print(step, flush=True)
        time.sleep(float(sys.argv[2]))
        done.append(step)
"""


@pytest.mark.parametrize(("seconds", "kept"), [(0.5, True), (60.0, False)])
def test_sigterm_waits_for_the_step_but_not_for_long(
    tmp_path: Path, seconds: float, kept: bool
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", _UNTIL_SIGTERM, str(tmp_path / "kept"), str(seconds)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "1\n"
    start = time.monotonic()
    process.terminate()
    assert process.wait(timeout=30) == -signal.SIGTERM
    assert time.monotonic() - start < 20
    done: list[int] = []
    with Checkpoints(Folder(tmp_path / "kept"), "i").phase("p", {"done": done}) as phase:
        assert phase.done == (1 if kept else 0)
    assert done == ([1] if kept else [])
