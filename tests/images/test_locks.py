"""The images' lock files pin everything that pyproject.toml asks for, with hashes."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent.parent
LOCKS = ROOT / "docker" / "locks"
NAMES = sorted(path.name for path in LOCKS.glob("*.txt"))
_SHA256 = re.compile(r"--hash=sha256:[0-9a-f]{64}")


def pins(name: str) -> dict[str, str]:
    """Package -> version; fails on a line that is neither a pin nor a hash of one."""
    found: dict[str, str] = {}
    for entry in (LOCKS / name).read_text().replace("\\\n", " ").splitlines():
        if entry.startswith("--find-links "):
            continue
        requirement, *hashes = entry.split()
        assert hashes, f"{name}: {requirement} has no hash"
        assert all(_SHA256.fullmatch(item) for item in hashes), f"{name}: {entry}"
        package, version = requirement.split("==")
        found[package] = version
    return found


def test_there_is_a_lock_for_each_part_of_an_image() -> None:
    parts = ["build", "sbom", "tools-torch", "tools", "train", "weights"]
    assert sorted(f"{part}.txt" for part in parts) == NAMES


@pytest.mark.parametrize("name", ["train.txt", "tools.txt"])
def test_every_dependency_is_locked_to_a_version_it_allows(name: str) -> None:
    locked = pins(name)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for line in project["dependencies"]:
        wanted = Requirement(line)
        assert wanted.name in locked, f"{name} lacks {wanted.name}: run `make locks`"
        assert wanted.specifier.contains(locked[wanted.name]), f"{name}: {line}: run `make locks`"


def test_both_images_have_the_same_versions_but_for_cuda() -> None:
    train, tools = pins("train.txt"), pins("tools.txt")
    assert tools["torch"] == f"{train['torch']}+cpu" == pins("tools-torch.txt")["torch"]
    assert not [name for name in tools if name.startswith(("nvidia-", "cuda-", "triton"))]
    assert {n: v for n, v in tools.items() if n != "torch"}.items() <= train.items()


@pytest.mark.parametrize("name", NAMES)
def test_every_pin_has_hashes(name: str) -> None:
    assert pins(name)


def test_the_images_weigh_the_same_models_as_a_laptop() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for package, version in pins("weights.txt").items():
        assert f"{package}=={version}" in makefile


def test_the_base_image_is_pinned_by_digest() -> None:
    dockerfile = (ROOT / "docker" / "Dockerfile").read_text()
    bases = re.findall(r"^FROM (\S+)", dockerfile, re.MULTILINE)
    assert set(bases) == {"${WHEELS_IMAGE}", "${PYTHON_IMAGE}", "packages"}
    assert re.search(r"^ARG PYTHON_IMAGE=\S+@sha256:[0-9a-f]{64}$", dockerfile, re.MULTILINE)
