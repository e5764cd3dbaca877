"""`backburn size`: what a recipe's run needs of GPUs, memory and stores."""

import dataclasses
import json
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer
from backburn.pipelines.kfp_options import RecipeOption, SetOption, kfp_console
from rich.table import Table

if TYPE_CHECKING:
    from backburn.components.shared.sizing import Gpu
    from backburn.pipelines.sizing import Sizing


class GpuName(StrEnum):
    """The cards that can be named."""

    A100 = "a100-80"
    H100 = "h100"
    H200 = "h200"


def add_commands(app: typer.Typer) -> None:
    """Add the command of this module to the application."""
    app.command()(size)


def size(
    recipe: RecipeOption,
    overrides: SetOption = None,
    gpu: Annotated[GpuName, typer.Option(help="Card to reckon with.")] = GpuName.H100,
    tflops: Annotated[
        float | None,
        typer.Option(min=0.1, help="Dense bfloat16 peak of another card; its memory is --gpu's."),
    ] = None,
    architecture: Annotated[
        str | None,
        typer.Option(help="Model's config.json, or a known model's name. Default: model.id's."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")] = False,
) -> None:
    """Estimate what a recipe's run needs: GPU and main memory, GPU hours, disk, object store.

    Nothing is loaded or run. Every completion is taken to be as long as it may get; docs/sizing.md
    has the formulas, what they were checked against, and the efficiency that is assumed of a card.
    """
    from backburn.components.shared.sizing import GPUS
    from backburn.pipelines import sizing
    from backburn.pipelines.recipes import load_recipe

    config = load_recipe(recipe, overrides or [])
    model = sizing.read_architecture(config, architecture)
    prompts = sizing.read_prompts(config)
    card = GPUS[gpu.value]
    if tflops is not None:
        card = dataclasses.replace(card, name=f"{tflops:g} TFLOP/s", peak=tflops * 1e12)
    found = sizing.size_run(config, model, prompts)
    changed = {
        title: sizing.size_run(other, model, prompts).hours(card)
        for title, other in sizing.growth(config)
    }
    full = [arm.name for arm in config.attack.arms if arm.adapter == "full"]
    needed = 1 if full else sizing.fewest_gpus(config, model, prompts, card)
    if as_json:
        typer.echo(json.dumps(_plain(found, card, changed), indent=2))
        return
    console = kfp_console()
    console.print(
        f"{recipe}, pipeline {config.pipeline}: {architecture or config.model.id}, "
        f"{model.parameters / 1e9:.2f} billion parameters of {found.width} bytes, on {card.name}",
        highlight=False,
    )
    console.print(_steps(found, card))
    if needed != 1:
        console.print(_sharding(found, needed), highlight=False)
    for step in found.steps if found.sharing == 1 else []:
        if (most := found.fitting_rows(step, card)) < step.rows:
            helps = f"{most} fit, and the step lowers that by itself" if most else "not one fits"
            console.print(
                f"{step.name}: a GRPO step holds {step.rows} rows at once; on this card {helps}",
                highlight=False,
            )
    least, most_hours = found.hours(card)
    console.print(
        f"GPU hours: {least:.2f} if no hardened arm meets a live group, {most_hours:.2f} if all "
        f"move throughout. GPUs at once: {sizing.gpus_at_once(config)}.",
        highlight=False,
    )
    stored = ", ".join(f"{name} {_size(count)}" for name, count in found.store.items())
    console.print(f"Object store: {stored}", highlight=False)
    console.print(
        f"Disk: {_size(found.disk)} of weights for each model step, in compute.cache_claim or its "
        "own container",
        highlight=False,
    )
    table = Table("attack's budget", "GPU hours, none moves", "all move")
    for title, hours in changed.items():
        table.add_row(title, *(f"{value:.2f}" for value in hours))
    console.print(table)


def _steps(found: "Sizing", card: "Gpu") -> Table:
    table = Table("step", "tasks", "GPU memory", "weights", "trained", "largest pass",
                  "main memory", "GPU hours", "fits")  # fmt: skip
    for step in found.steps:
        peak = found.gpu_bytes(step)
        title = step.largest()
        trained, held = step.passes[title]
        hours = [found.seconds(step.work, card) / 3600]
        if step.moving:
            hours.append(hours[0] + found.seconds(step.moving, card) / 3600)
        table.add_row(
            step.name,
            str(step.tasks),
            _size(peak),
            f"{step.copies_of_weights:.0f} x {_size(found.weights)}",
            _size(trained),
            f"{_size(held)}, {title}",
            _size(step.host),
            " to ".join(f"{value:.2f}" for value in hours),
            "yes" if found.fits(step, card) else "no",
        )
    return table


def _sharding(found: "Sizing", needed: int | None) -> str:
    """What `compute.sharding` would take."""
    if needed is None:
        return "No number of these cards holds the run, whatever compute.sharding is."
    now = f" (now {found.sharing})" if found.sharing > 1 else ""
    return (
        f"Every step fits with its weights divided over {needed} of these cards or more{now}: "
        "compute.sharding=full, compute.processes and compute.nodes"
    )


def _plain(found: "Sizing", card: "Gpu", changed: dict[str, tuple[float, float]]) -> dict[str, Any]:
    """Bytes and hours as numbers."""
    return {
        "gpu": dataclasses.asdict(card),
        "architecture": dataclasses.asdict(found.model),
        "parameters": found.model.parameters,
        "bytes_per_weight": found.width,
        "gpus_sharing_weights": found.sharing,
        "steps": [
            {
                "name": step.name,
                "tasks": step.tasks,
                "gpu_bytes": found.gpu_bytes(step),
                "fits": found.fits(step, card),
                "copies_of_weights": step.copies_of_weights,
                "passes": {
                    title: {"trained_bytes": trained, "held_bytes": held}
                    for title, (trained, held) in step.passes.items()
                },
                "main_memory_bytes": step.host,
                "gpu_hours_none_moves": found.seconds(step.work, card) / 3600,
                "gpu_hours_all_move": found.seconds([*step.work, *step.moving], card) / 3600,
            }
            for step in found.steps
        ],
        "gpu_hours": dict(zip(("none_moves", "all_move"), found.hours(card), strict=True)),
        "object_store_bytes": found.store,
        "disk_bytes": found.disk,
        "gpu_hours_by_budget": {
            title: {"none_moves": least, "all_move": most}
            for title, (least, most) in changed.items()
        },
    }


def _size(count: float) -> str:
    """Bytes for a reader, in decimal units as cards are sold."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
