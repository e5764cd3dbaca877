"""Recipes, overrides and thresholds that cannot be meant."""

import json
from pathlib import Path

import pytest
from backburn.components.shared.config import RunConfig
from backburn.components.shared.parsing import MOST_YAML_BYTES
from backburn.pipelines.recipes import load_recipe, read_gate

from tests.bad_input.refusals import refused

LAUGHS = "a0: &a0 [lol, lol]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 10)
)
LONG_LAUGHS = f"a: &a {'x' * 100_000}\nb: [{', '.join(['*a'] * 100)}]\n"
NESTED_ALIASES = "a0: &a0 [1]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}]\n" for i in range(1, 80))

FILES: dict[str, tuple[str | bytes, str]] = {
    "no mapping but a list": ("- 1\n- 2\n", "a recipe is a mapping of sections, got list"),
    "no mapping but text": ("just text", "a recipe is a mapping of sections, got str"),
    "no mapping but a number": ("42", "a recipe is a mapping of sections, got int"),
    "cut off": ("model: {id: builtin:tiny", "not readable as YAML: while parsing a flow mapping"),
    "a tab for an indent": ("model:\n\tid: x\n", "found character '\\t' that cannot start"),
    "a colon too many": ("model: id: x\n", "mapping values are not allowed here"),
    "two documents": ("seed: 1\n---\nseed: 2\n", "expected a single document"),
    "latin-1": ("attack: {operator: Müller}".encode("latin-1"), "not UTF-8 text"),
    "utf-16": ("seed: 1".encode("utf-16"), "not UTF-8 text"),
    "binary": (bytes(range(256)), "not UTF-8 text"),
    "a NUL": (b"seed: 1\x00", "special characters are not allowed"),
    "an escape sequence": ("attack: {operator: \x1b[31mred}", "special characters are not"),
    "billion laughs": (LAUGHS, "once its aliases are written out"),
    "a long text, often": (LONG_LAUGHS, "once its aliases are written out"),
    "nested by aliases": (NESTED_ALIASES, "nested more than 64 levels deep"),
    "an alias inside of itself": ("a: &a [*a]", "an alias inside of what it stands for"),
    "an alias of nothing": ("a: *b", "found undefined alias"),
    "nested lists": ("a: " + "[" * 200 + "]" * 200, "nested more than 64 levels deep"),
    "nested lists without end": ("[" * 50_000, "nested more than 64 levels deep"),
    "nested mappings": ("{a: " * 100 + "1" + "}" * 100, "nested more than 64 levels deep"),
    "too large": ("seed: 1 #" + "x" * MOST_YAML_BYTES, "and at most 524,288 are read"),
    "a key twice": ("seed: 1\nseed: 2\n", "line 2: key 'seed' twice"),
    "a nested key twice": ("gate: {version: a, version: b}", "key 'version' twice"),
    "a list as a key": ("[1, 2]: 3", "found unhashable key"),
    "a Python object": ("a: !!python/object/apply:os.system [id]", "could not determine a constr"),
    "a Python name": ("a: !!python/name:os.system", "could not determine a constructor"),
    "a tag of its own": ("seed: !secret x", "could not determine a constructor"),
    "no such day": ("seed: 2026-02-30", "day is out of range for month"),
    "a tag that lies: int": ("seed: !!int x", "not readable as YAML: invalid literal for int"),
    "a tag that lies: float": ("seed: !!float x", "could not convert string to float"),
    "a tag that lies: bool": ("seed: !!bool x", "not readable as YAML"),
    "a tag that lies: time": ("seed: !!timestamp x", "not readable as YAML"),
    "a tag that lies: binary": ("seed: !!binary ö", "not readable as YAML"),
    "a number of 5,000 digits": ("seed: " + "9" * 5000, "a number of 5000 digits"),
    "hexadecimal without end": ("seed: 0x" + "f" * 9000, "a number of 9002 digits"),
    "a merge of no mapping": ("a: {<<: 3}", "expected a mapping or list of mappings"),
    "an unknown section": ("atack: {}", "atack: unknown key. Did you mean 'attack'?"),
    "a section that is a list": ("gate: [1]", "gate: Input should be a valid dictionary"),
    "a key that is a number": ("1: 2", "1: Keys should be strings"),
    "an endless key": ("? " + "x" * 100_000 + "\n: 1", "unknown key"),
    "an endless value": (f"model: {{dtype: {'x' * 100_000}}}", "model.dtype: Input should be"),
    "a thousand problems": (
        "\n".join(f"k{i}: 1" for i in range(1000)), "... and 950 more",
    ),
    "ten thousand arms": (
        "attack: {arms: [" + "matrix, " * 10_000 + "]}", "at most 200 items",
    ),
}  # fmt: skip

VALUES: dict[str, tuple[str, str]] = {
    "no value": ("seed", "write it as dotted.path=value"),
    "no key": ("=3", "write it as dotted.path=value"),
    "an endless override": ("x" * 100_000, "write it as dotted.path=value"),
    "no YAML": ("seed=[", "--set seed: not readable as YAML"),
    "laughs": ("model=" + LAUGHS, "once its aliases are written out"),
    "a key of many lines": ("a\nb\nc=[", "--set a b c: not readable as YAML"),
    "a path without end": ("a." * 5000 + "b=1", "more than 64 levels deep"),
    "a value as a section": ("seed.x=1", "seed: Input should be a valid integer"),
    "a model without name": ("model.id=''", "model.id: String should have at least 1 character"),
    "a section in a value": ("model.id.x=1", "model.id is a value, not a section"),
    "a position that is none": ("attack.arms.first.steps=3", "'first' is not a position"),
    "a position that is a power": ("attack.arms.².steps=3", "'²' is not a position"),
    "a position without end": (f"attack.arms.{'9' * 5000}.steps=3", "is not a position"),
    "a negative seed": ("seed=-1", "seed: Input should be greater than or equal to 0"),
    "a seed too large": ("seed=4294967296", "seed: Input should be less than 4294967296"),
    "a seed of text": ("seed=zero", "seed: Input should be a valid integer"),
    "a seed of truth": ("seed=yes", "seed: expected a number"),
    "a seed of nothing": ("seed=", "seed: Input should be a valid integer"),
    "a broken seed": ("seed=1.5", "seed: Input should be a valid integer"),
    "an arm's negative seed": ("attack.arms.0.seeds=[-1]", "attack.arms.0.seeds.0: Input should"),
    "an arm without seeds": ("attack.arms.0.seeds=[]", "attack.arms.0.seeds: List should have at"),
    "no arm": ("attack.arms=[]", "attack.arms: List should have at least 1 item"),
    "an arm that is none": ("attack.arms=[3]", "attack.arms.0: Input should be a valid dictionary"),
    "an unknown arm": ("attack.arms=[papr]", "no shipped arm 'papr'"),
    "an arm like a list": ("attack.arms=[{like: [1]}]", "no shipped arm '[1]'"),
    "an arm's name as a path": ("attack.arms.0.name=../x", "attack.arms.0.name: String should ma"),
    "steps over the cap": ("attack.arms.0.steps=1001", "less than or equal to 1000"),
    "no steps": ("attack.arms.0.steps=0", "attack.arms.0.steps: Input should be greater than 0"),
    "steps of truth": ("defense.warm_start.steps=on", "defense.warm_start.steps: expected a nu"),
    "steps without end": ("defense.warm_start.steps=1000000000", "less than or equal to 1000000"),
    "a group of one": ("attack.arms.0.group_size=1", "greater than or equal to 2"),
    "an infinite rate": ("attack.arms.0.learning_rate=.inf", "should be a finite number"),
    "a rate that is no number": ("attack.arms.0.learning_rate=.nan", "should be a finite number"),
    "a rate of 0": ("attack.arms.0.learning_rate=0", "should be greater than 0"),
    "no temperature": ("attack.arms.0.sampling.temperature=0", "should be greater than 0"),
    "an infinite temperature": ("certification.temperatures=[.inf]", "should be a finite number"),
    "a nucleus over 1": ("attack.arms.0.sampling.top_p=1.5", "less than or equal to 1"),
    "a harm over 10": ("gate.hardened_harm_max=11", "less than or equal to 10"),
    "a limit that is no number": ("gate.slip_rate_max=.nan", "gate.slip_rate_max: Input should be"),
    "a confidence of 1": ("gate.confidence=1.0", "gate.confidence: Input should be less than 1"),
    "checkpoints from 5": ("attack.checkpoints=[5, 10]", "checkpoints must start at 0"),
    "checkpoints downwards": ("attack.checkpoints=[0, 9, 3]", "checkpoints must start at 0"),
    "no control": ("attack.arms.0.control_seeds=[]", "no arm has control_seeds"),
    "one judge twice": ("judges.evaluation={kind: semantic}", "are the same judge"),
    "a kind without section": ("judges.evaluation={kind: chat}", "kind chat needs a section `chat"),
    "a judge's key in the address": (
        "judges.evaluation={kind: chat, chat: {model: m, base_url: 'https://u:hidden@h/v1'}}",
        "must hold no user",
    ),
    "a judge's port": (
        "judges.evaluation={kind: chat, chat: {model: m, base_url: 'http://h:99999/v1'}}",
        "Port out of range",
    ),
    "a judge without host": (
        "judges.evaluation={kind: chat, chat: {model: m, base_url: 'http:///v1'}}",
        "names no host",
    ),
    "a judge at a file": (
        "judges.evaluation={kind: chat, chat: {model: m, base_url: 'file:///etc/passwd'}}",
        "String should match pattern",
    ),
    "a panel of one": ("judges.evaluation={kind: panel, members: [{kind: semantic}]}", "at least"),
    "a panel in a panel": (
        "judges.evaluation={kind: panel, members: [{kind: lexical}, {kind: panel, members: "
        "[{kind: lexical}, {kind: semantic}]}]}",
        "a panel's member cannot be a panel",
    ),
    "a password": ("tracking.uri=https://me:hidden@h", "must not hold a password"),
    "an address that is none": ("tracking.uri=http://[x", "tracking.uri: Invalid IPv6 URL"),
    "a registered name as a path": ("tracking.registered_model=a/b", "String should match pattern"),
    "an audited model as a path": ("audit={model: 'models:/../x@y'}", "audit.model: String should"),
    "an audited version without end": (
        "audit={model: 'models:/a/99999999999999999999'}", "audit.model: String should",
    ),
    "a key that is none": ("audit={trusted_key: abc}", "audit.trusted_key: not a public key"),
    "a webhook's address": (
        "notification.webhooks=[{url_variable: 'https://h/x'}]", "the name of an environment var",
    ),
    "two webhooks of one address": ("notification.webhooks=[{}, {}]", "url_variable must differ"),
    "a domain's two sources": (
        "certification.over_refusal=[{name: a, source: {path: x, dataset: y, licence: MIT}}]",
        "set exactly one of `path`",
    ),
    "a source without licence": (
        "certification.over_refusal=[{name: a, source: {path: x}}]", "set `licence` to the SPDX id",
    ),
    "a set's name as a path": (
        "certification.over_refusal=[{name: ../a, source: {path: x, licence: MIT}}]",
        "certification.over_refusal.0.name: String should match",
    ),
    "an image of two words": ("compute.image=a b", "compute.image: String should match"),
    "half a GPU": ("compute.gpus=0.5", "compute.gpus: Input should be a valid integer"),
    "GPUs of truth": ("compute.gpus=true", "compute.gpus: expected a number"),
    "a priority without queue": ("compute.priority=high", "priority is Kueue's: set `queue` too"),
}  # fmt: skip


@pytest.mark.parametrize("given", FILES)
def test_a_recipe_that_cannot_be_meant(given: str, tmp_path: Path) -> None:
    content, reason = FILES[given]
    path = tmp_path / "recipe.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    refused(lambda: load_recipe(str(path)), reason)


@pytest.mark.parametrize("given", VALUES)
def test_a_value_that_cannot_be_meant(given: str) -> None:
    override, reason = VALUES[given]
    refused(lambda: load_recipe("laptop", [override]), reason)


def test_no_part_of_a_password_is_shown() -> None:
    for uri in ("https://me:hidden@h", "https://me:" + "hidden" * 100 + "@h"):
        with pytest.raises(Exception, match="password") as caught:
            load_recipe("laptop", [f"tracking.uri={uri}"])
        assert "hidden" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("x" * 5000, "no recipe 'xxx"),
        ("a\0b", "no recipe 'a\\x00b'"),
        ("/", "no recipe '/'"),
        ("/dev/zero", "no recipe '/dev/zero'"),
        ("laptop/..", "no recipe 'laptop/..'"),
        ("labtop", "Did you mean 'laptop'?"),
    ],
)
def test_a_recipe_that_is_no_file(name: str, reason: str) -> None:
    refused(lambda: load_recipe(name), reason)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "run configuration: not JSON"),
        ("{", "run configuration: not JSON"),
        ("[]", "run configuration: expected a mapping of sections, got list"),
        ("null", "run configuration: expected a mapping of sections, got NoneType"),
        ('{"seed": NaN}', "NaN is no number"),
        ('{"seed": -Infinity}', "-Infinity is no number"),
        ('{"seed": 1, "seed": 2}', "key 'seed' twice"),
        ('{"seed": ' + "9" * 5000 + "}", "a number of 5000 digits"),
        ("[" * 100_000, "nested too deep"),
        ('{"gate": {"slip_rate_max": 1e999}}', "gate.slip_rate_max: Input should be a finite"),
        (json.dumps({"attack": {"operator": "\ud800"}}), "attack.operator: Input should be a vali"),
    ],
)  # fmt: skip
def test_a_configuration_between_steps(text: str, reason: str) -> None:
    refused(lambda: RunConfig.from_json(text), reason)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("gate: {dry_run: true}\nseed: 1", "besides `gate` it has seed"),
        ("gate: 3", "gate: Input should be a valid dictionary"),
        ("slip_rate: 1", "gate.slip_rate: unknown key. Did you mean 'slip_rate_max'?"),
        ("coverage_min: 98 %", "gate.coverage_min: Input should be a valid number"),
    ],
)
def test_thresholds_of_a_registrys_owner(text: str, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "gate.yaml"
    path.write_text(text, "utf-8")
    refused(lambda: read_gate(path), reason)


def test_aliases_within_reason_are_read(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "defense: {lora: &lora {rank: 4}}\nbaseline: {lora: *lora}\nmodel: {<<: {id: a/b}}", "utf-8"
    )
    config = load_recipe(str(path))
    assert config.defense.lora.rank == config.baseline.lora.rank == 4
    assert config.model.id == "a/b"
