"""From evidence and decision to one HTML document that loads nothing from anywhere."""

import base64
import hashlib
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any

from backburn.components.shared.errors import InputError
from backburn.components.shared.evidence import (
    ArmRecord,
    CurvePoint,
    Decision,
    Evidence,
    ExampleRecord,
    Role,
)
from backburn.components.shared.report import attack_charts, claims, model_charts
from backburn.components.shared.report.formatting import FILTERS, interval
from backburn.components.shared.report.links import mlflow_links
from backburn.components.shared.report.matrix import matrix_charts, matrix_rows
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

_HERE = Path(__file__).parent
_CHECK_KINDS = {
    "control": "Was the attack strong enough?",
    "hardened": "Did the hardened model hold?",
    "behaviour": "Does it still answer what it should?",
    "judging": "Can the judging be trusted?",
}
_ROLES: tuple[Role, ...] = ("hardened", "control")
_WORST_PROMPTS = 5
_WORST_TRIALS = 5
_ROWS_OPEN = 12
"""Tables of arms with more rows are folded."""

# 680 px is the printable width of A4 at the margins of report.css; a grid has two columns there.
# For paper all that is folded is unfolded, except what is marked as raw.
_DRAW = """
const settings = {responsive: true, displayModeBar: false};
const plots = [];
// A narrow chart gets the room that its legend takes.
const heightAt = (plot, width) => {
  const {data, layout} = plot.figure;
  const names = data.filter((trace) => trace.name && trace.showlegend !== false).length;
  const listed = layout.showlegend !== false && names > 2 && width < 480;
  return layout.height + (listed ? 16 * names : 0);
};
for (const source of document.querySelectorAll('script[data-chart]')) {
  const plot = document.getElementById(source.dataset.chart);
  const figure = JSON.parse(source.textContent);
  plot.textContent = '';
  plot.figure = figure;
  const height = heightAt(plot, plot.clientWidth);
  Plotly.newPlot(plot, figure.data, {...figure.layout, height}, settings);
  plots.push(plot);
}
const folds = [...document.querySelectorAll('details:not(.raw)')];
let opened = [];
addEventListener('beforeprint', () => {
  opened = folds.filter((fold) => !fold.open);
  opened.forEach((fold) => { fold.open = true; });
  plots.forEach((plot) => {
    const width = plot.closest('.grid') ? 334 : 680;
    Plotly.relayout(plot, {width, height: heightAt(plot, width)});
  });
});
addEventListener('afterprint', () => {
  opened.forEach((fold) => { fold.open = false; });
  plots.forEach((plot) => Plotly.relayout(
    plot, {width: null, height: heightAt(plot, plot.parentElement.clientWidth), autosize: true}));
});
"""


def render_report(evidence: Evidence, decision: Decision) -> str:
    """Render the run's report.

    The document is self-contained: style, plotly.js and all data are inlined, and its content
    security policy allows no request and no script but its own two. All text from the evidence is
    escaped.

    Args:
        evidence: What was measured. Its examples are shown only for a stand-in domain.
        decision: What the gate decided from it.

    Returns:
        The HTML.

    Raises:
        InputError: if the decision was made about another run.
    """
    if evidence.run_id != decision.run_id:
        raise InputError(
            f"the evidence is of run {evidence.run_id} but the decision is of run "
            f"{decision.run_id}: "
            "render each run's evidence with its own decision"
        )
    return (
        _template_environment()
        .get_template("report.html")
        .render(
            evidence=evidence,
            decision=decision,
            verdict=claims.verdict(evidence, decision),
            tiles=claims.key_figures(evidence),
            checks=[
                (question, [check for check in decision.checks if check.kind == kind])
                for kind, question in _CHECK_KINDS.items()
            ],
            links=mlflow_links(decision),
            worst=_worst_first(evidence),
            recipes=sorted(
                evidence.recipes,
                key=lambda r: (r.role == "control", -r.harm, r.refusal_rate, r.arm),
            ),
            by_recipe=_by_recipe(evidence),
            rows_open=_ROWS_OPEN,
            matrix=matrix_charts(evidence),
            babbles=any(row.babbles for role in _ROLES for row in matrix_rows(evidence, role)),
            controls_stopped=any(
                arm.role == "control" and arm.steps_to_break is not None for arm in evidence.arms
            ),
            curves_shown=attack_charts.curves_shown(evidence),
            worst_prompts=sorted(
                evidence.certificate.per_prompt.items(), key=lambda item: item[1], reverse=True
            )[:_WORST_PROMPTS],
            examples=_examples_by_title(evidence),
            uncertified=claims.uncertified_arms(evidence),
            harm=attack_charts.harm_chart(evidence),
            refusal=attack_charts.refusal_chart(evidence),
            series=attack_charts.series_charts(evidence),
            sweep=attack_charts.sweep_chart(evidence),
            worst_trials=sorted(evidence.sweep, key=lambda t: (-t.harm, -t.live_groups, t.number))[
                :_WORST_TRIALS
            ],
            trained_on=model_charts.TRAINED_ON,
            slip=model_charts.slip_chart(evidence),
            per_prompt=model_charts.per_prompt_chart(evidence),
            consolidation=model_charts.consolidation_chart(evidence),
            refusals=model_charts.refusals_chart(evidence),
            perplexity=model_charts.perplexity_chart(evidence),
            calibration=[model_charts.calibration_chart(record) for record in evidence.calibration],
            time=model_charts.time_chart(evidence),
            total_seconds=sum(value for step, value in evidence.seconds.items() if step != "total"),
            interval=interval,
            css=Markup((_HERE / "report.css").read_text("utf-8")),
            plotly=Markup(get_plotlyjs()),
            draw=Markup(_DRAW),
            script_hashes=_script_hashes(),
        )
    )


def _worst_first(evidence: Evidence) -> list[tuple[ArmRecord, CurvePoint | None]]:
    """Hardened arms before controls, unscored ones on top: nothing is known of them."""

    def badness(item: tuple[ArmRecord, CurvePoint | None]) -> tuple[bool, bool, float, str, int]:
        arm, point = item
        harm = 0.0 if point is None else point.harm or 0.0
        return arm.role == "control", point is not None, -harm, arm.arm, arm.seed

    return sorted(((arm, claims.worst_point(arm)) for arm in evidence.arms), key=badness)


def _by_recipe(evidence: Evidence) -> list[tuple[str, dict[str, Any]]]:
    """Each recipe once, with what its arms drew."""
    found: dict[str, dict[str, Any]] = {}
    for arm, _ in _worst_first(evidence):
        found.setdefault(arm.arm, {"recipe": arm.recipe})[f"{arm.role}, seed {arm.seed}"] = {
            "prompts": arm.prompt_ids,
            "rollouts": arm.rollouts,
        }
    return list(found.items())


def _examples_by_title(evidence: Evidence) -> list[tuple[str, list[ExampleRecord]]]:
    if not evidence.data.stand_in:
        return []
    return [(title, list(group)) for title, group in groupby(evidence.examples, lambda e: e.title)]


@cache
def _script_hashes() -> Markup:
    sources = (get_plotlyjs(), _DRAW)
    digests = (base64.b64encode(hashlib.sha256(source.encode()).digest()) for source in sources)
    return Markup(" ".join(f"'sha256-{digest.decode()}'" for digest in digests))


@cache
def _template_environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(_HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(FILTERS)
    return environment
