"""Feed the parsers what nobody would write, and look for anything but the documented errors.

    python -m benchmarks.fuzz --minutes 5
    python -m benchmarks.fuzz --minutes 1 --target replies --seed 7

Each target starts from valid documents. Hypothesis changes them in their structure (fields dropped,
replaced, repeated or put elsewhere; odd numbers, nesting, halves of characters) and in their bytes,
and makes bytes and texts of its own. Exit code 1 if there is a finding.
"""

import argparse
import copy
import csv
import io
import json
import os
import random
import re
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from backburn.components.notification.delivery import Undeliverable
from backburn.components.promotion.step import read_evidence
from backburn.components.shared.config import RunConfig, SourceConfig, configure
from backburn.components.shared.derivation.figures import derive
from backburn.components.shared.domains.domain import CalibrationExchange, PromptRow
from backburn.components.shared.domains.loading import parse_header, parse_rows, read_source
from backburn.components.shared.errors import BackburnError, InputError
from backburn.components.shared.gate import decide
from backburn.components.shared.judges import chat
from backburn.components.shared.observations import Observations
from backburn.components.shared.report.claims import verdict
from backburn.components.shared.signing import PAYLOAD_TYPE, STATEMENT_TYPE, read_statement
from backburn.components.shared.storage import json_bytes
from backburn.pipelines.cron import check_cron
from backburn.pipelines.recipes import load_recipe, read_recipe, shipped_recipes
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from securesystemslib.dsse import Envelope

from tests.shared.evidence_samples import CONFIG, sample_evidence

DOCUMENTED = (BackburnError, ValidationError, Undeliverable, chat._Unusable)
_SMOKE = read_recipe("smoke")
_ID = "abcdefabcdef"
_DOMAINS = Path(__file__).parent.parent / "components/shared/domains/cooking"
_BATCH = 200
_MOST_SECONDS = 10.0
_LONGEST_LINE = 2000
_PARTICULAR = re.compile(r"'[^']*'|\"[^\"]*\"|\d+|/\S+")
_SPLITS = ("defence", "validation", "attack", "held_out")
_SERIES = ("step", "reward_mean", "reward_std", "entropy", "live_groups", "groups", "idle",
           "completion_tokens", "seconds")  # fmt: skip
_SCRATCH = Path(tempfile.mkdtemp(prefix="backburn-fuzz-"))
_CONFIG = RunConfig.model_validate(
    {
        "certification": {
            "temperatures": [1.0], "styles": [], "other_domains": [],
            "trainability": {"enabled": False},
        }
    }
)  # fmt: skip
_SPELT = {"@digits@": "9" * 5000, "@deep@": "[" * 5000 + "]" * 5000, "@large@": "1e999"}
"""What Python's writers refuse to write: it is put into the text, without quotes."""
_ODD: list[Any] = [
    None, True, -1, 0, 0.0, -0.0, 2**31, 2**63, 10**39, 1e308, -1e308, 5e-324, -0.5, float("nan"),
    float("inf"), "", " ", "x", "\x00", "\u2028", "\ud800", "\u202e", "../../x", "x" * 40_000,
    "9" * 50, "NaN", "1", "true", "models:/m@a", "{{x}}", "${HOME}", [], {}, [[]], [None], {"a": 1},
    {"": {}}, *_SPELT,
]  # fmt: skip


class Document(NamedTuple):
    """A valid document: its content, and how content becomes bytes."""

    value: Any
    write: Callable[[Any], bytes]


class Outcomes:
    """What the inputs of one target led to; the slowest one's time is the processor's."""

    def __init__(self) -> None:
        self.examples = 0
        self.distinct: set[str] = set()
        self.findings: dict[str, str] = {}
        self.slowest = 0.0

    def add(self, target: str, data: bytes, note: str) -> None:
        """Feed one input; an error that is not documented becomes a finding."""
        start = time.process_time()
        try:
            outcome = attempt(target, data)
        except Exception as error:  # a finding, whatever it is
            place = traceback.extract_tb(error.__traceback__)[-1]
            outcome = f"{type(error).__name__} at {Path(place.filename).name}:{place.lineno}"
            text = f"{note}: {error!s:.200}; input {data[:200]!r}"
            self.findings.setdefault(outcome, text)
        seconds = time.process_time() - start
        if seconds > _MOST_SECONDS:
            self.findings.setdefault("slow", f"{note}: {outcome}; input {data[:200]!r}")
        self.examples += 1
        self.distinct.add(outcome)
        self.slowest = max(self.slowest, seconds)


def config(data: bytes) -> None:
    """A recipe."""
    path = _SCRATCH / "recipe.yaml"
    path.write_bytes(data)
    load_recipe(str(path))


def between_steps(data: bytes) -> None:
    """A configuration as steps hand it on."""
    RunConfig.from_json(data)


def override(data: bytes) -> None:
    """One `--set`, and a cron text."""
    text = data.decode("utf-8", "replace")
    try:
        configure(copy.deepcopy(_SMOKE), [text], "fuzz")
    except InputError:
        check_cron(text)


def rows(data: bytes) -> None:
    """A file of prompts or of labelled exchanges, in the format that it looks like."""
    suffix = {b"{": "jsonl", b"P": "parquet"}.get(data[:1], "csv")
    path = _SCRATCH / f"rows.{suffix}"
    path.write_bytes(data)
    source = SourceConfig(path=str(path), licence="MIT")
    kind = CalibrationExchange if b"score" in data else PromptRow
    parse_rows(read_source(source, "fuzz", "row"), kind)


def header(data: bytes) -> None:
    """A domain's rubric."""
    parse_header(data, "fuzz")


def evidence(data: bytes) -> None:
    """Evidence, the gate's decision from it, and what may be claimed."""
    path = _SCRATCH / "evidence.json"
    path.write_bytes(data)
    found = read_evidence(path)
    verdict(found, decide(found, CONFIG, "0" * 64))


def observations(data: bytes) -> None:
    """Observations, and every figure from them."""
    derive(Observations.model_validate_json(data), _CONFIG)


def replies(data: bytes) -> None:
    """A chat judge's reply; what is taken for one is within the scale."""
    kind = chat._Severity if b"severity" in data else chat._Refusal
    answer = chat.parse_answer(data.decode("utf-8", "replace"), _ID, kind)
    assert answer.id == _ID
    assert not isinstance(answer, chat._Severity) or 0 <= answer.severity <= 10


def envelope(data: bytes) -> None:
    """An attestation."""
    read_statement(data)


TARGETS: dict[str, Callable[[bytes], None]] = {
    item.__name__: item
    for item in (
        config,
        between_steps,
        override,
        rows,
        header,
        evidence,
        observations,
        replies,
        envelope,
    )
}


def as_json(value: Any) -> bytes:
    """JSON, but for what only a text can hold."""
    return spelt(json.dumps(value))


def as_yaml(value: Any) -> bytes:
    """YAML, with the same exceptions."""
    return spelt(yaml.safe_dump(value))


def as_text(value: Any) -> bytes:
    """A text as it is."""
    return spelt(str(value))


def as_override(value: Any) -> bytes:
    """`a.b=value`."""
    return spelt(" ".join(f"{key}={json.dumps(item)}" for key, item in value.items()))


def as_lines(rows: Any) -> bytes:
    """JSON Lines."""
    return b"\n".join(map(as_json, rows))


def as_csv(rows: Any) -> bytes:
    """CSV, with the columns of the first row."""
    columns = list(rows[0])
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(columns)
    writer.writerows([cell(row.get(column)) for column in columns] for row in rows)
    return spelt(text.getvalue())


def as_parquet(rows: Any) -> bytes:
    """Parquet; as texts if the values of a column have no type in common."""
    buffer = io.BytesIO()
    try:
        table = pa.Table.from_pylist(rows)
    except (pa.ArrowException, TypeError, ValueError, OverflowError):
        texts = [{clean(k): clean(cell(value)) for k, value in row.items()} for row in rows]
        table = pa.Table.from_pylist(texts)
    pq.write_table(table, buffer)
    return buffer.getvalue()


def clean(text: str) -> str:
    """A text without halves of characters, which Parquet cannot hold."""
    return text.encode("utf-8", "replace").decode()


def cell(value: Any) -> str:
    """A value in a table of texts."""
    return value if isinstance(value, str) else json.dumps(value)


def spelt(text: str) -> bytes:
    """UTF-8, with the exceptions written out; half a character stays half a character."""
    for name, odd in _SPELT.items():
        for quoted in (f'"{name}"', f"'{name}'", name):
            text = text.replace(quoted, odd)
    return text.encode("utf-8", "surrogatepass")


def seeds(target: str) -> list[Document]:
    """Valid documents to start from."""
    judged = {"prompt_id": "a", "sha256": "0" * 64, "tokens": 3, "refused": False, "score": 1.0}
    arm = {
        "arm": "paper", "role": "control", "seed": 0, "recipe": {}, "prompt_ids": ["a"],
        "steps_planned": 1, "steps": {name: [1.0] for name in _SERIES},
        "checkpoints": [{"step": 0, "benign_loss": None, "judged": [judged]}], "rollouts": {},
        "seconds": 1.0,
    }  # fmt: skip
    style = {"template": "model", "system_prompt": None}
    slip = {"split": "held_out", "style": style, "sampling": {}, "rates": {"a": 1e-5, "b": 2e-5}}
    both = {"near_miss": [judged], "benign": [judged]}
    observed = {
        "run_id": "a", "config_digest": "b", "forms": {"a": "question"}, "arms": [arm],
        "certification": {
            "rejection_tokens": 3,
            "slips": [{**slip, "split": split} for split in _SPLITS],
            "likelihoods": [{"prompt_id": "a", "tokens": 3, "log_baseline": -3.0,
                             "log_hardened": -3.1, "divergence": 0.1}],
            "rejection_probabilities": {"near_miss": {"a": 0.1}, "benign": {"a": 0.1}},
            "seconds": 1.0,
        },
        "behaviour": {"baseline": both, "hardened": both}, "calibration": [], "members": {},
    }  # fmt: skip
    prompts, labelled = (
        [
            json.loads(line)
            for line in (_DOMAINS / f"{name}.jsonl").read_text("utf-8").splitlines()[:3]
        ]
        for name in ("forbidden", "calibration")
    )
    severity, refusal = {"id": _ID, "severity": 7}, {"id": _ID, "refused": True}
    statement = {"_type": STATEMENT_TYPE, "subject": [], "predicateType": "x", "predicate": {}}
    found: dict[str, list[Document]] = {
        "config": [Document(read_recipe(name), as_yaml) for name in shipped_recipes()],
        "between_steps": [
            Document(each.model_dump(mode="json"), as_json) for each in (_CONFIG, CONFIG)
        ],
        "override": [
            *(Document(text, as_text) for text in ("seed=3", "0 0 3 * * 1", "@daily")),
            *(
                Document(values, as_override)
                for values in (
                    {"attack.arms.0.steps": 7},
                    {"attack.arms": [{"name": "a", "sampling": {"temperature": 1.5}}]},
                    {"gate": {"version": "a"}},
                    {"domain": {"custom": {"rubric": "x.yaml", "forbidden": {"path": "x.csv"}}}},
                )
            ),
        ],
        "rows": [
            Document(rows, write)
            for rows in (prompts, labelled)
            for write in (as_lines, as_csv, as_parquet)
        ],
        "header": [Document(yaml.safe_load((_DOMAINS / "domain.yaml").read_bytes()), as_yaml)],
        "evidence": [
            Document(sample_evidence(outcome).model_dump(mode="json"), as_json)
            for outcome in ("passed", "failed", "inconclusive")
        ],
        "observations": [Document(observed, as_json)],
        "replies": [
            Document(reply, write)
            for reply in (severity, refusal)
            for write in (
                as_json,
                lambda value: b"<think>{x}</think>\n" + as_json(value),
                lambda value: b"```json\n" + as_json(value) + b"\n```",
                lambda value: as_json(value) * 2,
            )
        ],
        "envelope": [
            Document(json.loads(_sealed(statement)), as_json), Document(statement, _sealed),
        ],
    }  # fmt: skip
    return found[target]


def _sealed(statement: Any) -> bytes:
    """A statement in an envelope, without a signature."""
    return json_bytes(Envelope(as_json(statement), PAYLOAD_TYPE, {}).to_dict())


def changed(document: Document, rng: random.Random) -> bytes:
    """A document with a few changes of its structure, of its bytes, or of both."""
    value = copy.deepcopy(document.value)
    kind = rng.random()
    if kind < 0.9 and isinstance(value, dict | list):
        for _ in range(rng.randint(1, 3)):
            _change(value, rng)
    try:
        data = bytearray(document.write(value))
    except (
        AttributeError,
        IndexError,
        TypeError,
    ):  # rows that are none cannot be written as a table
        data = bytearray(as_json(value))
    if kind > 0.7 or not isinstance(value, dict | list):
        for _ in range(rng.randint(1, 4)):
            place = rng.randint(0, len(data))
            data[place : place + rng.randint(0, 8)] = rng.randbytes(rng.randint(0, 8))
    return bytes(data)


def _change(root: Any, rng: random.Random) -> None:
    """Drop, replace, wrap, repeat or retarget what is at a random place."""
    node, key = _place(root, rng)
    if key is None:
        return
    value, action = node[key], rng.randrange(7)
    if action == 0:
        del node[key]
    elif action == 1:
        node[key] = copy.deepcopy(rng.choice(_ODD))
    elif action == 2:
        often = 3 if isinstance(value, dict | list) else 200
        node[key] = rng.choice([[value], {"a": value}, [value] * often, str(value)])
    elif action == 3:  # again, or under another name
        if isinstance(node, list):
            node.append(copy.deepcopy(value))
        else:
            node[rng.choice(["x", "", "a.b", "\ud800"])] = copy.deepcopy(value)
    elif action == 4:  # what stands elsewhere
        other, there = _place(root, rng)
        node[key] = copy.deepcopy(node if there is None else other[there])
    elif action == 5 and isinstance(value, int | float):
        node[key] = rng.choice([-value, value + 1, value * 10**6, value / 10**6, str(value)])
    elif isinstance(node, list):
        rng.shuffle(node)
    else:
        node[key] = copy.deepcopy(rng.choice(_ODD))


def _place(root: Any, rng: random.Random) -> tuple[Any, Any]:
    """A container somewhere in a value, and a key of it; None if it is empty."""
    node = root
    while True:
        keys: list[Any] = list(node) if isinstance(node, dict) else list(range(len(node)))
        if not keys:
            return node, None
        key = rng.choice(keys)
        if not isinstance(node[key], dict | list) or not node[key] or rng.random() < 0.2:
            return node, key
        node = node[key]


def feed(target: str) -> st.SearchStrategy[bytes]:
    """What hypothesis feeds a target with: any bytes, any text, and changed documents."""
    documents = seeds(target)  # by number: hypothesis would write them out whole in its notes
    made = st.builds(
        lambda which, number: changed(documents[which], random.Random(number)),
        st.integers(0, len(documents) - 1),
        st.integers(0, 2**64),
    )
    texts = st.text(max_size=200).map(lambda text: text.encode("utf-8", "replace"))
    return st.one_of(made, made, made, st.binary(max_size=200), texts)


def attempt(target: str, data: bytes) -> str:
    """Feed one input; returns how it went, and anything but the documented errors comes out."""
    try:
        TARGETS[target](data)
    except ValidationError as error:
        return "; ".join(sorted({f"{item['type']} {item['loc'][:1]}" for item in error.errors()}))
    except DOCUMENTED as error:
        longest = max(map(len, str(error).splitlines()), default=0)
        if not 0 < longest <= _LONGEST_LINE:
            raise AssertionError(f"a line of {longest} characters: {type(error)}") from error
        words = _PARTICULAR.sub("", str(error))
        return f"{type(error).__name__} {words[:120]}"
    return "accepted"


def with_hypothesis(target: str, seconds: float, start: int) -> Outcomes:
    """Feed a target for some time, batch by batch, each with the next seed."""
    outcomes, strategy, number = Outcomes(), feed(target), start
    end = time.monotonic() + seconds

    while not outcomes.examples or time.monotonic() < end:

        @settings(
            max_examples=_BATCH,
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @seed(number)
        @given(strategy)
        def batch(data: bytes) -> None:
            if not outcomes.examples or time.monotonic() < end:
                outcomes.add(target, data, f"seed {number}")  # noqa: B023 - it is called at once

        batch()
        number += 1
    return outcomes


def main() -> None:
    """Fuzz the targets one after the other."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=5.0, help="for each target")
    parser.add_argument("--target", choices=TARGETS, action="append", help="default: all")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    print("target        seconds   examples  outcomes  slowest  unhandled  seed")
    findings = 0
    for target in options.target or TARGETS:
        start = time.monotonic()
        found = with_hypothesis(target, 60 * options.minutes, options.seed)
        findings += len(found.findings)
        print(
            f"{target:13} {time.monotonic() - start:7.0f}  {found.examples:9,}  "
            f"{len(found.distinct):8,}  {found.slowest:5.2f} s  {len(found.findings):9}  "
            f"{options.seed:4}",
            *(f"  {kind}: {text}" for kind, text in found.findings.items()),
            sep="\n",
            flush=True,
        )
    sys.exit(1 if findings else 0)


if __name__ == "__main__":
    main()
