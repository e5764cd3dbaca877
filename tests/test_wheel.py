"""The wheel holds what an installation needs, is the same wherever it is built, and is signed."""

import base64
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from backburn.components.shared.signing import KEY_VARIABLE, new_key, public_key_of
from backburn.components.shared.storage import sha256_file
from backburn.components.shared.wheels import PREDICATE_TYPE, attestation_of
from backburn.pipelines.cli import main
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from google.protobuf import json_format
from in_toto_attestation.v1 import statement as in_toto
from in_toto_attestation.v1 import statement_pb2

ROOT = Path(__file__).parent.parent


class Release(NamedTuple):
    folder: Path
    wheel: Path
    public_key: str


def git(folder: Path, *arguments: str, **variables: str) -> str:
    return subprocess.run(
        ["git", "-c", "user.name=a", "-c", "user.email=a@b", *arguments],
        cwd=folder, env={**os.environ, **variables}, check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip


def build(root: Path, folder: Path, **variables: str) -> tuple[Path, str]:
    """A wheel, and what was printed."""
    environment = {key: value for key, value in os.environ.items() if key != KEY_VARIABLE}
    done = subprocess.run(
        [sys.executable, str(root / ".ci/wheel.py"), "--outdir", str(folder)],
        env={**environment, **variables}, capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (wheel,) = folder.glob("*.whl")
    return wheel, done.stdout


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Release:
    folder, key = tmp_path_factory.mktemp("release"), new_key()
    wheel, printed = build(ROOT, folder, **{KEY_VARIABLE: key})
    assert f"Signed: {attestation_of(wheel)}" in printed
    assert key not in printed
    (folder / "key.pem").write_text(public_key_of(key))
    return Release(folder, wheel, public_key_of(key))


def test_wheel_content(release: Release) -> None:
    names = zipfile.ZipFile(release.wheel).namelist()
    packages = {name.split("/")[0] for name in names}
    assert {name for name in packages if not name.endswith(".dist-info")} == {"backburn"}
    for needed in (
        "backburn/components/py.typed",
        "backburn/pipelines/py.typed",
        "backburn/pipelines/recipes/laptop.yaml",
        "backburn/components/shared/domains/benign.jsonl",
        "backburn/components/shared/domains/cooking/domain.yaml",
        "backburn/components/shared/domains/home_networking/calibration.jsonl",
        "backburn/components/shared/report/report.html",
        "backburn/components/shared/report/report.css",
        "backburn/components/rl_attack/component.py",
        "backburn/components/shared/utility/everyday.yaml",
        "backburn/components/shared/utility/everyday.jsonl",
    ):
        assert needed in names, needed


def test_the_same_commit_gives_the_same_bytes_in_another_folder(
    release: Release, tmp_path: Path
) -> None:
    """With other times, permissions and an older build's leavings; and without a key, unsigned."""
    copy, out = tmp_path / "elsewhere/source", tmp_path / "out"
    for name in git(ROOT, "ls-files", "-z", "-c", "-o", "--exclude-standard").split("\0"):
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, copy / name)
            (copy / name).chmod(0o770)
            os.utime(copy / name, (10**9, 10**9))
    when = "@" + git(ROOT, "log", "-1", "--format=%ct").strip() + " +0000"
    git(copy, "init", "--quiet")
    git(copy, "add", "--all")
    git(copy, "commit", "--quiet", "--message=x", GIT_COMMITTER_DATE=when)
    stale = copy / "build/lib/backburn/components/stale.py"
    stale.parent.mkdir(parents=True)
    stale.write_text("")
    old = out / attestation_of(release.wheel).name
    old.parent.mkdir()
    old.write_text("of an older wheel")
    wheel, printed = build(copy, out)
    assert sha256_file(wheel) == sha256_file(release.wheel)
    assert f"SHA-256 {sha256_file(wheel)}" in printed
    assert f"Not signed: {KEY_VARIABLE} is not set" in printed
    assert not attestation_of(wheel).exists()


def test_the_attestation_reads_by_the_published_specifications(release: Release) -> None:
    """DSSE verified from its text with nothing but Ed25519; the statement by in-toto's package."""
    envelope = json.loads(attestation_of(release.wheel).read_bytes())
    payload = base64.standard_b64decode(envelope["payload"])
    kind = envelope["payloadType"].encode()
    encoded = b" ".join((b"DSSEv1", str(len(kind)).encode(), kind, str(len(payload)).encode()))
    signature = base64.standard_b64decode(envelope["signatures"][0]["sig"])
    key = load_pem_public_key(release.public_key.encode())
    assert isinstance(key, Ed25519PublicKey)
    key.verify(signature, encoded + b" " + payload)
    with pytest.raises(InvalidSignature):
        key.verify(signature, encoded + b" " + payload + b" ")
    statement = in_toto.Statement.copy_from_pb(
        json_format.Parse(payload, statement_pb2.Statement())
    )
    statement.validate()
    assert statement.pb.predicate_type == PREDICATE_TYPE
    (subject,) = statement.pb.subject
    assert (subject.name, subject.digest["sha256"]) == (
        release.wheel.name,
        sha256_file(release.wheel),
    )


def test_the_provenance_is_true(release: Release) -> None:
    envelope = json.loads(attestation_of(release.wheel).read_bytes())
    predicate = json.loads(base64.standard_b64decode(envelope["payload"]))["predicate"]
    built, commit = predicate["buildDefinition"], git(ROOT, "rev-parse", "HEAD").strip()
    assert built["externalParameters"] == {
        "commit": commit,
        "cleanTree": not git(ROOT, "status", "--porcelain"),
        "sourceDateEpoch": int(git(ROOT, "log", "-1", "--format=%ct")),
    }
    assert built["resolvedDependencies"] == [
        {"name": "source", "digest": {"gitCommit": commit}},
        {"name": "docker/locks/build.txt",
         "digest": {"sha256": sha256_file(ROOT / "docker/locks/build.txt")}},
    ]  # fmt: skip
    locks = {
        item["name"]: item["digest"]["sha256"] for item in built["internalParameters"]["locks"]
    }
    assert locks == {
        str(path.relative_to(ROOT)): sha256_file(path) for path in ROOT.glob("docker/locks/*.txt")
    }
    pinned = (ROOT / "docker/locks/build.txt").read_text().split()[0].removeprefix("setuptools==")
    archive = zipfile.ZipFile(release.wheel)
    (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/WHEEL"))
    assert f"setuptools ({pinned})" in archive.read(name).decode()


def verify(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: object
) -> tuple[int, str]:
    """Exit code and output of `backburn verify`."""
    monkeypatch.setattr(sys, "argv", ["backburn", "verify", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    captured = capsys.readouterr()
    return int(ended.value.code or 0), captured.out + captured.err


def test_a_user_verifies_a_wheel(
    release: Release, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    key = release.folder / "key.pem"
    code, printed = verify(capsys, monkeypatch, release.wheel, "--key", key)
    commit = git(ROOT, "rev-parse", "HEAD").strip()
    assert code == 0
    assert printed.startswith(f"Sound: {release.wheel.name}, commit {commit}, signed by key ")
    changed = bool(git(ROOT, "status", "--porcelain"))
    assert ("files differed from that commit" in printed) == changed


def tampered(wheel: Path) -> None:
    wheel.write_bytes(wheel.read_bytes() + b"\0")


def renamed(wheel: Path) -> None:
    new = wheel.with_name("backburn-9.9.9-py3-none-any.whl")
    attestation_of(wheel).rename(attestation_of(new))
    wheel.rename(new)


def another_key(wheel: Path) -> None:
    (wheel.parent / "key.pem").write_text(public_key_of(new_key()))


def another_statement(wheel: Path) -> None:
    key = new_key()
    (wheel.parent / "key.pem").write_text(public_key_of(key))
    signer = (
        "from backburn.components.shared.signing import *; import sys;"
        "sys.stdout.buffer.write(sign_statement({'_type': STATEMENT_TYPE, 'predicateType': 'x'}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", signer], env={**os.environ, KEY_VARIABLE: key},
        capture_output=True, check=True,
    )  # fmt: skip
    attestation_of(wheel).write_bytes(done.stdout)


def edited(wheel: Path) -> None:
    attestation = attestation_of(wheel)
    envelope = json.loads(attestation.read_bytes())
    payload = base64.standard_b64decode(envelope["payload"]).replace(
        b'"cleanTree":', b'"cleantree":'
    )
    envelope["payload"] = base64.standard_b64encode(payload).decode()
    attestation.write_bytes((json.dumps(envelope, indent=2) + "\n").encode())


REFUSED: dict[str, tuple[Callable[[Path], object], int, str]] = {
    "a tampered wheel": (tampered, 1, "not the wheel that was signed"),
    "a renamed wheel": (renamed, 1, "not the wheel that was signed"),
    "another key": (another_key, 1, "the signature is not one of key"),
    "another statement": (another_statement, 1, "not about a wheel: subject: Field required"),
    "an edited attestation": (edited, 1, ".dsse.json: "),
    "no attestation": (lambda wheel: attestation_of(wheel).unlink(), 2, ".dsse.json: no such file"),
    "no wheel": (lambda wheel: wheel.rename(wheel.with_suffix(".gone")), 2, ".whl: no such file"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_the_signed_wheel_is_refused(
    case: str,
    release: Release,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spoil, expected, reason = REFUSED[case]
    folder = tmp_path / "release"
    shutil.copytree(release.folder, folder)
    spoil(folder / release.wheel.name)
    wheel = next(folder.glob("*.whl"), folder / release.wheel.name)
    code, printed = verify(capsys, monkeypatch, wheel, "--key", folder / "key.pem")
    assert code == expected
    assert reason in printed
    assert len(printed.splitlines()) == 1


def test_a_wheel_needs_the_key_of_whoever_released_it(
    release: Release, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, printed = verify(capsys, monkeypatch, release.wheel)
    assert code == 2
    assert "give --key" in printed


def test_an_unusable_key_ends_before_the_build(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / ".ci/wheel.py"), "--outdir", str(tmp_path)],
        env={**os.environ, KEY_VARIABLE: "short"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 1
    assert f"{KEY_VARIABLE} is not a key" in done.stderr
    assert not list(tmp_path.iterdir())
