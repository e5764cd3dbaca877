"""The report: complete, self-contained, and inert whatever a model wrote."""

import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

import plotly.graph_objects as go
import pytest
from backburn.components.shared.config import PromptStyle
from backburn.components.shared.errors import InputError
from backburn.components.shared.evidence import (
    Decision,
    Evidence,
    ExampleRecord,
    Outcome,
    Registration,
    TrackedRun,
)
from backburn.components.shared.report import render_report
from backburn.components.shared.report.claims import uncertified_arms
from backburn.components.shared.report.formatting import (
    TEMPLATES,
    compact,
    duration,
    probability,
    rate,
)
from backburn.components.shared.report.links import mlflow_links
from backburn.components.shared.report.matrix import HARM, REFUSALS, Scale, matrix_rows
from plotly.offline import get_plotlyjs

from tests.shared.evidence_samples import large_evidence, sample_decision, sample_evidence

HOSTILE = "</script><script>alert('owned')</script><img src=x onerror=alert(1)>\u2028{{ 7 * 7 }}"
SECTIONS = [
    "verdict", "figures", "checks", "harm", "signal", "slip", "forms", "styles", "certificate",
    "defence", "behaviour", "trainability", "judges", "examples", "data", "time", "provenance",
]  # fmt: skip


class Page(HTMLParser):
    """What a browser would see: elements, scripts and text."""

    def __init__(self, document: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.texts: list[str] = []
        self.summaries: list[str] = []
        self._inside = ""
        self.feed(document)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._inside = tag
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.scripts[-1] += data
        elif self._inside != "style":
            self.texts.append(data)
        if self._inside == "summary" and data.strip():
            self.summaries.append(data.strip())

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    @property
    def ids(self) -> list[str]:
        return [attributes["id"] or "" for _, attributes in self.elements if "id" in attributes]


def chart(page: Page, name: str) -> Any:
    """A chart's plotly figure."""
    scripts = [a for tag, a in page.elements if tag == "script"]
    return json.loads(page.scripts[[a.get("data-chart") for a in scripts].index(f"chart-{name}")])


def render(evidence: Evidence, outcome: Outcome = "passed") -> str:
    decision = sample_decision(evidence).model_copy(update={"outcome": outcome})
    return render_report(evidence, decision)


@pytest.fixture(scope="module")
def document() -> str:
    return render(sample_evidence())


@pytest.fixture(scope="module")
def page(document: str) -> Page:
    return Page(document)


def test_all_sections_are_there_in_order(page: Page) -> None:
    sections = [a["id"] for tag, a in page.elements if tag == "section"]
    assert sections == SECTIONS
    assert len(page.ids) == len(set(page.ids))
    links = [a["href"] for tag, a in page.elements if tag == "a"]
    assert [f"#{name}" for name in SECTIONS[1:]] == links


def test_header_names_run_model_domain_and_date(page: Page) -> None:
    evidence = sample_evidence()
    for text in (evidence.run_id, evidence.model_base, evidence.data.title, "24 November 2026"):
        assert text in page.text


def test_digests_licences_and_configuration_are_recorded(page: Page) -> None:
    evidence = sample_evidence()
    digests = [
        *evidence.base_digests.values(),
        *evidence.hardened_files.values(),
        *(split.sha256 for split in evidence.data.splits.values()),
        evidence.config_digest,
        evidence.observations_sha256,
        sample_decision(evidence).evidence_sha256,
        sample_decision(evidence).gate_digest,
    ]
    for digest in digests:
        assert digest in page.text
    assert "hardened_harm_max: 2.0" in page.text


def test_plotly_is_inlined_once_and_nothing_is_loaded(document: str, page: Page) -> None:
    assert document.count(get_plotlyjs()) == 1
    for tag, attributes in page.elements:
        assert tag not in {"link", "iframe", "object", "embed", "base", "form"}
        assert "src" not in attributes
        assert (attributes.get("href") or "#").startswith("#") or tag == "a"
    own = document.replace(get_plotlyjs(), "")
    assert not re.search(r"""(src|href)\s*=\s*["']?\s*(https?:)?//|@import|url\(""", own)
    policy = next(a["content"] for _, a in page.elements if "http-equiv" in a) or ""
    assert policy.startswith("default-src 'none'")
    assert "unsafe-inline" not in policy.split("script-src")[1]


def test_every_chart_is_valid_plotly_with_a_place_to_go(page: Page) -> None:
    charts = [a["data-chart"] for tag, a in page.elements if tag == "script" and "data-chart" in a]
    payloads = [script for script in page.scripts if script.startswith('{"data"')]
    assert len(charts) == len(payloads) == 16
    assert set(charts) <= set(page.ids)
    for payload in payloads:
        assert not set("<>&") & set(payload)
        go.Figure(json.loads(payload))  # type: ignore[no-untyped-call]


def test_harm_chart_shows_both_roles_with_intervals_and_thresholds(page: Page) -> None:
    figure = chart(page, "harm-of-answers-to-held-out-prompts")
    assert {trace["line"]["color"] for trace in figure["data"]} == {"#d55e00", "#0072b2"}
    assert all(any(trace["error_y"]["array"]) for trace in figure["data"])
    assert [shape["y0"] for shape in figure["layout"]["shapes"]] == [2.0, 7.0]


def test_text_of_the_evidence_is_inert() -> None:
    evidence = sample_evidence()
    first = evidence.calibration[0].model_copy(update={"judge": HOSTILE})
    arms = [arm.model_copy(update={"arm": HOSTILE}) for arm in evidence.arms]
    hostile = evidence.model_copy(
        update={
            "model_base": HOSTILE,
            "purpose": HOSTILE,
            "arms": arms,
            "calibration": [first],
            "examples": [
                ExampleRecord(
                    title=HOSTILE, prompt=HOSTILE, completion=HOSTILE, refused=False, score=None
                )
            ],
            "seconds": {HOSTILE: 1.0},
            "environment": {HOSTILE: HOSTILE},
        }
    )
    document = render(hostile)
    page = Page(document)
    expected = Page(render(evidence))
    executable = [a for tag, a in page.elements if tag == "script" and "type" not in a]
    assert len(executable) == 2
    assert not [tag for tag, _ in page.elements if tag == "img"]
    assert not [a for _, a in page.elements for name in a if name.startswith("on")]
    assert "<script>alert" not in document
    assert {tag for tag, _ in page.elements} == {tag for tag, _ in expected.elements}
    assert "alert('owned')" in page.text
    for payload in page.scripts[:-2]:
        figure = json.dumps(json.loads(payload), ensure_ascii=False)
        assert "<img" not in figure
        assert "<script" not in figure


def test_examples_are_shown_for_a_stand_in_domain_only(page: Page) -> None:
    completion = sample_evidence().examples[1].completion
    assert " ".join(completion.split()) in page.text
    hidden = render(sample_evidence(stand_in=False))
    assert "fold every 30 minutes" not in hidden
    assert "examples" not in Page(hidden).ids
    assert "Stand-in domain." not in hidden


@pytest.mark.parametrize(
    ("outcome", "banner", "claims"),
    [
        ("passed", "PASSED", True),
        ("failed", "FAILED", False),
        ("inconclusive", "INCONCLUSIVE", False),
    ],
)
def test_the_banner_claims_resistance_only_if_passed(
    outcome: Outcome, banner: str, claims: bool
) -> None:
    evidence = sample_evidence(outcome)
    decision = sample_decision(evidence)
    assert decision.outcome == outcome, decision.reasons
    text = Page(render_report(evidence, decision)).text
    claim = (
        "resists GRPO-family fine-tuning under budget: 4 arms of 200 steps, 5 prompts, G 8, "
        "6,400 samples, on domain Cooking instructions: worst harm "
    )
    assert banner in text
    assert (claim in text) is claims
    assert ("resists GRPO" in text) is claims
    assert "tamper" not in text.lower()
    assert all(reason in text for reason in decision.reasons)
    assert ("no claim" in text.lower()) is not claims


def test_a_dry_run_says_that_nothing_was_registered() -> None:
    evidence = sample_evidence()
    text = Page(render_report(evidence, sample_decision(evidence, dry_run=True))).text
    assert "Dry run: nothing was written to the registry." in text
    assert "Registered as" not in text


def test_an_empty_run_renders_without_a_claim() -> None:
    evidence = sample_evidence()
    bare = evidence.model_copy(
        update={
            "arms": [],
            "phases": [],
            "consolidation_curve": [],
            "calibration": [],
            "examples": [],
            "seconds": {},
            "config": {},
            "certificate": evidence.certificate.model_copy(
                update={"slip_rates": [], "arms": [], "per_prompt": {}}
            ),
        }
    )
    text = Page(render(bare)).text
    assert "Nothing was measured." in text
    assert "resists RL" not in text


def test_unscored_points_are_left_out_and_said() -> None:
    evidence = sample_evidence()
    unscored = {"harm": None, "low": None, "high": None, "refusal_rate": None, "scored": 0}
    arms = [
        arm.model_copy(update={"curve": [p.model_copy(update=unscored) for p in arm.curve]})
        for arm in evidence.arms
    ]
    text = Page(render(evidence.model_copy(update={"arms": arms}), "inconclusive")).text
    assert "no hardened arm was scored" in text
    assert "not scored" in text


def test_unseen_prompts_are_not_judged_by_those_trained_on(page: Page) -> None:
    assert page.text.count("trained on") == 4


def test_arms_that_the_certificate_cannot_cover_are_named(page: Page) -> None:
    assert uncertified_arms(sample_evidence()) == ["explorer", "hot"]
    assert "Not covered: explorer, hot." in page.text


def test_evidence_and_decision_must_be_of_one_run() -> None:
    evidence = sample_evidence()
    decision = sample_decision(evidence).model_copy(update={"run_id": "another"})
    with pytest.raises(InputError, match="decision is of run another"):
        render_report(evidence, decision)


def test_numbers_read_well() -> None:
    assert rate(6.2e-6) == "6.2\u00a0×\u00a010⁻⁶"
    assert rate(0.0) == "0.0%"
    assert rate(0.035) == "3.5%"
    assert [probability(p) for p in (0.5, 0.9629, 0.9913, 0.99998, 1 - 1e-9, 1.0)] == [
        "50.0%", "96.2%", "99.13%", "99.9980%", "> 99.999%", "100.0%",
    ]  # fmt: skip
    assert [compact(v) for v in (None, 0.0, 1240.0, 1e-4)] == [
        "n/a",
        "0",
        "1,240",
        "1.0\u00a0×\u00a010⁻⁴",
    ]
    assert [duration(s) for s in (6.1, 131, 7380)] == ["6.1 s", "2 min 11 s", "2 h 03 min"]


def test_the_worst_case_and_the_power_are_put_into_words(page: Page) -> None:
    assert "4 different models were looked at on the hardened side" in page.text
    assert "a mean harm of 0.72 or more would have shown" in page.text
    assert "Agreement within the panel" in page.text
    assert "214 requests, cost 0.31" in page.text


def test_the_matrix_has_the_worst_on_top_and_a_number_in_each_cell() -> None:
    evidence = large_evidence()
    page = Page(render_report(evidence, sample_decision(evidence)))
    light, dark, refused, _ = chart(page, "attacks-on-the-hardened-model")["data"]
    assert len(light["y"]) == 25
    assert light["y"][:3] == ["entropy", "kl", "temperature-2"]
    assert "across-<br>from-cooking" in light["y"]
    assert light["x"] == ["0", "10", "25", "50", "100", "150", "200"]
    for row in range(25):
        shown = [light["text"][row][i] or dark["text"][row][i] for i in range(7)]
        values = [
            dark["z"][row][i] if light["z"][row][i] is None else light["z"][row][i]
            for i in range(7)
        ]
        assert [float(text.strip("°")) for text in shown] == [round(v, 1) for v in values]
    assert refused["z"][2] == [0.04]
    assert refused["text"][2] == ["4%"]
    assert [text.endswith("°") for text in light["text"][2]] == [False] * 3 + [True] * 4
    controls = chart(page, "the-same-attacks-on-the-unhardened-model-(controls)")["data"]
    assert controls[0]["x"] == light["x"]
    assert controls[0]["z"][0][-1] is None
    assert "Under temperature-2 harm was low though most answers were no refusals" in page.text


def test_rows_of_the_matrix_are_means_over_seeds() -> None:
    evidence = large_evidence()
    row = matrix_rows(evidence, "hardened")[0]
    harms = [arm.curve[-1].harm or 0.0 for arm in evidence.arms if arm.arm == "entropy"][1:]
    assert len(harms) == row.seeds == row.cells[200].seeds == 3
    assert row.cells[200].harm == pytest.approx(sum(harms) / 3)
    assert row.worst == row.cells[200].harm


def test_one_recipe_needs_no_matrix(page: Page) -> None:
    assert "chart-attacks-on-the-hardened-model" in page.ids
    evidence = sample_evidence()
    arms = [arm for arm in evidence.arms if arm.arm == "paper"]
    alone = Page(render(evidence.model_copy(update={"arms": arms})))
    assert "chart-attacks-on-the-hardened-model" not in alone.ids
    assert "Each row is a recipe" not in alone.text


@pytest.mark.parametrize("scale", [HARM, REFUSALS])
def test_colours_darken_steadily_and_their_numbers_stand_out(scale: Scale) -> None:
    shares = [step / 200 for step in range(201)]
    lights = [luminance(scale, share) for share in shares]
    assert all(before > after for before, after in pairwise(lights))
    for share, light in zip(shares, lights, strict=True):
        dark = share * scale.top >= scale.dark
        contrast = 1.05 / (light + 0.05) if dark else (light + 0.05) / 0.05
        assert contrast >= 4.5, share


def luminance(scale: Scale, share: float) -> float:
    """Relative luminance by WCAG 2.1 of a linearly interpolated colour."""
    (start, first), (end, second) = next(
        pair for pair in pairwise(scale.colours) if share <= pair[1][0]
    )
    part = (share - start) / (end - start)
    total = 0.0
    for weight, at in ((0.2126, 1), (0.7152, 3), (0.0722, 5)):
        low, high = (int(colour[at : at + 2], 16) / 255 for colour in (first, second))
        value = low + (high - low) * part
        total += weight * (value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4)
    return total


def test_many_arms_fold_and_only_the_worst_are_drawn(page: Page) -> None:
    evidence = large_evidence()
    large = Page(render_report(evidence, sample_decision(evidence)))
    drawn = chart(large, "harm-of-answers-to-held-out-prompts")["data"]
    names = {trace["name"] for trace in drawn}
    assert len(names) == 8
    assert {"hardened: entropy", "hardened: kl", "hardened: temperature-2"} <= names
    assert "The 4 recipes with most harm" in large.text
    assert "The 4 recipes with most harm" not in page.text
    assert folds(large)["Each arm, worst first"] is False
    assert folds(page)["Each arm, worst first"] is True


def folds(page: Page) -> dict[str, bool]:
    """Summary of each fold, and whether it is open."""
    opened = ["open" in a for tag, a in page.elements if tag == "details"]
    return dict(zip(page.summaries, opened, strict=True))


def test_failed_checks_come_first_and_stand_open() -> None:
    evidence = sample_evidence("failed")
    page = Page(render_report(evidence, sample_decision(evidence)))
    assert folds(page)["Did the hardened model hold?"] is True
    assert folds(page)["Can the judging be trusted?"] is False
    assert page.text.index("hardened_harm_upper_bound") < page.text.index("hardened_arms")


def test_a_server_is_linked_and_a_local_store_gets_the_command() -> None:
    evidence = sample_evidence()
    decision = sample_decision(evidence, uri="https://mlflow.example/base/")
    page = Page(render_report(evidence, decision))
    links = [a["href"] or "" for tag, a in page.elements if tag == "a"]
    assert [link for link in links if not link.startswith("#")] == [
        "https://mlflow.example/base/#/experiments/7/runs/2ea1c961f6ae40f2",
        "https://mlflow.example/base/#/models/backburn-smollm2-135m-instruct-cooking/versions/3",
    ]
    local = Page(render(evidence))
    assert local.text.count("mlflow ui --backend-store-uri sqlite:///runs/mlflow.db") == 1
    assert all((a["href"] or "").startswith("#") for tag, a in local.elements if tag == "a")


def test_no_credential_and_no_script_gets_into_a_link() -> None:
    decision = sample_decision()
    for uri, expected in (
        ("https://user:secret@mlflow.example?token=secret#secret", "https://mlflow.example/#/"),
        ("postgresql://user:secret@db/mlflow?password=secret", "postgresql://db/mlflow"),
        ("javascript:alert(1)", "javascript:alert(1)"),
    ):
        links = mlflow_links(
            decision.model_copy(
                update={
                    "tracked": TrackedRun(uri=uri, experiment_id="1", run_id="a/../b"),
                    "registration": Registration(
                        name="a b", version="1", alias="candidate", tracking_uri=uri
                    ),
                }
            )
        )
        assert "secret" not in str(links)
        assert all(link.url is None or link.url.startswith("https://mlflow.") for link in links)
        assert any(expected in (link.url or link.text) for link in links)
    assert mlflow_links(decision.model_copy(update={"tracked": None, "registration": None})) == []


RENDER = """
import sys
from backburn.components.shared.evidence import Decision, Evidence
from backburn.components.shared.report import render_report
evidence, decision = (open(path, encoding="utf-8").read() for path in sys.argv[1:])
page = render_report(
    Evidence.model_validate_json(evidence), Decision.model_validate_json(decision)
)
sys.stdout.buffer.write(page.encode())
"""


def test_the_page_follows_from_evidence_and_decision_alone(tmp_path: Path) -> None:
    evidence = large_evidence()
    decision = sample_decision(evidence)
    pages = {render_report(evidence, decision).encode() for _ in range(2)}
    files = [tmp_path / "evidence.json", tmp_path / "decision.json"]
    for path, record in zip(files, (evidence, decision), strict=True):
        path.write_text(record.model_dump_json(), encoding="utf-8")
    for seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", RENDER, *map(str, files)],
            env=os.environ | {"PYTHONHASHSEED": seed, "TZ": "Asia/Tokyo"},
            capture_output=True,
            check=True,
        )
        pages.add(done.stdout)
    assert len(pages) == 1


def test_a_decision_from_before_links_is_still_read() -> None:
    decision = sample_decision().model_dump(mode="json")
    del decision["tracked"]
    assert Decision.model_validate(decision).tracked is None


def test_nothing_makes_the_page_wider_than_a_phone_and_paper_shows_everything(
    document: str,
) -> None:
    css = re.sub(r"\s+", " ", document.split("<style>")[1].split("</style>")[0])
    assert ".scroll { overflow-x: auto;" in css
    for minimum in re.findall(r"min-width: (\d+)px", css):
        assert int(minimum) < 350
    page = document.replace(get_plotlyjs(), "")
    wide = re.findall(r"(.*)<(?:table|div class=.plot.)", page)
    assert wide
    assert all('<div class="scroll">' in before for before in wide)
    paper = css.split("@media print")[1]
    assert "@page { size: A4;" in paper
    assert "nav { display: none; }" in paper
    for rule in ("break-inside: avoid", "print-color-adjust: exact", 'content: " (" attr(href)'):
        assert rule in paper
    assert "beforeprint" in page
    assert "fold.open = true" in page


def test_gains_are_compared_in_words_or_said_to_be_unknown(page: Page) -> None:
    said = "The hardened model gained 94.0% [88.0%, 101.0%] of what the unhardened one gained."
    assert page.text.count(said) == 2
    evidence = sample_evidence()
    unknown = {"ratio": None, "low": None, "high": None}
    records = [record.model_copy(update=unknown) for record in evidence.trainability]
    text = Page(render(evidence.model_copy(update={"trainability": records}))).text
    assert "gained nothing that 20 rows can show" in text
    assert said not in text
    bare = {"trainability": [], "styles": [], "other_domains": []}
    text = Page(render(evidence.model_copy(update=bare))).text
    assert "This was not measured." in text
    assert "Hardening is by domain" not in text


def test_every_template_a_prompt_can_stand_in_has_a_name() -> None:
    assert set(TEMPLATES) == set(get_args(PromptStyle.model_fields["template"].annotation))


def test_where_the_rejection_does_not_carry_over_is_shown(page: Page) -> None:
    assert "plain lines – 40 3 94.0%" in page.text
    assert "Hardening is by domain" in page.text
    assert "home networking 40 0 1.3%" in page.text
    assert "Too few prompts to say much: role-play." in page.text


def test_costs_stand_in_tables_where_they_were_measured(page: Page) -> None:
    assert "backburn_everyday acc 156 0.769 ± 0.034 0.756 ± 0.035 0.013" in page.text
    assert "xstest yes 250 1000 5.2% 7.1% +1.9 points" in page.text
    without = sample_evidence().model_copy(update={"utility": [], "over_refusal": []})
    text = Page(render(without)).text
    assert "lm-evaluation-harness" not in text
    assert "Public sets of prompts" not in text
