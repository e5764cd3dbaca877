"""What `backburn size` predicts, against passes that are run.

    python -m benchmarks.sizing            # measures, and prints what was predicted and measured
    python -m benchmarks.sizing --write    # and writes both tables into docs/sizing.md

The tiny model and SmolLM2-135M make real passes in bfloat16 on this machine's CPU: operations are
counted by torch's FlopCounterMode, bytes by following every tensor's storage from its making to
its end. The large models make one training pass on shapes alone (torch's device `meta`), with a
stand-in for fused attention, which meta tensors do not have.
"""

import argparse
import contextlib
import io
import math
import os
import tempfile
import time
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from backburn.components.shared import grpo, sizing
from backburn.components.shared.config import LoraSettings, ModelConfig, SamplingConfig
from backburn.components.shared.grpo import Groups, GroupTrainer, grpo_arguments
from backburn.components.shared.models import (
    SMOLLM2,
    TINY,
    LoadedModel,
    add_lora,
    load_base,
    resolve_base,
)
from backburn.components.shared.sampling import (
    completion_logits,
    draw_completions,
    invert_cumulative,
    read_packed,
)
from backburn.components.shared.sizing import ARCHITECTURES, GPUS, Adapter, Architecture, Gpu
from backburn.components.shared.supervised import (
    Example,
    References,
    adapter_optimizer,
    benign_step,
    optimizer_step,
)
from backburn.components.shared.tiny_model import train_tiny_model
from backburn.pipelines.recipes import load_recipe
from backburn.pipelines.sizing import (
    Sizing,
    StepSize,
    fewest_gpus,
    growth,
    read_prompts,
    sharded,
    size_run,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import (
    FlopCounterMode,
    sdpa_backward_flop_count,
    sdpa_flop_count,
)
from transformers import AttentionInterface, AutoModelForCausalLM, LlamaConfig

from benchmarks.runs import put_between_markers

PAGE = Path(__file__).parents[1] / "docs" / "sizing.md"
LARGE = {
    "8B": "meta-llama/Meta-Llama-3-8B-Instruct",
    "70B": "meta-llama/Llama-3.1-70B-Instruct",
    "405B": "meta-llama/Llama-3.1-405B-Instruct",
}
RECIPE = "llama3-8b"
"""Whose settings the large models are sized with."""
_ADAPTER = Adapter(LoraSettings().rank)
_WIDTH = 2
_STAND_IN = "fused_stand_in"


class Ratio(NamedTuple):
    """A figure as predicted and as measured."""

    model: str
    what: str
    predicted: float
    measured: float

    @property
    def ratio(self) -> float:
        """Predicted over measured."""
        return self.predicted / self.measured


class PeakBytes(TorchDispatchMode):
    """Most bytes that tensors made inside held at once; what was there before does not count."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = self._now = 0
        self._alive: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {tensor.untyped_storage()._cdata for tensor in _tensors((args, kwargs))}
        result = func(*args, **(kwargs or {}))
        for tensor in _tensors(result):
            storage = tensor.untyped_storage()
            if storage._cdata not in given and storage._cdata not in self._alive:
                self._follow(storage)
        return result

    def _follow(self, storage: Any) -> None:
        key, size = storage._cdata, storage.nbytes()

        def ended(_: Any) -> None:
            del self._alive[key]
            self._now -= size

        self._alive[key] = weakref.ref(storage, ended)
        self._now += size
        self.peak = max(self.peak, self._now)


def _tensors(tree: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def operations(work: Callable[[], Any]) -> float:
    """Operations of the matrix products and of the attention of some work."""
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    mapping: dict[Any, Any] = {
        kernel: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v),
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: (
            lambda g, q, k, v, *_, **__: sdpa_backward_flop_count(g, q, k, v)
        ),
    }
    with FlopCounterMode(display=False, custom_mapping=mapping) as counter:
        work()
    return float(counter.get_total_flops())


def peak(work: Callable[[], Any]) -> float:
    """Most bytes that some work holds."""
    with PeakBytes() as tracker:
        work()
    return float(tracker.peak)


def kept_bytes(work: Callable[[], Any], network: torch.nn.Module) -> float:
    """Bytes that the forward passes of some work keep for the backward pass, weights left out."""
    weights = {parameter.untyped_storage()._cdata for parameter in network.parameters()}
    kept: dict[int, Any] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        work()
    return float(sum(storage.nbytes() for storage in kept.values()))


class _Endless(LoadedModel):
    """A model whose completions are as long as they may get, as predictions assume."""

    @property
    def end_ids(self) -> tuple[int, ...]:
        return ()


class _Given:
    """Completions that cost nothing, to measure a training step by itself."""

    def __init__(self, tokens: Sequence[Sequence[int]]) -> None:
        self._tokens = [list(row) for row in tokens]

    def draw(self, prompts: Sequence[Sequence[int]], copies: int, model: Any) -> list[list[int]]:
        return self._tokens


def measure(name: str, prompt: int, completion: int) -> list[Ratio]:
    """Predict and measure passes of a small model.

    Args:
        name: Of a built-in model.
        prompt: Tokens of a prompt.
        completion: Tokens of a completion.

    Returns:
        Operations and peak bytes of scoring, rollouts, a supervised step and a GRPO step.
    """
    loaded = _load(name)
    model = ARCHITECTURES[name]
    generator = torch.Generator().manual_seed(0)

    def ids(rows: int, tokens: int) -> list[list[int]]:
        return torch.randint(6, model.vocabulary, (rows, tokens), generator=generator).tolist()

    found: list[Ratio] = []

    def compare(what: str, predicted: float, measured: float) -> None:
        found.append(Ratio(name.removeprefix("builtin:"), what, predicted, measured))

    rows = 6
    prompts, completions = ids(rows, prompt), ids(rows, completion)
    tokens, kept = rows * (prompt + completion - 1), rows * completion
    compare(
        "operations, scoring",
        sizing.read(model, tokens, kept, _WIDTH, rows=rows).flops,
        operations(lambda: completion_logits(loaded, prompts, completions)),
    )
    copies = 4

    def drawn() -> None:
        draw_completions(
            loaded, prompts, SamplingConfig(), max_tokens=completion,
            generator=torch.Generator().manual_seed(1), copies=copies,
        )  # fmt: skip

    passes = sizing.rollout(model, rows, copies, prompt, completion, _WIDTH)
    compare(
        "operations, rollouts", sum(count * item.flops for count, item in passes), operations(drawn)
    )
    cache = sizing.cache_bytes(model, rows * copies, prompt + completion + 64, _WIDTH)
    logits = rows * copies * model.vocabulary * (_WIDTH + 3 * sizing.FLOAT32)
    compare("bytes, rollouts", cache + logits, peak(drawn))

    network = add_lora(loaded, LoraSettings(), 0)
    trained = sum(p.numel() for p in network.parameters() if p.requires_grad)
    compare("parameters of the adapter", model.lora(_ADAPTER.rank), trained)
    batch = [Example(tuple(p), tuple(c)) for p, c in zip(prompts, completions, strict=True)]
    references = References(network, loaded, batch)
    references.log_probabilities(batch)
    optimizer = adapter_optimizer(network, 1e-4)
    network.train()

    def supervised() -> None:
        benign_step(network, loaded, batch, references)
        optimizer_step(network, optimizer)

    supervised()  # makes the optimiser's state
    compare(
        "operations, supervised step",
        sizing.train(model, tokens, kept, _WIDTH, _ADAPTER, rows=rows).flops,
        operations(supervised),
    )
    compare(
        "bytes, supervised step",
        sizing.FLOAT32 * trained
        + sizing.activation_bytes(model, tokens, _WIDTH, _ADAPTER)
        + sizing.logit_bytes(model, kept, _WIDTH),
        peak(supervised),
    )

    tokens = rows * (prompt + completion)
    given = ids(rows, completion)

    def group() -> None:
        _one_step(loaded, network, prompts[0], given)

    with _as_on_a_gpu():
        # Without a GPU's kernels TRL's head scores the prompt too. Of its three products the
        # counter sees two: the third is added to a sum in place.
        step = sizing.train(model, tokens, tokens, _WIDTH, _ADAPTER, rows)
        compare("operations, GRPO step", step.flops, operations(group))
        compare(
            "bytes kept, GRPO step",
            sizing.activation_bytes(model, tokens, _WIDTH, _ADAPTER),
            kept_bytes(group, network),
        )
    return found


def _load(name: str) -> LoadedModel:
    config = ModelConfig(id=name, dtype="bfloat16", device="cpu")
    if name != TINY:
        loaded = load_base(resolve_base(config), config)
        return _Endless(loaded.model, loaded.tokenizer)
    network, tokenizer = train_tiny_model(0, steps=1)
    return _Endless(network.to(torch.bfloat16).requires_grad_(False), tokenizer)


@contextlib.contextmanager
def _as_on_a_gpu() -> Iterator[None]:
    """Let `GroupTrainer` read every prompt once a completion, as it does on a GPU."""
    before, grpo._MOST_SHARED_LOGITS = grpo._MOST_SHARED_LOGITS, 0
    try:
        yield
    finally:
        grpo._MOST_SHARED_LOGITS = before


def _one_step(
    loaded: LoadedModel, network: Any, prompt: list[int], completions: list[list[int]]
) -> None:
    """A step of GRPO in which one group of given completions is live."""
    groups = Groups(
        loaded,
        _Given(completions),
        lambda _, texts: [float(index % 2) for index in range(len(texts))],
        [[{"role": "user", "content": "-"}]],
        per_step=1,
        size=len(completions),
    )
    groups._encode = lambda _: prompt  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as scratch:
        arguments = grpo_arguments(
            Path(scratch), prompts_per_step=1, group_size=len(completions), learning_rate=1e-4,
            max_tokens=len(completions[0]), temperature=1.0, seed=0,
        )  # fmt: skip
        with contextlib.redirect_stdout(io.StringIO()):  # the trainer's summary
            GroupTrainer(
                loaded=loaded, peft_model=network, groups=groups, args=arguments,
                on_step=lambda _: True,
            ).train()  # fmt: skip


class _FusedAttention(torch.autograd.Function):
    """Keeps what fused attention keeps, and computes nothing."""

    @staticmethod
    def forward(ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        output = torch.empty_like(q)
        ctx.save_for_backward(q, k, v, output)
        return output

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        q, k, v, _ = ctx.saved_tensors
        return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


def _stand_in(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any, **__: Any
) -> tuple[torch.Tensor, None]:
    groups = module.num_key_value_groups
    key, value = (states.repeat_interleave(groups, 1) for states in (key, value))
    return _FusedAttention.apply(query, key, value).transpose(1, 2).contiguous(), None  # type: ignore[no-untyped-call]


def measure_shapes(title: str, model: Architecture, prompt: int, completion: int) -> list[Ratio]:
    """Predict and measure one packed training pass of a large model, on shapes alone."""
    AttentionInterface.register(_STAND_IN, _stand_in)
    config = LlamaConfig(
        vocab_size=model.vocabulary,
        hidden_size=model.hidden,
        intermediate_size=model.intermediate,
        num_hidden_layers=model.layers,
        num_attention_heads=model.heads,
        num_key_value_heads=model.kv_heads,
        head_dim=model.head_size,
        attn_implementation=_STAND_IN,
    )
    with torch.device("meta"):
        network = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        loaded = LoadedModel(network.eval().requires_grad_(False), None)
        parameters = network.num_parameters()
        trained = add_lora(loaded, LoraSettings(), 0).train()
    rows = 4
    sequences = [[place] * (prompt + completion - 1) for place in range(rows)]  # begin differently
    tokens, kept = rows * len(sequences[0]), rows * completion

    def run() -> None:
        read_packed(trained, loaded, sequences, kept=[completion] * rows).sum().backward()

    done = operations(run)
    attention = 4.0 * model.query * tokens * tokens / rows
    wanted = sizing.train(model, tokens, kept, _WIDTH, _ADAPTER, rows=rows).flops
    return [
        Ratio(title, "parameters", model.parameters, parameters),
        Ratio(title, "operations but attention, supervised step",
              wanted - 3.5 * model.layers * attention, done),
        Ratio(title, "bytes kept for the backward pass",
              sizing.activation_bytes(model, tokens, _WIDTH, _ADAPTER),
              kept_bytes(run, trained)),
    ]  # fmt: skip


def speeds() -> list[Ratio]:
    """The two assumed speeds of a host, against this one's (predicted over measured rates)."""
    card = GPUS["h100"]
    weights = torch.rand(40, 128256)
    uniform = torch.rand(40, dtype=torch.float64)
    sampled = min(_seconds(lambda: invert_cumulative(weights, uniform), 20))
    loaded = _load(TINY)
    network = add_lora(loaded, LoraSettings(), 0).eval()
    ids = torch.tensor([[7]])
    with torch.no_grad():
        token = min(_seconds(lambda: network(input_ids=ids), 200))
    layers = ARCHITECTURES[TINY].layers
    return [
        Ratio("this host", "probabilities sampled a second", card.sampled_per_second,
              weights.numel() / sampled),
        Ratio("this host", "seconds to launch a block", card.block_seconds, token / layers),
    ]  # fmt: skip


def _seconds(work: Callable[[], Any], times: int) -> Iterator[float]:
    for _ in range(times):
        start = time.perf_counter()
        work()
        yield time.perf_counter() - start


def predicted_tables() -> str:
    """What the recipe `llama3-8b` needs with models of three sizes, and how hours grow."""
    config = load_recipe(RECIPE)
    prompts = read_prompts(config)
    lines = [
        "| model, step | GPU memory | of it weights, trained, largest pass (GB) | H100s, H200s "
        "that would hold it | " + " | ".join(f"hours, {name}" for name in GPUS) + " |",
        "|---|---|---|---|" + "---|" * len(GPUS),
    ]
    for title, name in LARGE.items():
        found = size_run(config, ARCHITECTURES[name], prompts)
        for step in found.steps:
            peak_bytes = found.gpu_bytes(step)
            pass_name = step.largest()
            trained, held = step.passes[pass_name]
            weights = found.width * found.model.parameters
            cards = (
                math.ceil(peak_bytes / (GPUS[name].usable * GPUS[name].memory))
                for name in ("h100", "h200")
            )
            cells = [
                f"{title}, {step.name}",
                f"{peak_bytes / 1e9:,.0f} GB",
                f"{step.copies_of_weights:.0f} x {weights / 1e9:,.0f}, {trained / 1e9:.1f}, "
                f"{held / 1e9:,.0f} ({pass_name})",
                ", ".join(f"{count}" for count in cards),
                *(_hours(found, step, gpu) for gpu in GPUS.values()),
            ]
            lines.append(f"| {' | '.join(cells)} |")
        totals = [
            " to ".join(f"{hours:.1f}" for hours in found.hours(gpu)) for gpu in GPUS.values()
        ]
        lines.append(f"| **{title}, run** | | | | {' | '.join(totals)} |")
    lines += [
        "",
        "| model, `compute.sharding: full` | GPUs | largest step, on each | GPU hours, no hardened "
        "arm moves | all move |",
        "|---|---|---|---|---|",
    ]
    for title, name in list(LARGE.items())[1:]:
        for gpu in GPUS.values():
            count = fewest_gpus(config, ARCHITECTURES[name], prompts, gpu)
            assert count is not None
            found = size_run(sharded(config, count), ARCHITECTURES[name], prompts)
            largest = max(found.gpu_bytes(step) for step in found.steps) / 1e9
            hours = " | ".join(f"{value:,.0f}" for value in found.hours(gpu))
            lines.append(f"| {title} | {count} x {gpu.name} | {largest:.0f} GB | {hours} |")
    model, card = ARCHITECTURES[LARGE["8B"]], GPUS["h100"]
    lines += [
        "",
        "| budget of the attack, 8B on an H100 | GPU hours, no hardened arm moves | all move |",
        "|---|---|---|",
    ]
    matrix = load_recipe(RECIPE, ["attack.arms=[matrix]"])
    for title, changed in (*growth(config), ("every shipped arm instead", matrix)):
        least, most = size_run(changed, model, prompts).hours(card)
        lines.append(f"| {title} | {least:.1f} | {most:.1f} |")
    return "\n".join(lines)


def _hours(size: Sizing, step: StepSize, gpu: Gpu) -> str:
    found = [size.seconds(step.work, gpu) / 3600]
    if step.moving:
        found.append(found[0] + size.seconds(step.moving, gpu) / 3600)
    return " to ".join(f"{hours:.2f}" for hours in found)


def measured_table(found: Sequence[Ratio]) -> str:
    """Predictions beside what was measured."""
    lines = ["| model | what | predicted | measured | ratio |", "|---|---|---|---|---|"]
    lines += [
        f"| {item.model} | {item.what} | {item.predicted:.4g} | {item.measured:.4g} "
        f"| {item.ratio:.2f} |"
        for item in found
    ]
    return "\n".join(lines)


def main() -> None:
    """Measure and print; with --write also put the tables into the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help="write the tables of docs/sizing.md")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    found = measure(TINY, 24, 24) + measure(SMOLLM2, 60, 40)
    for title, name in LARGE.items():
        found += measure_shapes(title, ARCHITECTURES[name], 60, 40)
    found += speeds()
    tables = {"predicted": predicted_tables(), "measured": measured_table(found)}
    print("\n\n".join(tables.values()))
    if options.write:
        page = PAGE.read_text(encoding="utf-8")
        for name, text in tables.items():
            page = put_between_markers(page, name, text)
        PAGE.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
