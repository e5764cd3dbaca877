"""The run's dataset as `data_prep` writes it: one folder with a JSONL file a split."""

import json
from pathlib import Path

from backburn.components.shared.domains.domain import (
    CalibrationExchange,
    DomainHeader,
    LessonRow,
    PromptRow,
)
from backburn.components.shared.evidence import DataRecord
from backburn.components.shared.storage import sha256_file, write_json, write_text

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


def over_refusal_split(name: str) -> str:
    """Split that holds a set of `certification.over_refusal`."""
    return _OVER_REFUSAL + name


class RunDataset:
    """Splits, rubric, refusals and calibration of a run, read from an artifact."""

    def __init__(self, folder: Path) -> None:
        """Open a folder that `write_dataset` made."""
        self._folder = folder
        self.header = DomainHeader.model_validate_json((folder / "domain.json").read_text("utf-8"))
        self.record = DataRecord.model_validate_json((folder / "record.json").read_text("utf-8"))

    @property
    def prompt_splits(self) -> list[str]:
        """Every split of prompts, those of `certification.over_refusal` included."""
        further = [name for name in self.record.splits if name.startswith(_OVER_REFUSAL)]
        return [*PROMPT_SPLITS, *further]

    def rows(self, split: str) -> list[PromptRow]:
        """Prompts of one split."""
        lines = (self._folder / f"{split}.jsonl").read_text("utf-8").splitlines()
        return [PromptRow.model_validate_json(line) for line in lines]

    def refusals(self) -> dict[str, str]:
        """Defence prompt id -> explanatory refusal."""
        loaded: dict[str, str] = json.loads((self._folder / "refusals.json").read_text("utf-8"))
        return loaded

    def calibration(self) -> list[CalibrationExchange]:
        """Labelled exchanges."""
        lines = (self._folder / "calibration.jsonl").read_text("utf-8").splitlines()
        return [CalibrationExchange.model_validate_json(line) for line in lines]

    def lesson(self, split: str) -> list[LessonRow]:
        """Harmless exchanges, `training` or `held_out`."""
        lines = (self._folder / "lesson.jsonl").read_text("utf-8").splitlines()
        rows = [LessonRow.model_validate_json(line) for line in lines]
        return [row for row in rows if row.split == split]


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
