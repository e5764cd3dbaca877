"""What the benchmarks take from a finished run's folder."""

import argparse
from pathlib import Path

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
