"""Build the wheel and sign it (`make wheel`).

The same commit gives the same bytes in any folder: what git tracks, and new files that it does not
ignore, are copied and built there with the setuptools that docker/locks/build.txt pins, files'
times are those of the last commit (SOURCE_DATE_EPOCH overrides it), and permissions are fixed.
BACKBURN_SIGNING_KEY signs an attestation beside the wheel.
"""

import argparse
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path

from backburn.components.shared.errors import BackburnError, InputError
from backburn.components.shared.signing import KEY_VARIABLE, require_key, sign_statement
from backburn.components.shared.storage import write_bytes
from backburn.components.shared.wheels import (
    BuildDefinition,
    Builder,
    Dependency,
    Locks,
    Provenance,
    RunDetails,
    SourceParameters,
    WheelStatement,
    attestation_of,
    describe_file,
)

ROOT = Path(__file__).parent.parent
BUILD_LOCK = "docker/locks/build.txt"
UNSIGNED = f"""\
Not signed: {KEY_VARIABLE} is not set. To sign, once:  backburn signing-key --public release.pem
Keep what it prints secret, set {KEY_VARIABLE} to it, and run this again."""


def git(*arguments: str) -> str:
    """What a git command prints about the source."""
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise InputError(f"git {arguments[0]}: {done.stderr.strip()}. Build in a git checkout")
    return done.stdout.strip()


def build(folder: Path, epoch: str) -> Path:
    """Build the wheel into a folder."""
    with tempfile.TemporaryDirectory() as scratch:
        source, built = Path(scratch, "source"), Path(scratch, "built")
        for name in git("ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0"):
            if (ROOT / name).is_file():
                target = source / name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(ROOT / name, target)
        environment = {key: value for key, value in os.environ.items() if key != KEY_VARIABLE}
        done = subprocess.run(
            [sys.executable, "-m", "build", "--wheel", "--outdir", str(built), str(source)],
            env={
                **environment,
                "SOURCE_DATE_EPOCH": epoch,
                "PIP_CONSTRAINT": str(ROOT / BUILD_LOCK),
            },
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise BackburnError(f"the wheel does not build:\n{done.stdout}{done.stderr}")
        (wheel,) = built.glob("*.whl")
        folder.mkdir(parents=True, exist_ok=True)
        return Path(shutil.copy(wheel, folder))


def provenance(epoch: str) -> Provenance:
    """What the wheel was built from and with."""
    commit, lock = git("rev-parse", "HEAD"), describe_file(ROOT / BUILD_LOCK, BUILD_LOCK)
    return Provenance(
        build_definition=BuildDefinition(
            external_parameters=SourceParameters(
                commit=commit,
                clean_tree=not git("status", "--porcelain"),
                source_date_epoch=int(epoch),
            ),
            internal_parameters=Locks(
                locks=[
                    describe_file(path, f"docker/locks/{path.name}")
                    for path in sorted((ROOT / "docker/locks").glob("*.txt"))
                ]
            ),
            resolved_dependencies=[
                Dependency(name="source", digest={"gitCommit": commit}),
                Dependency(name=lock.name, digest={"sha256": lock.digest["sha256"]}),
            ],
        ),
        run_details=RunDetails(
            builder=Builder(
                version={"python": platform.python_version(), "build": metadata.version("build")}
            )
        ),
    )


def main() -> None:
    """Build, and sign if there is a key."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--outdir", type=Path, default=ROOT / "dist")
    folder = parser.parse_args().outdir
    os.umask(0o022)
    try:
        signed = bool(os.environ.get(KEY_VARIABLE))
        if signed:
            require_key()
        epoch = os.environ.get("SOURCE_DATE_EPOCH") or git("log", "-1", "--format=%ct")
        wheel = build(folder, epoch)
        subject = describe_file(wheel)
        print(f"{wheel}\nSHA-256 {subject.digest['sha256']}")
        attestation = attestation_of(wheel)
        attestation.unlink(missing_ok=True)
        if not signed:
            print(UNSIGNED)
            return
        statement = WheelStatement(subject=[subject], predicate=provenance(epoch))
        write_bytes(attestation, sign_statement(statement.model_dump(mode="json", by_alias=True)))
        print(f"Signed: {attestation}")
    except BackburnError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
