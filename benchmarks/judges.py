"""Judges on labelled exchanges: the table of benchmarks/JUDGES.md.

    python -m benchmarks.judges [--no-chat]
    python -m benchmarks.judges --recipe my-recipe.yaml

The first measures every judge that needs no download on every shipped domain, and two broken ones;
the second the evaluation judge of a recipe on the recipe's domain. What was measured is kept in a
file, one row a judge and domain, and the table is written from that file alone (`--only-table`).
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from backburn.components.shared.config import (
    ChatJudgeConfig,
    DomainConfig,
    JudgeConfig,
    JudgesConfig,
)
from backburn.components.shared.domains import Domain, load_domain, shipped_domains
from backburn.components.shared.errors import InputError
from backburn.components.shared.judges import Exchange, Judge, LexicalJudge, Verdict, make_judge
from backburn.components.shared.judges.calibration import calibrate, require_agreement
from backburn.components.shared.storage import write_text
from backburn.pipelines.recipes import load_recipe
from rich.console import Console

from benchmarks.llama_server import MODEL, serving
from benchmarks.runs import read_rows, require_rows

HERE = Path(__file__).parent
LIMITS = ("judges.calibration_floor", "judges.injection_drop_max")
COLUMNS = {
    "spearman": "Spearman",
    "weighted_kappa": "weighted kappa",
    "refusal_accuracy": "refusals told right",
    "mean_absolute_error": "mean error (of 10)",
    "injection_drop": "lost to orders",
}
GUARDS = {
    "qwen3guard": "e.g. `Qwen/Qwen3Guard-Gen-0.6B`",
    "granite-guardian": "e.g. `ibm-granite/granite-guardian-3.3-8b`, with `template_arguments` "
    "(version 3) or a `question_file` (version 4)",
    "llama-guard": "e.g. `meta-llama/Llama-Guard-3-8B`, gated: `HF_TOKEN`",
    "harmbench": "e.g. `cais/HarmBench-Mistral-7b-val-cls`, and its card's prompt in a "
    "`template_file`",
    "strongreject": "StrongREJECT's fine-tuned scorer as a folder of whole weights, and its prompt "
    "in a `template_file`",
}
BROKEN = ("sign-flipped lexical", "constant 5")
Row = dict[str, Any]
_PAGE = """\
{conclusion}

Each judge scores the labelled exchanges of a domain, and harmful ones again with an order to score
0 behind them (*lost to orders*: mean score lost). *Used?* is what a run does: one whose evaluation
judge is below `judges.calibration_floor` (0.7) or above `judges.injection_drop_max` (3) ends before
anything is trained. `chat:{model}` is SmolLM2-135M-Instruct behind llama.cpp, a real chat judge
over HTTP and far too small a one. {broken} are broken on purpose. Seconds are of one measurement,
on one or two cores that did other work too.

{table}

## Guards

Not measured: their weights come from the model hub. They judge real hazards, so they want a domain
that is no stand-in. `python -m benchmarks.judges --recipe my-recipe.yaml` measures one, on the
recipe's `domain`; the recipe says
`judges: {{evaluation: {{kind: guard, guard: {{family: ..., model: ...}}}}}}`.

| family | needs |
|---|---|
{guards}

Made by `python -m benchmarks.judges`.
"""


class Changed:
    """The lexical judge with its scores changed."""

    def __init__(self, name: str, judge: Judge, change: Callable[[float], float]) -> None:
        """Wrap a judge whose every exchange is scored."""
        self.id = name
        self.usage = judge.usage
        self._judge, self._change = judge, change

    def judge(self, exchanges: Sequence[Exchange]) -> list[Verdict]:
        """One verdict an exchange, in order."""
        return [
            Verdict(said.refused, self._change(said.score or 0.0), self.id)
            for said in self._judge.judge(exchanges)
        ]


def main() -> None:
    """Measure, then write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipe", help="measure its judges.evaluation on its domain instead")
    parser.add_argument(
        "--no-chat", action="store_true", help="keep the chat judge's rows, which take minutes"
    )
    parser.add_argument("--rows", type=Path, default=HERE / "judges.jsonl", help="what was done")
    parser.add_argument("--table", type=Path, default=HERE / "JUDGES.md")
    parser.add_argument("--only-table", action="store_true")
    options = parser.parse_args()
    if options.only_table:
        require_rows(parser, options.rows)
    console = Console(highlight=False)
    rows = {(row["domain"], row["judge"]): row for row in read_rows(options.rows)}
    if not options.only_table:
        of_machine = _without_server if options.no_chat else _of_this_machine
        for row in _of_recipe(options.recipe) if options.recipe else of_machine():
            rows[row["domain"], row["judge"]] = row
            lines = "".join(json.dumps(item) + "\n" for item in rows.values())
            write_text(options.rows, lines)
            refused = f"refused by {row['refused_by']}" if row["refused_by"] else "accepted"
            console.print(f"{row['domain']}, {row['judge']}: {refused}, {row['seconds']:.1f} s")
    write_text(options.table, table(list(rows.values())))
    console.print(f"wrote {options.table} from {len(rows)} rows")


def _of_this_machine() -> Iterator[Row]:
    yield from _without_server()
    with serving() as url:
        chat = ChatJudgeConfig(base_url=url, model=MODEL, concurrency=2, timeout_seconds=300)
        for domain in _domains():
            config = JudgeConfig(kind="chat", chat=chat)
            judge = make_judge(config, domain.header.rubric, afresh=True)
            yield measure(judge, domain)


def _without_server() -> Iterator[Row]:
    lexical, semantic = JudgeConfig(kind="lexical"), JudgeConfig(kind="semantic")
    panel = JudgeConfig(kind="panel", members=[lexical, semantic])
    for domain in _domains():
        judged = LexicalJudge(domain.header.rubric)
        yield measure(Changed(BROKEN[0], judged, lambda score: 10.0 - score), domain)
        yield measure(Changed(BROKEN[1], judged, lambda score: 5.0), domain)
        for config in (lexical, semantic, panel):
            yield measure(make_judge(config, domain.header.rubric, afresh=True), domain)


def _domains() -> list[Domain]:
    return [load_domain(DomainConfig(name=name)) for name in shipped_domains()]


def _of_recipe(recipe: str) -> Iterator[Row]:
    config = load_recipe(recipe)
    domain = load_domain(config.domain)
    judge = make_judge(config.judges.evaluation, domain.header.rubric, afresh=True)
    yield measure(judge, domain)


def measure(judge: Judge, domain: Domain) -> Row:
    """Put a judge to a domain's labelled exchanges, and to the rule that refuses bad judges."""
    start = time.perf_counter()
    record = calibrate(judge, "evaluation", domain.calibration)
    seconds = time.perf_counter() - start
    refused_by = None
    try:
        require_agreement(record, JudgesConfig())
    except InputError as error:
        refused_by = next(limit for limit in LIMITS if limit in str(error))
    figures = record.model_dump(mode="json", include={"exchanges", "scored", *COLUMNS})
    return {
        "domain": domain.header.name,
        "judge": judge.id,
        **figures,
        "requests": judge.usage.calls,
        "seconds": seconds,
        "refused_by": refused_by,
    }


def table(rows: Sequence[Row]) -> str:
    """The page: what to take from it first, then every row."""
    heads = ["domain", "judge", "exchanges", "scored", *COLUMNS.values(), "seconds", "used?"]
    body = [_line(row) for row in sorted(rows, key=lambda row: (row["domain"], _place(row)))]
    guards = [f"| `{family}` | {needs} |" for family, needs in GUARDS.items()]
    return _PAGE.format(
        conclusion=_conclusion(rows),
        model=MODEL,
        broken=" and ".join(f"`{name}`" for name in BROKEN),
        table="\n".join((f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}", *body)),
        guards="\n".join(guards),
    )


def _conclusion(rows: Sequence[Row]) -> str:
    if not rows:
        return "No judge has been measured."
    by_name: dict[str, list[Row]] = {}
    for row in sorted(rows, key=_place):
        by_name.setdefault(row["judge"].split("/rubric-")[0], []).append(row)
    good = {n: rs for n, rs in by_name.items() if not any(row["refused_by"] for row in rs)}
    found = [row["spearman"] for rs in good.values() for row in rs]
    refused = [
        name if all(row["refused_by"] for row in rs) else f"{name} (on some domains)"
        for name, rs in by_name.items()
        if name not in good
    ]
    span = f" (Spearman {min(found):.2f} to {max(found):.2f})" if found else ""
    return (
        f"**Good enough to decide on every domain they were measured on: "
        f"{', '.join(good) or 'none'}{span}. Refused: {', '.join(refused) or 'none'}.**"
    )


def _line(row: Row) -> str:
    used = f"no: `{row['refused_by']}`" if row["refused_by"] else "yes"
    figures = ["none" if row[name] is None else f"{row[name]:.2f}" for name in COLUMNS]
    cells = [row["domain"], row["judge"], row["exchanges"], row["scored"], *figures]
    return f"| {' | '.join(map(str, [*cells, round(row['seconds'], 1), used]))} |"


def _place(row: Row) -> tuple[bool, bool, str]:
    """Broken judges last, refused ones before them."""
    return row["judge"] in BROKEN, row["refused_by"] is not None, row["judge"]


if __name__ == "__main__":
    main()
