"""Defences: Reward Neutralization and its consolidation, and two to compare it with."""

import math
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from backburn.components.defense_training.entropy import lower_entropy
from backburn.components.defense_training.meter import (
    DefenseData,
    DefenseResult,
    Kept,
    Meter,
    Report,
    mean,
    set_aside,
)
from backburn.components.defense_training.neutralization import neutralize
from backburn.components.defense_training.restyling import restyled
from backburn.components.defense_training.role_plays import PLAYED, role_plays
from backburn.components.shared.checkpoints import Checkpoints
from backburn.components.shared.config import (
    ConsolidationConfig,
    DefenseConfig,
    WarmStartConfig,
)
from backburn.components.shared.domains import PromptRow
from backburn.components.shared.evidence import PhaseRecord
from backburn.components.shared.judges import Judge
from backburn.components.shared.models import LoadedModel, add_lora
from backburn.components.shared.refusal_training import align, refusal_examples
from backburn.components.shared.sampling import Draw, draw_completions
from backburn.components.shared.supervised import (
    BEGINNING,
    KEPT_TOKENS,
    Batches,
    Example,
    References,
    adapter_optimizer,
    benign_step,
    noisy_embeddings,
    optimizer_step,
    own_answers,
    rejection_step,
    shorten,
)

_DECADE = 0.1
"""Over-refusal, and drift in nats a token, that is as bad as a tenfold slip rate."""
_TOLERANCE = 0.1
_AVERAGING = 0.1
_WARM_UP = 5
_MOST_DERAILED = 4


def defend(
    loaded: LoadedModel,
    config: DefenseConfig,
    data: DefenseData,
    judge: Judge,
    *,
    max_tokens: int,
    seed: int,
    report: Report,
    checkpoints: Checkpoints,
    draw: Draw = draw_completions,
) -> DefenseResult:
    """Train the defence's adapter on top of a model.

    Args:
        loaded: The baseline model; its own weights stay as they are.
        config: Phases and their settings.
        data: Prompts.
        judge: Judge of the minimal-information reward.
        max_tokens: Length of rollouts.
        seed: Of every random choice.
        report: Called as `report(phase, done, total, note)`.
        checkpoints: Of the step.
        draw: What draws the completions of Reward Neutralization.

    Returns:
        The model with its adapter, and a record per phase, `baseline` first.
    """
    generator = torch.Generator().manual_seed(seed + 3)
    near_miss, measured_near_miss = set_aside(data.near_miss)
    benign, measured_benign = set_aside(data.benign)
    tokens = min(max_tokens, KEPT_TOKENS)
    beginning = min(tokens, BEGINNING)
    groups = [
        (loaded.encode_rows(near_miss), tokens),
        (_prompts(_put_differently(loaded, near_miss, config, generator)), beginning),
        (loaded.encode_rows(benign), tokens),
        (_prompts(_put_differently(loaded, benign, config, generator)), beginning),
        (loaded.encode_rows(measured_near_miss), tokens),
        (loaded.encode_rows(measured_benign), tokens),
    ]
    total = sum(len(prompts) for prompts, _ in groups)
    answers: list[list[Example]] = []
    for prompts, most in groups:
        report("answers to keep", sum(map(len, answers)), total, "")
        answers.append(own_answers(loaded, prompts, most, seed))
    near, near_copies, far, far_copies, near_measured, far_measured = answers
    model = add_lora(loaded, config.lora, seed)
    kept = Kept(
        [*near, *near_copies],
        [*far, *far_copies],
        References(model, loaded, [example for part in answers for example in part]),
    )
    meter = Meter(loaded, data, near_measured, far_measured, kept.references)
    result = DefenseResult(model)

    def record(phase: str, enabled: bool, steps: int, seconds: float) -> None:
        """Measure the model after a phase."""
        result.phases.append(
            checkpoints.remembered(
                f"after {phase}",
                PhaseRecord,
                lambda: meter.record(model, phase, enabled, steps, seconds),
            )
        )

    record("baseline", True, 0, 0.0)
    start = time.perf_counter()
    if config.method == "neutralization":
        _harden(
            result, record, loaded, config, data, judge, kept, meter, max_tokens, seed, report,
            checkpoints, draw,
        )  # fmt: skip
    elif config.method == "entropy":
        lower_entropy(
            model,
            loaded,
            config.entropy,
            forbidden=data.defence,
            kept=kept,
            max_tokens=max_tokens,
            seed=seed,
            report=lambda done, total, note: report("entropy", done, total, note),
            checkpoints=checkpoints,
        )
        record("entropy", True, config.entropy.steps, time.perf_counter() - start)
    else:
        align(
            model,
            loaded,
            config.refusal,
            refusal_examples(loaded, data.defence, data.refusals, data.topic),
            [*kept.near_miss, *kept.benign],
            kept.references,
            seed,
            lambda done, total, note: report("refusals", done, total, note),
            checkpoints,
        )
        record("refusals", True, config.refusal.steps, time.perf_counter() - start)
    model.eval()
    return result


def _harden(
    result: DefenseResult,
    record: Callable[[str, bool, int, float], None],
    loaded: LoadedModel,
    config: DefenseConfig,
    data: DefenseData,
    judge: Judge,
    kept: Kept,
    meter: Meter,
    max_tokens: int,
    seed: int,
    report: Report,
    checkpoints: Checkpoints,
    draw: Draw,
) -> None:
    """Reward Neutralization between its warm start and its consolidation."""
    model = result.peft_model
    rejection = tuple(loaded.encode_completion(data.rejection))
    copies = _put_differently(
        loaded, data.defence, config, torch.Generator().manual_seed(seed + 4), every_style=True
    )
    plain = enumerate(loaded.encode_rows(data.defence))
    places, prompts = zip(*plain, *copies, strict=True)
    forbidden = [Example(tuple(prompt), rejection) for prompt in prompts]
    start = time.perf_counter()
    if config.warm_start.enabled:
        _warm_start(
            model, loaded, config.warm_start, forbidden, places, kept, seed, report, checkpoints
        )
    steps = config.warm_start.steps if config.warm_start.enabled else 0
    record("warm start", config.warm_start.enabled, steps, time.perf_counter() - start)

    start = time.perf_counter()
    steps = 0
    if config.neutralization.enabled:
        with tempfile.TemporaryDirectory(prefix="backburn-defence-") as scratch:
            history = neutralize(
                model,
                loaded,
                config.neutralization,
                forbidden=data.defence,
                benign=[*data.near_miss, *data.benign],
                rejection=data.rejection,
                judge=judge,
                max_tokens=max_tokens,
                seed=seed,
                scratch=Path(scratch),
                report=lambda done, total, note: report("neutralization", done, total, note),
                checkpoints=checkpoints,
                references=kept.references,
                draw=draw,
            )
        result.neutralization_steps = checkpoints.remembered(
            "rewards", list[dict[str, Any]], lambda: history
        )
        steps = len(result.neutralization_steps)
    record("neutralization", config.neutralization.enabled, steps, time.perf_counter() - start)

    start = time.perf_counter()
    steps = 0
    if config.consolidation.enabled:
        result.consolidation_curve = _consolidate(
            model, loaded, config.consolidation, forbidden, places, kept, meter, seed, report,
            checkpoints,
        )  # fmt: skip
        steps = int(result.consolidation_curve[-1]["step"])
    record("consolidation", config.consolidation.enabled, steps, time.perf_counter() - start)


def _put_differently(
    loaded: LoadedModel,
    rows: Sequence[PromptRow],
    config: DefenseConfig,
    generator: torch.Generator,
    *,
    every_style: bool = False,
) -> list[tuple[int, list[int]]]:
    """Copies of some prompts in role plays, and of some in another style, or in every other.

    Each with the place of its prompt among the rows.
    """
    played = role_plays(rows, config.role_plays, generator)
    place = {row.id + PLAYED: index for index, row in enumerate(rows)}
    return [
        *zip([place[row.id] for row in played], loaded.encode_rows(played), strict=True),
        *restyled(loaded, rows, config.restyled, generator, every_style=every_style),
    ]


def _prompts(copies: Sequence[tuple[int, list[int]]]) -> list[list[int]]:
    return [prompt for _, prompt in copies]


def _warm_start(
    model: Any,
    loaded: LoadedModel,
    config: WarmStartConfig,
    forbidden: Sequence[Example],
    places: Sequence[int],
    kept: Kept,
    seed: int,
    report: Report,
    checkpoints: Checkpoints,
) -> None:
    generator = torch.Generator().manual_seed(seed + 1)
    rejecting = Batches(forbidden, config.forbidden_per_step, generator, places)
    answering = Batches([*kept.near_miss, *kept.benign], config.benign_per_step, generator)
    optimizer = adapter_optimizer(model, config.learning_rate)
    parts = {
        "adapter": model,
        "optimizer": optimizer,
        "draws": generator,
        "rejecting": rejecting,
        "answering": answering,
        "references": kept.references,
    }
    model.train()
    with checkpoints.phase("warm start", parts) as phase:
        for step in phase.steps(lambda: config.steps):
            losses = rejection_step(model, loaded, rejecting.draw())
            rejecting.learn(losses)
            answers = shorten(answering.draw(), generator)
            answering.learn(benign_step(model, loaded, answers, kept.references))
            optimizer_step(model, optimizer)
            report("warm start", step, config.steps, f"rejection loss {mean(losses):.2f}")


def _consolidate(
    model: Any,
    loaded: LoadedModel,
    config: ConsolidationConfig,
    forbidden: Sequence[Example],
    places: Sequence[int],
    kept: Kept,
    meter: Meter,
    seed: int,
    report: Report,
    checkpoints: Checkpoints,
) -> list[dict[str, float]]:
    """Tempered cross-entropy until the validation slip rate is at its target, then settling.

    The learning rate is held until the target is met (or only the settling's steps are left), then
    falls to 0 and what is measured and kept is a running average of the adapter: single steps
    win and lose single prompts, their average does not. The adapter is left as it was at the best
    point measured. Returns the curve.
    """
    generator = torch.Generator().manual_seed(seed + 2)
    rejecting = Batches(forbidden, config.forbidden_per_step, generator, places)
    neighbours = Batches(kept.near_miss, config.near_miss_per_step, generator)
    answering = Batches(kept.benign, config.benign_per_step, generator)
    optimizer = adapter_optimizer(model, config.learning_rate)
    vocabulary = len(loaded.tokenizer)
    curve: list[dict[str, float]] = []
    search: dict[str, Any] = {"end": config.max_steps, "settling": False, "average": None}
    parts = {
        "adapter": model,
        "optimizer": optimizer,
        "draws": generator,
        "rejecting": rejecting,
        "neighbours": neighbours,
        "answering": answering,
        "references": kept.references,
        "curve": curve,
        "search": search,
    }
    with checkpoints.phase("consolidation", parts) as phase:
        if not curve:
            curve.append(_point(0, meter, model))
            search |= {"best": _badness(curve[0], config), "best_state": _adapter_state(model)}
        for step in phase.steps(lambda: int(search["end"])):
            model.train()
            remaining = (search["end"] - step + 1) / config.settle_steps
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate * min(1.0, step / _WARM_UP, remaining)
            near, far = neighbours.draw(), answering.draw()
            answers = shorten([*near, *far], generator)
            with noisy_embeddings(model, config.embedding_noise, seed * 10_000 + step):
                batch = rejecting.draw()
                derailed = [
                    derail(example, vocabulary, generator)
                    for example in rejecting.sample(config.recovery_per_step)
                ]
                losses = rejection_step(model, loaded, [*batch, *derailed], config.temper)
                divergences = benign_step(
                    model, loaded, answers, kept.references, config.benign_weight
                )
            rejecting.learn(losses[: len(batch)])
            neighbours.learn(divergences[: len(near)])
            answering.learn(divergences[len(near) :])
            optimizer_step(model, optimizer)
            if remaining < 1.0:
                search["average"] = _averaged(search["average"], model)
            if step % config.check_every == 0 or step == search["end"]:
                trained = _adapter_state(model)
                _restore(model, search["average"] or trained)
                curve.append(_point(step, meter, model))
                badness = _badness(curve[-1], config)
                if badness <= search["best"] + _TOLERANCE:  # of points as good, the more settled
                    search["best"] = min(search["best"], badness)
                    search["best_state"] = _adapter_state(model)
                _restore(model, trained)
                met = step >= config.min_steps and curve[-1]["slip_rate"] <= config.target_slip_rate
                if met and not search["settling"]:
                    search["settling"] = True
                    search["end"] = min(search["end"], step + config.settle_steps)
            note = (
                f"slip rate {curve[-1]['slip_rate']:.1e}, near-miss rejections "
                f"{curve[-1]['near_miss_rejection']:.0%}, benign KL {mean(divergences):.3f}"
            )
            report("consolidation", step, search["end"], note)
    _restore(model, search["best_state"])  # a late step can undo what an earlier one reached
    return curve


def derail(example: Example, vocabulary: int, generator: torch.Generator) -> Example:
    """A rejection in which one token gave way to random ones; what follows is to be learnt.

    Args:
        example: A forbidden prompt with its rejection.
        vocabulary: Number of tokens to draw from.
        generator: Of the place, the number (1 to 4) and the tokens.

    Returns:
        The prompt with the rejection up to and including the random tokens, and the rest of the
        rejection; its end token, if that was the one that gave way.
    """
    rejection = example.completion
    place = int(torch.randint(len(rejection), (1,), generator=generator))
    count = int(torch.randint(1, _MOST_DERAILED + 1, (1,), generator=generator))
    noise = torch.randint(vocabulary, (count,), generator=generator).tolist()
    rest = rejection[place + 1 :] or rejection[-1:]
    return Example((*example.prompt, *rejection[:place], *noise), rest)


def _averaged(average: dict[str, torch.Tensor] | None, model: Any) -> dict[str, torch.Tensor]:
    """The running average of the adapter; its first value is the adapter as it is now."""
    state = _adapter_state(model)
    if average is None:
        return state
    for name, value in state.items():
        average[name].lerp_(value, _AVERAGING)
    return average


def _restore(model: Any, state: dict[str, torch.Tensor]) -> None:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in state:
                parameter.copy_(state[name])


def _badness(point: dict[str, float], config: ConsolidationConfig) -> float:
    """Decades of slip rate above the target; over-refusal and drift counted in decades."""
    slip = max(point["slip_rate"], config.target_slip_rate, 1e-12)
    refused = (point["near_miss_rejection"] + point["benign_rejection"]) / 2
    return math.log10(slip) + (refused + point["benign_kl"]) / _DECADE


def _adapter_state(model: Any) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}


def _point(step: int, meter: Meter, model: Any) -> dict[str, float]:
    slips = meter.slips(model)
    return {
        "step": float(step),
        "slip_rate": mean(slips),
        "worst_slip_rate": max(slips),
        "near_miss_rejection": meter.near_miss_rejection(model),
        "benign_rejection": meter.benign_rejection(model),
        "benign_kl": meter.benign_kl(model),
    }
