"""The shipped recipes and attack arms, and reading a recipe by name or path."""

import copy
import difflib
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from backburn.components.shared.config import (
    MOST_ARMS,
    GateConfig,
    RunConfig,
    configure,
    validate_config,
)
from backburn.components.shared.errors import InputError
from backburn.components.shared.parsing import MOST_YAML_BYTES, parse_yaml, shown
from backburn.components.shared.storage import is_file, read_bytes

_ARMS = Path(__file__).with_name("arms.yaml")
_ALL = "matrix"


def shipped_recipes() -> dict[str, Path]:
    """Recipe name -> file."""
    files = sorted(Path(__file__).parent.glob("*.yaml"))
    return {path.stem: path for path in files if path != _ARMS}


@cache
def shipped_arms() -> dict[str, dict[str, Any]]:
    """Attack arms by name: what each sets, `name` included."""
    arms = yaml.safe_load(_ARMS.read_text(encoding="utf-8"))
    return {name: {"name": name, **settings} for name, settings in arms.items()}


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
    return configure(read_recipe(recipe), overrides, f"recipe {recipe}", _name_arms)


def read_recipe(recipe: str) -> dict[str, Any]:
    """The plain values of a recipe, not validated.

    Raises:
        InputError: if there is no such recipe, or it is no mapping.
    """
    shipped = shipped_recipes()
    path = shipped.get(recipe, Path(recipe))
    if not is_file(path):
        close = difflib.get_close_matches(recipe, shipped, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise InputError(
            f"no recipe {shown(recipe)}: neither a shipped recipe ({', '.join(shipped)}) nor a "
            f"file.{hint}"
        )
    values = parse_yaml(read_bytes(str(path), MOST_YAML_BYTES), str(path))
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise InputError(f"{path}: a recipe is a mapping of sections, got {type(values).__name__}")
    return values


def read_gate(path: Path) -> GateConfig:
    """Thresholds of a registry's owner: a YAML file with a `gate` section, or just its content.

    Raises:
        InputError: if it is unreadable or not valid, with every problem.
    """
    values = read_recipe(str(path))
    section = values.get("gate", values)
    if set(values) > {"gate"} and "gate" in values:
        raise InputError(
            f"{path}: besides `gate` it has {', '.join(sorted(set(values) - {'gate'}))}"
        )
    return validate_config({"gate": section}, f"{path}").gate


def _name_arms(values: dict[str, Any]) -> None:
    """Replace the names of shipped arms in `attack.arms` by their settings, in place."""
    attack = values.get("attack")
    if not isinstance(attack, dict) or not isinstance(attack.get("arms"), list):
        return
    if len(attack["arms"]) > MOST_ARMS:
        return  # validation will say so
    arms: list[Any] = []
    for place, entry in enumerate(attack["arms"]):
        if isinstance(entry, str):
            arms += _arms_like(entry, {}, place)
        elif isinstance(entry, dict) and "like" in entry:
            changes = {key: value for key, value in entry.items() if key != "like"}
            arms += _arms_like(str(entry["like"]), changes, place)
        else:
            arms.append(entry)
    attack["arms"] = arms


def _arms_like(name: str, changes: dict[str, Any], place: int) -> list[dict[str, Any]]:
    """An arm with changes; for all arms of the matrix, an arm's own settings come first."""
    known = shipped_arms()
    if name == _ALL:
        return [{**changes, **copy.deepcopy(arm)} for arm in known.values()]
    if name not in known:
        close = difflib.get_close_matches(name, [*known, _ALL], n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise InputError(
            f"attack.arms.{place}: no shipped arm {shown(name)}; `backburn arms` lists them.{hint}"
        )
    return [{**copy.deepcopy(known[name]), **changes}]
