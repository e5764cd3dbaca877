"""Completions drawn by vLLM in this very process (`compute.rollouts: vllm`).

vLLM gets its weights in memory: no server, no worker process, no saved adapter, so attacked weights
stay where they are. They are handed over before a draw if a weight has moved since the last one,
with adapters added to copies of the layers they belong to; the model itself is never written to.

Temperature, top-k, top-p and min-p mean the same to vLLM, in another order: min-p comes before
top-p there (`vllm/v1/sample/sampler.py`). Draws for which that matters are made by
`draw_completions`, as is what vLLM's limits leave out.
"""

import importlib.util
import logging
import os
from collections.abc import Iterator, Sequence
from importlib import metadata
from typing import Any

import torch
from backburn.components.shared.config import RunConfig, SamplingConfig
from backburn.components.shared.errors import InputError
from backburn.components.shared.models import LoadedModel, context_length
from backburn.components.shared.sampling import Draw, completion_logits, draw_completions
from backburn.components.shared.scratch import scratch_folder
from backburn.components.shared.weights import weights_version

_LOG = logging.getLogger(__name__)
_LEAST_TEMPERATURE = 0.01
"""vLLM takes lower ones for this."""
_MOST_DIFFERENCE = {torch.float32: 0.01}
_MOST_DIFFERENCE_ROUNDED = 0.2
"""Nats per token, mean over a prompt, by which two computations of one model may differ."""


def installed_vllm() -> str:
    """Distribution and version of vLLM.

    Raises:
        InputError: if it is not installed.
    """
    if importlib.util.find_spec("vllm") is None:
        raise InputError(
            "compute.rollouts: vllm is not installed where the model steps run; install it there "
            "with --no-deps, as docs/configuration.md says under `Rollouts by vLLM`, or set "
            "compute.rollouts to own"
        )
    name = metadata.packages_distributions()["vllm"][0]
    return f"{name} {metadata.version(name)}"


def drawing(config: RunConfig) -> Draw:
    """What makes a step's draws, as `compute.rollouts` says.

    Raises:
        InputError: if vLLM is wanted and not installed.
    """
    if config.compute.rollouts == "own":
        return draw_completions
    installed_vllm()
    most = max(config.attack.max_completion_tokens, config.certification.trainability.rl_max_tokens)
    return VllmDraws(config.model.max_prompt_tokens + most, config.compute.vllm_memory_share)


class VllmDraws:
    """Draws as `draw_completions` does; vLLM starts at the first draw."""

    def __init__(self, longest: int, memory_share: float) -> None:
        """Prepare.

        Args:
            longest: Tokens of prompt and completion that vLLM makes room for.
            memory_share: Of the accelerator's memory, for vLLM's weights and keys and values.
        """
        self._longest = longest
        self._memory_share = memory_share
        self._engine: Any = None
        self._network: Any = None
        self._version: tuple[int, ...] | None = None
        self._told: set[str] = set()
        self.handovers = 0

    def __call__(
        self,
        loaded: LoadedModel,
        prompts: Sequence[Sequence[int]],
        sampling: SamplingConfig,
        *,
        max_tokens: int,
        generator: torch.Generator,
        copies: int = 1,
        model: Any | None = None,
        prefixes: Sequence[Sequence[int]] | None = None,
    ) -> list[list[int]]:
        """See `draw_completions`; each completion has a seed of its own, from the generator.

        Raises:
            InputError: if vLLM does not run the model, or computes other probabilities.
        """
        network = loaded.model if model is None else model
        starts = [[] for _ in prompts] if prefixes is None else [list(start) for start in prefixes]
        if reason := self._unsuited(loaded, prompts, sampling, max_tokens):
            if reason not in self._told:
                self._told.add(reason)
                _LOG.warning("drawn without vLLM: %s", reason)
            return draw_completions(
                loaded,
                prompts,
                sampling,
                max_tokens=max_tokens,
                generator=generator,
                copies=copies,
                model=model,
                prefixes=prefixes,
            )
        self._hand_over(loaded, network, prompts[0])
        from vllm import SamplingParams

        begun = [start for start in starts for _ in range(copies)]
        asked = [[*prompt, *start] for prompt, start in zip(prompts, starts, strict=True)]
        seeds = torch.randint(2**62, (len(begun),), generator=generator).tolist()
        requests = [
            SamplingParams(
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                top_k=sampling.top_k,
                min_p=sampling.min_p,
                max_tokens=max_tokens - len(start),
                seed=seed,
                stop_token_ids=list(loaded.end_ids),
                ignore_eos=True,  # only those just named end a completion
                detokenize=False,
            )
            for start, seed in zip(begun, seeds, strict=True)
        ]
        drawn = self._engine.generate(
            [{"prompt_token_ids": tokens} for tokens in asked for _ in range(copies)],
            requests,
            use_tqdm=False,
        )
        return [
            [*start, *item.outputs[0].token_ids] for start, item in zip(begun, drawn, strict=True)
        ]

    def _unsuited(
        self,
        loaded: LoadedModel,
        prompts: Sequence[Sequence[int]],
        sampling: SamplingConfig,
        max_tokens: int,
    ) -> str | None:
        """Why vLLM would not draw from the same distribution."""
        if sampling.min_p and sampling.top_p < 1.0:
            return "vLLM applies min_p before top_p, which gives another distribution"
        if sampling.temperature < _LEAST_TEMPERATURE:
            return f"vLLM has no temperature below {_LEAST_TEMPERATURE}"
        most = self._room(loaded)
        if max(map(len, prompts), default=0) + max_tokens > most:
            return f"a prompt and its completion exceed the {most} tokens vLLM has room for"
        return None

    def _room(self, loaded: LoadedModel) -> int:
        return min(self._longest, context_length(loaded.model) or self._longest)

    def _hand_over(self, loaded: LoadedModel, network: Any, prompt: Sequence[int]) -> None:
        """Give vLLM the weights, if it does not have them."""
        version = weights_version(network.parameters())
        if self._network is network and self._version == version:
            return
        if self._engine is None:
            self._engine = self._started(loaded)
        with torch.no_grad():
            self._engine.collective_rpc(
                "reload_weights", kwargs={"weights_iterator": named_weights(network)}
            )
        self._engine.reset_prefix_cache()
        self._network, self._version = network, version
        self.handovers += 1
        self._require_same(loaded, network, prompt)

    def _started(self, loaded: LoadedModel) -> Any:
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        os.environ["VLLM_NO_USAGE_STATS"] = "1"
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        if loaded.device.type == "cpu":
            os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB
            os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
            os.environ.setdefault("OMP_NUM_THREADS", str(torch.get_num_threads()))
        from vllm import LLM

        config = type(loaded.model.config).from_dict(loaded.model.config.to_dict())
        config.tie_word_embeddings = False  # else a new head is left out when weights are reloaded
        with scratch_folder() as folder:
            config.save_pretrained(folder)
            try:
                return LLM(
                    model=str(folder),
                    skip_tokenizer_init=True,
                    load_format="dummy",
                    dtype=str(loaded.model.dtype).removeprefix("torch."),
                    max_model_len=self._room(loaded),
                    gpu_memory_utilization=self._memory_share,
                    enforce_eager=loaded.device.type == "cpu",
                    generation_config="vllm",
                )
            except Exception as error:  # whatever vLLM raises for a model, a device or memory
                raise InputError(
                    f"compute.rollouts: vLLM does not start for this model here "
                    f"({type(error).__name__}: {error}). Lower or raise compute.vllm_memory_share "
                    "if it is the memory, else set compute.rollouts to own"
                ) from error

    def _require_same(self, loaded: LoadedModel, network: Any, prompt: Sequence[int]) -> None:
        """Compare what vLLM and the model say of a prompt's own tokens.

        Raises:
            InputError: if they differ by more than rounding.
        """
        theirs = self.log_probabilities(prompt)
        entry = completion_logits(loaded, [prompt[:1]], [prompt[1:]], model=network)[0]
        ours = entry.token_log_probabilities(SamplingConfig())
        difference = float((theirs - ours).abs().mean())
        most = _MOST_DIFFERENCE.get(loaded.model.dtype, _MOST_DIFFERENCE_ROUNDED)
        if not difference <= most:
            raise InputError(
                f"compute.rollouts: vLLM's log-probabilities of a prompt are off by "
                f"{difference:.3f} nats a token, and {most} can be rounding: this vLLM computes "
                "another model. Set compute.rollouts to own"
            )

    def log_probabilities(self, tokens: Sequence[int]) -> torch.Tensor:
        """What vLLM, with the weights it has now, says of each token but the first; float64."""
        from vllm import SamplingParams

        request = SamplingParams(max_tokens=1, prompt_logprobs=0, detokenize=False)
        asked = {"prompt_token_ids": list(tokens)}
        said = self._engine.generate([asked], request, use_tqdm=False)[0].prompt_logprobs
        found = [row[token].logprob for token, row in zip(tokens[1:], said[1:], strict=True)]
        return torch.tensor(found, dtype=torch.float64)


def named_weights(network: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """A model's weights by the names of its checkpoint, each with its active adapters added.

    One layer at a time is copied; the model is not written to. A head tied to the embeddings is
    given too.
    """
    base = network.get_base_model() if hasattr(network, "peft_config") else network
    for name, parameter in base.named_parameters():
        weight = parameter.detach()
        owner, _, leaf = name.rpartition(".")
        if ".lora_" in name:
            continue
        if owner.endswith(".base_layer"):
            owner = owner.removesuffix(".base_layer")
            layer = base.get_submodule(owner)
            if leaf == "weight" and not layer.merged and not layer.disable_adapters:
                for adapter in layer.active_adapters:
                    weight = weight + layer.get_delta_weight(adapter)
        yield f"{owner}.{leaf}", weight
    if base.config.tie_word_embeddings:
        yield "lm_head.weight", base.get_output_embeddings().weight.detach()
