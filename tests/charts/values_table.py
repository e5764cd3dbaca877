"""The table of values in the chart's README, in the form of helm-docs.

`python -m tests.charts.values_table` writes it; a test compares.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml

CHART = Path(__file__).parents[2] / "charts" / "backburn"
README = CHART / "README.md"
HEADING = "## Values\n"
_KEY = re.compile(r"^( *)([A-Za-z][A-Za-z0-9]*):")
_TYPES = {bool: "bool", int: "int", str: "string", list: "list", dict: "object"}


class Value(NamedTuple):
    """One row."""

    key: str
    default: Any
    description: str


def described_values() -> Iterator[Value]:
    """Every key of values.yaml with a `# --` comment above it, in order."""
    text = (CHART / "values.yaml").read_text(encoding="utf-8")
    values, path, description = yaml.safe_load(text), list[str](), ""
    for line in text.splitlines():
        stripped = line.strip()
        if stripped.startswith("# -- "):
            description = stripped.removeprefix("# -- ")
        elif match := _KEY.match(line):
            path = [*path[: len(match[1]) // 2], match[2]]
            if description:
                default = values
                for part in path:
                    default = default[part]
                yield Value(".".join(path), default, description)
                description = ""


def table() -> str:
    """The rows, sorted by key, as Markdown."""
    lines = ["| Key | Type | Default | Description |", "|-----|------|---------|-------------|"]
    for value in sorted(described_values()):
        kind = _TYPES[type(value.default)]
        default = json.dumps(value.default, separators=(",", ":"))
        cells = (value.key, kind, f"`{default}`", value.description.replace("|", "\\|"))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def readme() -> str:
    """The README as it should be: all up to the heading as it is, then the table."""
    before, _, _ = README.read_text(encoding="utf-8").partition(HEADING)
    return f"{before}{HEADING}\n{table()}"


if __name__ == "__main__":
    README.write_text(readme(), encoding="utf-8")
