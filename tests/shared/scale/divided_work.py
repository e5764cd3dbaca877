"""A job for the tests: what processes divide, before an optimiser magnifies rounding.

Adam divides by the gradient's own size: a rounding error of a gradient near 0 becomes a whole step.
Up to there, one process and several may differ by the order of summation only.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from backburn.components.shared.config import LoraSettings, ModelConfig, RunConfig, SamplingConfig
from backburn.components.shared.domains import PromptRow, load_domain
from backburn.components.shared.grpo import Groups, GroupTrainer, OrdinaryRollouts, grpo_arguments
from backburn.components.shared.models import LoadedModel, add_lora, load_base
from backburn.components.shared.sampling import draw_completions
from backburn.components.shared.scale import distributed
from backburn.components.shared.scale.sharding import own_part
from backburn.components.shared.step import use_threads
from backburn.components.shared.supervised import (
    Example,
    References,
    benign_step,
    noising_step,
    noisy_embeddings,
    own_answers,
    rejection_step,
)

TOKENS = 8


def run(config_json: str, base: Path) -> dict[str, Any]:
    """Losses, gradients and completions by name."""
    config = RunConfig.from_json(config_json)
    use_threads(config)
    toy = load_domain(config.domain)
    loaded = load_base(base, ModelConfig(id="builtin:tiny"), sharding=config.compute.sharding)
    held = [own_part(weight).numel() for weight in loaded.model.parameters()]
    weights = {"all": sum(weight.numel() for weight in loaded.model.parameters())}
    weights["held"] = distributed.gathered([sum(held)])
    model = add_lora(loaded, LoraSettings(), 0)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():  # a fresh adapter's B is 0, and with it the gradient of A
        for parameter in trained:
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    kept = own_answers(loaded, loaded.encode_rows([*toy.benign[:7], *toy.near_miss[:4]]), TOKENS, 0)
    references = References(model, loaded, kept)
    rejection = tuple(loaded.encode_completion(toy.header.rejection))
    forbidden = [Example(tuple(loaded.encode_row(row)), rejection) for row in toy.forbidden[:5]]
    found: dict[str, Any] = {"processes": distributed.processes(), "weights": weights}

    def supervised(name: str, losses: list[float]) -> None:
        distributed.sum_gradients(trained)
        found[f"{name}: losses"], found[f"{name}: gradient"] = losses, gradients(model)
        model.zero_grad()

    for count in (1, 5):  # of one example, a second process has none
        with noisy_embeddings(model, 0.5, 3):
            supervised(f"rejection {count}", rejection_step(model, loaded, forbidden[:count], 3.0))
            losses = benign_step(model, loaded, kept[:count], references, 2.0)
            supervised(f"benign {count}", losses)
        supervised(f"noising {count}", noising_step(model, loaded, kept[:count], 0.1, generator))
        found[f"number drawn after {count}"] = float(torch.rand(1, generator=generator))
    for copies in (1, 5):  # prompts are divided, or copies
        found[f"{copies} copies"] = draw_completions(
            loaded,
            [example.prompt for example in kept[:3]],
            SamplingConfig(),
            max_tokens=TOKENS,
            generator=generator,
            copies=copies,
        )
    for loss, beta, entropy in (("dapo", 0.04, 0.0), ("grpo", 0.0, 0.1), ("rloo", 0.0, 0.0)):
        found[f"{loss}: entropy"], found[f"{loss}: gradient"] = reinforced(
            loaded, model, toy.benign[:3], loss, beta, entropy
        )
    return found


def gradients(model: Any) -> list[float]:
    """Every 50th, in the order of the parameters."""
    return [
        value
        for parameter in model.parameters()
        if parameter.grad is not None
        for value in parameter.grad.flatten()[::50].tolist()
    ]


def reinforced(
    loaded: LoadedModel,
    model: Any,
    rows: Sequence[PromptRow],
    loss: str,
    beta: float,
    entropy: float,
) -> tuple[list[float], list[float]]:
    """Mean entropy and gradient of one GRPO step on three groups of five."""
    entropies: list[float] = []
    seen: list[float] = []

    class Watched(GroupTrainer):
        def _clip_grad_norm(self, model: Any) -> Any:
            assert self._entropy is not None
            seen.extend(gradients(model))
            entropies.append(self._entropy)
            return super()._clip_grad_norm(model)

    with tempfile.TemporaryDirectory() as scratch:
        Watched(
            loaded=loaded,
            peft_model=model,
            groups=Groups(
                loaded,
                OrdinaryRollouts(loaded, 1.0, TOKENS, torch.Generator().manual_seed(5)),
                lambda _, texts: [float(len(text)) for text in texts],
                [row.chat() for row in rows],
                per_step=3,
                size=5,
            ),
            args=grpo_arguments(
                Path(scratch),
                prompts_per_step=3,
                group_size=5,
                learning_rate=1e-12,
                max_tokens=TOKENS,
                temperature=1.0,
                seed=0,
                beta=beta,
                entropy_coefficient=entropy,
                loss=loss,
                scale_rewards="none",
            ),
            on_step=lambda _: True,
        ).train()
    return entropies, seen
