"""What Backburn installs with it may be used as Backburn may be."""

import re
from importlib.metadata import Distribution, distribution

import pytest
from packaging.requirements import Requirement

PERMISSIVE = re.compile(
    r"MIT|BSD|Apache|ISC|PSF|Python Software Foundation|CNRI-Python|0BSD|Zlib|CC0|MPL|Mozilla|"
    r"Unlicense|LLVM-exception"
)
COPYLEFT = re.compile(r"A?GPL|General Public|EUPL|SSPL|proprietary|commercial", re.IGNORECASE)
LOOKED_AT = {
    "chardet": "LGPL-2.1: a library that lm-eval's table writer loads, unchanged",
    "huey": "MIT, in its LICENSE file alone",
    "skops": "MIT, in its LICENSE file alone",
}


def installed_with(name: str) -> dict[str, Distribution]:
    """A distribution and all it needs in this environment, extras of nothing else."""
    found: dict[str, Distribution] = {}
    open_names = [(name, "")]
    while open_names:
        package, extra = open_names.pop()
        found[package] = distribution(package)
        for line in found[package].requires or []:
            needed = Requirement(line)
            if needed.marker is None or needed.marker.evaluate({"extra": extra}):
                following = needed.name.lower().replace("_", "-")
                if following not in found:
                    open_names += [(following, item) for item in ["", *needed.extras]]
    return found


def licence(package: Distribution) -> str:
    metadata = package.metadata
    classifiers = [
        value for value in metadata.get_all("Classifier", []) if value.startswith("License ::")
    ]
    return " ".join([metadata.get("License-Expression") or "", *classifiers]).strip() or (
        metadata.get("License") or ""
    )


@pytest.fixture(scope="module")
def packages() -> dict[str, Distribution]:
    return installed_with("backburn")


def test_every_package_has_a_permissive_licence(packages: dict[str, Distribution]) -> None:
    assert len(packages) > 100
    wrong = {
        name: licence(package)[:80]
        for name, package in packages.items()
        if name not in LOOKED_AT
        and (not PERMISSIVE.search(licence(package)) or COPYLEFT.search(licence(package)))
    }
    assert wrong == {}


def test_what_was_looked_at_is_still_there(packages: dict[str, Distribution]) -> None:
    assert set(LOOKED_AT) <= set(packages)
