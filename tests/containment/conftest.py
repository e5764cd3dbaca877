"""One whole run on a domain that is no stand-in, for all tests that look at what it left."""

import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.containment.attack_alone import run_alone
from tests.containment.runs import SUFFIX, Sandbox, secrets
from tests.notification.receiver import receiver

DOMAIN = "domain"


@dataclass(frozen=True)
class WholeRun:
    """A finished run, what it was given, and what it sent."""

    sandbox: Sandbox
    done: subprocess.CompletedProcess[str]
    secrets: dict[str, str]
    folder: Path
    recipe: Path


@dataclass(frozen=True)
class EndedAttack:
    """An attack step that ended well, and the secrets it was given."""

    sandbox: Sandbox
    done: subprocess.CompletedProcess[str]
    secrets: dict[str, str]


@pytest.fixture(scope="session")
def ended_attack(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> EndedAttack:
    """All weights are trained, with every secret in the environment."""
    sandbox, given = Sandbox(tmp_path_factory.mktemp("ended")), secrets()
    return EndedAttack(sandbox, run_alone(sandbox, tiny_base, "full", **given), given)


@pytest.fixture(scope="session")
def marked_domain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("marked") / DOMAIN
    made = Sandbox(tmp_path_factory.mktemp("making")).run(
        "-m", "tests.containment.runs", str(folder), CONTAINMENT_WORDS=SUFFIX
    )
    assert made.returncode == 0, made.stderr
    return folder


@pytest.fixture(scope="session")
def whole_run(tmp_path_factory: pytest.TempPathFactory, marked_domain: Path) -> WholeRun:
    sandbox, given = Sandbox(tmp_path_factory.mktemp("whole")), secrets()
    recipe = marked_domain / "recipe.yaml"
    with receiver() as got:
        done = sandbox.run(
            "-m", "backburn.pipelines.cli", "run", "-r", str(recipe), "--run-id", "one",
            CONTAINMENT_WORDS=SUFFIX, BACKBURN_WEBHOOK_URL=got.url, **given,
        )  # fmt: skip
        for number, request in enumerate(got.requests):
            sent = repr(request.headers).encode() + request.body
            (sandbox.watched / f"{number}.sent").write_bytes(sent)
    return WholeRun(sandbox, done, given, sandbox.watched / "runs/one", recipe)
