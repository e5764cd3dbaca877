"""Reading YAML and JSON that anybody may have written: bounded, and what is wrong in one line."""

import json
import re
import reprlib
from collections import Counter
from collections.abc import Iterator
from typing import Any, NoReturn

import yaml
from backburn.components.shared.errors import InputError
from pydantic import ValidationError

MOST_YAML_BYTES = 512 << 10
"""Of a recipe, a rubric or a task file; PyYAML reads some 200 KiB a second."""
MOST_EXPANDED = 4 << 20
"""Characters of a YAML file once every alias is replaced by what it stands for."""
MOST_LEVELS = 64
MOST_DIGITS = 40
_LONGEST_TEXT = 400
_RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = 120


class _Unfit(Exception):  # noqa: N818 - becomes an InputError that says where
    """What is wrong with a document."""


class _Loader(yaml.SafeLoader):
    """Stops at the deepest level that is read: the scanner's time grows with the levels' square."""

    _level = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        self._level += 1
        if self._level > MOST_LEVELS:
            raise _Unfit(f"nested more than {MOST_LEVELS} levels deep")
        node = super().compose_node(parent, index)
        self._level -= 1
        return node


def one_line(error: object) -> str:
    """Text of an error on one line of bounded length."""
    text = " ".join(str(error).split())
    return text if len(text) <= _LONGEST_TEXT else f"{text[:_LONGEST_TEXT]}..."


def shown(value: Any) -> str:
    """A value as Python writes it, shortened: it may be huge."""
    return one_line(_REPR.repr(value))


def first_problem(error: ValidationError) -> str:
    """What does not fit a schema, on one line: the first problem, and how many more there are."""
    found = error.errors()
    where = ".".join(map(str, found[0]["loc"])) or "(all of it)"
    more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    return one_line(f"{where}: {found[0]['msg'].removeprefix('Value error, ')}{more}")


def check_run_id(run_id: str, where: str = "run_id") -> None:
    """Refuse a run id that could name another folder, or cannot stand in a query of MLflow.

    Raises:
        InputError: if it is one.
    """
    if not _RUN_ID.fullmatch(run_id):
        raise InputError(
            f"{where} {shown(run_id)}: a run's id is 1 to 128 letters, digits and ._- and begins "
            "with a letter or digit"
        )


def decode(content: bytes, where: str) -> str:
    """UTF-8 text, without a byte order mark.

    Raises:
        InputError: if it is in another encoding.
    """
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{where}: not UTF-8 text: {error}; save it as UTF-8") from error


def parse_yaml(content: bytes | str, where: str) -> Any:
    """Plain values of a YAML document; None if it is empty.

    Args:
        content: Of the file, or a piece of YAML.
        where: Where it comes from, for the error.

    Raises:
        InputError: if it is too large, not YAML, repeats a key, or its aliases blow it up.
    """
    try:
        loader, node = _compose(content, where)
        return None if node is None else loader.construct_document(node)
    except _Unfit as error:
        raise InputError(f"{where}: {error}") from error
    except InputError:
        raise
    except Exception as error:  # what hostile YAML makes PyYAML's constructors raise
        raise InputError(f"{where}: not readable as YAML: {one_line(error)}") from error


def check_yaml(content: bytes, where: str) -> None:
    """Check a YAML document as `parse_yaml` does, whatever its tags are; nothing is constructed.

    Raises:
        InputError: as `parse_yaml`.
    """
    try:
        _compose(content, where)
    except _Unfit as error:
        raise InputError(f"{where}: {error}") from error
    except yaml.YAMLError as error:
        raise InputError(f"{where}: not readable as YAML: {one_line(error)}") from error


def parse_json(content: bytes | str, where: str) -> Any:
    """Value of a JSON text; NaN, infinity and a repeated key are errors.

    Args:
        content: The text; bytes are UTF-8.
        where: Where it comes from, for the error.

    Raises:
        InputError: if it is not JSON.
    """
    text = decode(content, where) if isinstance(content, bytes) else content
    try:
        return json.loads(
            text, parse_constant=_no_number, parse_int=_integer, object_pairs_hook=_unique
        )
    except RecursionError as error:
        raise InputError(f"{where}: not JSON: nested too deep") from error
    except (ValueError, _Unfit) as error:
        raise InputError(f"{where}: not JSON: {one_line(error)}") from error


def _compose(content: bytes | str, where: str) -> tuple[yaml.SafeLoader, yaml.Node | None]:
    if len(content) > MOST_YAML_BYTES:
        raise _Unfit(
            f"{len(content) >> 10} KiB of YAML, and at most {MOST_YAML_BYTES >> 10} KiB are read"
        )
    loader = _Loader(decode(content, where) if isinstance(content, bytes) else content)
    node = loader.get_single_node()
    if node is not None:
        _measure(node, (), {})
    return loader, node


def _measure(
    node: yaml.Node, above: tuple[yaml.Node, ...], known: dict[yaml.Node, tuple[int, int]]
) -> tuple[int, int]:
    """Characters and levels of a node with its aliases written out.

    Raises:
        _Unfit: if they are too many, a key is repeated, or an alias stands inside its own value.
    """
    line = node.start_mark.line + 1
    if node in above:
        raise _Unfit(f"line {line}: an alias inside of what it stands for")
    if node not in known:
        found = [_measure(child, (*above, node), known) for child in _children(node)]
        size = len(node.value) + 1 + sum(item[0] for item in found)
        known[node] = size, 1 + max((item[1] for item in found), default=0)
    size, levels = known[node]
    if size > MOST_EXPANDED:
        raise _Unfit(
            f"line {line}: more than {MOST_EXPANDED >> 20} MiB once its aliases are written out"
        )
    if max(levels, len(above)) > MOST_LEVELS:
        raise _Unfit(f"line {line}: nested more than {MOST_LEVELS} levels deep")
    return size, levels


def _children(node: yaml.Node) -> Iterator[yaml.Node]:
    if isinstance(node, yaml.SequenceNode):
        yield from node.value
    elif isinstance(node, yaml.MappingNode):
        keys: set[tuple[str, str]] = set()
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode):
                if (key.tag, key.value) in keys:
                    raise _Unfit(f"line {key.start_mark.line + 1}: key {shown(key.value)} twice")
                keys.add((key.tag, key.value))
            yield from (key, value)
    elif node.tag == "tag:yaml.org,2002:int" and len(node.value) > MOST_DIGITS:
        raise _Unfit(f"line {node.start_mark.line + 1}: a number of {len(node.value)} digits")


def _no_number(name: str) -> NoReturn:
    raise _Unfit(f"{name} is no number")


def _integer(digits: str) -> int:
    if len(digits) > MOST_DIGITS:
        raise _Unfit(f"a number of {len(digits)} digits")
    return int(digits)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        counts = Counter(name for name, _ in pairs)
        raise _Unfit(f"key {shown(counts.most_common(1)[0][0])} twice")
    return values
