"""The audit pipeline on real registered models, one of them weakened on purpose."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from backburn.components.audited_model.step import check_fits
from backburn.components.preflight.checks import check_pipeline
from backburn.components.promotion.promoting import Registry
from backburn.components.shared.config import RunConfig
from backburn.components.shared.dataset import RunDataset
from backburn.components.shared.errors import InputError
from backburn.components.shared.evidence import Decision, Evidence, Summary
from backburn.components.shared.models import ModelManifest
from backburn.components.shared.storage import folder_digests
from backburn.components.shared.verification import verify_bundle
from safetensors.torch import load_file, save_file

from tests.promotion.test_promoting import NAME, Smoke, Store

WEAKENED_TO = 0.5
QUICK = (
    "attack.arms.0.seeds=[0]",
    "certification.behaviour_completions=2",
    "certification.trainability.enabled=false",
    "gate.trainability_min=null",
    "gate.benign_refusal_increase_max=1",
    "gate.near_miss_refusal_increase_max=1",
    "gate.benign_perplexity_ratio_max=9",
)


@pytest.fixture
def store(smoke_run: Smoke, tmp_path: Path) -> Store:
    return Store(tmp_path, smoke_run[0] / "one")


def weaken(store: Store) -> None:
    """Let the store register an adapter at half its strength, with evidence that vouches for it."""
    weak = store.folder / "weak"
    shutil.copytree(store.model, weak)
    weights = weak / "adapter" / "adapter_model.safetensors"
    tensors = load_file(weights)
    save_file({n: t * WEAKENED_TO if "lora_B" in n else t for n, t in tensors.items()}, weights)
    store.model = weak


def vouch(store: Store, evidence: Evidence) -> dict[str, Any]:
    files = folder_digests(store.model / "adapter")
    manifest = ModelManifest(
        base=evidence.model_base,
        base_digests=evidence.base_digests,
        adapter_digests=files,
        lineage=evidence.lineage,
    )
    return {"hardened_files": files, "hardened_digest": manifest.digest()}


def audit(store: Store, run_id: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    key = store.folder / "key.pem"
    key.write_text(str(store.terms.trusted_key))
    settings = [f"--set={item}" for item in (*QUICK, f"tracking.uri={store.uri}")]
    command = ["audit", "-r", "smoke", "--key", str(key), "--run-id", run_id, *settings, *arguments]
    return subprocess.run(
        [sys.executable, "-m", "backburn.pipelines.cli", *command],
        cwd=store.folder,
        capture_output=True,
        text=True,
        timeout=1500,
        check=False,
    )


def test_a_champion_that_was_weakened_is_demoted_and_a_good_one_is_not(store: Store) -> None:
    good = store.register()
    assert store.promote(good).result == "promoted"
    weaken(store)
    weak = store.register(change=lambda evidence: vouch(store, evidence))
    promoted = store.promote(weak)
    assert promoted.result == "promoted", promoted.reasons
    assert store.aliases() == {"champion": weak, "previous": good}

    failed = audit(store, "first")
    assert failed.returncode == 1, failed.stdout + failed.stderr
    assert "demoted" in failed.stdout
    assert store.aliases() == {"champion": good}
    tags = store.client.get_model_version(NAME, weak).tags
    assert tags["backburn.audit"] == "failed"
    assert tags["backburn.audit_run_id"] == "first"
    assert tags["validation_status"] == "rejected"
    last = store.registry.ledger.entries()[-1].event
    assert (last.action, last.version, last.reasons[0]) == ("demoted", weak, "audit first")
    folder = store.folder / "runs" / "first"
    assert verify_bundle(folder, model=store.model).sound
    evidence = Evidence.model_validate_json((folder / "evidence.json").read_text("utf-8"))
    assert evidence.audited is not None
    assert (evidence.audited.name, evidence.audited.version) == (NAME, weak)
    decision = Decision.model_validate_json((folder / "decision.json").read_text("utf-8"))
    assert decision.registration is None
    assert decision.audit is not None
    assert (decision.audit.action, decision.audit.champion) == ("demoted", good)
    assert "was demoted" in (folder / "report.html").read_text("utf-8")
    (parent,) = store.client.search_runs(
        [store.client.get_experiment_by_name("backburn-smoke").experiment_id],
        "tags.`backburn.step` = 'pipeline'",
    )
    assert parent.data.tags["backburn.pipeline"] == "audit"
    assert parent.data.tags["backburn.audited"] == f"models:/{NAME}/{weak}"
    assert parent.data.tags["backburn.audit_action"] == "demoted"
    assert "no longer champion" in parent.data.tags["mlflow.note.content"]

    again = store.promote(weak)
    assert again.result == "rejected"
    assert "failed its last audit" in again.reasons[0]

    passed = audit(store, "second")
    assert passed.returncode == 0, passed.stdout + passed.stderr
    assert store.aliases() == {"champion": good}
    assert store.client.get_model_version(NAME, good).tags["backburn.audit"] == "passed"
    summary = Summary.model_validate_json(
        (store.folder / "runs" / "second" / "summary.json").read_text("utf-8")
    )
    assert summary.audit is not None
    assert (summary.audit.action, summary.audit.version) == ("none", good)
    assert [entry.event.action for entry in store.registry.ledger.entries()] == [
        "promoted", "promoted", "demoted", "rejected", "audit_passed",
    ]  # fmt: skip


def test_there_has_to_be_such_a_model(store: Store) -> None:
    done = audit(store, "none")
    assert done.returncode == 2
    assert "@champion" in done.stderr
    assert not (store.folder / "runs").exists()


def decided(outcome: str, run_id: str) -> Decision:
    return Decision.model_validate(
        {
            "run_id": run_id, "outcome": outcome, "reasons": ["because"], "checks": [],
            "gate_version": "1", "gate_digest": "", "evidence_sha256": "e", "dry_run": False,
            "registration": None,
        }
    )  # fmt: skip


@pytest.fixture
def champions(store: Store) -> Registry:
    """Versions 1 and 2; 2 is champion and 1 was it before."""
    for version in ("1", "2"):
        store.client.create_model_version(NAME, source="backburn:test")
        ledger = store.registry.ledger
        assert ledger.append("promoted", version, ledger.state(), "owner")
    return store.registry


def test_only_a_failure_moves_an_alias(champions: Registry, store: Store) -> None:
    for outcome, action in (("passed", "none"), ("inconclusive", "reported")):
        found = champions.audit("2", decided(outcome, "a"), "op", demote=True)
        assert (found.action, found.champion) == (action, "2")
    reported = champions.audit("2", decided("failed", "b"), "op", demote=False)
    assert (reported.action, reported.champion) == ("reported", "2")
    other = champions.audit("1", decided("failed", "c"), "op", demote=True)
    assert (other.action, other.champion) == ("reported", "2")
    assert store.aliases() == {"champion": "2", "previous": "1"}
    with pytest.raises(InputError, match="failed its last audit"):
        champions.roll_back("owner", "try")


def test_no_condemned_version_takes_the_place_of_a_demoted_one(
    champions: Registry, store: Store
) -> None:
    champions.audit("1", decided("failed", "a"), "op", demote=True)
    found = champions.audit("2", decided("failed", "b"), "op", demote=True)
    assert (found.action, found.champion) == ("demoted", None)
    assert store.aliases() == {}


def test_an_audit_that_passes_lifts_the_one_that_failed(champions: Registry) -> None:
    champions.audit("1", decided("failed", "a"), "op", demote=True)
    assert champions.ledger.state().condemned == {"1"}
    champions.audit("1", decided("inconclusive", "b"), "op", demote=True)
    assert champions.ledger.state().condemned == {"1"}
    champions.audit("1", decided("passed", "c"), "op", demote=True)
    assert champions.ledger.state().condemned == frozenset()
    assert champions.roll_back("owner", "try").champion == "1"


def test_what_says_nothing_about_the_model_is_refused(store: Store) -> None:
    evidence, _ = store.read()
    config = RunConfig.model_validate({**evidence.config, "audit": {}})
    dataset = next(store.run.glob("artifacts/*/data-prep/dataset"))
    data = RunDataset(dataset).record
    check_fits(evidence, data, config)
    splits = {**data.splits, "defence": data.splits["held_out"]}
    with pytest.raises(InputError, match="the splits defence are not those"):
        check_fits(evidence, data.model_copy(update={"splits": splits}), config)
    with pytest.raises(InputError, match="hardened to toy_kitchen, not other"):
        check_fits(evidence, data.model_copy(update={"domain": "other"}), config)
    with pytest.raises(InputError, match="another canonical rejection"):
        check_fits(evidence, data.model_copy(update={"rejection": "No!"}), config)
    other = config.model_copy(update={"model": config.model.model_copy(update={"id": "a/b"})})
    with pytest.raises(InputError, match="made from builtin:tiny"):
        check_fits(evidence, data, other)


def test_a_configuration_belongs_to_its_pipeline(smoke: RunConfig) -> None:
    check_pipeline(smoke, "harden")
    with pytest.raises(InputError, match="has no `audit` section"):
        check_pipeline(smoke, "audit")
