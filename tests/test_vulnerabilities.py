"""`make vulnerabilities ADVISORIES=...`: the locks against advisories that are at hand."""

import json
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

SCRIPT = Path(__file__).parent.parent / "docker/vulnerabilities.py"
TODAY = datetime.now(UTC).date()
LOCK = """\
--find-links https://example.com/torch/
made.up-name==2.0.1 \\
    --hash=sha256:00
other==1.0
tensors==2.13.0+cpu \\
    --hash=sha256:00
"""


def advisory(name: str, *events: dict[str, str], **fields: Any) -> dict[str, Any]:
    affected: dict[str, Any] = {"package": {"name": name, "ecosystem": "PyPI"}}
    if events:
        affected["ranges"] = [{"type": "ECOSYSTEM", "events": list(events)}]
    affected["versions"] = fields.pop("versions", [])
    return {
        "id": "PYSEC-1", "modified": "2026-11-01T00:00:00Z", "details": "Reads\n any file.",
        "affected": [affected], **fields,
    }  # fmt: skip


def scan(
    folder: Path, *known: dict[str, Any], accepted: str = "", bare: bool = False
) -> tuple[int, str]:
    """Exit code and output."""
    (folder / "locks").mkdir()
    (folder / "locks/a.txt").write_text(LOCK)
    (folder / "accepted.toml").write_text(accepted)
    source = folder / "advisories"
    (source / "vulns").mkdir(parents=True)
    for i, item in enumerate(known):
        path = source / f"vulns/{i}.{('yaml', 'json')[i % 2]}"
        path.write_text(yaml.safe_dump(item) if path.suffix == ".yaml" else json.dumps(item))
    if bare:
        for command in (["init", "--quiet"], ["add", "--all"], ["commit", "--quiet", "-m", "x"]):
            identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
            subprocess.run(["git", *identity, *command], cwd=source, check=True)
        source = source / ".git"
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(source), "--locks", str(folder / "locks"),
         "--accepted", str(folder / "accepted.toml")],
        capture_output=True, text=True,
    )  # fmt: skip
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout + done.stderr


SINCE = {"introduced": "0"}
FOUND = {
    "a range without an end": ("made-up.name", [SINCE], []),
    "a range that ends later": ("made-up-name", [{"introduced": "2.0"}, {"fixed": "2.1"}], []),
    "the last version": ("other", [SINCE, {"last_affected": "1.0"}], []),
    "the first version": ("other", [{"introduced": "1.0"}], []),
    "a version that is listed": ("Other", [], ["0.9", "1.0.0"]),
    "the second of two ranges": (
        "other", [SINCE, {"fixed": "0.5"}, {"introduced": "0.9"}, {"fixed": "1.1"}], [],
    ),
    "a build of its own": ("tensors", [SINCE, {"last_affected": "2.13.0"}], []),
    "odd versions beside it": ("other", [], ["final-2009", "1.0"]),
}  # fmt: skip
PASSED = {
    "fixed in this version": ("other", [SINCE, {"fixed": "1.0"}], []),
    "introduced later": ("other", [{"introduced": "1.0.post1"}], []),
    "after the last version": ("other", [SINCE, {"last_affected": "0.9"}], []),
    "between two ranges": (
        "other", [SINCE, {"fixed": "0.5"}, {"introduced": "1.1"}, {"fixed": "1.2"}], [],
    ),
    "fixed in the build's version": ("tensors", [SINCE, {"fixed": "2.13.0"}], []),
    "another package": ("others", [SINCE], []),
    "other versions": ("other", [], ["1.0.1"]),
}  # fmt: skip


def test_versions_are_compared_as_osv_says(tmp_path: Path) -> None:
    """Each case is an advisory of its own; its name is its summary."""
    known = [
        advisory(name, *events, versions=versions, id=f"PYSEC-{i}", summary=case)
        for i, (case, (name, events, versions)) in enumerate((FOUND | PASSED).items())
    ]
    code, printed = scan(tmp_path, *known)
    assert code == 1
    assert {case for case in FOUND | PASSED if f"│ {case} " in printed} == set(FOUND), printed


def test_the_table_says_what_where_and_what_to_do(tmp_path: Path) -> None:
    known = [
        advisory("other", SINCE, {"fixed": "1.2"}, aliases=["CVE-2026-1"]),
        advisory("made-up-name", SINCE, id="PYSEC-2", summary="Deletes files"),
        advisory("other", SINCE, id="PYSEC-3", withdrawn="2026-11-02T00:00:00Z"),
        advisory("other", SINCE, id="GHSA-4") | {"affected": [
            {"package": {"name": "other", "ecosystem": "npm"}, "versions": ["1.0"]}]},
    ]  # fmt: skip
    code, printed = scan(tmp_path, *known, bare=True)
    assert code == 1
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in printed.splitlines()]
    assert ["other", "1.0", "PYSEC-1", "CVE-2026-1", "1.2", "Reads any file."] in rows
    assert ["made-up-name", "2.0.1", "PYSEC-2", "", "no release", "Deletes files"] in rows
    assert "PYSEC-3" not in printed
    assert "GHSA-4" not in printed
    assert "3 packages, 3 advisories, the newest of 2026-11-01: 2 found, 0 accepted" in printed


def entry(expires: object, name: str = "CVE-2026-1", reason: str = "no file is read") -> str:
    return (
        f'[[accepted]]\nid = "{name}"\npackage = "Other"\nreason = "{reason}"\n'
        f"expires = {expires}\n"
    )


def test_what_is_accepted_is_not_reported_until_its_time_is_over(tmp_path: Path) -> None:
    known = advisory("other", SINCE, aliases=["CVE-2026-1"])
    yesterday = TODAY - timedelta(days=1)
    for name, content, expected, reason in (
        ("now", entry(TODAY), 0, "0 found, 1 accepted"),
        ("another", entry(TODAY, name="CVE-2026-2"), 1, "1 found, 0 accepted"),
        ("over", entry(yesterday), 2, f"accepted until {yesterday}, which is over"),
        ("over, and not found", entry(yesterday, name="CVE-2026-2"), 2, "which is over"),
        ("no reason", entry(TODAY, reason=" "), 2, "CVE-2026-1: give a reason"),
        ("no date", entry('"soon"'), 2, "a date such as"),
        ("no field", '[[accepted]]\nid = "a"\n', 2, "An entry has id, package, reason and exp"),
        ("no TOML", "[[", 2, "accepted.toml: "),
    ):
        (tmp_path / name).mkdir()
        code, printed = scan(tmp_path / name, known, accepted=content)
        assert (code, reason in printed) == (expected, True), printed


def test_pip_audit_is_told_what_is_accepted(tmp_path: Path) -> None:
    (tmp_path / "accepted.toml").write_text(entry(TODAY))
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--accepted", str(tmp_path / "accepted.toml")],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == "--ignore-vuln CVE-2026-1"


@pytest.mark.parametrize(
    ("known", "reason"),
    [
        ([], "holds no advisory in the OSV format"),
        ([{"id": "x"}], "holds no advisory in the OSV format"),
        ([advisory("other", {"introduced": "a1b2c3"})], "PYSEC-1 (other): not in the OSV format"),
        ([advisory("other") | {"affected": [
            {"package": {"name": "other", "ecosystem": "PyPI"}, "ranges": [{}]}]}], "PYSEC-1 (oth"),
    ],
)  # fmt: skip
def test_advisories_that_cannot_be_read_are_no_clean_bill(
    known: list[dict[str, Any]], reason: str, tmp_path: Path
) -> None:
    code, printed = scan(tmp_path, *known)
    assert code == 2
    assert reason in printed


def test_the_accepted_list_in_use_is_valid() -> None:
    done = subprocess.run([sys.executable, str(SCRIPT)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
