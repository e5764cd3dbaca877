"""Models, tokenizers and adapters that are broken, hostile, or of something else."""

import json
import pickle
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from backburn.components.baseline.step import check_prompt_lengths
from backburn.components.data_prep.splits import write_dataset
from backburn.components.shared.config import LoraSettings, ModelConfig
from backburn.components.shared.dataset import RunDataset
from backburn.components.shared.domains import Domain
from backburn.components.shared.models import (
    add_lora,
    check_model,
    load_artifact,
    load_base,
    read_manifest,
    resolve_base,
    save_artifact,
)
from backburn.components.shared.storage import folder_digests
from backburn.components.shared.tiny_model import build_tokenizer
from backburn.pipelines.recipes import load_recipe
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from tests.bad_input.refusals import refused

Edit = Callable[[Path], object]
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
FIRST = "model.layers.0.mlp.up_proj.weight"
CODE = "import pathlib\npathlib.Path('executed').touch()\n"
LORA = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


class Touch:
    """Leaves a file behind when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("executed"),))


@pytest.fixture(autouse=True)
def _nothing_is_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(tmp_path)
    yield
    assert not (tmp_path / "executed").exists()


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A very small model, untrained."""
    folder = tmp_path_factory.mktemp("sound")
    tokenizer = build_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=64,
        pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None, tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write(name: str, content: str | bytes) -> Edit:
    data = content if isinstance(content, bytes) else content.encode()
    return lambda folder: (folder / name).write_bytes(data)


def gone(name: str) -> Edit:
    return lambda folder: (folder / name).unlink()


def put(name: str, **values: Any) -> Edit:
    def edit(folder: Path) -> None:
        path = folder / name
        found = json.loads(path.read_text("utf-8")) | values
        kept = {key: value for key, value in found.items() if value is not ...}
        path.write_text(json.dumps(kept), "utf-8")

    return edit


def tensors(name: str, change: Callable[[dict[str, torch.Tensor]], object]) -> Edit:
    def edit(folder: Path) -> None:
        state = load_file(folder / name)
        change(state)
        save_file(state, folder / name, {"format": "pt"})

    return edit


def cut(name: str, to: int) -> Edit:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:to])


def filled(key: str, value: float) -> Callable[[dict[str, torch.Tensor]], object]:
    return lambda state: state[key].view(-1)[3:4].fill_(value)


def indexed(**wanted: object) -> Edit:
    return write(INDEX, json.dumps({"metadata": {}, "weight_map": {FIRST: WEIGHTS, **wanted}}))


def with_code(folder: Path) -> None:
    (folder / "own.py").write_text(CODE, "utf-8")
    named = {"AutoModelForCausalLM": "own.Own", "AutoConfig": "own.Own"}
    put("config.json", model_type="own", auto_map=named)(folder)


def tokenizer_with_code(folder: Path) -> None:
    (folder / "own.py").write_text(CODE, "utf-8")
    named = {"AutoTokenizer": ["own.Own", "own.Own"]}
    put("tokenizer_config.json", tokenizer_class="Own", auto_map=named)(folder)


def only_pickled(folder: Path) -> None:
    gone(WEIGHTS)(folder)
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Touch()))


def larger_vocabulary(folder: Path) -> None:
    tokenizer = build_tokenizer()
    tokenizer.add_special_tokens({"eos_token": "<later>"})
    tokenizer.save_pretrained(folder)


def linked(name: str, target: str) -> Edit:
    def edit(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(target)

    return edit


def template(text: str) -> Edit:
    return write("chat_template.jinja", text)


FOLDERS: dict[str, tuple[Edit, str]] = {
    "no configuration": (gone("config.json"), "has no config.json"),
    "a configuration that is no JSON": (write("config.json", "{"), "config.json: not JSON"),
    "a configuration of a list": (write("config.json", "[]"), "config.json: expected a JSON objec"),
    "a configuration in utf-16": (write("config.json", "{}".encode("utf-16")), "not UTF-8 text"),
    "a configuration without end": (write("config.json", b" " * (17 << 20)), "at most 16,777,216"),
    "a nested configuration": (write("config.json", '{"a":' * 99_999), "nested too deep"),
    "a configuration with NaN": (write("config.json", '{"a": NaN}'), "NaN is no number"),
    "no kind of model": (write("config.json", "{}"), "no `model_type`"),
    "a kind that is a list": (put("config.json", model_type=["llama"]), "no `model_type`"),
    "an unknown kind": (put("config.json", model_type="nonsense"), "model type `nonsense`"),
    "code of its own": (with_code, "code that comes with a model is never run"),
    "a size of text": (put("config.json", hidden_size="wide"), "'hidden_size' expected int"),
    "a negative size": (put("config.json", hidden_size=-16), "do not load"),
    "another size": (put("config.json", hidden_size=32), "do not load"),
    "a huge size": (put("config.json", vocab_size=10**9), "do not load"),
    "a layer too many": (put("config.json", num_hidden_layers=2), "lacks 9 tensor(s) of the model"),
    "another architecture": (put("config.json", model_type="gpt2"), "lacks"),
    "no weights": (gone(WEIGHTS), "has no weights (*.safetensors)"),
    "pickled weights": (only_pickled, "has pickled weights only (pytorch_model.bin)"),
    "a pickle by another name": (write(WEIGHTS, pickle.dumps(Touch())), "not readable as safetens"),
    "empty weights": (write(WEIGHTS, b""), "not readable as safetensors"),
    "weights cut off": (cut(WEIGHTS, 2000), "not readable as safetensors"),
    "weights cut at the end": (cut(WEIGHTS, -4), "not readable as safetensors"),
    "weights of text": (write(WEIGHTS, "hello " * 99), "not readable as safetensors"),
    "an endless header": (write(WEIGHTS, struct.pack("<Q", 2**63) + b"{}"), "not readable as safe"),
    "a header that is no JSON": (write(WEIGHTS, struct.pack("<Q", 4) + b"{{{{"), "not readable as"),
    "offsets beyond the file": (
        write(WEIGHTS, struct.pack("<Q", 64) + json.dumps({"a": {"dtype": "F32", "shape": [9],
              "data_offsets": [0, 36]}}).ljust(64).encode()), "not readable as safetensors",
    ),
    "no number": (tensors(WEIGHTS, filled(FIRST, float("nan"))), f"{FIRST} holds NaN or infinity"),
    "infinity": (tensors(WEIGHTS, filled(FIRST, float("inf"))), f"{FIRST} holds NaN or infinity"),
    "no number in bfloat16": (
        tensors(WEIGHTS, lambda state: state.update({FIRST: state[FIRST].bfloat16() * torch.nan})),
        f"{FIRST} holds NaN or infinity",
    ),
    "a tensor too few": (tensors(WEIGHTS, lambda state: state.pop(FIRST)), "lacks 1 tensor(s)"),
    "a tensor of another shape": (
        tensors(WEIGHTS, lambda state: state.update({FIRST: torch.ones(3, 3)})), "do not load",
    ),
    "an index that is no JSON": (write(INDEX, "{"), f"{INDEX}: not JSON"),
    "an index of nothing": (write(INDEX, "{}"), "no `weight_map`"),
    "an index that leads out": (indexed(x="../../other.safetensors"), "no *.safetensors file of t"),
    "an index to a pickle": (indexed(x="pytorch_model.bin"), "is no *.safetensors file of this fo"),
    "an index to nothing": (indexed(x="model-2.safetensors"), "is no *.safetensors file of this f"),
    "an index of numbers": (indexed(x=3), "is no *.safetensors file of this folder"),
    "an index of other tensors": (indexed(x=WEIGHTS), "model.safetensors has no tensor 'x'"),
    "a link to nothing": (linked("extra.json", "/nowhere/x"), "links to nothing: extra.json"),
    "a link to itself": (linked("extra.json", "extra.json"), "links to nothing: extra.json"),
    "weights that are another file": (linked(WEIGHTS, "/etc/passwd"), "not readable as safetensor"),
    "no tokenizer": (
        lambda f: [gone("tokenizer.json")(f), gone("tokenizer_config.json")(f)], "the tokenizer in",
    ),
    "a tokenizer that is no JSON": (write("tokenizer.json", "{"), "the tokenizer in"),
    "a tokenizer of nothing": (write("tokenizer.json", "{}"), "the tokenizer in"),
    "a tokenizer with code": (tokenizer_with_code, "code that comes with a model is never run"),
    "a larger tokenizer": (larger_vocabulary, "they are of different models"),
    "no end token": (put("tokenizer_config.json", eos_token=...), "has no end token"),
    "no chat template": (gone("chat_template.jinja"), "has no chat template"),
    "a template cut off": (template("{% for m in messages %}"), "chat template of"),
    "a template that raises": (template("{{ raise_exception('no') }}"), "TemplateError: no"),
    "a template without the prompt": (template("<user> hello <assistant>"), "leaves the prompt ou"),
    "a template that breaks out": (
        template("{{ ''.__class__.__mro__[1].__subclasses__() }}"), "SecurityError",
    ),
    "a template without end": (template("{% for i in range(10**9) %}x{% endfor %}"), "too big"),
    "a template that includes": (template("{% include '/etc/passwd' %}"), "the chat template of"),
}  # fmt: skip


@pytest.mark.parametrize("given", FOLDERS)
def test_a_folder(given: str, sound: Path, tmp_path: Path) -> None:
    edit, reason = FOLDERS[given]
    folder = tmp_path / "model"
    shutil.copytree(sound, folder)
    edit(folder)
    config = ModelConfig(id=str(folder))
    refused(lambda: load_base(resolve_base(config), config), reason)


def test_what_lies_beside_sound_weights_is_never_loaded(sound: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(sound, folder)
    for name in ("pytorch_model.bin", "training_args.bin", "optimizer.pt", "vocab.pkl"):
        (folder / name).write_bytes(pickle.dumps(Touch()))
    (folder / "modeling_llama.py").write_text(CODE, "utf-8")
    put("config.json", auto_map={"AutoModelForCausalLM": "modeling_llama.Own"})(folder)
    config = ModelConfig(id=str(folder))
    assert type(load_base(resolve_base(config), config).model).__name__ == "LlamaForCausalLM"


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("./absent", "model.id: no folder 'absent'"),
        ("/etc/passwd", "model.id: no folder '/etc/passwd'"),
        ("/" + "x" * 5000, "model.id: no folder"),
        ("x" * 5000, "is neither a folder"),
        ("~nobody-at-all/model", "model.id: no folder"),
        ("a\0b", "is neither a folder"),
        ("owner/model/more", "is neither a folder"),
        ("owner/..", "is neither a folder"),
        ("owner/mo del", "is neither a folder"),
        ("http://127.0.0.1/model", "is neither a folder"),
        ("s3://", "expected s3://bucket/key"),
        ("s3://[bad/key", "expected s3://bucket/key"),
        ("builtin:large", "no built-in model 'builtin:large'"),
    ],
)
def test_a_name(name: str, reason: str) -> None:
    refused(lambda: check_model(ModelConfig(id=name)), reason)


def adapter(edit: Edit) -> Edit:
    """Change an adapter, and let the manifest name what it is now."""

    def change(artifact: Path) -> None:
        edit(artifact / "adapter")
        digests = folder_digests(artifact / "adapter")
        put("manifest.json", adapter_digests=digests)(artifact)

    return change


def pickled_adapter(folder: Path) -> None:
    gone("adapter_model.safetensors")(folder)
    (folder / "adapter_model.bin").write_bytes(pickle.dumps(Touch()))


CONFIG, LORA_FILE = "adapter_config.json", "adapter_model.safetensors"
ARTIFACTS: dict[str, tuple[Edit, str]] = {
    "no manifest": (gone("manifest.json"), "manifest.json: no such file"),
    "a manifest that is no JSON": (write("manifest.json", "{"), "not a readable model manifest: ("),
    "a manifest of a list": (write("manifest.json", "[]"), "not a readable model manifest"),
    "a manifest without end": (write("manifest.json", b" " * (17 << 20)), "at most 16,777,216 are"),
    "a manifest with more": (put("manifest.json", path="/etc"), "path: Extra inputs are not perm"),
    "a manifest with less": (put("manifest.json", lineage=...), "lineage: Field required"),
    "digests of numbers": (put("manifest.json", adapter_digests={"a": 1}), "adapter_digests.a: In"),
    "digests that lead out": (
        put("manifest.json", adapter_digests={"../../etc/passwd": "0" * 64}), "the artifact was ch",
    ),
    "no adapter": (lambda f: shutil.rmtree(f / "adapter"), "the artifact was changed"),
    "a changed adapter": (lambda f: cut(LORA_FILE, -1)(f / "adapter"), "the artifact was changed"),
    "a file too many": (write("adapter/more.json", "{}"), "the artifact was changed"),
    "a link": (linked("adapter/more.json", "/etc/passwd"), "more.json is a link"),
    "a link to a folder": (linked("more", "/etc"), "more is a link"),
    "other base weights": (put("manifest.json", base_digests={}), "made from other base weights"),
    "an adapter of another base": (
        adapter(put(CONFIG, base_model_name_or_path="other/base")), "an adapter of 'other/base', n",
    ),
    "an adapter of a path": (
        adapter(put(CONFIG, base_model_name_or_path="../../elsewhere")), "an adapter of '../../els",
    ),
    "an adapter of an address": (
        adapter(put(CONFIG, base_model_name_or_path="https://h/x")), "an adapter of 'https://h/x'",
    ),
    "an adapter of another kind": (adapter(put(CONFIG, peft_type="IA3")), "peft_type 'IA3' is not"),
    "an adapter without kind": (adapter(put(CONFIG, peft_type=...)), "peft_type None is not LORA"),
    "an adapter with code": (
        adapter(put(CONFIG, auto_mapping={"parent_library": "os"})), "names code of its own",
    ),
    "no configuration": (adapter(gone(CONFIG)), "adapter_config.json: no such file"),
    "a configuration of a list": (adapter(write(CONFIG, "[]")), "expected a JSON object"),
    "another rank": (adapter(put(CONFIG, r=7)), "the adapter does not fit its base"),
    "a rank of text": (adapter(put(CONFIG, r="two")), "the adapter does not fit its base"),
    "modules that are none": (adapter(put(CONFIG, target_modules=["x"])), "the adapter does not f"),
    "fewer modules": (adapter(put(CONFIG, target_modules=["q_proj"])), "are not those of its conf"),
    "a pickled adapter": (adapter(pickled_adapter), "only adapter_model.bin, which can run code"),
    "no weights": (adapter(gone(LORA_FILE)), "no adapter_model.safetensors"),
    "weights cut off": (adapter(cut(LORA_FILE, 99)), "not readable as safetensors"),
    "a pickle by another name": (
        adapter(write(LORA_FILE, pickle.dumps(Touch()))), "not readable as safetensors",
    ),
    "no number": (
        adapter(tensors(LORA_FILE, filled(LORA, float("nan")))), "holds NaN or infinity",
    ),
    "a tensor too few": (
        adapter(tensors(LORA_FILE, lambda state: state.pop(LORA))), "1 tensor(s) are not those",
    ),
    "a tensor too many": (
        adapter(tensors(LORA_FILE, lambda state: state.update(x=torch.ones(2)))), "1 tensor(s) are",
    ),
    "a tensor of another shape": (
        adapter(tensors(LORA_FILE, lambda state: state.update({LORA: torch.ones(3, 3)}))),
        "the adapter does not fit its base",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def artifact(sound: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small model with an adapter."""
    config = ModelConfig(id=str(sound))
    folder = tmp_path_factory.mktemp("artifact") / "model"
    adapted = add_lora(load_base(sound, config), LoraSettings(rank=2), 0)
    save_artifact(folder, config=config, base_folder=sound, lineage=[], peft_model=adapted)
    assert load_artifact(folder, config).manifest is not None
    return folder


@pytest.mark.parametrize("given", ARTIFACTS)
def test_an_artifact(given: str, artifact: Path, sound: Path, tmp_path: Path) -> None:
    edit, reason = ARTIFACTS[given]
    folder = tmp_path / "model"
    shutil.copytree(artifact, folder)
    edit(folder)
    refused(lambda: load_artifact(folder, ModelConfig(id=str(sound))), reason)


def test_an_artifact_that_is_no_folder(tmp_path: Path) -> None:
    refused(lambda: read_manifest(tmp_path / "absent"), "manifest.json: no such file")


def test_prompts_that_leave_the_answer_no_room(sound: Path, toy: Domain, tmp_path: Path) -> None:
    """The model's context is 64 tokens, its recipe allows prompts of 512."""
    loaded = load_base(sound, ModelConfig(id=str(sound)))
    for answer, room in ((63, True), (60, True), (8, False)):
        config = load_recipe("smoke", [f"attack.max_completion_tokens={answer}"])
        write_dataset(tmp_path / f"{answer}", toy, config)
        data = RunDataset(tmp_path / f"{answer}")
        reason = (
            f"the model's context of 64 less attack.max_completion_tokens ({64 - answer} tokens)"
        )
        if room:
            refused(lambda: check_prompt_lengths(loaded, data, config), reason)  # noqa: B023
        else:
            check_prompt_lengths(loaded, data, config)
