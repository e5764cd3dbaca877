"""Golden files: what every shipped recipe compiles to, for both pipelines.

`smoke` has the whole compiled YAML. Another recipe has what differs from it, one value a line, so
that a change of the pipeline shows once and a change of a recipe in the lines that it moves.
`make golden` writes them anew; a test compares.
"""

import contextlib
import json
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from backburn.pipelines.compilation import compile_pipeline
from backburn.pipelines.recipes import load_recipe, shipped_recipes

GOLDEN = Path(__file__).parent / "golden"
WHOLE = "smoke"
"""The recipe whose YAML is kept whole."""
OVERRIDES: dict[str, list[str]] = {"harden": [], "audit": ["audit={}"]}
"""Pipeline -> what makes it of a recipe."""
CASES = [(recipe, pipeline) for recipe in shipped_recipes() for pipeline in OVERRIDES]


def golden_file(recipe: str, pipeline: str) -> Path:
    """Where the golden form of a recipe's pipeline is kept."""
    return GOLDEN / f"{recipe}-{pipeline}.{'yaml' if recipe == WHOLE else 'txt'}"


def golden_text(recipe: str, pipeline: str) -> str:
    """What a recipe's pipeline compiles to now, in the form in which it is kept."""
    text = _compiled(recipe, pipeline)
    return text if recipe == WHOLE else differences(_compiled(WHOLE, pipeline), text)


def normalised(text: str) -> list[dict[str, Any]]:
    """Both documents, without what differs by kfp's patch version."""
    documents = list(yaml.load_all(text, yaml.CSafeLoader))
    documents[0].pop("sdkVersion", None)
    return documents


def differences(whole: str, text: str) -> str:
    """Lines of `path = value`: `-` what only the whole YAML has, `+` what only the text has."""
    before, after = _leaves(whole), _leaves(text)
    lines = [
        f"{sign} {path} = {here[path]}"
        for path in sorted(before.keys() | after.keys())
        for sign, here, there in (("-", before, after), ("+", after, before))
        if path in here and here[path] != there.get(path)
    ]
    return "\n".join(lines) + "\n"


@cache
def _leaves(text: str) -> dict[str, str]:
    return dict(_values(normalised(text)))


def _values(node: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Path -> value of every leaf; the run's configuration, JSON in a string, is opened too."""
    if isinstance(node, str) and node.startswith("{"):
        with contextlib.suppress(json.JSONDecodeError):  # a placeholder of kfp's
            node = json.loads(node)
    if isinstance(node, dict | list) and node:
        items = node.items() if isinstance(node, dict) else enumerate(node)
        for key, item in items:
            yield from _values(item, f"{path}.{key}".removeprefix("."))
    else:
        yield path, json.dumps(node)


@cache
def _compiled(recipe: str, pipeline: str) -> str:
    with tempfile.TemporaryDirectory() as folder:
        config = load_recipe(recipe, OVERRIDES[pipeline])
        return compile_pipeline(config, Path(folder) / "pipeline.yaml").read_text("utf-8")


def main() -> None:
    """Write every golden file, and remove those of recipes that are gone."""
    kept = {golden_file(*case) for case in CASES}
    for stale in set(GOLDEN.iterdir()) - kept:
        stale.unlink()
    for case in CASES:
        golden_file(*case).write_text(golden_text(*case), encoding="utf-8")


if __name__ == "__main__":
    main()
