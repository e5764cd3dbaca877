"""The run's dataset as `data_prep` writes it: one folder with a JSONL file a split."""

from pathlib import Path
from typing import TypeVar

from backburn.components.shared.domains.domain import (
    CalibrationExchange,
    DomainHeader,
    LessonRow,
    PromptRow,
)
from backburn.components.shared.errors import InputError
from backburn.components.shared.evidence import DataRecord
from backburn.components.shared.parsing import first_problem
from backburn.components.shared.storage import (
    read_bytes,
    read_json,
    sha256_bytes,
    sha256_file,
    write_json,
    write_text,
)
from pydantic import BaseModel, ValidationError

PROMPT_SPLITS = (
    "defence",
    "validation",
    "attack",
    "held_out",
    "near_miss_defence",
    "near_miss",
    "benign_defence",
    "benign",
)
"""`near_miss` and `benign` are for evaluation; the defence trains on the `_defence` parts."""

_OVER_REFUSAL = "over_refusal_"
_Row = TypeVar("_Row", bound=BaseModel)


def over_refusal_split(name: str) -> str:
    """Split that holds a set of `certification.over_refusal`."""
    return _OVER_REFUSAL + name


class RunDataset:
    """Splits, rubric, refusals and calibration of a run, read from an artifact."""

    def __init__(self, folder: Path) -> None:
        """Open a folder that `write_dataset` made.

        Raises:
            InputError: if it is damaged, here or when rows are read.
        """
        self._folder = folder
        self.header = _parsed(DomainHeader, self._read("domain.json"), folder / "domain.json")
        self.record = _parsed(DataRecord, self._read("record.json"), folder / "record.json")

    @property
    def prompt_splits(self) -> list[str]:
        """Every split of prompts, those of `certification.over_refusal` included."""
        further = [name for name in self.record.splits if name.startswith(_OVER_REFUSAL)]
        return [*PROMPT_SPLITS, *further]

    def rows(self, split: str) -> list[PromptRow]:
        """Prompts of one split."""
        return self._rows(split, PromptRow)

    def refusals(self) -> dict[str, str]:
        """Defence prompt id -> explanatory refusal."""
        loaded = read_json(self._folder / "refusals.json")
        if not isinstance(loaded, dict) or not all(isinstance(v, str) for v in loaded.values()):
            raise InputError(f"{self._folder / 'refusals.json'}: expected prompt id -> text")
        return loaded

    def calibration(self) -> list[CalibrationExchange]:
        """Labelled exchanges."""
        return self._rows("calibration", CalibrationExchange)

    def lesson(self, split: str) -> list[LessonRow]:
        """Harmless exchanges, `training` or `held_out`."""
        return [row for row in self._rows("lesson", LessonRow) if row.split == split]

    def _read(self, name: str) -> bytes:
        return read_bytes(str(self._folder / name))

    def _rows(self, name: str, kind: type[_Row]) -> list[_Row]:
        path = self._folder / f"{name}.jsonl"
        content = self._read(path.name)
        recorded = self.record.splits.get(name)
        if recorded is None or recorded.sha256 != sha256_bytes(content):
            raise InputError(
                f"{path}: not the rows that record.json names (SHA-256 differs); the dataset was "
                "changed after it was made"
            )
        lines = content.decode("utf-8").split("\n")[:-1]  # U+2028 ends no line of JSON
        return [_parsed(kind, line, path) for line in lines]


def _parsed(kind: type[_Row], content: str | bytes, path: Path) -> _Row:
    try:
        return kind.model_validate_json(content)
    except ValidationError as error:
        raise InputError(f"{path}: damaged: {first_problem(error)}") from error


def write_rows(
    path: Path, rows: list[PromptRow] | list[CalibrationExchange] | list[LessonRow]
) -> str:
    """Write rows as JSONL; returns the file's SHA-256."""
    write_text(path, "".join(row.model_dump_json() + "\n" for row in rows))
    return sha256_file(path)


def write_header(folder: Path, header: DomainHeader, record: DataRecord) -> None:
    """Write the domain's header and the data's record."""
    write_json(folder / "domain.json", header.model_dump(mode="json"))
    write_json(folder / "record.json", record.model_dump(mode="json"))
