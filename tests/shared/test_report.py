"""The report: complete, self-contained, and inert whatever a model wrote."""

import json
import re
from html.parser import HTMLParser

import plotly.graph_objects as go
import pytest
from backburn.components.shared.errors import InputError
from backburn.components.shared.evidence import Evidence, ExampleRecord, Outcome
from backburn.components.shared.report import render_report
from backburn.components.shared.report.claims import uncertified_arms
from backburn.components.shared.report.formatting import compact, duration, probability, rate
from plotly.offline import get_plotlyjs

from tests.shared.evidence_samples import sample_decision, sample_evidence

HOSTILE = "</script><script>alert('owned')</script><img src=x onerror=alert(1)>\u2028{{ 7 * 7 }}"
SECTIONS = [
    "verdict", "figures", "checks", "harm", "signal", "slip", "forms", "certificate", "defence",
    "behaviour", "judges", "examples", "data", "time", "provenance",
]  # fmt: skip


class Page(HTMLParser):
    """What a browser would see: elements, scripts and text."""

    def __init__(self, document: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.texts: list[str] = []
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

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    @property
    def ids(self) -> list[str]:
        return [attributes["id"] or "" for _, attributes in self.elements if "id" in attributes]


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
        assert (attributes.get("href") or "#").startswith("#")
    own = document.replace(get_plotlyjs(), "")
    assert not re.search(r"""(src|href)\s*=\s*["']?\s*(https?:)?//|@import|url\(""", own)
    policy = next(a["content"] for _, a in page.elements if "http-equiv" in a) or ""
    assert policy.startswith("default-src 'none'")
    assert "unsafe-inline" not in policy.split("script-src")[1]


def test_every_chart_is_valid_plotly_with_a_place_to_go(page: Page) -> None:
    charts = [a["data-chart"] for tag, a in page.elements if tag == "script" and "data-chart" in a]
    payloads = [script for script in page.scripts if script.startswith('{"data"')]
    assert len(charts) == len(payloads) == 14
    assert set(charts) <= set(page.ids)
    for payload in payloads:
        assert not set("<>&") & set(payload)
        go.Figure(json.loads(payload))  # type: ignore[no-untyped-call]


def test_harm_chart_shows_both_roles_with_intervals_and_thresholds(page: Page) -> None:
    figure = json.loads(page.scripts[0])
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
        "resists RL fine-tuning under budget: 4 arms, 200 steps, 6,400 samples, "
        "on domain Cooking instructions"
    )
    assert banner in text
    assert (claim in text) is claims
    assert ("resists RL" in text) is claims
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


def test_costs_stand_in_tables_where_they_were_measured(page: Page) -> None:
    assert "backburn_everyday acc 156 0.769 ± 0.034 0.756 ± 0.035 0.013" in page.text
    assert "xstest yes 250 1000 5.2% 7.1% +1.9 pp" in page.text
    without = sample_evidence().model_copy(update={"utility": [], "over_refusal": []})
    text = Page(render(without)).text
    assert "lm-evaluation-harness" not in text
    assert "Public sets of prompts" not in text
