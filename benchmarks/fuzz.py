"""Feed the parsers what nobody would write, and look for anything but the documented errors.

    python -m benchmarks.fuzz --minutes 5
    python -m benchmarks.fuzz --minutes 1 --target replies --seed 7

Hypothesis makes bytes and texts, and changes valid documents at random. Prints executions, seed and
findings; exit code 1 if there is a finding.
"""

import argparse
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

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
from backburn.components.shared.parsing import parse_json, parse_yaml
from backburn.components.shared.signing import read_statement
from backburn.pipelines.cron import check_cron
from backburn.pipelines.recipes import load_recipe, read_recipe, shipped_recipes
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from pydantic import ValidationError

DOCUMENTED = (BackburnError, ValidationError, Undeliverable)
_ID = "abcdefabcdef"
_DOMAINS = Path(__file__).parent.parent / "components/shared/domains/cooking"
_BATCH = 200
_LONGEST_LINE = 2000
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
_ODD: list[Any] = [
    None, True, -1, 0, 10**30, 1e308, -0.5, "", "x", "\x00", "\u2028", "../../x", [], {}, [[]],
    {"a": 1}, "9" * 50, "NaN", [None], "models:/m@a",
]  # fmt: skip


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
        configure(read_recipe("smoke"), [text], "fuzz")
    except InputError:
        check_cron(text)


def rows(data: bytes) -> None:
    """A file of prompts or of labelled exchanges."""
    kind = PromptRow if len(data) % 2 else CalibrationExchange
    path = _SCRATCH / f"rows.{('jsonl', 'csv', 'parquet')[len(data) % 3]}"
    path.write_bytes(data)
    source = SourceConfig(path=str(path), licence="MIT")
    parse_rows(read_source(source, "fuzz", "row"), kind)


def header(data: bytes) -> None:
    """A domain's rubric."""
    parse_header(data, "fuzz")


def evidence(data: bytes) -> None:
    """Evidence, and the gate's decision from it."""
    path = _SCRATCH / "evidence.json"
    path.write_bytes(data)
    decide(read_evidence(path), _CONFIG, "0" * 64)


def observations(data: bytes) -> None:
    """Observations, and every figure from them."""
    derive(Observations.model_validate_json(data), _CONFIG)


def replies(data: bytes) -> None:
    """A chat judge's reply; what is taken for one is within the scale."""
    for kind in (chat._Severity, chat._Refusal):
        try:
            answer = chat.parse_answer(data.decode("utf-8", "replace"), _ID, kind)
        except chat._Unusable:
            continue
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


def seeds(target: str) -> list[bytes]:
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
    found: dict[str, list[bytes]] = {
        "config": [path.read_bytes() for path in shipped_recipes().values()],
        "between_steps": [_CONFIG.to_json().encode()],
        "override": [b"seed=3", b"attack.arms.0.steps=7", b"data.attack_prompts=5", b"0 0 3 * * 1"],
        "rows": [
            *(_DOMAINS / "forbidden.jsonl").read_bytes().split(b"\n")[:3],
            *(_DOMAINS / "calibration.jsonl").read_bytes().split(b"\n")[:3],
            b'prompt,id\nx,1\n"y, z",2\n',
        ],
        "header": [(_DOMAINS / "domain.yaml").read_bytes()],
        "evidence": [path.read_bytes() for path in Path("runs").glob("*/evidence.json")] or [b"{}"],
        "observations": [json.dumps(observed).encode()],
        "replies": [
            f'{{"id": "{_ID}", "severity": 7}}'.encode(),
            f'<think>x</think>{{"id": "{_ID}", "refused": true}}'.encode(),
        ],
        "envelope": [b'{"payload": "e30=", "payloadType": "a", "signatures": []}'],
    }  # fmt: skip
    return found[target]


def changed(document: bytes, rng: random.Random) -> bytes:
    """A document with a few places changed: values if it has a structure, else bytes."""
    try:
        value = parse_json(document, "seed")
        write: Callable[[Any], str] = json.dumps
    except InputError:
        try:
            value, write = parse_yaml(document, "seed"), yaml.safe_dump
        except InputError:
            value, write = None, str
    if not isinstance(value, dict | list) or rng.random() < 0.3:
        data = bytearray(document)
        for _ in range(rng.randint(1, 4)):
            place = rng.randint(0, len(data))
            data[place : place + rng.randint(0, 8)] = rng.randbytes(rng.randint(0, 8))
        return bytes(data)
    for _ in range(rng.randint(1, 3)):
        node = value
        while True:
            keys: list[Any] = list(node) if isinstance(node, dict) else list(range(len(node)))
            if not keys:
                break
            key = rng.choice(keys)
            if isinstance(node[key], dict | list) and rng.random() < 0.8:
                node = node[key]
                continue
            action = rng.random()
            if action < 0.2:
                del node[key]
            elif action < 0.4 and isinstance(node, list):
                node.append(node[key])
            else:
                node[key] = rng.choice(_ODD)
            break
    return write(value).encode("utf-8", "replace")


def feed(target: str) -> st.SearchStrategy[bytes]:
    """What hypothesis feeds a target with: any bytes, and changed documents."""
    documents = seeds(target)
    return st.one_of(
        st.binary(max_size=200),
        st.text(max_size=200).map(lambda text: text.encode("utf-8", "replace")),
        st.builds(
            lambda document, number: changed(document, random.Random(number)),
            st.sampled_from(documents),
            st.integers(0, 2**32),
        ),
    )


def attempt(target: str, data: bytes) -> None:
    """Feed one input; anything but the documented errors comes out."""
    try:
        TARGETS[target](data)
    except DOCUMENTED as error:
        longest = max(map(len, str(error).splitlines()), default=0)
        if not (isinstance(error, ValidationError) or 0 < longest <= _LONGEST_LINE):
            raise AssertionError(f"a line of {longest} characters: {type(error)}") from error


def with_hypothesis(target: str, seconds: float, start: int) -> tuple[int, str]:
    """Executions within a time, and what was found."""
    executions, end, number = 0, time.monotonic() + seconds, start

    def count(data: bytes) -> None:
        nonlocal executions
        executions += 1
        attempt(target, data)

    while time.monotonic() < end:
        test = settings(
            max_examples=_BATCH, deadline=None, database=None, phases=[Phase.generate],
            suppress_health_check=list(HealthCheck), print_blob=False,
        )(seed(number)(given(feed(target))(count)))  # fmt: skip
        try:
            test()
        except Exception as error:  # a finding, whatever it is
            return executions, f"seed {number}: {type(error).__name__}: {error}"
        number += 1
    return executions, ""


def main() -> None:
    """Fuzz the targets one after the other."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=5.0, help="for all targets together")
    parser.add_argument("--target", choices=TARGETS, action="append", help="default: all")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    targets = options.target or list(TARGETS)
    findings = 0
    for target in targets:
        seconds = 60 * options.minutes / len(targets)
        count, found = with_hypothesis(target, seconds, options.seed)
        findings += bool(found)
        print(
            f"{target:13} from seed {options.seed}: {count:>9,} executions, "
            f"{found or 'no finding'}",
            flush=True,
        )
    sys.exit(1 if findings else 0)


if __name__ == "__main__":
    main()
