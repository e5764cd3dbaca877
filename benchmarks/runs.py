"""What the benchmarks share: a finished run's folder, arguments, files of rows."""

import argparse
import json
from pathlib import Path
from typing import Any

from backburn.components.shared.config import RunConfig


def artifact(run: Path, ending: str) -> Path:
    """An artifact of a run, by the end of its path.

    Raises:
        SystemExit: if the run has none.
    """
    found = sorted(run.glob(f"artifacts/*/*/{ending}"))
    if not found:
        raise SystemExit(f"{run}: no artifact {ending!r}; give the folder of a finished run")
    return found[0]


def positive(text: str) -> int:
    """A whole number of at least 1, as the type of an option."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"a whole number of at least 1 is needed, not {text!r}")
    return int(text)


def config_of(run: Path) -> RunConfig:
    """The configuration a run had.

    Raises:
        SystemExit: if the folder is not a run's.
    """
    path = run / "config.json"
    if not path.is_file():
        raise SystemExit(f"{run}: no config.json; give the folder of a finished run")
    return RunConfig.from_json(path.read_text(encoding="utf-8"))


def require_rows(parser: argparse.ArgumentParser, path: Path) -> None:
    """End the program if there is no file of rows to write a table from."""
    if not path.is_file():
        parser.error(f"--rows: no file {path}, and without it the table would be empty")


def read_rows(path: Path) -> list[dict[str, Any]]:
    """What a benchmark has done so far: one JSON object a line; none if there is no file yet."""
    if not path.is_file():
        return []
    rows = []
    for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise SystemExit(
                f"{path}:{number}: not a whole row ({error}); remove it to make it again"
            ) from error
    return rows


def put_between_markers(page: str, name: str, text: str) -> str:
    """The page with a text between `<!-- name: begin -->` and `<!-- name: end -->`.

    Raises:
        ValueError: if the page lacks a marker.
    """
    begin, end = (f"<!-- {name}: {edge} -->\n" for edge in ("begin", "end"))
    before, begun, rest = page.partition(begin)
    _, ended, after = rest.partition(end)
    if not (begun and ended):
        raise ValueError(f"no lines {begin.strip()} and {end.strip()}, one after the other")
    return f"{before}{begin}{text}\n{end}{after}"
