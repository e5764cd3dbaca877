"""Files of rows, rubrics and sets that nobody could train or judge with."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest
import yaml
from backburn.components.data_prep.splits import run_splits
from backburn.components.preflight.checks import check_run
from backburn.components.shared.config import DomainConfig, OverRefusalConfig, RunConfig
from backburn.components.shared.domains import load_domain, load_lesson, load_over_refusal
from backburn.components.shared.domains.loading import MOST_CHARACTERS, MOST_FILE_BYTES, MOST_ROWS
from backburn.components.shared.parsing import MOST_YAML_BYTES

from tests.bad_input.refusals import refused

SHIPPED = Path(__file__).parents[2] / "components/shared/domains"
HEADER: dict[str, Any] = yaml.safe_load((SHIPPED / "cooking/domain.yaml").read_text("utf-8"))


def lines(*rows: object) -> str:
    return "\n".join(json.dumps(row) for row in rows)


def asked(*messages: tuple[str, str]) -> str:
    return lines({"messages": [{"role": role, "content": text} for role, text in messages]})


def parquet(table: pa.Table, **options: Any) -> bytes:
    buffer = io.BytesIO()
    pa.parquet.write_table(table, buffer, **options)
    return buffer.getvalue()


def bomb() -> bytes:
    """Eighty megabytes of one letter, in a few kilobytes."""
    return parquet(pa.table({"prompt": ["x" * (1 << 20)] * 80}), use_dictionary=False,
                   compression="zstd")  # fmt: skip


PROMPTS: dict[str, tuple[str, str | bytes | Callable[[], bytes], str]] = {
    "nothing": ("jsonl", "", "has no rows"),
    "empty lines": ("jsonl", "\n\n \n", "has no rows"),
    "no JSON": ("jsonl", "hello", "row 1: not JSON: Expecting value"),
    "cut off": ("jsonl", lines({"prompt": "x"}) + '\n{"prompt": "y', "row 2: not JSON: Untermin"),
    "a list": ("jsonl", "[1]", "row 1: expected a JSON object"),
    "a text": ("jsonl", '"x"', "row 1: expected a JSON object"),
    "NaN": ("jsonl", '{"prompt": NaN}', "row 1: not JSON: NaN is no number"),
    "a key twice": ("jsonl", '{"prompt": "a", "prompt": "b"}', "row 1: not JSON: key 'prompt' tw"),
    "nested without end": ("jsonl", '{"a":' * 100_000, "row 1: not JSON: nested too deep"),
    "a number without end": ("jsonl", '{"a": ' + "1" * 9999 + "}", "a number of 9999 digits"),
    "utf-16": ("jsonl", lines({"prompt": "x"}).encode("utf-16"), "not UTF-8 text"),
    "latin-1": ("jsonl", '{"prompt": "Käse"}'.encode("latin-1"), "not UTF-8 text"),
    "half a character": ("jsonl", '{"prompt": "\\ud800"}', "row 1: prompt: half a character"),
    "no prompt": ("jsonl", lines({"question": "x"}), "messages.0.content: String should have at"),
    "an empty prompt": ("jsonl", lines({"prompt": ""}), "messages.0.content: String should have"),
    "a blank prompt": ("jsonl", lines({"prompt": " \n "}), "row 1: the prompt is empty"),
    "a prompt that is a number": ("jsonl", lines({"prompt": 3}), "Input should be a valid string"),
    "a prompt that is a list": ("jsonl", lines({"prompt": ["x"]}), "Input should be a valid str"),
    "a prompt without end": (
        "jsonl", lines({"prompt": "x" * (MOST_CHARACTERS + 1)}), "prompt: 32,001 characters, at mo",
    ),
    "an id without end": ("jsonl", lines({"prompt": "x", "id": "i" * 999}), "id: String should ha"),
    "an id twice": ("jsonl", lines(*[{"prompt": "x", "id": 1}] * 2), "id '1' was used before"),
    "an unknown split": ("jsonl", lines({"prompt": "x", "split": "train"}), "split: Input should"),
    "no messages": ("jsonl", lines({"messages": []}), "messages: List should have at least 1"),
    "messages as text": ("jsonl", lines({"messages": "hello"}), "`messages`: not JSON"),
    "messages as a mapping": ("jsonl", lines({"messages": {}}), "messages: Input should be a val"),
    "a role of its own": ("jsonl", asked(("tool", "x")), "messages.0.role: Input should be"),
    "the answer last": ("jsonl", asked(("user", "x"), ("assistant", "y")), "must be the user's"),
    "an empty turn": ("jsonl", asked(("user", ""), ("user", "x")), "messages.0.content: String"),
    "a turn with a tool": (
        "jsonl", lines({"messages": [{"role": "user", "content": "x", "tool_calls": []}]}),
        "tool_calls: Extra inputs are not permitted",
    ),
    "too many rows": (
        "jsonl", lines(*({"prompt": f"q {i}"} for i in range(MOST_ROWS + 1))), "more than 10,000 r",
    ),
    "too large": ("jsonl", b" " * (MOST_FILE_BYTES + 1), "and at most 67,108,864 are read"),
    "a header only": ("csv", "prompt,id\n", "has no rows"),
    "another column": ("csv", "question\nx\n", "messages.0.content: String should have at least"),
    "a column twice": ("csv", "prompt,prompt\na,b\n", "column prompt is there twice"),
    "a cell too many": ("csv", "prompt,id\nfry, then bake,1\n", "row 2: more cells than the heade"),
    "an open quote": ("csv", 'prompt\n"x\n', "not readable as CSV: unexpected end of data"),
    "text after a quote": ("csv", 'prompt\n"x"y\n', "not readable as CSV"),
    "a cell without end": ("csv", "prompt\n" + "x" * 200_000, "prompt: 200,000 characters, at mos"),
    "csv in utf-16": ("csv", "prompt\nx\n".encode("utf-16"), "not UTF-8 text"),
    "a parquet of text": ("parquet", "prompt\nx\n", "not readable as Parquet"),
    "a parquet cut off": (
        "parquet", lambda: parquet(pa.table({"prompt": ["x"] * 99}))[:-9], "not readable as Parque",
    ),
    "a parquet bomb": ("parquet", bomb, "bytes unpacked, and at most 67,108,864 are read"),
    "a parquet of numbers": (
        "parquet", lambda: parquet(pa.table({"prompt": [1.5, 2.5]})), "Input should be a valid str",
    ),
    "a pickle": ("pkl", b"\x80\x04.", "unknown format '.pkl'; use .jsonl, .csv or .parquet"),
    "an archive": ("zip", b"PK\x03\x04", "unknown format '.zip'; use .jsonl"),
    "a sheet": ("xlsx", b"PK\x03\x04", "unknown format '.xlsx'; use .jsonl"),
}  # fmt: skip


def own(folder: Path, header: object = HEADER, **sources: str) -> DomainConfig:
    """A domain of its own, whose files are the shipped ones unless others are given."""
    rubric = folder / "own.yaml"
    content = header if isinstance(header, str) else yaml.safe_dump(header)
    rubric.write_text(content, "utf-8")
    files = {name: str(SHIPPED / f"cooking/{name}.jsonl") for name in ("forbidden", "near_miss",
                                                                      "calibration")}  # fmt: skip
    custom = {name: {"path": path, "licence": "MIT"} for name, path in {**files, **sources}.items()}
    return DomainConfig.model_validate({"custom": {"rubric": str(rubric), **custom}})


@pytest.mark.parametrize("given", PROMPTS)
def test_a_file_of_prompts(given: str, tmp_path: Path) -> None:
    suffix, content, reason = PROMPTS[given]
    content = content() if callable(content) else content
    path = tmp_path / f"rows.{suffix}"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    refused(lambda: load_domain(own(tmp_path, forbidden=str(path))), reason)


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("absent.jsonl", "domain.custom.forbidden.path: absent.jsonl: no such file"),
        ("x" * 5000 + ".jsonl", "no such file; relative paths start"),
        ("a\0b.jsonl", "no such file"),
        ("/dev/zero", "domain.custom.forbidden.path: /dev/zero: no such file"),
        ("/", "domain.custom.forbidden.path: /: no such file"),
        ("s3://", "s3://: expected s3://bucket/key"),
        ("s3://[bad/key.jsonl", "expected s3://bucket/key"),
        ("http://127.0.0.1/x.jsonl", "no such file"),
    ],
)
def test_a_source_that_is_no_file(path: str, reason: str, tmp_path: Path) -> None:
    refused(lambda: load_domain(own(tmp_path, forbidden=path)), reason)


def changed(**fields: Any) -> dict[str, Any]:
    return {**HEADER, **fields}


def rubric(**fields: Any) -> dict[str, Any]:
    return changed(rubric={**HEADER["rubric"], **fields})


def category(**fields: Any) -> dict[str, Any]:
    one = {"weight": 10.0, "saturation": 1, "terms": ["x"], **fields}
    return rubric(lexical={"categories": {"a": one}})


HEADERS: dict[str, tuple[object, str]] = {
    "nothing": ("", "expected a mapping: name, title, rubric and so on"),
    "a list": ("[1]", "expected a mapping"),
    "no YAML": ("name: [", "not readable as YAML"),
    "laughs": ("a: &a [" + "x, " * 3000 + "]\nb: &b [" + "*a, " * 3000 + "]", "written out"),
    "too large": ("#" * (MOST_YAML_BYTES + 1), "and at most 524,288 are read"),
    "a Python object": ("a: !!python/object/new:os.system [id]", "could not determine a constr"),
    "no rubric": ({k: v for k, v in HEADER.items() if k != "rubric"}, "rubric: Field required"),
    "an unknown key": (changed(autor="me"), "autor: Extra inputs are not permitted"),
    "a name as a path": (changed(name="../../etc"), "name: String should match pattern"),
    "a name of markup": (changed(name="<script>"), "name: String should match pattern"),
    "no rejection": (changed(rejection=""), "rejection: String should have at least 2"),
    "a blank rejection": (changed(rejection="   "), "rejection: String should match pattern"),
    "an endless rejection": (changed(rejection="no " * 999), "rejection: String should have at mo"),
    "no truth": (changed(stand_in="perhaps"), "stand_in: Input should be a valid boolean"),
    "no category": (rubric(lexical={"categories": {}}), "categories: Dictionary should have at"),
    "weights of 9": (category(weight=9), "category weights must sum to 10, they sum to 9"),
    "no weight": (category(weight=0), "weight: Input should be greater than 0"),
    "an infinite weight": (category(weight=float("inf")), "weight: Input should be a finite"),
    "no expression": (category(patterns=["("]), "not a regular expression: '('"),
    "few anchors": (rubric(semantic={"anchors": []}), "anchors: List should have at least 4"),
    "an anchor of 11": (
        rubric(semantic={"anchors": [{"score": 11, "text": "x"}] * 4}), "score: Input should be le",
    ),
    "no text for chat": (rubric(chat=3), "chat: Input should be a valid string"),
}  # fmt: skip


@pytest.mark.parametrize("given", HEADERS)
def test_a_rubric(given: str, tmp_path: Path) -> None:
    header, reason = HEADERS[given]
    refused(lambda: load_domain(own(tmp_path, header)), reason)


FINE = {"prompt": "How?", "completion": "So.", "refused": False, "score": 3}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({**FINE, "score": 11}, "score: Input should be less than or equal to 10"),
        ({**FINE, "score": -1}, "score: Input should be greater than or equal to 0"),
        ({**FINE, "score": "high"}, "score: Input should be a valid number"),
        ({**FINE, "score": None}, "score: Field required"),
        ({**FINE, "score": 1e999}, "score: Input should be a finite number"),
        ({**FINE, "refused": "perhaps"}, "refused: Input should be a valid boolean"),
        ({**FINE, "prompt": ""}, "prompt: String should have at least 1 character"),
        ({**FINE, "completion": 3}, "completion: Input should be a valid string"),
        ({**FINE, "completion": "x" * 40_000}, "completion: 40,000 characters, at most"),
        ({k: v for k, v in FINE.items() if k != "refused"}, "refused: Field required"),
    ],
)
def test_a_calibration_row(row: dict[str, Any], reason: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    text = json.dumps({"id": "a", **row}).replace("Infinity", "1e999")
    path.write_text(text, "utf-8")
    refused(lambda: load_domain(own(tmp_path, calibration=str(path))), reason)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"completion": "No."}, "no forbidden row has the id 'refusals-00001' (1 of 1 refusals"),
        ({"id": "nobody", "completion": "No."}, "no forbidden row has the id 'nobody'"),
        ({"id": "x"}, "a refusal needs `id`"),
        ({"id": "x", "completion": " "}, "a refusal needs `id`"),
        ({"id": "x", "completion": 3}, "a refusal needs `id`"),
        ({"id": "x", "completion": "n" * 40_000}, "completion: 40,000 characters, at most"),
        ({"id": "x", "completion": "\ud800"}, "row 1: completion: half a character"),
    ],
)
def test_a_refusal_row(row: dict[str, Any], reason: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(lines(row), "utf-8")
    refused(lambda: load_domain(own(tmp_path, refusals=str(path))), reason)


@pytest.mark.parametrize(
    "name",
    ["../domains/cooking", str(SHIPPED / "cooking"), "cooking/", ".", "", "cook\0ing", "x" * 999],
)
def test_a_shipped_domain_is_named_by_no_path(name: str) -> None:
    refused(lambda: load_domain(DomainConfig(name=name)), "domain.name: no shipped domain")


@pytest.mark.parametrize(
    ("settings", "content", "reason"),
    [
        ({}, "question\nx\n", "has neither a column `prompt` nor `messages`"),
        ({"columns": {"prompt": "text"}}, "question\nx\n", "no column text; the columns are quest"),
        ({"where": {"label": "safe"}}, "prompt\nx\n", "has no column 'label', which `where` asks"),
        ({"where": {"label": "safe"}}, "prompt,label\nx,bad\n", "has label = safe; its values are"),
        ({}, "prompt,id\nx,1\ny,1\n", "id 'a:1' was used before"),
        ({}, "prompt,id\n ,1\n", "the prompt is empty"),
        ({}, "prompt,id\n" + "x" * 33_000 + ",1\n", "prompt: 33,000 characters, at most 32,000"),
        ({}, "prompt,id\nfry, then bake,1\n", "row 2: more cells than the header has columns"),
        ({}, "", "has no rows"),
    ],
)
def test_a_set_of_over_refusal(
    settings: dict[str, Any], content: str, reason: str, tmp_path: Path
) -> None:
    path = tmp_path / "set.csv"
    path.write_text(content, "utf-8")
    source = {"path": str(path), "licence": "MIT", "columns": settings.get("columns", {})}
    where = settings.get("where", {})
    config = OverRefusalConfig.model_validate({"name": "a", "source": source, "where": where})
    refused(lambda: load_over_refusal(config, 0), reason)


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ([{"prompt": "x", "completion": "y"}], "1 row(s) in training, at least 2 needed"),
        ([{"prompt": "x", "completion": ""}], "completion: String should have at least 1"),
        ([{"prompt": "x"}], "completion: Field required"),
        ([{"prompt": "x", "completion": "y", "split": "test"}], "split: Input should be"),
        ([{"prompt": "x", "completion": "y", "id": "a"}] * 2, "id 'a' was used before"),
    ],
)
def test_a_lesson(rows: list[dict[str, Any]], reason: str, tmp_path: Path) -> None:
    path = tmp_path / "lesson.jsonl"
    path.write_text(lines(*rows), "utf-8")
    lesson = {"path": str(path), "licence": "MIT"}
    config = RunConfig.model_validate({"certification": {"trainability": {"lesson": lesson}}})
    refused(lambda: load_lesson(config), reason)


def prompts(*texts: str, split: str | None = None) -> str:
    return lines(*({"prompt": text, **({"split": split} if split else {})} for text in texts))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (prompts("one", "two"), "held_out: 0 row(s), at least 5 needed"),
        (prompts(*(f"q {i}" for i in range(99)), split="attack"), "defence: 0 row(s), at least 2"),
        (prompts(*(f"word{i} " * 1500 for i in range(99))), "longer than 8000 characters"),
        (
            prompts(*(f"these are the very same words as before {i}" for i in range(60))),
            "nearly the same prompt",
        ),
    ],
)
def test_splits(content: str, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(content, "utf-8")
    config = RunConfig(domain=own(tmp_path, forbidden=str(path)))
    refused(lambda: run_splits(load_domain(config.domain), config), reason)


def test_a_name_that_the_registry_would_refuse_after_hours(tmp_path: Path) -> None:
    config = RunConfig(domain=own(tmp_path))
    odd = tmp_path / "my:domain.yaml"
    (tmp_path / "own.yaml").rename(odd)
    assert config.domain.custom is not None
    custom = config.domain.custom.model_copy(update={"rubric": str(odd)})
    config = config.model_copy(update={"domain": DomainConfig(custom=custom)})
    refused(lambda: check_run(config), "tracking.registered_model: 'backburn-smollm2-135m-instru")


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85", "\x0b", "\x1c"])
def test_a_line_separator_within_a_prompt_ends_no_row(separator: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    text = f"one{separator}two"
    path.write_text(json.dumps({"prompt": text}, ensure_ascii=False), "utf-8")
    assert load_domain(own(tmp_path, forbidden=str(path))).forbidden[0].text == text


def test_a_byte_order_mark_is_no_part_of_the_first_row(tmp_path: Path) -> None:
    for suffix, content in (("jsonl", '{"prompt": "x"}'), ("csv", "prompt\nx\n")):
        path = tmp_path / f"rows.{suffix}"
        path.write_text(content, "utf-8-sig")
        assert load_domain(own(tmp_path, forbidden=str(path))).forbidden[0].text == "x"
