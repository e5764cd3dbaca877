"""What lies between steps, and what a finished run left: damaged, swapped or hostile."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from backburn.components.data_prep.splits import write_dataset
from backburn.components.promotion.step import check_figures, read_evidence
from backburn.components.shared.config import UtilityConfig
from backburn.components.shared.dataset import RunDataset
from backburn.components.shared.domains import Domain
from backburn.components.shared.errors import BackburnError, ContainmentError, InputError
from backburn.components.shared.sealing import KEY_VARIABLE, check_key, new_key, open_sealed, seal
from backburn.components.shared.storage import sha256_file
from backburn.components.shared.utility.tasks import check_tasks
from backburn.pipelines.recipes import load_recipe
from backburn.pipelines.rejudge import read_run

from tests.bad_input.refusals import refused
from tests.shared.evidence_samples import CONFIG, sample_evidence

Edit = Callable[[Path], object]


def write(name: str, content: str | bytes) -> Edit:
    data = content if isinstance(content, bytes) else content.encode()
    return lambda folder: (folder / name).write_bytes(data)


def gone(name: str) -> Edit:
    return lambda folder: (folder / name).unlink()


def appended(name: str, text: str) -> Edit:
    return lambda folder: (folder / name).write_text((folder / name).read_text("utf-8") + text)


def recorded(name: str, content: str) -> Edit:
    """Other rows, which the record names."""

    def edit(folder: Path) -> None:
        (folder / f"{name}.jsonl").write_text(content, "utf-8")
        record = json.loads((folder / "record.json").read_text("utf-8"))
        record["splits"][name]["sha256"] = sha256_file(folder / f"{name}.jsonl")
        (folder / "record.json").write_text(json.dumps(record), "utf-8")

    return edit


@pytest.fixture(scope="module")
def dataset(toy: Domain, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dataset")
    write_dataset(folder, toy, load_recipe("smoke"))
    return folder


def read_all(folder: Path) -> None:
    data = RunDataset(folder)
    for split in data.prompt_splits:
        data.rows(split)
    data.refusals()
    data.calibration()
    data.lesson("training")


DATASETS: dict[str, tuple[Edit, str]] = {
    "nothing": (lambda folder: shutil.rmtree(folder), "domain.json: no such file"),
    "no record": (gone("record.json"), "record.json: no such file"),
    "a record of a list": (write("record.json", "[]"), "record.json: damaged: (all of it)"),
    "a record cut off": (write("record.json", '{"domain": "x"'), "record.json: damaged: (all of i"),
    "a nested record": (write("record.json", '{"a":' * 5000), "record.json: damaged: (all of it)"),
    "a record in utf-16": (write("record.json", "{}".encode("utf-16")), "record.json: damaged"),
    "no header": (gone("domain.json"), "domain.json: no such file"),
    "a header of nothing": (write("domain.json", "{}"), "domain.json: damaged: name: Field requir"),
    "no rows": (gone("attack.jsonl"), "attack.jsonl: no such file"),
    "one row more": (appended("attack.jsonl", "{}\n"), "attack.jsonl: not the rows that record.js"),
    "no row any more": (write("held_out.jsonl", ""), "held_out.jsonl: not the rows that record"),
    "rows of other splits": (
        lambda f: shutil.copy(f / "defence.jsonl", f / "held_out.jsonl"), "not the rows that recor",
    ),
    "changed labels": (appended("calibration.jsonl", " "), "calibration.jsonl: not the rows that"),
    "another lesson": (write("lesson.jsonl", "{}\n"), "lesson.jsonl: not the rows that record.jso"),
    "rows without prompt": (recorded("attack", '{"id": "a"}\n'), "attack.jsonl: damaged: messages"),
    "rows of text": (recorded("attack", "hello\n"), "attack.jsonl: damaged: (all of it)"),
    "labels over 10": (
        recorded("calibration", '{"id": "a", "prompt": "b", "completion": "c", "refused": false, '
                 '"score": 99}\n'), "calibration.jsonl: damaged: score: Input should be less than",
    ),
    "no refusals": (gone("refusals.json"), "refusals.json: no such file"),
    "refusals of a list": (write("refusals.json", "[]"), "refusals.json: expected prompt id -> te"),
    "refusals of numbers": (write("refusals.json", '{"a": 1}'), "expected prompt id -> text"),
    "refusals cut off": (write("refusals.json", '{"a'), "refusals.json: not JSON"),
}  # fmt: skip


@pytest.mark.parametrize("given", DATASETS)
def test_a_dataset(given: str, dataset: Path, tmp_path: Path) -> None:
    edit, reason = DATASETS[given]
    folder = tmp_path / "dataset"
    shutil.copytree(dataset, folder)
    read_all(folder)
    edit(folder)
    refused(lambda: read_all(folder), reason)


def sealed(content: bytes) -> Callable[[str], bytes]:
    return lambda key: check_key(key).encrypt(content)


SEALS: dict[str, tuple[Callable[[str], bytes], str, type[BackburnError]]] = {
    "empty": (lambda key: b"", "the seal does not open", ContainmentError),
    "clear text": (
        lambda key: b'[{"completion": "x"}]',
        "the seal does not open",
        ContainmentError,
    ),
    "another key": (
        lambda key: sealed(b"[]")(new_key()),
        "the seal does not open",
        ContainmentError,
    ),
    "cut off": (lambda key: sealed(b"[]")(key)[:-9], "the seal does not open", ContainmentError),
    "no JSON": (sealed(b"hello"), "not JSON", InputError),
    "a pickle": (sealed(b"\x80\x04N."), "not UTF-8 text", InputError),
    "no list": (sealed(b"{}"), "sealed, but no list of records", InputError),
    "no records": (sealed(b"[1]"), "sealed, but no list of records", InputError),
    "no number": (sealed(b'[{"step": NaN}]'), "NaN is no number", InputError),
    "nested": (sealed(b"[" * 100_000), "nested too deep", InputError),
}


@pytest.mark.parametrize("given", SEALS)
def test_a_sealed_file(given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make, reason, error = SEALS[given]
    key = new_key()
    monkeypatch.setenv(KEY_VARIABLE, key)
    path = tmp_path / "sealed"
    path.write_bytes(make(key))
    refused(lambda: open_sealed(path), reason, error)


def test_a_sealed_file_that_is_gone_or_whose_key_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused(lambda: open_sealed(tmp_path / "gone"), "gone: no such file")
    seal(tmp_path / "sealed", [])
    monkeypatch.delenv(KEY_VARIABLE)
    reason = f"{KEY_VARIABLE} is not set"
    refused(lambda: open_sealed(tmp_path / "sealed"), reason, ContainmentError)


def evidence_with(**fields: Any) -> bytes:
    return json.dumps({**sample_evidence().model_dump(mode="json"), **fields}).encode()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not readable as evidence: (all of it): Invalid JSON"),
        (b"[]", "not readable as evidence: (all of it): Input should be an object"),
        (b"\xff\xfe", "not readable as evidence: (all of it): Invalid JSON"),
        (b'{"arms":' * 5000, "not readable as evidence: (all of it): Invalid JSON"),
        (b"{}", "not readable as evidence: run_id: Field required (and"),
        (evidence_with(schema_version="2"), "schema_version: Input should be '1'"),
        (evidence_with(coverage="all"), "coverage: Input should be a valid number"),
        (evidence_with(coverage=float("nan")), "coverage: Input should be a finite number"),
        (evidence_with(detectable_harm=float("inf")), "detectable_harm: Input should be a finite"),
        (evidence_with(approved=True), "approved: Extra inputs are not permitted"),
        (evidence_with(arms={}), "arms: Input should be a valid"),
    ],
)
def test_evidence(content: bytes, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "evidence.json"
    path.write_bytes(content)
    refused(lambda: read_evidence(path), reason)


JUDGED = {"prompt_id": "a", "sha256": "0" * 64, "tokens": 3, "refused": False, "score": 1.0}
MEASURED: dict[str, Any] = {
    "run_id": "a", "config_digest": CONFIG.digest(), "forms": {}, "arms": [], "calibration": [],
    "certification": {"rejection_tokens": 3, "slips": [], "likelihoods": [], "seconds": 1.0,
                      "rejection_probabilities": {}},
    "behaviour": {"baseline": {"benign": [JUDGED]}, "hardened": {}}, "members": {},
}  # fmt: skip


def judged(**fields: Any) -> dict[str, Any]:
    return {**MEASURED, "behaviour": {"baseline": {"benign": [{**JUDGED, **fields}]}}}


@pytest.mark.parametrize(
    ("observed", "reason"),
    [
        (judged(score=11.0), "score: Input should be less than or equal to 10"),
        (judged(score=-1.0), "score: Input should be greater than or equal to 0"),
        (judged(score=float("nan")), "score: Input should be a finite number"),
        (judged(tokens=-1), "tokens: Input should be greater than or equal to 0"),
        (judged(text="hello"), "text: Extra inputs are not permitted"),
        ({**MEASURED, "behaviour": {"other": {}}}, "behaviour.other"),
        ({**MEASURED, "members": {"a": [11]}}, "members.a.0: Input should be less than or equal"),
        (MEASURED, "no figures follow: "),
        ([], "not observations: (all of it)"),
    ],
)
def test_observations(observed: Any, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "observations.json"
    path.write_text(json.dumps(observed), "utf-8")
    evidence = sample_evidence().model_copy(update={"observations_sha256": sha256_file(path)})
    refused(lambda: check_figures(evidence, CONFIG, path), reason)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("summary.json", None, "not the folder of a finished run"),
        ("summary.json", "[", "summary.json: not JSON"),
        ("summary.json", "{}", "summary.json: damaged: run_id: Field required (and"),
        ("summary.json", '{"a": NaN}', "NaN is no number"),
    ],
)
def test_a_finished_runs_folder(
    name: str, content: str | None, reason: str, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / name).write_text(content, "utf-8")
    refused(lambda: read_run(tmp_path), reason)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("task: [", "own.yaml: not readable as YAML"),
        ("a: &a [1]\n" + "".join(f"b{i}: &b{i} [{'*a, ' * 9}]\n" for i in range(9))
         + "c: [*b1" + ", *b1" * 700_000 + "]", "own.yaml: 3,500,441 bytes, and at most"),
        ("a: &a [*a]", "an alias inside of what it stands for"),
        ("[" * 3000, "nested more than 64 levels deep"),
        ("task: x\ntask: y", "key 'task' twice"),
        ("include: absent.yaml\ntask: x", "own.yaml: "),
    ],
)  # fmt: skip
def test_a_folder_of_tasks(content: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text(content, "utf-8")
    config = UtilityConfig(tasks=["x"], task_folder=str(tmp_path))
    refused(lambda: check_tasks(config), reason)


def test_a_folder_of_tasks_that_is_none(tmp_path: Path) -> None:
    for name in (str(tmp_path / "absent"), "x" * 5000, "/etc/passwd"):
        config = UtilityConfig(tasks=["x"], task_folder=name)
        refused(lambda: check_tasks(config), "certification.utility.task_folder: no folder")  # noqa: B023
