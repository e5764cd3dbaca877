"""A finished run's bundle: sound as it is, and not after any change."""

import base64
import copy
import dataclasses
import json
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from backburn.components.shared.attestation import (
    ATTESTATION,
    DECISION,
    EVIDENCE,
    FILES,
    OBSERVATIONS,
    PREDICATE_TYPE,
    Statement,
    make_statement,
)
from backburn.components.shared.derivation.figures import Figures
from backburn.components.shared.errors import ContainmentError, InputError
from backburn.components.shared.evidence import Decision, Evidence
from backburn.components.shared.gate import gate_digest
from backburn.components.shared.signing import (
    KEY_VARIABLE,
    new_key,
    open_statement,
    public_key_of,
    read_statement,
    require_key,
    sign_statement,
)
from backburn.components.shared.storage import canonical_json, json_bytes, sha256_bytes, sha256_text
from backburn.components.shared.verification import Verification, verify_bundle
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from google.protobuf import json_format
from in_toto_attestation.v1 import statement as in_toto
from in_toto_attestation.v1 import statement_pb2
from jsonschema import Draft202012Validator

MUTATIONS = 500
RESIGNED = 30
Path_ = tuple[str | int, ...]


@dataclass(frozen=True)
class Sound:
    """A sound bundle, its key, and the model it is about."""

    folder: Path
    private_key: str
    model: Path

    @property
    def public_key(self) -> str:
        return public_key_of(self.private_key)


@pytest.fixture(scope="module")
def sound(
    smoke_run: tuple[Path, subprocess.CompletedProcess[str]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Sound:
    """The smoke run's bundle, signed again with a key that the test knows."""
    run = smoke_run[0] / "one"
    folder = tmp_path_factory.mktemp("bundle")
    for name in FILES:
        shutil.copy(run / name, folder / name)
    bundle = Sound(folder, new_key(), next(run.glob("artifacts/*/defense-training/hardened")))
    statement = read_statement((run / ATTESTATION).read_bytes())
    statement["predicate"]["public_key"] = bundle.public_key
    _sign(folder, statement, bundle.private_key)
    return bundle


def _sign(folder: Path, statement: dict[str, Any], private_key: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(KEY_VARIABLE, private_key)
        (folder / ATTESTATION).write_bytes(sign_statement(statement))


def _problems(found: Verification) -> str:
    return "\n".join(problem for item in found.findings for problem in item.problems)


def _leaves(value: Any, path: Path_ = ()) -> Iterator[Path_]:
    if isinstance(value, dict | list) and value:
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in items:
            yield from _leaves(item, (*path, key))
    else:
        yield path


def _mutated(value: Any, path: Path_, chance: random.Random) -> Any:
    """A copy in which the one field at `path` is another."""
    changed = copy.deepcopy(value)
    holder = changed
    for key in path[:-1]:
        holder = holder[key]
    old = holder[path[-1]]
    if isinstance(old, bool):
        new: Any = not old
    elif isinstance(old, int):
        new = old + chance.choice((-1, 1, 7))
    elif isinstance(old, float):
        new = chance.choice((old * (1 + 1e-12) + 1e-12, old + 0.5, -1.0 - old))
    elif isinstance(old, str):
        new = old[:-1] + chance.choice("0a Z") if old and chance.random() < 0.5 else f"{old}x"
        new = new if new != old else f"{old}x"
    else:
        new = chance.choice((1, "x", [0.5], {"a": 1}))
    holder[path[-1]] = new
    return changed


def test_a_finished_runs_folder_is_a_sound_bundle(
    smoke_run: tuple[Path, subprocess.CompletedProcess[str]], sound: Sound
) -> None:
    command = [sys.executable, "-m", "backburn.pipelines.cli", "verify", str(smoke_run[0] / "one")]
    done = subprocess.run(
        [*command, "--model", str(sound.model)],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "bit for bit" in done.stdout
    assert "Sound: run one" in done.stdout
    other = smoke_run[0].parent / "public.pem"
    other.write_text(public_key_of(new_key()), "utf-8")
    for absent in (other.with_name("absent.pem"), smoke_run[0] / "one" / "summary.json"):
        unread = subprocess.run(
            [*command, "--key", str(absent)],
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
        assert unread.returncode == 2
        assert "cannot be read as a public key" in unread.stderr
    refused = subprocess.run(
        [*command, "--key", str(other)], capture_output=True, text=True, timeout=100, check=False
    )
    assert refused.returncode == 1
    assert "Not sound" in refused.stdout


def test_every_question_is_asked(sound: Sound) -> None:
    found = verify_bundle(sound.folder, sound.public_key, sound.model)
    assert found.sound, _problems(found)
    assert found.trusted
    assert len(found.findings) == 11
    figures = next(item for item in found.findings if "figure" in item.question)
    assert int(figures.note.split()[0].replace(",", "")) > 500
    Draft202012Validator(Statement.model_json_schema()).validate(
        read_statement((sound.folder / ATTESTATION).read_bytes())
    )


@pytest.mark.parametrize("name", [*FILES, ATTESTATION])
def test_a_missing_file_is_noticed(name: str, sound: Sound, tmp_path: Path) -> None:
    shutil.copytree(sound.folder, tmp_path / "b")
    (tmp_path / "b" / name).unlink()
    if name == ATTESTATION:
        with pytest.raises(InputError, match="not an evidence bundle"):
            verify_bundle(tmp_path / "b", sound.public_key)
        return
    found = verify_bundle(tmp_path / "b", sound.public_key)
    assert not found.sound
    assert f"{name}: missing" in _problems(found)


def test_every_single_field_counts(sound: Sound, tmp_path: Path) -> None:
    """Of 500 bundles with one changed field each, none is taken for sound."""
    chance = random.Random(0)
    contents = {
        name: json.loads((sound.folder / name).read_bytes())
        for name in (EVIDENCE, OBSERVATIONS, DECISION, ATTESTATION)
    }
    statement = read_statement((sound.folder / ATTESTATION).read_bytes())
    fields = {name: list(_leaves(content)) for name, content in contents.items()}
    inner = list(_leaves(statement))
    folder = tmp_path / "b"
    shutil.copytree(sound.folder, folder)
    taken_for_sound = []
    for number in range(MUTATIONS):
        name = chance.choice([*contents, "payload"])
        if name == "payload":
            name, path = ATTESTATION, chance.choice(inner)
            payload = json.dumps(
                _mutated(statement, path, chance), sort_keys=True, separators=(",", ":")
            )
            envelope = copy.deepcopy(contents[ATTESTATION])
            envelope["payload"] = base64.b64encode(payload.encode()).decode()
            (folder / name).write_bytes(json_bytes(envelope))
        else:
            path = chance.choice(fields[name])
            (folder / name).write_bytes(json_bytes(_mutated(contents[name], path, chance)))
        if verify_bundle(folder, sound.public_key).sound:
            taken_for_sound.append((number, name, path))
        shutil.copy(sound.folder / name, folder / name)
    assert not taken_for_sound
    assert verify_bundle(folder, sound.public_key).sound


def test_figures_that_do_not_follow_are_noticed_even_if_signed(
    sound: Sound, tmp_path: Path
) -> None:
    """Whoever has the key can still not state a figure that the observations do not give."""
    chance = random.Random(1)
    evidence = json.loads((sound.folder / EVIDENCE).read_bytes())
    derived = {field.name for field in dataclasses.fields(Figures)}
    fields = [path for path in _leaves(evidence) if path[0] in derived]
    for _ in range(RESIGNED):
        path = chance.choice(fields)
        folder = tmp_path / "b"
        shutil.copytree(sound.folder, folder, dirs_exist_ok=True)
        content = json_bytes(_mutated(evidence, path, chance))
        (folder / EVIDENCE).write_bytes(content)
        _bind(folder, sound)
        found = verify_bundle(folder, sound.public_key)
        assert not found.sound, path
        assert "SHA-256 differs" not in _problems(found), path


def test_a_friendlier_decision_is_noticed_even_if_signed(sound: Sound, tmp_path: Path) -> None:
    shutil.copytree(sound.folder, tmp_path / "b")
    decision = json.loads((tmp_path / "b" / DECISION).read_bytes())
    decision["checks"][0]["threshold"] = 0.0
    (tmp_path / "b" / DECISION).write_bytes(json_bytes(decision))
    _bind(tmp_path / "b", sound)
    problems = _problems(verify_bundle(tmp_path / "b", sound.public_key))
    assert "decision.checks[0].threshold: states 0.0, 1.0 follows" in problems


def test_a_template_that_does_not_exist_is_a_finding_even_if_signed(
    sound: Sound, tmp_path: Path
) -> None:
    shutil.copytree(sound.folder, tmp_path / "b")
    evidence = json.loads((tmp_path / "b" / EVIDENCE).read_bytes())
    evidence["styles"][0]["template"] = "modelx"
    (tmp_path / "b" / EVIDENCE).write_bytes(json_bytes(evidence))
    _bind(tmp_path / "b", sound)
    found = verify_bundle(tmp_path / "b", sound.public_key)
    assert not found.sound
    assert "evidence.json: styles.0.template: " in _problems(found)


def _bind(folder: Path, sound: Sound) -> None:
    """Bring every digest and the signature in line with changed files, as an insider would."""
    decision = json.loads((folder / DECISION).read_bytes())
    decision["evidence_sha256"] = sha256_bytes((folder / EVIDENCE).read_bytes())
    (folder / DECISION).write_bytes(json_bytes(decision))
    statement = read_statement((folder / ATTESTATION).read_bytes())
    for item in statement["predicate"]["files"]:
        item["digest"]["sha256"] = sha256_bytes((folder / item["name"]).read_bytes())
    _sign(folder, statement, sound.private_key)


def test_a_bundle_from_before_a_setting_existed_is_sound(sound: Sound, tmp_path: Path) -> None:
    folder = tmp_path / "b"
    shutil.copytree(sound.folder, folder)
    evidence, observed, decision = (
        json.loads((folder / name).read_bytes()) for name in (EVIDENCE, OBSERVATIONS, DECISION)
    )
    del evidence["config"]["gate"]["evidence_max_age_days"]
    digest = sha256_text(canonical_json(evidence["config"]))
    evidence["code_sha256"] = "0" * 64
    evidence["config_digest"] = observed["config_digest"] = digest
    evidence["observations_sha256"] = sha256_bytes(json_bytes(observed))
    decision["gate_digest"] = gate_digest(evidence["config"])
    decision["evidence_sha256"] = sha256_bytes(json_bytes(evidence))
    for name, content in ((EVIDENCE, evidence), (OBSERVATIONS, observed), (DECISION, decision)):
        (folder / name).write_bytes(json_bytes(content))
    statement = make_statement(
        Evidence.model_validate(evidence),
        Decision.model_validate(decision),
        {name: sha256_bytes((folder / name).read_bytes()) for name in FILES},
        sound.public_key,
    )
    _sign(folder, statement.model_dump(mode="json", by_alias=True), sound.private_key)
    found = verify_bundle(folder, sound.public_key)
    assert found.sound, _problems(found)
    assert found.other_code


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda model: (model / "adapter/adapter_config.json").unlink(), "missing from"),
        (lambda model: (model / "adapter/more.safetensors").touch(), "not among the files"),
        (lambda model: (model / "adapter/adapter_model.safetensors").write_bytes(b"x"), "other"),
    ],
    ids=["a file less", "a file more", "other weights"],
)
def test_other_weights_are_noticed(
    spoil: Callable[[Path], None], reason: str, sound: Sound, tmp_path: Path
) -> None:
    model = tmp_path / "model"
    shutil.copytree(sound.model, model)
    spoil(model)
    found = verify_bundle(sound.folder, sound.public_key, model)
    assert not found.sound
    assert reason in _problems(found)


def test_the_attestation_reads_by_the_published_specifications(sound: Sound) -> None:
    """DSSE verified from its text with nothing but Ed25519; the statement by in-toto's package."""
    envelope = json.loads((sound.folder / ATTESTATION).read_bytes())
    payload = base64.standard_b64decode(envelope["payload"])
    kind = envelope["payloadType"].encode()
    assert kind == b"application/vnd.in-toto+json"
    encoded = b" ".join((b"DSSEv1", str(len(kind)).encode(), kind, str(len(payload)).encode()))
    signature = base64.standard_b64decode(envelope["signatures"][0]["sig"])
    key = load_pem_public_key(sound.public_key.encode())
    assert isinstance(key, Ed25519PublicKey)
    key.verify(signature, encoded + b" " + payload)
    with pytest.raises(InvalidSignature):
        key.verify(signature, encoded + b"  " + payload)
    message = json_format.Parse(payload, statement_pb2.Statement())
    statement = in_toto.Statement.copy_from_pb(message)
    statement.validate()
    assert statement.pb.predicate_type == PREDICATE_TYPE
    weights = {item.name: item.digest["sha256"] for item in statement.pb.subject}
    path = sound.model / "adapter/adapter_model.safetensors"
    assert weights["adapter/adapter_model.safetensors"] == sha256_bytes(path.read_bytes())


def test_the_model_card_has_metadata_and_the_outcome(sound: Sound) -> None:
    card = (sound.folder / "README.md").read_text("utf-8")
    head, body = card.removeprefix("---\n").split("\n---\n", 1)
    metadata = yaml.safe_load(head)
    assert metadata["library_name"] == "peft"
    metrics = metadata["model-index"][0]["results"][0]["metrics"]
    decision = json.loads((sound.folder / DECISION).read_bytes())
    assert {item["type"]: item["value"] for item in metrics} == {
        check["name"]: check["value"] for check in decision["checks"]
    }
    assert "resists GRPO-family fine-tuning under budget" in body
    assert decision["evidence_sha256"] in body


@pytest.mark.parametrize("key", ["", "short", "x" * 44, "é" * 44])
def test_an_unusable_key_is_refused(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_VARIABLE, key)
    with pytest.raises(ContainmentError, match=KEY_VARIABLE) as caught:
        require_key()
    assert not key or key not in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"{}", b'{"payload": 1, "payloadType": 2, "signatures": 3}', b"\xff", b"null"],
)
def test_what_is_no_envelope_is_refused(content: bytes) -> None:
    with pytest.raises(InputError, match="DSSE"):
        open_statement(content, public_key_of(new_key()))
