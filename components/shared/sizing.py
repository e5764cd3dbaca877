"""What a pass through a language model costs: bytes held, operations done, seconds on a GPU.

For decoders of the Llama family (Llama, Mistral, Qwen2 and their like): grouped-query attention,
gated MLP, RMS norms, frozen weights with a LoRA in float32 on every linear layer, as PEFT makes it.
The formulas follow what `supervised`, `sampling` and `grpo` do; `benchmarks.sizing` compares them
with passes that are run.

Sources: 2 operations a weight and token forward and 4 backward, half of them for the gradient of
the weights, which frozen ones do not need (Kaplan et al. 2020, arXiv 2001.08361, section 2.1);
activations counted tensor by tensor as Korthikanti et al. 2022 do (arXiv 2205.05198, section 4).
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from backburn.components.shared.errors import InputError

FLOAT32 = 4
ADAPTER_BYTES = 4 * FLOAT32
"""A trained parameter in float32: itself, its gradient and AdamW's two moments."""
LOGIT_COPIES = 6
"""Float32 tensors the size of the logits at the peak of a supervised loss: logits, tempered or
normalised ones, the reference or the loss of each, and their gradients."""
_HEAD_TILE = 4096 * 32768
"""TRL's head, `trl/kernels/chunked_logprob.py`: tokens times vocabulary of a tile of logits."""


@dataclass(frozen=True)
class Architecture:
    """The sizes of a decoder, as its config.json has them."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_size: int
    intermediate: int
    vocabulary: int
    tied: bool = False
    qkv_bias: bool = False

    @property
    def query(self) -> int:
        """Width of the queries."""
        return self.heads * self.head_size

    @property
    def key(self) -> int:
        """Width of the keys, and of the values."""
        return self.kv_heads * self.head_size

    @property
    def matrices(self) -> list[tuple[int, int]]:
        """Inputs and outputs of a block's linear layers: q, k, v, o, gate, up, down."""
        h, q, k, i = self.hidden, self.query, self.key, self.intermediate
        return [(h, q), (h, k), (h, k), (q, h), (h, i), (h, i), (i, h)]

    @property
    def block(self) -> int:
        """Weights of a block's linear layers."""
        return sum(inputs * outputs for inputs, outputs in self.matrices)

    @property
    def head(self) -> int:
        """Weights of the head."""
        return self.vocabulary * self.hidden

    @property
    def parameters(self) -> int:
        """All of them: blocks with two norms, embedding, head unless tied to it, last norm."""
        biases = self.query + 2 * self.key if self.qkv_bias else 0
        blocks = self.layers * (self.block + 2 * self.hidden + biases)
        return blocks + self.head * (1 if self.tied else 2) + self.hidden

    def adapted(self, share: float = 1.0) -> int:
        """Blocks with an adapter, as `LoraSettings.upper_share` has it."""
        return math.ceil(share * self.layers)

    def lora(self, rank: int, share: float = 1.0) -> int:
        """Parameters of a LoRA: rank * (inputs + outputs) for each matrix."""
        widths = sum(inputs + outputs for inputs, outputs in self.matrices)
        return self.adapted(share) * rank * widths


def architecture_of(values: Mapping[str, Any], where: str) -> Architecture:
    """The architecture that the content of a config.json describes.

    Raises:
        InputError: if it is none of the family that can be sized.
    """
    values = values.get("text_config", values)
    if any("expert" in key for key, value in values.items() if value):
        raise InputError(f"{where}: mixtures of experts cannot be sized, only dense decoders")
    try:
        heads, hidden = values["num_attention_heads"], values["hidden_size"]
        return Architecture(
            layers=values["num_hidden_layers"],
            hidden=hidden,
            heads=heads,
            kv_heads=values.get("num_key_value_heads") or heads,
            head_size=values.get("head_dim") or hidden // heads,
            intermediate=values["intermediate_size"],
            vocabulary=values["vocab_size"],
            tied=bool(values.get("tie_word_embeddings", False)),
            qkv_bias=bool(values.get("attention_bias")) or values.get("model_type") == "qwen2",
        )
    except KeyError as error:
        raise InputError(
            f"{where}: no {error} in it; only decoders like Llama, Mistral and Qwen2 can be sized"
        ) from error


class Adapter(NamedTuple):
    """What is trained: a LoRA of a rank on the upper share of the blocks; rank 0: every weight."""

    rank: int
    share: float = 1.0


class Pass(NamedTuple):
    """What a pass asks of a GPU and of its host."""

    flops: float
    """Operations, a multiplication and an addition being two."""
    bytes: float
    """Read from the GPU's memory: weights and cached keys and values."""
    blocks: float
    """Times a block of the model is launched."""
    sampled: float = 0.0
    """Probabilities that the sampler moves to main memory and adds up there."""


def read(
    model: Architecture, tokens: float, kept: float, width: int, rank: int = 0, rows: float = 1
) -> Pass:
    """A forward pass without gradient.

    2 operations for each weight of the blocks, of the adapter and, for kept tokens, of the head;
    attention 4 * tokens^2 * query a block and row, what the mask hides included.

    Args:
        model: The architecture.
        tokens: Tokens of all rows, padding included.
        kept: Tokens whose logits are wanted.
        width: Bytes of a weight.
        rank: Of an adapter that is not merged.
        rows: Rows the tokens are divided into.
    """
    linear = 2.0 * (model.layers * model.block + model.lora(rank)) * tokens
    attention = 4.0 * model.layers * model.query * tokens * tokens / rows
    flops = linear + attention + 2.0 * model.head * kept
    return Pass(flops, width * model.parameters, model.layers)


def train(
    model: Architecture,
    tokens: float,
    kept: float,
    width: int,
    adapter: Adapter,
    rows: float = 1,
    again: bool = False,
) -> Pass:
    """A forward and a backward pass.

    Backward, a frozen weight costs what it does forward, for the gradient of its input; one that
    is trained costs twice that, and so does an adapter's. No gradient passes below the lowest
    adapter, nor to the inputs of the first block's queries, keys and values. Attention takes 2.5
    times its forward operations (Dao 2023, arXiv 2307.08691), each row of a batch by itself. TRL
    computes the logits of its head twice; that is left out.

    Args:
        model: The architecture.
        tokens: Tokens of all rows, padding included.
        kept: Tokens whose logits are wanted.
        width: Bytes of a weight.
        adapter: What is trained.
        rows: Rows the tokens are divided into.
        again: Whether blocks are computed again for their backward pass.
    """
    blocks = model.adapted(adapter.share)
    bottom = model.hidden * (model.query + 2 * model.key) if blocks == model.layers else 0
    frozen = blocks * model.block - bottom
    trained = model.lora(adapter.rank, adapter.share)
    factor = 2.0 if adapter.rank else 4.0
    attention = 4.0 * model.query * tokens * tokens / rows
    forward = 2.0 * (model.layers * model.block + trained) * tokens + model.layers * attention
    backward = (factor * frozen + 4.0 * trained) * tokens + 2.5 * blocks * attention
    flops = (1 + again) * forward + backward + 4.0 * model.head * kept
    return Pass(flops, 2 * width * model.parameters, model.layers + 2 * blocks)


def rollout(
    model: Architecture,
    prompts: int,
    copies: int,
    prompt: float,
    completion: float,
    width: int,
    rank: int = 0,
) -> list[tuple[float, Pass]]:
    """Completions drawn at once: prompts read once, then a pass for each further token.

    An upper bound: every completion is taken to be as long as it may get.

    Args:
        model: The architecture.
        prompts: Different prompts.
        copies: Completions of each.
        prompt: Mean tokens of a prompt.
        completion: Tokens of a completion.
        width: Bytes of a weight.
        rank: Of an adapter that is not merged.

    Returns:
        (how often, pass) pairs.
    """
    rows = prompts * copies
    first = read(model, prompts * prompt, prompts, width, rank, prompts)
    linear = 2.0 * (model.layers * model.block + model.lora(rank) + model.head) * rows
    held = prompt + completion / 2
    attention = 4.0 * model.layers * model.query * rows * held
    cache = cache_bytes(model, rows, held, width)
    sampled = float(rows * model.vocabulary)
    token = Pass(linear + attention, first.bytes + cache, model.layers, sampled)
    return [(1.0, first._replace(sampled=sampled)), (completion - 1.0, token)]


def cache_bytes(model: Architecture, rows: float, tokens: float, width: int) -> float:
    """Keys and values of so many tokens in each of so many rows."""
    return 2.0 * model.layers * model.key * rows * tokens * width


def gathered_bytes(model: Architecture, width: int) -> float:
    """Whole weights on a GPU while `scale.sharding` runs a block.

    Embedding and head, which are no block's, and three blocks: the one that runs, the next, and
    the buffer that this is gathered in meanwhile.
    """
    return width * (model.head * (1 if model.tied else 2) + 3.0 * model.block)


def activation_bytes(
    model: Architecture, tokens: float, width: int, adapter: Adapter, again: bool = False
) -> float:
    """What a forward pass keeps for the backward pass, logits left out.

    A token keeps in every block that a gradient passes, with h, q and i the widths of hidden
    states, queries and MLP, and w bytes a weight:

    - both norms' inputs in float32: 2 * 4h;
    - the attention's queries, keys and values (repeated for all heads) and output: 4qw;
    - gate, its activation and up: 3iw;
    - what the adapter's gradients need in float32, of which PEFT makes copies for each layer where
      w is 2: 4 * (5h + q + i), and 4 * (2h + i) where w is 4; and 7 * 4 * rank;
    - of weights that are trained, their inputs instead: (4h + i) * w.

    Fused attention keeps no scores. With `again` blocks are computed again one by one for their
    backward pass, and keep their inputs until then: h w for each of them. Otherwise none is, only
    parts of a batch that do not fit into one pass.
    """
    h, q, i = model.hidden, model.query, model.intermediate
    both = 2 * FLOAT32 * h + 4 * q * width + 3 * i * width
    if not adapter.rank:
        inputs = (4 * h + i) * width
    elif width == FLOAT32:
        inputs = FLOAT32 * (2 * h + i)
    else:
        inputs = FLOAT32 * (5 * h + q + i)
    kept = both + inputs + len(model.matrices) * FLOAT32 * adapter.rank
    if again:
        return float(tokens * (kept + h * width * model.layers))
    return float(tokens * kept * model.adapted(adapter.share))


def logit_bytes(model: Architecture, kept: float, width: int) -> float:
    """Logits of a supervised loss at its peak: as the head gives them, and float32 copies."""
    return kept * model.vocabulary * (width + LOGIT_COPIES * FLOAT32)


def head_bytes(model: Architecture, kept: float, width: int) -> float:
    """TRL's head, which makes logits tile by tile: its inputs, their gradients and a tile."""
    inputs = kept * model.hidden * (2 * width + FLOAT32)
    return inputs + min(_HEAD_TILE, kept * model.vocabulary) * width


@dataclass(frozen=True)
class Gpu:
    """A card: published peaks, and what of them passes like these are assumed to reach.

    The efficiencies are assumptions, and no measurements of Backburn: 40 % of the dense bfloat16
    peak is what well-tuned training of large models reaches, 60 % of the bandwidth what reading all
    weights for a token does. Ordinary PyTorch launches a block's kernels one by one, which takes a
    host a millisecond, adapter included: that bounds rollouts of models that a card reads faster.
    The sampler works in main memory. Between GPUs the share of the link is that of the memory.
    """

    name: str
    memory: float
    """Bytes."""
    peak: float
    """Dense bfloat16 operations a second."""
    bandwidth: float
    """Bytes a second."""
    link: float
    """Bytes a second that it receives from the others of its machine, by NVLink."""
    compute_efficiency: float = 0.4
    bandwidth_efficiency: float = 0.6
    usable: float = 0.9
    """Share of the memory left by the CUDA context and the allocator's fragments."""
    block_seconds: float = 1e-3
    sampled_per_second: float = 2e8

    def seconds(self, work: Iterable[tuple[float, Pass]], sharing: int = 1) -> float:
        """Time of passes, each bound by what takes it longest, one after the other.

        Args:
            work: (how often, pass) pairs; a pass is that of all GPUs.
            sharing: GPUs that divide weights and operations. What each reads, it has to get from
                the others first, but for its own part.

        Returns:
            Seconds of all these GPUs together.
        """
        return sharing * sum(
            count
            * (
                max(
                    item.flops / sharing / (self.peak * self.compute_efficiency),
                    item.bytes / (self.bandwidth * self.bandwidth_efficiency),
                    item.bytes * (1 - 1 / sharing) / (self.link * self.bandwidth_efficiency),
                    item.blocks * self.block_seconds,
                )
                + item.sampled / sharing / self.sampled_per_second
            )
            for count, item in work
        )


GPUS = {
    "a100-80": Gpu("A100 80 GB SXM", 80e9, 312e12, 2.039e12, 300e9),
    "h100": Gpu("H100 80 GB SXM", 80e9, 989.4e12, 3.35e12, 450e9),
    "h200": Gpu("H200 141 GB SXM", 141e9, 989.4e12, 4.8e12, 450e9),
}
"""Memory, dense bfloat16 peak, bandwidth and half of NVLink's, which counts both directions, after
NVIDIA's data sheets of the SXM cards."""

ARCHITECTURES = {
    "builtin:tiny": Architecture(3, 96, 4, 4, 24, 256, 269, tied=True),
    "builtin:smollm2-135m-instruct": Architecture(30, 576, 9, 3, 64, 1536, 49152, tied=True),
    "meta-llama/Meta-Llama-3-8B-Instruct": Architecture(32, 4096, 32, 8, 128, 14336, 128256),
    "Qwen/Qwen2.5-7B-Instruct": Architecture(28, 3584, 28, 4, 128, 18944, 152064, qkv_bias=True),
    "mistralai/Ministral-8B-Instruct-2410": Architecture(36, 4096, 32, 8, 128, 12288, 131072),
    "meta-llama/Llama-3.1-70B-Instruct": Architecture(80, 8192, 64, 8, 128, 28672, 128256),
    "meta-llama/Llama-3.1-405B-Instruct": Architecture(126, 16384, 128, 8, 128, 53248, 128256),
}
"""The shipped recipes' models and two larger ones, where their config.json is not at hand.

From the models' cards and config.json; the Llamas are in table 3 of Grattafiori et al. 2024, arXiv
2407.21783.
"""
