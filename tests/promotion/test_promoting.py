"""Promotion, approval and rollback, on a real store with bundles of a real run."""

import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from backburn.components.promotion.bundle import write_bundle
from backburn.components.promotion.comparison import Comparison, compare
from backburn.components.promotion.promoting import Promotion, Registry, Terms
from backburn.components.shared.config import GateConfig, RunConfig
from backburn.components.shared.derivation.figures import derive
from backburn.components.shared.errors import InputError
from backburn.components.shared.evidence import Decision, Evidence
from backburn.components.shared.gate import decide
from backburn.components.shared.observations import ArmObservation, Observations
from backburn.components.shared.signing import KEY_VARIABLE, new_key, public_key_of
from backburn.components.shared.storage import json_bytes, sha256_bytes, write_json
from mlflow.tracking import MlflowClient

NAME = "backburn-tiny-toy_kitchen"
TRAINER, OWNER, OTHER = "local", "registry-owner", "second-owner"
RACES = 6
Smoke = tuple[Path, subprocess.CompletedProcess[str]]


class Store:
    """A store to which variants of one real run are registered."""

    def __init__(self, folder: Path, run: Path) -> None:
        self.folder, self.run = folder, run
        self.uri = f"sqlite:///{folder / 'mlflow.db'}"
        self.client = MlflowClient(tracking_uri=self.uri)
        self.experiment = self.client.create_experiment(
            "e", artifact_location=(folder / "artifacts").as_uri()
        )
        self.client.create_registered_model(NAME)
        self.private_key = new_key()
        self.model = next(run.glob("artifacts/*/defense-training/hardened"))
        self.registry = Registry(self.uri, NAME)
        self.terms = Terms(OWNER, trusted_key=public_key_of(self.private_key))

    def read(self) -> tuple[Evidence, Observations]:
        return (
            Evidence.model_validate_json((self.run / "evidence.json").read_text("utf-8")),
            Observations.model_validate_json((self.run / "observations.json").read_text("utf-8")),
        )

    def register(
        self,
        harm: float = 0.0,
        change: Callable[[Evidence], dict[str, Any]] = lambda _: {},
        key: str | None = None,
    ) -> str:
        """Register a variant: `harm` on every third held-out prompt, evidence changed."""
        evidence, observed = self.read()
        arms = [_harmed(arm, harm) if arm.role == "hardened" else arm for arm in observed.arms]
        observed = observed.model_copy(update={"arms": arms})
        config = RunConfig.model_validate(evidence.config)
        evidence = evidence.model_copy(
            update={
                **derive(observed, config).as_dict(),
                "observations_sha256": sha256_bytes(json_bytes(observed.model_dump(mode="json"))),
                "created": datetime.now(UTC).isoformat(timespec="seconds"),
            }
        )
        evidence = evidence.model_copy(update=change(evidence))
        run = self.client.create_run(self.experiment).info.run_id
        made = self.folder / "made" / run
        write_json(made / "observations.json", observed.model_dump(mode="json"))
        write_json(made / "evidence.json", evidence.model_dump(mode="json"))
        digest = sha256_bytes((made / "evidence.json").read_bytes())
        decision: Decision = decide(evidence, config, digest)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(KEY_VARIABLE, key or self.private_key)
            write_bundle(
                made / "bundle",
                made / "observations.json",
                made / "evidence.json",
                evidence,
                decision,
            )
        self.client.log_artifacts(run, str(made / "bundle"))
        self.client.log_artifacts(run, str(self.model), "model")
        version = self.client.create_model_version(
            NAME,
            source=f"{self.client.get_run(run).info.artifact_uri}/model",
            run_id=run,
            tags={"backburn.evidence_sha256": digest},
        )
        return str(version.version)

    def promote(self, version: str, **terms: Any) -> Promotion:
        return self.registry.promote(
            f"models:/{NAME}/{version}", Terms(**{**self.terms.__dict__, **terms})
        )

    def aliases(self) -> dict[str, str]:
        found = self.client.get_registered_model(NAME).aliases
        return {alias: str(version) for alias, version in found.items()}

    def status(self, version: str) -> str | None:
        return self.client.get_model_version(NAME, version).tags.get("validation_status")


def _harmed(arm: ArmObservation, harm: float) -> ArmObservation:
    last = arm.checkpoints[-1]
    judged = [
        item.model_copy(update={"score": harm if place % 3 == 0 else item.score})
        for place, item in enumerate(last.judged)
    ]
    points = [*arm.checkpoints[:-1], last.model_copy(update={"judged": judged})]
    return arm.model_copy(update={"checkpoints": points})


@pytest.fixture
def store(smoke_run: Smoke, tmp_path: Path) -> Store:
    return Store(tmp_path, smoke_run[0] / "one")


def test_the_first_is_promoted_and_the_next_takes_its_place(store: Store) -> None:
    one, two = store.register(), store.register()
    first = store.promote(one)
    assert (first.result, first.comparison) == ("promoted", None), first.reasons
    assert store.aliases() == {"champion": one}
    assert store.promote(one).result == "unchanged"
    second = store.promote(two)
    assert second.result == "promoted", second.reasons
    assert second.comparison is not None
    assert (second.comparison.increase, second.comparison.arms) == (0.0, ["paper/0", "paper/1"])
    assert store.aliases() == {"champion": two, "previous": one}
    assert store.status(two) == "approved"
    assert [entry.event.action for entry in store.registry.ledger.entries()] == ["promoted"] * 2
    state = store.registry.roll_back(OWNER, "a complaint")
    assert (state.champion, state.previous) == (one, None)
    assert store.aliases() == {"champion": one}
    with pytest.raises(InputError, match="no previous champion"):
        store.registry.roll_back(OWNER, "again")


def test_a_worse_one_is_rejected_and_on_record(store: Store) -> None:
    store.promote(store.register())
    worse = store.register(harm=2.5)
    found = store.promote(worse)
    assert found.result == "rejected"
    assert "above the champion's beyond the uncertainty" in found.reasons[0]
    assert store.aliases() == {"champion": "1"}
    assert store.status(worse) == "rejected"
    last = store.registry.ledger.entries()[-1].event
    assert (last.action, last.version, last.actor) == ("rejected", worse, OWNER)
    assert last.reasons == found.reasons
    assert last.evidence_sha256 is not None


def test_a_dry_run_writes_nothing(store: Store) -> None:
    one = store.register()
    assert store.promote(one, dry_run=True).result == "promoted"
    assert store.aliases() == {}
    assert store.registry.ledger.entries() == []


def _old(_: Evidence) -> dict[str, Any]:
    return {"created": (datetime.now(UTC) - timedelta(days=31)).isoformat(timespec="seconds")}


def _future(_: Evidence) -> dict[str, Any]:
    return {"created": (datetime.now(UTC) + timedelta(days=1)).isoformat(timespec="seconds")}


def _doctored(evidence: Evidence) -> dict[str, Any]:
    return {"coverage": evidence.coverage - 1e-9}


@pytest.mark.parametrize(
    ("variant", "reason"),
    [
        ({"change": _old}, "31.0 days old"),
        ({"change": _future}, "from the future"),
        ({"change": _doctored}, "coverage: states"),
        ({"key": new_key()}, "signature is not one of key"),
        ({"harm": 9.0}, "the gate's outcome is failed"),
    ],
    ids=["stale", "from the future", "doctored", "another key", "gate failed"],
)
def test_the_gate_stays_closed(variant: dict[str, Any], reason: str, store: Store) -> None:
    found = store.promote(store.register(**variant))
    assert found.result == "rejected"
    assert reason in " | ".join(found.reasons)
    assert store.aliases() == {}


def test_other_weights_and_a_missing_bundle_are_rejected(store: Store) -> None:
    one, two = store.register(), store.register()
    for version, spoiled in (
        (one, "model/adapter/adapter_model.safetensors"),
        (two, "evidence.json"),
    ):
        run = store.client.get_model_version(NAME, version).run_id
        root = Path(store.client.get_run(run).info.artifact_uri.removeprefix("file://"))
        if version == one:
            (root / spoiled).write_bytes(b"other")
        else:
            (root / spoiled).unlink()
    assert "other content" in " ".join(store.promote(one).reasons)
    assert "no evidence.json" in " ".join(store.promote(two).reasons)
    assert store.aliases() == {}


def test_the_owners_gate_counts_instead_of_the_runs(store: Store) -> None:
    one = store.register()
    strict = store.promote(one, gate=GateConfig(slip_rate_max=1e-9))
    assert strict.result == "rejected"
    assert any("slip rate" in reason for reason in strict.reasons)
    assert store.promote(one).result == "promoted"


def test_somebody_else_has_to_approve(store: Store) -> None:
    one = store.register()
    reference = f"models:/{NAME}/{one}"
    assert store.promote(one, require_approval=True).result == "pending"
    assert store.promote(one, require_approval=True).result == "pending"
    assert store.status(one) == "pending"
    assert store.aliases() == {}
    assert len(store.registry.ledger.entries()) == 1
    for actor in (OWNER, TRAINER):
        with pytest.raises(InputError, match="somebody else has to approve"):
            store.registry.approve(reference, Terms(actor, store.terms.trusted_key))
    approved = store.registry.approve(reference, Terms(OTHER, store.terms.trusted_key))
    assert approved.result == "promoted", approved.reasons
    assert store.aliases() == {"champion": one}
    last = store.registry.ledger.entries()[-1].event
    assert (last.actor, last.reasons) == (OTHER, [f"approved by {OTHER}"])
    with pytest.raises(InputError, match="does not wait"):
        store.registry.approve(reference, Terms(OTHER, store.terms.trusted_key))


def test_promotions_at_once_leave_one_champion_and_a_whole_ledger(store: Store) -> None:
    versions = [store.register(), store.register()]
    for _ in range(RACES):
        results: list[Promotion] = []
        start = threading.Barrier(2)

        def race(version: str, results: list[Promotion] = results,
                 start: threading.Barrier = start) -> None:  # fmt: skip
            mine = Registry(store.uri, NAME)
            start.wait()
            results.append(mine.promote(f"models:/{NAME}/{version}", store.terms))

        threads = [threading.Thread(target=race, args=(version,)) for version in versions]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(results) == 2
        assert {item.result for item in results} <= {"promoted", "unchanged"}
        state = store.registry.ledger.state()
        assert {state.champion, state.previous} == set(versions)
        assert store.aliases() == {"champion": state.champion, "previous": state.previous}


def test_models_attacked_in_another_way_are_not_compared(store: Store) -> None:
    evidence, observed = store.read()
    found = compare((evidence, observed), (evidence, observed), 0.95)
    assert isinstance(found, Comparison)
    assert not found.worse
    fewer = observed.model_copy(
        update={"arms": [arm for arm in observed.arms if (arm.role, arm.seed) != ("hardened", 1)]}
    )
    lacking = compare((evidence, fewer), (evidence, observed), 0.95)
    assert isinstance(lacking, list)
    assert "paper/1" in lacking[0]
    other = evidence.model_copy(update={"model_base": "other/model"})
    assert compare((other, observed), (evidence, observed), 0.95) == [
        "it cannot be compared with the champion: other base model"
    ]


def test_the_command_promotes_and_shows_the_ledger(smoke_run: Smoke, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    runs.mkdir()
    shutil.copy(smoke_run[0] / "mlflow.db", runs)  # its artifacts stay where they are

    def backburn(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "backburn.pipelines.cli", *arguments, "--runs", str(runs)],
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )

    reference = f"models:/{NAME}@candidate"
    unsaid = backburn("promote", reference)
    assert unsaid.returncode == 2
    assert "say whose signature counts" in unsaid.stderr
    done = backburn("promote", reference, "--any-key", "--actor", OWNER)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "promoted" in done.stdout
    listed = backburn("ledger", NAME)
    assert listed.returncode == 0
    assert OWNER in listed.stdout
    refused = backburn("rollback", NAME, "--reason", "x")
    assert refused.returncode == 2
    assert "no previous champion" in refused.stderr
