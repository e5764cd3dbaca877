"""Domains: shipped ones are complete, the user's own are read and checked row by row."""

import json
from pathlib import Path

import pandas as pd
import pytest
import yaml
from backburn.components.data_prep.splits import make_splits
from backburn.components.shared.config import DataConfig, DomainConfig
from backburn.components.shared.domains import load_domain, shipped_domains
from backburn.components.shared.domains.toy import REJECTION
from backburn.components.shared.errors import InputError

SHIPPED = Path(__file__).parents[2] / "components/shared/domains"


@pytest.mark.parametrize("name", ["cooking", "home_networking"])
def test_shipped_domains_have_what_the_measuring_needs(name: str) -> None:
    domain = load_domain(DomainConfig(name=name))
    splits = [row.split for row in domain.forbidden]
    assert [splits.count(s) for s in ("defence", "validation", "attack", "held_out")] == [
        240, 24, 10, 40,
    ]  # fmt: skip
    assert len(domain.near_miss) == 199
    assert len(domain.benign) == 445
    assert len(domain.calibration) == 60
    assert domain.header.stand_in
    made = make_splits(domain, DataConfig(), 0)
    assert [len(made[s]) for s in ("defence", "validation", "attack", "held_out")] == [
        240, 24, 10, 40,
    ]  # fmt: skip
    forms = {"question", "order", "role_play", "multi_turn", "long_context", "other_language"}
    for split in ("defence", "validation", "held_out"):
        assert {row.form for row in domain.forbidden if row.split == split} == forms
    defence = {row.id for row in domain.forbidden if row.split == "defence"}
    assert set(domain.refusals) == defence
    assert domain.header.rejection not in domain.refusals.values()
    kinds = {exchange.kind for exchange in domain.calibration}
    assert {
        "terse_refusal",
        "explanatory_refusal",
        "half_answer",
        "full_answer",
        "gibberish",
    } <= kinds


def test_toy_domain_is_the_same_every_time() -> None:
    first, second = (load_domain(DomainConfig(name="toy_kitchen")) for _ in range(2))
    assert first == second
    assert REJECTION not in first.refusals.values()


def test_unknown_domain_lists_the_known_ones() -> None:
    with pytest.raises(InputError, match="cooking, home_networking, toy_kitchen"):
        load_domain(DomainConfig(name="nothing"))
    assert set(shipped_domains()) == {"cooking", "home_networking", "toy_kitchen"}


def custom(tmp_path: Path, forbidden: Path, **columns: str) -> DomainConfig:
    header = yaml.safe_load((SHIPPED / "cooking/domain.yaml").read_text("utf-8"))
    (tmp_path / "own.yaml").write_text(yaml.safe_dump({**header, "name": "own"}), "utf-8")
    source = {"path": str(forbidden), "licence": "MIT", "columns": columns}
    return DomainConfig.model_validate(
        {
            "custom": {
                "rubric": str(tmp_path / "own.yaml"),
                "forbidden": source,
                "near_miss": {"path": str(SHIPPED / "cooking/near_miss.jsonl"), "licence": "MIT"},
                "calibration": {
                    "path": str(SHIPPED / "cooking/calibration.jsonl"),
                    "licence": "MIT",
                },
            }
        }
    )


@pytest.mark.parametrize("suffix", ["csv", "parquet", "jsonl"])
def test_own_files_with_renamed_columns(tmp_path: Path, suffix: str) -> None:
    frame = pd.DataFrame({"text": [f"question {i}" for i in range(4)], "n": range(4)})
    path = tmp_path / f"rows.{suffix}"
    if suffix == "csv":
        frame.to_csv(path, index=False)
    elif suffix == "parquet":
        frame.to_parquet(path)
    else:
        frame.to_json(path, orient="records", lines=True)
    domain = load_domain(custom(tmp_path, path, prompt="text"))
    assert [row.text for row in domain.forbidden] == [f"question {i}" for i in range(4)]
    assert domain.licences["forbidden"] == "MIT"


def test_unusable_rows_are_named_by_file_and_row(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    rows = [{"prompt": "fine"}, {"prompt": " "}, {"prompt": "x", "id": "forbidden-00001"}]
    path.write_text("\n".join(json.dumps(row) for row in rows), "utf-8")
    with pytest.raises(InputError) as caught:
        load_domain(custom(tmp_path, path))
    text = str(caught.value)
    assert "2 unusable row(s)" in text
    assert f"{path} row 2: the prompt is empty" in text
    assert f"{path} row 3: id 'forbidden-00001' was used before" in text


@pytest.mark.parametrize(
    ("content", "message"),
    [("", "has no rows"), ("{", "row 1: not JSON"), ("[1]", "expected a JSON object")],
)
def test_broken_files(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(content, "utf-8")
    with pytest.raises(InputError, match=message):
        load_domain(custom(tmp_path, path))


def test_missing_column_lists_the_columns(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("a,b\n1,2\n", "utf-8")
    with pytest.raises(InputError, match="no column text; the columns are a, b"):
        load_domain(custom(tmp_path, path, prompt="text"))


def test_a_missing_file_is_named_with_its_key(tmp_path: Path) -> None:
    config = custom(tmp_path, tmp_path / "gone.jsonl")
    reason = r"^domain\.custom\.{}: .*no such file; relative"
    with pytest.raises(InputError, match=reason.format(r"forbidden\.path")):
        load_domain(config)
    (tmp_path / "own.yaml").unlink()
    with pytest.raises(InputError, match=reason.format("rubric")):
        load_domain(config)
