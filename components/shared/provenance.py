"""What a run was made with: versions of what it depends on, and the digest of this code."""

import hashlib
import platform
from functools import cache
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

_PACKAGES = ("torch", "transformers", "trl", "peft", "kfp", "mlflow", "numpy", "scipy", "lm-eval")
_SOURCES = (".py", ".yaml", ".jsonl", ".html", ".css", ".md")


def version_of(package: str) -> str:
    """Installed version of a package."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "source tree"


def environment() -> dict[str, str]:
    """Interpreter, machine and the packages a figure depends on."""
    return {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "system": platform.system(),
        **{name: version_of(name) for name in _PACKAGES},
    }


@cache
def code_digest() -> str:
    """SHA-256 over the paths and contents of Backburn's installed files, as hex.

    Equal code gives equal digests, installed from a wheel or from the source tree.
    """
    digest = hashlib.sha256()
    for package in ("backburn.components", "backburn.pipelines"):
        spec = find_spec(package)
        assert spec is not None
        assert spec.submodule_search_locations is not None
        root = Path(next(iter(spec.submodule_search_locations)))
        for path in sorted(root.rglob("*"), key=lambda path: path.relative_to(root).as_posix()):
            if path.is_file() and path.suffix in _SOURCES:
                name = f"{package}/{path.relative_to(root).as_posix()}"
                content = hashlib.sha256(path.read_bytes()).hexdigest()
                digest.update(f"{name}\0{content}\n".encode())
    return digest.hexdigest()
