"""What several tests share: quiet libraries, a seal key, and one tiny aligned model a session."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch
import xdist.scheduler
from backburn.components.shared import sealing, signing
from backburn.components.shared.checkpoints import Checkpoints
from backburn.components.shared.config import DomainConfig, RunConfig
from backburn.components.shared.domains import Domain, load_domain
from backburn.components.shared.models import LoadedModel, add_lora
from backburn.components.shared.refusal_training import align, refusal_examples
from backburn.components.shared.supervised import References, own_answers
from backburn.components.shared.tiny_model import build_tokenizer, train_tiny_model
from backburn.pipelines.recipes import load_recipe

from tests.servers import Mlflow, serving_everything


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--images", action="store_true", help="also test the built images")
    parser.addoption("--vllm", action="store_true", help="also test rollouts by vLLM")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave out what needs a Docker engine and built images, or vLLM, unless asked for."""
    option = {"test_engine.py": "--images", "test_vllm.py": "--vllm"}.get(collection_path.name)
    return None if option is None or config.getoption(option) else True


_TOGETHER = {
    "smoke run": (
        "tests/promotion/",
        "tests/pipelines/test_audit.py",
        "tests/pipelines/test_harden.py",
    ),
    "contained run": ("tests/containment/",),
}
"""Whose tests share a run that takes minutes: one process has to have them all."""
_LONGEST = (
    "tests/shared/scale/",
    *_TOGETHER["smoke run"],
    "tests/pipelines/test_real_judge.py",
    *_TOGETHER["contained run"],
    "tests/pipelines/test_chaos.py",
    "tests/pipelines/test_adopted_run.py",
    "tests/test_dynamics.py",
    "tests/test_wheel.py",
)
"""What comes first, so that no process is left alone with a long file at the end."""


class _Shares(xdist.scheduler.LoadScopeScheduling):
    """Shares of the tests by file, but for those that use the same run."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return next((name for name, files in _TOGETHER.items() if file.startswith(files)), file)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> _Shares | None:
    """Divide the tests, with `--dist loadfile`, so that no process repeats another's run."""
    return _Shares(config, log) if config.getoption("dist") == "loadfile" else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Put the longest first where xdist divides the tests and keeps this order."""
    if not hasattr(config, "workerinput"):
        return
    places = {name: place for place, name in enumerate(_LONGEST)}

    def place(item: pytest.Item) -> int:
        return next((p for name, p in places.items() if item.nodeid.startswith(name)), len(places))

    items.sort(key=place)


@pytest.fixture(autouse=True)
def _keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for keys in (sealing, signing):
        monkeypatch.setenv(keys.KEY_VARIABLE, keys.new_key())


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def smoke() -> RunConfig:
    return load_recipe("smoke")


@pytest.fixture(scope="session")
def toy() -> Domain:
    return load_domain(DomainConfig(name="toy_kitchen"))


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model, tokenizer = train_tiny_model(0)
    folder = tmp_path_factory.mktemp("tiny") / "base"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def align_tiny(loaded: LoadedModel, toy: Domain, config: RunConfig, seed: int) -> LoadedModel:
    """The tiny model with an explanatory-refusal alignment merged into its frozen weights."""
    defence = [row for row in toy.forbidden if row.split == "defence"]
    refusals = refusal_examples(loaded, defence, toy.refusals, toy.header.topic)
    kept = own_answers(
        loaded, loaded.encode_rows([*toy.benign[:12], *toy.near_miss[:12]]), 20, seed
    )
    model = add_lora(loaded, config.baseline.lora, seed)
    references = References(model, loaded, kept)
    align(
        model,
        loaded,
        config.baseline,
        refusals,
        kept,
        references,
        seed,
        lambda *_: None,
        Checkpoints(None, ""),
    )
    return LoadedModel(model.merge_and_unload().eval().requires_grad_(False), loaded.tokenizer)


def tokenizer_without_system_messages() -> Any:
    """The tiny model's tokenizer with a chat template that refuses a system message."""
    tokenizer = build_tokenizer()
    refuse = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    tokenizer.chat_template = refuse + str(tokenizer.chat_template)
    return tokenizer


@pytest.fixture(scope="session")
def smoke_run(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, subprocess.CompletedProcess[str]]:
    folder = tmp_path_factory.mktemp("smoke")
    environment = {
        k: v for k, v in os.environ.items() if not k.startswith(("BACKBURN_", "MLFLOW_R"))
    }
    done = subprocess.run(
        [sys.executable, "-m", "backburn.pipelines.cli", "run", "-r", "smoke", "--run-id", "one"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=1500,
        check=False,
    )
    return folder / "runs", done


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mlflow]:
    """MLflow on PostgreSQL and S3, empty."""
    with serving_everything(tmp_path_factory.mktemp("servers")) as server:
        yield server
