"""A decision between another's look at the ledger and its entry: what was meant is what is done."""

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from backburn.components.promotion.promoting import Registry, Terms
from backburn.components.shared.errors import InputError

from tests.promotion.bundles import Shelf

OWNER, SECOND, THIRD = "registry-owner", "second-owner", "third-owner"


@pytest.fixture
def shelf(smoke_run: tuple[Path, subprocess.CompletedProcess[str]], tmp_path: Path) -> Shelf:
    uri, root = f"sqlite:///{tmp_path / 'mlflow.db'}", (tmp_path / "artifacts").as_uri()
    return Shelf(uri, smoke_run[0] / "one", tmp_path, artifacts=root)


def promote(shelf: Shelf, version: str, **terms: Any) -> str:
    registry = Registry(shelf.uri, shelf.name)
    settled = Terms(OWNER, shelf.public_key, **terms)
    return registry.promote(shelf.reference(version), settled).result


def approve(shelf: Shelf, version: str, actor: str, registry: Registry | None = None) -> str:
    registry = registry or Registry(shelf.uri, shelf.name)
    return registry.approve(shelf.reference(version), Terms(actor, shelf.public_key)).result


def interrupted(shelf: Shelf, by: Callable[[], Any]) -> Registry:
    """A registry before whose next entry something else is decided."""
    registry = Registry(shelf.uri, shelf.name)
    real = registry.ledger.append

    def append(*arguments: Any) -> bool:
        registry.ledger.append = real  # type: ignore[method-assign]
        by()
        return real(*arguments)

    registry.ledger.append = append  # type: ignore[method-assign,assignment]
    return registry


def test_a_rollback_is_about_the_champion_it_was_asked_about(shelf: Shelf) -> None:
    one, two, three = (shelf.put() for _ in range(3))
    for version in (one, two):
        assert promote(shelf, version) == "promoted"
    late = interrupted(shelf, lambda: promote(shelf, three))
    with pytest.raises(InputError, match="was version 2 and is version 3 now"):
        late.roll_back(OWNER, "version 2 slips")
    assert shelf.aliases() == {"champion": three, "previous": two}


def test_an_approval_counts_only_while_the_version_waits(shelf: Shelf) -> None:
    one, two = shelf.put(), shelf.put()
    assert promote(shelf, one) == "promoted"
    assert promote(shelf, two, require_approval=True) == "pending"

    def approve_and_take_back() -> None:
        assert approve(shelf, two, SECOND) == "promoted"
        Registry(shelf.uri, shelf.name).roll_back(OWNER, "it slips")

    late = interrupted(shelf, approve_and_take_back)
    with pytest.raises(InputError, match="version 2 does not wait for approval"):
        approve(shelf, two, THIRD, late)
    assert shelf.aliases() == {"champion": one}


def test_nobody_goes_back_to_a_version_that_is_gone(shelf: Shelf) -> None:
    one, two = shelf.put(), shelf.put()
    for version in (one, two):
        promote(shelf, version)
    shelf.client.delete_model_version(shelf.name, one)
    with pytest.raises(InputError, match=f"{shelf.name}/1"):
        Registry(shelf.uri, shelf.name).roll_back(OWNER, "it slips")
    assert Registry(shelf.uri, shelf.name).ledger.state().champion == two
