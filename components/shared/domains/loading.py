"""Reading domains: the shipped stand-ins, and the user's own files or `datasets` ids."""

import csv
import io
import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from backburn.components.shared.config import (
    CustomDomainConfig,
    DomainConfig,
    RunConfig,
    SourceConfig,
)
from backburn.components.shared.domains import toy
from backburn.components.shared.domains.domain import (
    CalibrationExchange,
    Domain,
    DomainHeader,
    LessonRow,
    PromptRow,
)
from backburn.components.shared.errors import InputError
from backburn.components.shared.parsing import (
    MOST_YAML_BYTES,
    decode,
    one_line,
    parse_json,
    parse_yaml,
    shown,
)
from backburn.components.shared.storage import read_bytes
from pydantic import BaseModel, ValidationError

Row = TypeVar("Row", bound=BaseModel)

_FOLDER = Path(__file__).parent
_MOST_ERRORS_SHOWN = 20
_HELD_OUT_SHARE = 0.25
_LEAST_LESSON_ROWS = {"training": 2, "held_out": 5}
MOST_FILE_BYTES = 64 << 20
"""Of a file of rows, and of a Parquet file once it is unpacked."""
MOST_ROWS = 10_000
"""Of a set; every two rows of different splits are compared."""
MOST_CHARACTERS = 32_000
"""Of one field of a row."""


_HALF_CHARACTER = re.compile("[\ud800-\udfff]")


class _Unfit(Exception):  # noqa: N818 - becomes one of a file's problems
    """What is wrong with a text in a row."""


def shipped_domains() -> dict[str, str]:
    """Name -> one-line title of every shipped stand-in domain."""
    titles = {
        path.parent.name: parse_header(path.read_bytes(), str(path)).title
        for path in sorted(_FOLDER.glob("*/domain.yaml"))
    }
    return {**titles, toy.NAME: toy.TITLE}


def load_domain(config: DomainConfig) -> Domain:
    """Read the domain of a run.

    Raises:
        InputError: if the domain does not exist or any row is unusable; names file and row.
    """
    if config.custom is not None:
        return _load_custom(config.custom)
    if config.name == toy.NAME:
        return toy.build()
    if config.name not in shipped_domains():  # and so no path
        raise InputError(
            f"domain.name: no shipped domain {shown(config.name)}; there are: "
            f"{', '.join(shipped_domains())}. For your own files set domain.custom"
        )
    folder = _FOLDER / config.name
    header = parse_header((folder / "domain.yaml").read_bytes(), str(folder / "domain.yaml"))
    forbidden = parse_rows(_jsonl(folder / "forbidden.jsonl"), PromptRow)
    return Domain(
        header=header,
        forbidden=forbidden,
        near_miss=parse_rows(_jsonl(folder / "near_miss.jsonl"), PromptRow),
        benign=parse_rows(_jsonl(_FOLDER / "benign.jsonl"), PromptRow),
        refusals=_refusals(_jsonl(folder / "refusals.jsonl")),
        calibration=parse_rows(_jsonl(folder / "calibration.jsonl"), CalibrationExchange),
        licences=dict.fromkeys(("forbidden", "near_miss", "benign", "calibration"), header.licence),
    )


def is_stand_in(config: DomainConfig) -> bool:
    """Whether text of a domain may be shown.

    Raises:
        InputError: if the domain cannot be read.
    """
    custom = config.custom
    if custom is None:
        return True
    content = _read_bytes(custom.rubric, "domain.custom.rubric")
    return parse_header(content, custom.rubric).stand_in


def load_lesson(config: RunConfig) -> tuple[list[LessonRow], str]:
    """The harmless exchanges from which a run sees whether a model still learns.

    Returns:
        Rows, each with its split (of those without one a quarter is held out, chosen by the run's
        seed), and their licence.

    Raises:
        InputError: if a row is unusable, or a split too small.
    """
    source = config.certification.trainability.lesson
    if source is not None:
        key = "certification.trainability.lesson"
        rows = parse_rows(read_source(source, key, "lesson"), LessonRow)
        unassigned = [row.id for row in rows if row.split is None]
        random.Random(config.seed).shuffle(unassigned)
        held_out = set(unassigned[: round(_HELD_OUT_SHARE * len(unassigned))])
        rows = [
            row
            if row.split is not None
            else row.model_copy(update={"split": "held_out" if row.id in held_out else "training"})
            for row in rows
        ]
        for split, least in _LEAST_LESSON_ROWS.items():
            count = sum(row.split == split for row in rows)
            if count < least:
                raise InputError(f"{key}: {count} row(s) in {split}, at least {least} needed")
        return rows, str(source.licence)
    if config.domain.custom is None and config.domain.name == toy.NAME:
        return toy.lesson(), "Apache-2.0"
    return parse_rows(_jsonl(_FOLDER / "lesson.jsonl"), LessonRow), "Apache-2.0"


def parse_header(content: bytes, where: str) -> DomainHeader:
    """Content of a `domain.yaml`.

    Raises:
        InputError: if it is not readable, or not one.
    """
    values = parse_yaml(content, where)
    if not isinstance(values, dict):
        raise InputError(f"{where}: expected a mapping: name, title, rubric and so on")
    try:
        return DomainHeader.model_validate(values)
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(str(part) for part in item['loc'])}: {item['msg']}"
            for item in error.errors()
        )
        raise InputError(f"{where}: {one_line(problems)}") from error


def _load_custom(config: CustomDomainConfig) -> Domain:
    header = parse_header(
        _read_bytes(config.rubric, "domain.custom.rubric", MOST_YAML_BYTES), config.rubric
    )
    sources = {
        "forbidden": config.forbidden,
        "near_miss": config.near_miss,
        "calibration": config.calibration,
    }
    if config.benign is not None:
        sources["benign"] = config.benign
    if config.refusals is not None:
        sources["refusals"] = config.refusals
    rows = {
        name: list(read_source(source, f"domain.custom.{name}", name))
        for name, source in sources.items()
    }
    licences = {name: str(source.licence) for name, source in sources.items()}
    if config.benign is None:
        rows["benign"] = list(_jsonl(_FOLDER / "benign.jsonl"))
        licences["benign"] = "Apache-2.0"
    forbidden = parse_rows(rows["forbidden"], PromptRow)
    refusals = _refusals(rows.get("refusals", []))
    if strangers := sorted(set(refusals) - {row.id for row in forbidden}):
        raise InputError(
            f"domain.custom.refusals: no forbidden row has the id {shown(strangers[0])} "
            f"({len(strangers)} of {len(refusals)} refusals belong to none); correct the ids"
        )
    return Domain(
        header=header,
        forbidden=forbidden,
        near_miss=parse_rows(rows["near_miss"], PromptRow),
        benign=parse_rows(rows["benign"], PromptRow),
        refusals=refusals,
        calibration=parse_rows(rows["calibration"], CalibrationExchange),
        licences=licences,
    )


def read_source(
    source: SourceConfig,
    key: str,
    name: str,
    where: Mapping[str, str | list[str]] | None = None,
) -> Iterable[tuple[str, dict[str, Any]]]:
    """Yield (file and row, fields) with the user's columns renamed to ours.

    Args:
        source: File or `datasets` id.
        key: Of the source in the configuration, for error messages.
        name: Rows without an id are called `<name>-00001` and so on.
        where: Column -> value or values, as text, of the rows to keep; default: all.

    Raises:
        InputError: if it cannot be read, lacks a column, or no row is left.
    """
    if source.path is not None:
        rows = list(_read_file(source.path, f"{key}.path"))
        origin = source.path
    else:
        from datasets import load_dataset  # its import takes seconds

        origin = str(source.dataset)
        try:
            data = load_dataset(
                source.dataset, split=source.dataset_split, revision=source.dataset_revision
            )
        except Exception as error:
            raise InputError(
                f"{key}.dataset: {origin!r} could not be loaded: {one_line(error)}. "
                "Check the id, the split and HF_TOKEN, or set `path` to a local file"
            ) from error
        rows = [
            (f"{origin}[{source.dataset_split}] row {i + 1}", dict(row))
            for i, row in enumerate(data)
        ]
    if not rows:
        raise InputError(f"{key}: {origin} has no rows")
    for column, wanted in (where or {}).items():
        found = sorted({str(row[column]) for _, row in rows if column in row})
        if not found:
            raise InputError(
                f"{key}: {origin} has no column {column!r}, which `where` asks for; the columns "
                f"are {one_line(', '.join(map(str, rows[0][1])))}"
            )
        values = [wanted] if isinstance(wanted, str) else wanted
        rows = [(place, row) for place, row in rows if str(row.get(column)) in values]
        if not rows:
            known = ", ".join(found) if len(found) <= _MOST_ERRORS_SHOWN else "many different ones"
            raise InputError(
                f"{key}: no row of {origin} has {column} = {' or '.join(values)}; its values are: "
                f"{one_line(known)}. Correct `where`"
            )
    for position, (place, row) in enumerate(rows):
        yield place, _rename(row, source.columns, place, f"{name}-{position + 1:05d}")


def _rename(
    row: dict[str, Any], columns: dict[str, str], place: str, default_id: str
) -> dict[str, Any]:
    absent = sorted(set(columns.values()) - set(row))
    if absent:
        raise InputError(
            f"{place}: no column {', '.join(absent)}; the columns are "
            f"{one_line(', '.join(map(str, row)))}. Correct `columns`"
        )
    fields = {ours: row[theirs] for ours, theirs in columns.items()}
    known = {
        "id",
        "split",
        "form",
        "language",
        "messages",
        "prompt",
        "completion",
        "refused",
        "score",
        "kind",
    }
    fields = {**{key: value for key, value in row.items() if key in known}, **fields}
    fields.setdefault("id", default_id)
    fields["id"] = str(fields["id"])
    if isinstance(fields.get("messages"), str):
        fields["messages"] = parse_json(fields["messages"], f"{place}: `messages`")
    return {key: value for key, value in fields.items() if value is not None}


def _read_bytes(path: str, key: str, most: int = MOST_FILE_BYTES) -> bytes:
    """Content of what a key of the configuration names."""
    try:
        return read_bytes(path, most)
    except InputError as error:
        raise InputError(f"{key}: {error}; relative paths start at the current folder") from error


def _read_file(path: str, key: str) -> Iterable[tuple[str, dict[str, Any]]]:
    content = _read_bytes(path, key)
    suffix = Path(path).suffix.lower()
    if suffix == ".jsonl":
        yield from _jsonl_lines(content, path)
    elif suffix == ".csv":
        yield from _csv_rows(decode(content, path), path)
    elif suffix == ".parquet":
        yield from _parquet_rows(content, path)
    else:
        raise InputError(f"{path}: unknown format {suffix!r}; use .jsonl, .csv or .parquet")


def _csv_rows(text: str, path: str) -> Iterable[tuple[str, dict[str, Any]]]:
    csv.field_size_limit(MOST_FILE_BYTES)  # what is too long for a row is said there
    try:
        reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
        names = reader.fieldnames or []
        if repeated := sorted({name for name, count in Counter(names).items() if count > 1}):
            raise InputError(f"{path}: column {one_line(', '.join(repeated))} is there twice")
        for index, row in enumerate(reader):
            place = f"{path} row {index + 2}"
            if None in row:
                raise InputError(
                    f"{place}: more cells than the header has columns; put cells with commas into "
                    "quotes"
                )
            yield (
                place,
                {key: value for key, value in row.items() if key and value not in ("", None)},
            )
    except csv.Error as error:
        raise InputError(f"{path}: not readable as CSV: {one_line(error)}") from error


def _parquet_rows(content: bytes, path: str) -> Iterable[tuple[str, dict[str, Any]]]:
    import pyarrow.parquet  # only this format needs it

    try:
        file = pyarrow.parquet.ParquetFile(io.BytesIO(content))
        groups = [file.metadata.row_group(place) for place in range(file.num_row_groups)]
        unpacked = sum(group.total_byte_size for group in groups)
        if unpacked > MOST_FILE_BYTES:
            raise ValueError(
                f"{unpacked:,} bytes unpacked, and at most {MOST_FILE_BYTES:,} are read"
            )
        rows = file.read().to_pylist()
    except Exception as error:
        raise InputError(f"{path}: not readable as Parquet: {one_line(error)}") from error
    for index, row in enumerate(rows):
        yield f"{path} row {index + 1}", row


def _jsonl(path: Path) -> list[tuple[str, dict[str, Any]]]:
    return list(_jsonl_lines(path.read_bytes(), path.name))


def _jsonl_lines(content: bytes, name: str) -> Iterable[tuple[str, dict[str, Any]]]:
    for index, line in enumerate(decode(content, name).split("\n")):  # U+2028 ends no line of JSON
        if not line.strip():
            continue
        row = parse_json(line, f"{name} row {index + 1}")
        if not isinstance(row, dict):
            raise InputError(f"{name} row {index + 1}: expected a JSON object")
        yield f"{name} row {index + 1}", row


def parse_rows(rows: Iterable[tuple[str, dict[str, Any]]], kind: type[Row]) -> list[Row]:
    """Validate all rows; one error lists every unusable one.

    Raises:
        InputError: naming file, row and what is wrong with it.
    """
    prepare: Callable[[dict[str, Any], str], dict[str, Any]] = (
        _as_prompt if kind is PromptRow else lambda row, _: row
    )
    parsed: list[Row] = []
    problems: list[str] = []
    first_place: dict[str, str] = {}
    for place, row in rows:
        if len(parsed) == MOST_ROWS:
            raise InputError(
                f"{place}: more than {MOST_ROWS:,} rows, all of which would be compared with each "
                "other; take a sample, or set `limit` where there is one"
            )
        try:
            _require_texts(row)
            item = kind.model_validate(prepare(row, place))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            message = first["msg"].removeprefix("Value error, ")
            problems.append(f"{place}: {where + ': ' if where else ''}{one_line(message)}")
            continue
        except _Unfit as error:
            problems.append(f"{place}: {error}")
            continue
        identity = str(getattr(item, "id", ""))
        if identity in first_place:
            problems.append(
                f"{place}: id {shown(identity)} was used before, in {first_place[identity]}"
            )
        first_place.setdefault(identity, place)
        parsed.append(item)
    if problems:
        listed = problems[:_MOST_ERRORS_SHOWN]
        more = len(problems) - len(listed)
        tail = [f"... and {more} more"] if more else []
        raise InputError("\n".join([f"{len(problems)} unusable row(s):", *listed, *tail]))
    return parsed


def _refusals(rows: Iterable[tuple[str, dict[str, Any]]]) -> dict[str, str]:
    """Defence prompt id -> refusal.

    Raises:
        InputError: naming the rows without an id or a completion.
    """
    refusals: dict[str, str] = {}
    problems: list[str] = []
    for place, row in rows:
        text = row.get("completion")
        if "id" not in row or not isinstance(text, str) or not text.strip():
            problems.append(f"{place}: a refusal needs `id` (of a defence prompt) and `completion`")
        else:
            try:
                _require_texts(row)
            except _Unfit as error:
                problems.append(f"{place}: {error}")
            refusals[str(row["id"])] = text
    if problems:
        raise InputError("\n".join(problems[:_MOST_ERRORS_SHOWN]))
    return refusals


def _require_texts(row: dict[str, Any]) -> None:
    for name, value in row.items():
        text = "".join(map(str, value)) if isinstance(value, list) else str(value)
        if len(text) > MOST_CHARACTERS:
            raise _Unfit(f"{one_line(name)}: {len(text):,} characters, at most {MOST_CHARACTERS:,}")
        if _HALF_CHARACTER.search(text):
            raise _Unfit(f"{one_line(name)}: half a character (a lone surrogate); correct the text")


def _as_prompt(row: dict[str, Any], place: str) -> dict[str, Any]:
    fields = {key: value for key, value in row.items() if key not in ("prompt", "completion")}
    if "messages" not in fields:
        fields["messages"] = [{"role": "user", "content": row.get("prompt", "")}]
    return {**fields, "source": place}
