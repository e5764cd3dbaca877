"""Look for known vulnerabilities of what the images lock, without a network.

    make vulnerabilities ADVISORIES=<folder>

ADVISORIES holds advisories in the OSV format (https://ossf.github.io/osv-schema/), as YAML or JSON:
a folder, or a git repository without a work tree, such as a mirror of
https://github.com/pypa/advisory-database. Exit code: 0 nothing but what docker/accepted.toml
accepts, 1 something else, 2 bad input.
"""

import argparse
import io
import json
import subprocess
import sys
import tarfile
import tomllib
from collections.abc import Iterator
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version
from rich.console import Console
from rich.table import Table

HERE = Path(__file__).parent
_LONGEST_SUMMARY = 160
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # several times as fast, where it was built


class Problem(Exception):  # noqa: N818 - it becomes one line
    """Something that was given cannot be used."""


class Finding(NamedTuple):
    """A locked version that an advisory is about."""

    package: str
    version: str
    id: str
    aliases: list[str]
    fixed: list[str]
    summary: str


class Accepted(NamedTuple):
    """A vulnerability that is known and left as it is, for a time."""

    id: str
    package: str
    reason: str
    expires: date


def locked(folder: Path) -> dict[str, set[str]]:
    """Canonical name -> versions that the locks pin, without local parts such as `+cpu`."""
    pins: dict[str, set[str]] = {}
    for path in sorted(folder.glob("*.txt")):
        for line in path.read_text("utf-8").splitlines():
            if line[:1].isalnum():
                pin = Requirement(line.rstrip("\\ "))
                (specifier,) = pin.specifier
                version = Version(specifier.version).public
                pins.setdefault(canonicalize_name(pin.name), set()).add(version)
    if not pins:
        raise Problem(f"{folder}: no lock (*.txt) in it pins anything")
    return pins


def documents(source: Path) -> Iterator[tuple[str, bytes]]:
    """Name and content of every YAML and JSON file of a folder or a bare git repository."""
    if not (source / "HEAD").is_file():
        for path in sorted(source.rglob("*")):
            if path.suffix in (".yaml", ".json"):
                yield str(path.relative_to(source)), path.read_bytes()
        return
    command = ["git", "-C", str(source), "archive", "--format=tar", "HEAD"]
    done = subprocess.run(command, capture_output=True)
    if done.returncode:
        raise Problem(f"{source}: {done.stderr.decode(errors='replace').strip()}")
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
        for member in archive:
            file = archive.extractfile(member) if member.isfile() else None
            if file is not None and member.name.endswith((".yaml", ".json")):
                yield member.name, file.read()


def advisories(source: Path) -> list[dict[str, Any]]:
    """Every advisory that has not been withdrawn."""
    found = []
    for name, content in documents(source):
        try:
            value = json.loads(content) if name.endswith(".json") else yaml.load(content, _Loader)
        except (ValueError, yaml.YAMLError) as error:
            raise Problem(f"{source}: {name}: not readable: {one_line(error)}") from error
        if isinstance(value, dict) and "modified" in value and not value.get("withdrawn"):
            found.append(value)
    if not found:
        raise Problem(f"{source}: holds no advisory in the OSV format (*.yaml, *.json)")
    return found


def events_of(affected: dict[str, Any]) -> list[list[dict[str, str]]]:
    """Events of every range of versions; ranges of commits say nothing of a wheel."""
    ranges = affected.get("ranges", [])
    return [item["events"] for item in ranges if item["type"] == "ECOSYSTEM"]


def affects(affected: dict[str, Any], version: Version) -> bool:
    """Whether a version is listed, or lies in a range (OSV's evaluation of events)."""
    for text in affected.get("versions", []):
        try:
            if Version(text) == version:
                return True
        except InvalidVersion:
            continue  # older than PEP 440, and so in no lock
    return any(_inside(events, version) for events in events_of(affected))


def _inside(events: list[dict[str, str]], version: Version) -> bool:
    inside = False
    for bound, kind in sorted(
        (Version(text), kind) for each in events for kind, text in each.items()
    ):
        if version > bound or (version == bound and kind != "last_affected"):
            inside = kind == "introduced"
    return inside


def look(pins: dict[str, set[str]], known: list[dict[str, Any]]) -> list[Finding]:
    """What the advisories say of the pins."""
    found: dict[tuple[str, str, str], Finding] = {}
    for advisory in known:
        for affected in advisory.get("affected", []):
            package = affected.get("package", {})
            name = canonicalize_name(package.get("name", ""))
            if package.get("ecosystem") != "PyPI" or name not in pins:
                continue
            text = advisory.get("summary") or advisory.get("details", "")
            try:
                for pinned in pins[name]:
                    if affects(affected, version := Version(pinned)):
                        fixed = [
                            event["fixed"]
                            for events in events_of(affected)
                            for event in events
                            if "fixed" in event and Version(event["fixed"]) > version
                        ]
                        finding = Finding(
                            name,
                            pinned,
                            advisory["id"],
                            advisory.get("aliases", []),
                            fixed,
                            one_line(text),
                        )
                        found[finding[:3]] = finding
            except (InvalidVersion, KeyError, TypeError, AttributeError) as error:
                raise Problem(
                    f"{advisory.get('id')} ({name}): not in the OSV format: {error!r}"
                ) from error
    return [found[key] for key in sorted(found)]


def accepted(path: Path) -> list[Accepted]:
    """The vulnerabilities that are accepted; an entry whose time is over is refused."""
    try:
        entries = [
            Accepted(**entry)
            for entry in tomllib.loads(path.read_text("utf-8")).get("accepted", [])
        ]
    except (OSError, ValueError, TypeError) as error:
        raise Problem(f"{path}: {error}. An entry has id, package, reason and expires") from error
    for entry in entries:
        if type(entry.expires) is not date or not entry.reason.strip():
            raise Problem(f"{path}: {entry.id}: give a reason, and a date such as 2027-01-31")
        if entry.expires < datetime.now(UTC).date():
            raise Problem(
                f"{path}: {entry.id}: accepted until {entry.expires}, which is over. Take a fixed "
                "version, or judge it anew and give another date"
            )
    return entries


def one_line(text: object) -> str:
    """A text without line breaks, shortened."""
    return " ".join(str(text).split())[:_LONGEST_SUMMARY]


def report(found: list[Finding]) -> Table:
    """What was found, as a table."""
    table = Table("package", "version", "id", "also known as", "fixed in", "what it is")
    for item in found:
        fixed = ", ".join(item.fixed) or "no release"
        table.add_row(
            item.package, item.version, item.id, ", ".join(item.aliases), fixed, item.summary
        )
    return table


def main() -> None:
    """Compare the locks with the advisories."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("advisories", type=Path, nargs="?", help="folder or bare git repository")
    parser.add_argument("--locks", type=Path, default=HERE / "locks")
    parser.add_argument("--accepted", type=Path, default=HERE / "accepted.toml")
    options = parser.parse_args()
    try:
        allowed = accepted(options.accepted)
        if options.advisories is None:  # what pip-audit is to leave out
            print(" ".join(f"--ignore-vuln {entry.id}" for entry in allowed))
            return
        pins, known = locked(options.locks), advisories(options.advisories)
        everything = look(pins, known)
    except Problem as problem:
        print(f"error: {problem}", file=sys.stderr)
        sys.exit(2)
    names = {(canonicalize_name(entry.package), entry.id) for entry in allowed}
    found = [
        item
        for item in everything
        if not names & {(item.package, each) for each in (item.id, *item.aliases)}
    ]
    console = Console(width=None if sys.stdout.isatty() else 160)
    if found:
        console.print(report(found), markup=False)
    newest = max(str(advisory["modified"])[:10] for advisory in known)
    print(
        f"{len(pins)} packages, {len(known):,} advisories, the newest of {newest}: {len(found)} "
        f"found, {len(everything) - len(found)} accepted. What became known later is not in these."
    )
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
