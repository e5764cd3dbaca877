"""Figures of finished runs, side by side: the tables of benchmarks/RUNS.md and of the README.

    python -m benchmarks.run_figures runs/<run id> [-r laptop] [--note "on one core"]

Takes a run's figures from its evidence once that is found sound, keeps them as one row in a file,
and writes the tables from that file alone (`--only-table`); the README's has the last run of
`laptop` on each domain. A run whose evidence is not sound is refused. `--drop <run id>` forgets a
run.
"""

import argparse
import json
import textwrap
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from backburn.components.shared.config import RunConfig
from backburn.components.shared.errors import InputError
from backburn.components.shared.evidence import Evidence
from backburn.components.shared.report.formatting import TEMPLATES
from backburn.components.shared.storage import write_text
from backburn.components.shared.verification import verify_bundle
from backburn.pipelines.recipes import load_recipe

from benchmarks.runs import put_between_markers, read_rows, require_rows

HERE = Path(__file__).parent
README = HERE.parent / "README.md"
Row = dict[str, Any]
Line = tuple[str, Callable[[Row], str]]
_SHORT = {
    "hardened_harm": "harm of the hardened model, worst arm",
    "certificate": "certificate",
    "held_out_slip_rate": "mean held-out slip rate, the model's own template",
    "near_miss_refusal_increase": "near-miss prompts refused beyond the baseline's share",
    "benign_refusal_increase": "benign prompts refused beyond the baseline's share",
    "benign_perplexity_ratio": "perplexity of benign answers, of the baseline's",
    "utility_loss": "accuracy lost on everyday questions",
}
_MACHINE = ("compute.", "tracking.")
_WEAKEST = 3
_PAGE = """\
Whole runs of shipped recipes, each found sound by `backburn verify` before its figures were taken.
A figure that decides has its limit; the others are reported. Shares are of 1. Times are of machines
that did other work too.

{table}

Made by `python -m benchmarks.run_figures`.
"""


def row_of(folder: Path, recipe: str, note: str) -> Row:
    """What the table says of a run.

    Args:
        folder: Of a finished run.
        recipe: The one it ran, to name the settings that differ.
        note: How it was run, for the table.

    Returns:
        A JSON object.

    Raises:
        SystemExit: if the run is not finished, its evidence is not sound, or there is no such
            recipe.
    """
    try:
        given = load_recipe(recipe)
        verification = verify_bundle(folder)
    except InputError as error:
        raise SystemExit(str(error)) from error
    evidence, decision = verification.evidence, verification.decision
    if not verification.sound or evidence is None or decision is None:
        raise SystemExit(f"{folder}: not sound: `backburn verify {folder}` says why")
    controls = [arm for arm in evidence.arms if arm.role == "control"]
    behaviour = evidence.behaviour
    return {
        "run": evidence.run_id,
        "created": evidence.created,
        "code": evidence.code_sha256,
        "note": note,
        "recipe": recipe,
        "settings": settings_of(evidence, given),
        "domain": evidence.data.domain,
        "seed": evidence.config["seed"],
        "outcome": decision.outcome,
        "reasons": decision.reasons,
        "figures": {check.name: check.value for check in decision.checks},
        "thresholds": {check.name: check.threshold for check in decision.checks},
        "controls": [
            {
                "arm": f"{arm.arm}/{arm.seed}",
                "curve": [(point.step, point.harm) for point in arm.curve],
            }
            for arm in controls
        ],
        "certified": {
            f"{arm.arm}/{arm.seed}": arm.probability
            for arm in evidence.certificate.arms
            if arm.probability is not None
        },
        "worst_slip": max(evidence.certificate.per_prompt.values()),
        "styles": [style.model_dump() for style in evidence.styles],
        "trainability": {item.training: item.ratio for item in evidence.trainability},
        "rejected": {
            "near-miss": behaviour.near_miss_rejection_probability,
            "benign": behaviour.benign_rejection_probability,
        },
        "validation_slip": evidence.phases[-1].slip_rate,
        "steps": {phase.phase: phase.steps for phase in evidence.phases},
        "seconds": evidence.seconds,
    }


def settings_of(evidence: Evidence, recipe: RunConfig) -> list[str]:
    """What a run set beside its recipe, as `path=value`; nothing that only concerns the machine."""
    given = dict(leaves(recipe.model_dump(mode="json")))
    return [
        f"{path}={textwrap.shorten(json.dumps(value), 60)}"
        for path, value in sorted(leaves(evidence.config))
        if not path.startswith(_MACHINE) and given.get(path, value) != value
    ]


def leaves(section: dict[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted path and value of everything that is no section."""
    for key, value in section.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value


def table(rows: list[Row]) -> str:
    """The Markdown table: a line a figure, a column a run."""
    lines: list[tuple[str, Callable[[Row], str], str]] = [
        ("recipe, domain, seed", lambda r: f"{r['recipe']}, {r['domain']}, {r['seed']}", ""),
        ("other settings", _settings, ""),
        ("how", lambda r: r["note"] or "-", ""),
        ("outcome", lambda r: f"**{r['outcome']}**", ""),
        ("control harm (step)", _curves, ""),
    ]
    for name in _seen(rows, lambda r: r["figures"]):
        limits = {row["thresholds"][name] for row in rows if name in row["thresholds"]}
        limit = ", ".join(_number(limit) for limit in sorted(limits))
        lines.append((name.replace("_", " "), _inside("figures", name), limit))
    lines += [
        ("certificate of single arms, weakest first", _weakest, ""),
        ("held-out slip rate, worst prompt", lambda r: _number(r["worst_slip"]), ""),
        ("validation slip rate", lambda r: _number(r["validation_slip"]), ""),
    ]
    for style in _seen(rows, lambda r: map(_style_name, r["styles"][1:])):
        lines.append((f"held-out slip rate: {style}", partial(_style, style), ""))
    for training in ("sft", "rl"):
        name = f"gain of harmless {training.upper()}, of the baseline's"
        lines.append((name, _inside("trainability", training), ""))
    for kind in _seen(rows, lambda r: r["rejected"]):
        name = f"probability of the rejection, {kind} prompts"
        lines.append((name, _inside("rejected", kind), ""))
    lines.append(("consolidation steps", _inside("steps", "consolidation"), ""))
    for task in _seen(rows, lambda r: r["seconds"]):
        lines.append((f"{task.replace('_', ' ')}, seconds", _inside("seconds", task), ""))
    cells = [["", *(f"`{row['run']}`" for row in rows), "limit"], ["---"] * (len(rows) + 2)]
    cells += [[name, *map(say, rows), limit] for name, say, limit in lines]
    return _markdown(cells)


def short_table(rows: list[Row]) -> str:
    """The README's Markdown table: the last run of `laptop` on each domain."""
    ours = sorted((row for row in rows if row["recipe"] == "laptop"), key=lambda r: r["created"])
    rows = list({row["domain"]: row for row in ours}.values())

    def limited(*names: str) -> list[Line]:
        found = []
        for name in names:
            limits = sorted({row["thresholds"][name] for row in rows if name in row["thresholds"]})
            if limits:
                title = f"{_SHORT[name]} (limit {', '.join(map(_number, limits))})"
                found.append((title, _inside("figures", name)))
        return found

    lines: list[Line] = [
        ("run", lambda row: f"`{row['run']}`, {row['created'][:10]}"),
        ("settings beside the recipe's", _settings),
        ("gate", lambda row: "; ".join([f"**{row['outcome']}**", *row.get("reasons", [])])),
        ("harm of the control (step)", _curves),
        *limited("hardened_harm", "certificate", "held_out_slip_rate"),
    ]
    for style in _seen(rows, lambda r: map(_style_name, r["styles"][1:])):
        lines.append((f"the same, {style}", partial(_style_mean, style)))
    lines += limited("near_miss_refusal_increase", "benign_refusal_increase")
    lines += limited("benign_perplexity_ratio", "utility_loss")
    lines.append(("minutes, last attempt of each task", _minutes))
    cells = [["", *(row["domain"].replace("_", " ") for row in rows)], ["---"] * (len(rows) + 1)]
    cells += [[name, *map(say, rows)] for name, say in lines]
    return _markdown(cells)


def _markdown(cells: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def _seen(rows: list[Row], names: Callable[[Row], Iterable[str]]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in names(row)))


def _inside(section: str, name: str) -> Callable[[Row], str]:
    return lambda row: _number(row[section].get(name))


def _settings(row: Row) -> str:
    return ", ".join(f"`{setting}`" for setting in row["settings"]) or "none"


def _minutes(row: Row) -> str:
    return f"{sum(row['seconds'].values()) / 60:.0f}"


def _curves(row: Row) -> str:
    return "; ".join(
        ", ".join(f"{harm:.2f} ({step})" for step, harm in control["curve"])
        for control in row["controls"]
    )


def _weakest(row: Row) -> str:
    certified = sorted(row.get("certified", {}).items(), key=lambda item: item[1])
    return ", ".join(f"{arm} {_number(bound)}" for arm, bound in certified[:_WEAKEST]) or "-"


def _style_name(style: dict[str, Any]) -> str:
    name = TEMPLATES[style["template"]]
    return name if style["system_prompt"] is None else f"{name}, another system prompt"


def _style(name: str, row: Row) -> str:
    style = _measured(name, row)
    if style is None:
        return "-"
    mean, worst = _number(style["slip_rate"]), _number(style["worst_slip_rate"])
    return f"{mean}, worst {worst}, {style['rejecting']} of {style['prompts']} rejected"


def _style_mean(name: str, row: Row) -> str:
    style = _measured(name, row)
    return "-" if style is None else _number(style["slip_rate"])


def _measured(name: str, row: Row) -> dict[str, Any] | None:
    """A style's slip rates in a run; None if it was not measured there."""
    styles = (style for style in row["styles"] if style["slip_rate"] is not None)
    return next((style for style in styles if _style_name(style) == name), None)


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1e}" if value and abs(value) < 0.001 else f"{value:.3g}"


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("run", type=Path, nargs="?", help="folder of a finished run")
    parser.add_argument("-r", "--recipe", default="laptop", help="that the run was of")
    parser.add_argument("--note", default="", help="how it was run, for the table")
    parser.add_argument("--drop", default=None, metavar="RUN_ID", help="forget a run")
    parser.add_argument("--only-table", action="store_true", help="write the table again")
    parser.add_argument("--rows", type=Path, default=HERE / "figures.jsonl")
    parser.add_argument("--table", type=Path, default=HERE / "RUNS.md")
    parser.add_argument("--readme", type=Path, default=README, help="page for the short table")
    arguments = parser.parse_args()
    if arguments.run is None:
        if not (arguments.only_table or arguments.drop):
            parser.error("give the folder of a finished run, --drop, or --only-table")
        require_rows(parser, arguments.rows)
    rows = read_rows(arguments.rows)
    known = {row["run"] for row in rows}
    if arguments.drop and arguments.drop not in known:
        parser.error(f"--drop: no run {arguments.drop!r} in {arguments.rows}")
    if arguments.run is not None:
        made = row_of(arguments.run, arguments.recipe, arguments.note)
        rows = [row for row in rows if row["run"] != made["run"]] + [made]
    rows = [row for row in rows if row["run"] != arguments.drop]
    try:
        page = put_between_markers(arguments.readme.read_text("utf-8"), "runs", short_table(rows))
    except (OSError, ValueError) as error:
        parser.error(f"--readme: {arguments.readme}: {error}; nothing was written")
    write_text(arguments.rows, "".join(json.dumps(row) + "\n" for row in rows))
    write_text(arguments.table, _PAGE.format(table=table(rows)))
    write_text(arguments.readme, page)


if __name__ == "__main__":
    main()
