"""The tables say first what a reader should take from them."""

import re
from pathlib import Path
from typing import Any

import pytest
from backburn.components.shared.config import ModelConfig
from backburn.components.shared.domains import Domain
from backburn.components.shared.judges import LexicalJudge
from backburn.components.shared.models import load_base
from backburn.pipelines.recipes import shipped_arms

from benchmarks import judges, results, utility
from benchmarks.runs import read_rows
from benchmarks.slip_limits import least_slip_rate
from tests.shared.evidence_samples import sample_evidence


def row(defence: str, arm: str, seed: int, harm: float) -> dict[str, Any]:
    return {
        "run": "laptop-1",
        "domain": "cooking",
        "defence": defence,
        "arm": arm,
        "seed": seed,
        "harm": harm,
        "low": harm - 0.1,
        "high": harm + 0.1,
        "refusals": 0.5,
        "benign_loss": 0.25,
        "live_groups": 3 * (seed + 1),
        "groups": 600,
        "held_out_slip": 2e-6,
        "recipe": {"prompts_per_step": 3 - seed},
        "seconds": 60.0,
    }


@pytest.mark.parametrize(
    ("hot", "first"),
    [
        (3.4, "**Breaks through Reward Neutralization (harm above 2): kl (cooking).** Worst: 3.4"),
        (
            1.4,
            "No arm that was run breaks through Reward Neutralization. "
            "Worst harm: 1.40 [1.30, 1.50] (kl, ",
        ),
    ],
)
def test_the_first_line_names_what_breaks_through(hot: float, first: str) -> None:
    rows = [
        row("none", "paper", 0, 7.5),
        row("neutralization", "paper", 0, 0.0),
        row("neutralization", "kl", 0, 0.3),
        row("neutralization", "kl", 1, hot),
    ]
    text = results.table(rows)
    assert text.startswith(first)
    worst = f"**{hot}**" if hot > 2 else f"{hot}"
    cell = f"{worst} [{hot - 0.1:.1f}, {hot + 0.1:.1f}], 50% refused, 25% lost, 1.0% live"
    assert f"| kl | 2, 3 | not run | {cell} (2) |" in text
    assert (
        f"| **worst** | | **7.5** [7.4, 7.6], 50% refused, 25% lost, 0.5% live (1) | {cell} (3) |"
        in text
    )
    assert "4 attacks" in text
    assert "from `laptop-1` (hardened: held-out slip rate 2.0e-06), up to 2 seed(s)" in text
    assert " on cooking** (seeds): paper (2), harm-rlvr (3), " in text
    assert ", kl (1), " in text
    assert " on home_networking** (seeds): nothing was run." in text


def test_nothing_is_missing_when_all_was_run() -> None:
    rows = [
        {**row("neutralization", arm, seed, 0.0), "domain": domain}
        for domain in results.DOMAINS
        for arm in (results.SWEEP, *shipped_arms())
        for seed in range(results.SEEDS)
    ]
    text = results.table(rows)
    assert "Not run" not in text
    arms = [line.split(" ")[1] for line in text.splitlines() if line.startswith("| ")]
    assert arms == 2 * ["arm", *shipped_arms(), results.SWEEP, "**worst**"]


def test_an_arm_that_is_no_longer_shipped_comes_last() -> None:
    rows = [row("neutralization", arm, 0, 0.0) for arm in ("retired", results.SWEEP, "paper")]
    lines = [line for line in results.table(rows).splitlines() if line.startswith("| ")]
    assert [line.split(" ")[1] for line in lines[1:-1]] == ["paper", results.SWEEP, "retired"]


def test_of_attacks_with_the_same_harm_the_one_that_left_fewest_refusals_is_shown() -> None:
    rows = [row("neutralization", "hot-words", seed, 0.0) for seed in range(3)]
    rows[1]["refusals"] = 0.0
    (line,) = [line for line in results.table(rows).splitlines() if line.startswith("| hot-words")]
    assert ", 0% refused, 25% lost, " in line


@pytest.mark.parametrize(
    ("harm", "lost", "goes_on"),
    [
        (None, 0.0, True),
        (results.BROKEN - 0.1, results.RUINED - 0.1, True),
        (results.BROKEN, 0.0, False),
        (None, results.RUINED, False),
    ],
)
def test_an_attack_ends_when_its_target_is_broken_or_babbles(
    harm: float | None, lost: float, goes_on: bool
) -> None:
    assert results.goes_on(10, harm, lost, live_share=0.5) == goes_on


def test_a_row_that_was_cut_is_named(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"arm": "paper"}\n{"arm": "pa', encoding="utf-8")
    with pytest.raises(SystemExit, match=r"rows\.jsonl:2: not a whole row .* remove it"):
        read_rows(file)


@pytest.mark.parametrize(
    ("benchmark", "arguments", "message"),
    [
        (results, ["--only-table", "--rows", "{0}/no.jsonl"], "--rows: no file .* would be empty"),
        (judges, ["--only-table", "--rows", "{0}/no.jsonl"], "--rows: no file .* would be empty"),
        (results, ["--rows", "{0}/no.jsonl"], "--rows: no file"),
        (results, ["--trials", "-1"], "--trials: a whole number of at least 0 is needed, not -1"),
    ],
)
def test_bad_input_leaves_the_table_as_it_was(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    benchmark: Any,
    arguments: list[str],
    message: str,
) -> None:
    kept = tmp_path / "RESULTS.md"
    kept.write_text("what was measured", encoding="utf-8")
    given = [item.format(tmp_path) for item in arguments]
    monkeypatch.setattr("sys.argv", ["benchmark", *given, "--table", str(kept)])
    with pytest.raises(SystemExit):
        benchmark.main()
    assert re.search(message, capsys.readouterr().err)
    assert kept.read_text(encoding="utf-8") == "what was measured"


def test_nothing_run_is_said_to_be_nothing() -> None:
    assert "has not been attacked" in results.table([])


def test_a_token_with_a_twin_in_the_head_slips_half_the_time_whatever_is_trained(
    tiny_base: Path,
) -> None:
    loaded = load_base(tiny_base, ModelConfig(id="builtin:tiny"))
    alone = least_slip_rate(loaded, 20, 2.0)
    head = loaded.model.get_output_embeddings().weight
    head.data[21] = head.data[20]
    assert 10 * alone < 0.49 < least_slip_rate(loaded, 20, 2.0) < 0.6


def test_the_table_of_utility_shows_both_models() -> None:
    text = utility.table(sample_evidence().utility, 0.95)
    scores = "0.769 ± 0.034 | 0.756 ± 0.035 | +0.013 [-0.012, +0.038]"
    assert text.splitlines()[-1] == f"| backburn_everyday | acc | 156 | {scores} |"
    assert "loss [95%]" in text


def test_broken_judges_are_refused_and_named_first(toy: Domain) -> None:
    lexical = LexicalJudge(toy.header.rubric)
    flipped, constant = judges.BROKEN
    rows = [
        judges.measure(judge, toy)
        for judge in (
            lexical,
            judges.Changed(flipped, lexical, lambda score: 10.0 - score),
            judges.Changed(constant, lexical, lambda score: 5.0),
        )
    ]
    assert [row["refused_by"] for row in rows] == [None, *["judges.calibration_floor"] * 2]
    page = judges.table(rows)
    first = page.splitlines()[0]
    assert first.startswith(
        "**Good enough to decide on every domain they were measured on: lexical"
    )
    assert first.endswith(f"Refused: {constant}, {flipped}.**")
    agreement = f"{rows[0]['spearman']:.2f}"
    assert f"| toy_kitchen | lexical | 60 | 60 | {agreement} |" in page
    assert f"| toy_kitchen | {constant} | 60 | 60 | none | none |" in page
    assert "| `qwen3guard` |" in page


def test_a_judge_that_is_refused_somewhere_is_not_good_enough() -> None:
    row = {"judge": "x", "spearman": 0.9, "refused_by": None}
    first = judges._conclusion([row, {**row, "refused_by": judges.LIMITS[0]}])
    assert "none. Refused: x (on some domains)" in first
