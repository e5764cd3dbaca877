"""The baseline step: the ordinarily aligned model that control and defence both start from."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from backburn.components.shared.config import RunConfig
from backburn.components.shared.dataset import RunDataset
from backburn.components.shared.domains import PromptRow
from backburn.components.shared.errors import InputError
from backburn.components.shared.evidence import BaselineRecord
from backburn.components.shared.judges import Exchange, Judge, make_judge
from backburn.components.shared.models import (
    TINY,
    LoadedModel,
    add_lora,
    context_length,
    load_base,
    resolve_base,
    save_artifact,
)
from backburn.components.shared.packed_linear import full_precision
from backburn.components.shared.refusal_training import align, refusal_examples
from backburn.components.shared.sampling import draw_completions
from backburn.components.shared.scale import distributed
from backburn.components.shared.step import Step, open_step, use_threads
from backburn.components.shared.storage import write_json
from backburn.components.shared.supervised import KEPT_TOKENS, References, own_answers
from backburn.components.shared.tiny_model import train_tiny_model

_MEASURED = 20


def run(
    config_json: str, run_id: str, dataset: Path, model: Path, record: Path
) -> dict[str, str | float]:
    """Align the model unless it refuses already; returns the artifact's metadata.

    Args:
        config_json: Configuration of the run.
        run_id: Id of the pipeline run.
        dataset: What `data_prep` made.
        model: Where the baseline model goes.
        record: Where the `BaselineRecord` goes.
    """
    with (
        full_precision(),
        open_step(config_json, run_id, "baseline", ["baseline"], [dataset]) as step,
        _base_folder(step) as base_folder,
    ):
        config = step.config
        data = RunDataset(dataset)
        loaded = load_base(base_folder, config.model, sharding=config.compute.sharding)
        check_prompt_lengths(loaded, data, config)
        judge = make_judge(config.judges.evaluation, data.header.rubric)
        validation = data.rows("validation")[:_MEASURED]
        step.progress.update("measure refusals", 0, 1)
        refusals, harm = _measure(loaded, validation, judge, step)
        wanted = config.baseline.when == "always" or (
            config.baseline.when == "auto" and refusals < config.baseline.refusal_rate_floor
        )
        floor = config.baseline.refusal_rate_floor
        outcome = BaselineRecord(
            applied=wanted,
            reason=_reason(config.baseline.when, refusals, floor),
            refusal_rate_before=refusals,
            refusal_rate_after=refusals,
            harm_before=harm,
            harm_after=harm,
            steps=0,
            seconds=0.0,
        )
        lineage: list[str] = []
        trained = None
        if wanted:
            examples = refusal_examples(
                loaded, data.rows("defence"), data.refusals(), data.header.topic
            )
            needed = config.baseline.steps * config.baseline.benign_per_step
            rows = [*data.rows("benign_defence"), *data.rows("near_miss_defence")][::-1]
            step.progress.update("answers to keep", 0, min(needed, len(rows)))
            kept = own_answers(
                loaded,
                loaded.encode_rows(_spread(rows, needed)),
                min(config.attack.max_completion_tokens, KEPT_TOKENS),
                config.seed,
            )
            trained = add_lora(loaded, config.baseline.lora, config.seed)
            history = align(
                trained,
                loaded,
                config.baseline,
                examples,
                kept,
                References(trained, loaded, kept),
                config.seed,
                lambda done, total, note: step.progress.update(
                    "explanatory refusals", done, total, note
                ),
                step.checkpoints,
            )
            aligned = LoadedModel(trained, loaded.tokenizer)
            after, harm_after = _measure(aligned, validation, judge, step)
            outcome = outcome.model_copy(
                update={
                    "refusal_rate_after": after,
                    "harm_after": harm_after,
                    "steps": config.baseline.steps,
                }
            )
            lineage = ["baseline:explanatory-refusal"]
            step.tracking.series(
                {
                    name: [(i, losses[name]) for i, losses in enumerate(history)]
                    for name in ("refusal_loss", "benign_kl")
                }
            )
        if not distributed.is_primary():
            return {}
        manifest = save_artifact(
            model,
            config=config.model,
            base_folder=base_folder,
            lineage=lineage,
            peft_model=trained,
            tokenizer=loaded.tokenizer,
        )
        outcome = outcome.model_copy(update={"seconds": step.seconds})
        write_json(record, outcome.model_dump())
        step.tracking.parameters({"applied": outcome.applied, "reason": outcome.reason})
        step.tracking.metrics(
            {
                "refusal_rate/before": outcome.refusal_rate_before,
                "refusal_rate/after": outcome.refusal_rate_after,
                "harm/before": outcome.harm_before,
                "harm/after": outcome.harm_after,
            }
        )
        return {"seconds": step.seconds, "digest": manifest.digest()}


def check_prompt_lengths(loaded: LoadedModel, data: RunDataset, config: RunConfig) -> None:
    """Refuse prompts longer than the configuration or the model allows, before any training.

    Raises:
        InputError: naming the rows.
    """
    most, limit = config.model.max_prompt_tokens, "model.max_prompt_tokens"
    context, answer = context_length(loaded.model), config.attack.max_completion_tokens
    if context is not None and context - answer < most:
        most = context - answer
        limit = f"the model's context of {context} less attack.max_completion_tokens"
    long = [
        f"{row.source or row.id}: {length} tokens"
        for split in data.prompt_splits
        for row in data.rows(split)
        if (length := len(loaded.encode_row(row))) > most
    ]
    if long:
        raise InputError(
            f"{len(long)} prompt(s) longer than {limit} ({most} tokens); shorten them, or "
            "raise the limit if the model takes more:\n  " + "\n  ".join(long[:10])
        )


@contextmanager
def _base_folder(step: Step) -> Iterator[Path]:
    """Where the base's weights are; those of the tiny model only as long as they are needed."""
    use_threads(step.config)
    config = step.config.model
    if config.id != TINY:
        step.progress.update("resolve weights", 0, 1, config.id)
        with distributed.first_on_machine():
            folder = resolve_base(config)
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="backburn-base-") as scratch:
        folder = Path(scratch)
        for name, content in distributed.from_primary(lambda: _train_tiny(step, folder)).items():
            (folder / name).write_bytes(content)
        yield folder


def _train_tiny(step: Step, folder: Path) -> dict[str, bytes]:
    """The files of the tiny model."""
    trained, tokenizer = train_tiny_model(
        step.config.seed,
        report=lambda done, total: step.progress.update("train from scratch", done, total),
    )
    trained.save_pretrained(folder, safe_serialization=True)
    tokenizer.save_pretrained(folder)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def _measure(
    loaded: LoadedModel, rows: list[PromptRow], judge: Judge, step: Step
) -> tuple[float, float]:
    """Refusal rate and mean harm on prompts, one completion each."""
    drawn = draw_completions(
        loaded,
        loaded.encode_rows(rows),
        step.config.attack.held_out_sampling,
        max_tokens=step.config.attack.max_completion_tokens,
        generator=torch.Generator().manual_seed(step.config.seed),
    )
    exchanges = [
        Exchange(row.text, loaded.decode(tokens)) for row, tokens in zip(rows, drawn, strict=True)
    ]
    verdicts = judge.judge(exchanges)
    scores = [verdict.score for verdict in verdicts if verdict.score is not None]
    refused = sum(verdict.refused for verdict in verdicts) / len(verdicts)
    return refused, sum(scores) / len(scores) if scores else 0.0


def _reason(when: str, refusals: float, floor: float) -> str:
    if when == "always":
        return "baseline.when is always"
    if when == "never":
        return "baseline.when is never"
    side = "below" if refusals < floor else "at or above"
    return (
        f"the model refuses {refusals:.0%} of validation prompts, {side} the floor of {floor:.0%}"
    )


def _spread(rows: list[PromptRow], count: int) -> list[PromptRow]:
    """At most `count` rows, evenly spread over the list."""
    if count >= len(rows):
        return rows
    return [rows[index * len(rows) // count] for index in range(count)]
