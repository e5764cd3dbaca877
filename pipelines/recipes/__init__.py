"""The shipped recipes, and reading a recipe by name or path."""

import difflib
from collections.abc import Sequence
from pathlib import Path

import yaml
from backburn.components.shared.config import RunConfig, configure
from backburn.components.shared.errors import InputError


def shipped_recipes() -> dict[str, Path]:
    """Recipe name -> file."""
    return {path.stem: path for path in sorted(Path(__file__).parent.glob("*.yaml"))}


def load_recipe(recipe: str, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a recipe, apply `a.b=value` overrides, validate.

    Args:
        recipe: Name of a shipped recipe or path of a YAML file.
        overrides: See `backburn.components.shared.config.configure`.

    Returns:
        The validated configuration.

    Raises:
        InputError: if there is no such recipe, or with every problem found in it.
    """
    shipped = shipped_recipes()
    path = shipped.get(recipe, Path(recipe))
    if not path.is_file():
        close = difflib.get_close_matches(recipe, shipped, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise InputError(
            f"no recipe {recipe!r}: neither a shipped recipe ({', '.join(shipped)}) nor a "
            f"file.{hint}"
        )
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not readable as YAML: {error}") from error
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise InputError(f"{path}: a recipe is a mapping of sections, got {type(values).__name__}")
    return configure(values, overrides, origin=f"recipe {recipe}")
