"""Copies of a version in another environment's registered model."""

from pathlib import Path

import pytest
from backburn.components.promotion.promoting import Registry, copy_version
from backburn.components.shared.consumption import COPIED_TAG, pull
from backburn.components.shared.errors import InputError, VerificationError

from tests.promotion.test_promoting import NAME, OWNER, Smoke, Store

PRODUCTION = "production-tiny"


@pytest.fixture
def store(smoke_run: Smoke, tmp_path: Path) -> Store:
    return Store(tmp_path, smoke_run[0] / "one")


def test_a_copy_is_a_candidate_there_and_can_be_promoted_and_pulled(
    store: Store, tmp_path: Path
) -> None:
    key = store.terms.trusted_key
    store.promote(store.register())
    reference = f"models:/{NAME}@champion"
    assert copy_version(store.uri, reference, PRODUCTION, key) == ("1", True)
    assert copy_version(store.uri, reference, PRODUCTION, key) == ("1", False)
    copied = store.client.get_model_version(PRODUCTION, "1")
    original = store.client.get_model_version(NAME, "1")
    assert copied.tags[COPIED_TAG] == f"models:/{NAME}/1"
    assert copied.tags["validation_status"] == "pending"
    assert original.tags["validation_status"] == "approved"
    digest = "backburn.evidence_sha256"
    assert copied.tags[digest] == original.tags[digest]
    assert dict(store.client.get_registered_model(PRODUCTION).aliases) == {"candidate": 1}
    there = Registry(store.uri, PRODUCTION)
    promoted = there.promote(f"models:/{PRODUCTION}@candidate", store.terms)
    assert promoted.result == "promoted", promoted.reasons
    pulled = pull(f"models:/{PRODUCTION}@champion", tmp_path / "pulled", store.uri, key)
    assert (pulled.name, pulled.version) == (PRODUCTION, "1")
    assert store.aliases() == {"champion": "1"}
    assert len(store.registry.ledger.entries()) == 1


def test_only_what_holds_is_copied(store: Store) -> None:
    key = store.terms.trusted_key
    failed, good = store.register(harm=9.0), store.register()
    with pytest.raises(VerificationError, match="outcome is failed"):
        copy_version(store.uri, f"models:/{NAME}/{failed}", PRODUCTION, key)
    ledger = store.registry.ledger
    ledger.append("audit_failed", good, ledger.state(), OWNER, ["audit x"])
    with pytest.raises(VerificationError, match="failed its last audit"):
        copy_version(store.uri, f"models:/{NAME}/{good}", PRODUCTION, key)
    with pytest.raises(InputError, match="there already"):
        copy_version(store.uri, f"models:/{NAME}/{good}", NAME, key)
    assert not store.client.search_registered_models(f"name = '{PRODUCTION}'")
