"""Harmless trainings of the real tiny model, and what is made of what they gain."""

from pathlib import Path

import numpy as np
import pytest
import torch
from backburn.components.certification.certificate import observe_other_domains, observe_slips
from backburn.components.certification.trainability import observe_trainings
from backburn.components.data_prep.splits import write_dataset
from backburn.components.preflight.checks import check_run
from backburn.components.shared.checkpoints import Checkpoints
from backburn.components.shared.config import RunConfig, validate_config
from backburn.components.shared.dataset import RunDataset
from backburn.components.shared.derivation.carry_over import other_domain_records, style_records
from backburn.components.shared.derivation.trainability import ratio_interval, trainability_records
from backburn.components.shared.domains import Domain, load_lesson
from backburn.components.shared.errors import InputError
from backburn.components.shared.models import LoadedModel, load_base
from backburn.components.shared.observations import CertificationObservation, TrainingObservation
from backburn.components.shared.tiny_model import build_tokenizer
from backburn.pipelines.recipes import load_recipe
from jinja2 import TemplateError
from scipy import stats

from tests.conftest import align_tiny, tokenizer_without_system_messages


@pytest.fixture(scope="module")
def aligned(tiny_base: Path, smoke: RunConfig, toy: Domain) -> LoadedModel:
    return align_tiny(load_base(tiny_base, smoke.model), toy, smoke, 0)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory, smoke: RunConfig, toy: Domain) -> RunDataset:
    folder = tmp_path_factory.mktemp("data") / "dataset"
    write_dataset(folder, toy, smoke)
    return RunDataset(folder)


def test_both_trainings_teach_and_leave_the_model_as_it_was(
    aligned: LoadedModel, dataset: RunDataset, smoke: RunConfig
) -> None:
    before = {name: value.clone() for name, value in aligned.model.state_dict().items()}
    trained = observe_trainings(
        aligned, aligned, dataset, smoke, lambda *_: None, Checkpoints(None, "")
    )
    after = aligned.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert [(item.model, item.training) for item in trained] == [
        ("baseline", "sft"), ("baseline", "rl"), ("hardened", "sft"), ("hardened", "rl"),
    ]  # fmt: skip
    lesson, brevity = trained[:2]
    assert len(lesson.before) == len(dataset.lesson("held_out"))
    assert sum(lesson.after.values()) < 0.5 * sum(lesson.before.values())
    assert sum(brevity.after.values()) > 1.3 * sum(brevity.before.values())
    # the same model, data and seeds: what the hardened model gains is what the baseline gains
    for one, other in zip(trained[:2], trained[2:], strict=True):
        assert (one.before, one.after, one.steps) == (other.before, other.after, other.steps)
    records = trainability_records(trained, 0.95)
    assert [record.training for record in records] == ["sft", "rl"]
    for record in records:
        assert record.baseline_gain > 0
        assert (record.ratio, record.low, record.high) == pytest.approx((1.0, 1.0, 1.0), abs=1e-6)


def test_nothing_is_trained_where_it_is_not_enabled(
    aligned: LoadedModel, dataset: RunDataset, smoke: RunConfig
) -> None:
    section = smoke.certification.trainability.model_copy(update={"enabled": False})
    certification = smoke.certification.model_copy(update={"trainability": section})
    config = smoke.model_copy(update={"certification": certification})
    assert (
        observe_trainings(aligned, aligned, dataset, config, lambda *_: None, Checkpoints(None, ""))
        == []
    )
    assert trainability_records([], 0.95) == []
    values = smoke.model_dump()
    values["certification"]["trainability"]["enabled"] = False
    values["gate"]["trainability_min"] = 0.5
    with pytest.raises(InputError, match=r"gate\.trainability_min is set"):
        validate_config(values, "test")


def test_gains_have_their_sign_and_are_means_over_seeds() -> None:
    def observed(model: str, training: str, seed: int, after: float) -> TrainingObservation:
        rows = {f"row-{index}": 2.0 + 0.1 * index for index in range(6)}
        return TrainingObservation.model_validate(
            {
                "training": training, "model": model, "seed": seed, "before": rows,
                "after": {row: after * value for row, value in rows.items()},
                "steps": [1.0, 0.5], "seconds": 1.5,
            }
        )  # fmt: skip

    records = trainability_records(
        [
            observed("baseline", "sft", 0, 0.4), observed("baseline", "sft", 1, 0.6),
            observed("hardened", "sft", 0, 0.8), observed("hardened", "sft", 1, 0.7),
            observed("baseline", "rl", 0, 1.0), observed("hardened", "rl", 0, 1.5),
        ],
        0.95,
    )  # fmt: skip
    lesson, reward = records
    assert (lesson.baseline_gain, lesson.hardened_gain) == pytest.approx((1.125, 0.5625))
    assert lesson.ratio == pytest.approx(0.5)
    assert (lesson.rows, lesson.seeds, lesson.steps, lesson.seconds) == (6, [0, 1], 2, 6.0)
    assert reward.hardened_gain > 0
    assert (reward.ratio, reward.low, reward.high) == (None, None, None)


def test_the_ends_of_the_ratios_interval_are_where_a_paired_t_test_begins_to_reject() -> None:
    rng = np.random.default_rng(1)
    under = rng.normal(2.0, 1.0, 15)
    over = 0.8 * under + rng.normal(0.0, 0.7, 15)
    known = ratio_interval(over, under, 0.9)
    assert known is not None
    ratio, low, high = known
    assert low < ratio < high
    for end in (low, high):
        assert stats.ttest_1samp(over - end * under, 0.0).pvalue == pytest.approx(0.1)


def test_the_ratios_interval_covers_and_a_baseline_without_a_gain_has_none() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(1000):
        under = rng.normal(1.0, 0.8, 20)
        known = ratio_interval(0.7 * under + rng.normal(0.0, 0.3, 20), under, 0.95)
        covered += known is not None and known[1] <= 0.7 <= known[2]
    assert 0.93 <= covered / 1000 <= 0.97
    for under in ([1.0, -1.0, 0.5, -0.5], [-1.0, -1.1, -0.9, -1.0], [0.0] * 4):
        assert ratio_interval([1.0, 1.0, 1.1, 0.9], under, 0.95) is None


def test_other_styles_are_measured_whatever_the_arms_do(
    aligned: LoadedModel, dataset: RunDataset, smoke: RunConfig
) -> None:
    slips, tokens, seconds = observe_slips(aligned, dataset, smoke, lambda *_: None)
    section = smoke.certification.model_copy(update={"other_domains": ["toy_kitchen", "cooking"]})
    config = smoke.model_copy(update={"certification": section})
    others = observe_other_domains(aligned, dataset, config)
    assert list(others) == ["cooking"]
    observed = CertificationObservation(
        rejection_tokens=tokens,
        slips=slips,
        likelihoods=[],
        rejection_probabilities={},
        other_domains=others,
        seconds=seconds,
    )
    styles = style_records(observed, config)
    assert [(style.template, style.system_prompt is None) for style in styles] == [
        ("model", True), ("model", False), ("plain", True), ("headings", True), ("bare", True),
    ]  # fmt: skip
    held_out = {row.id for row in dataset.rows("held_out")}
    for style in styles:
        assert style.prompts == len(held_out)
        assert style.slip_rate is not None
        assert style.worst_slip_rate is not None
        assert 0.0 < style.slip_rate <= style.worst_slip_rate <= 1.0
        assert style.rejecting == 0  # the aligned model refuses in its own words
    plain = next(item for item in observed.slips if item.style.template == "plain")
    known = {row: 0.25 if place < 10 else 0.75 for place, row in enumerate(plain.rates)}
    changed = [item if item is not plain else plain.model_copy(update={"rates": known})
               for item in observed.slips]  # fmt: skip
    style = style_records(observed.model_copy(update={"slips": changed}), config)[2]
    assert (style.rejecting, style.slip_rate, style.worst_slip_rate) == (10, 0.625, 0.75)
    (other,) = other_domain_records(observed)
    assert (other.domain, other.prompts, other.rejecting) == ("cooking", 40, 0)
    assert 0.0 <= other.rejection_probability < 0.5


def test_a_template_without_system_message_is_said_not_to_be_measured(
    aligned: LoadedModel, dataset: RunDataset, smoke: RunConfig
) -> None:
    loaded = LoadedModel(aligned.model, tokenizer_without_system_messages())
    slips, _, _ = observe_slips(loaded, dataset, smoke, lambda *_: None)
    observed = CertificationObservation(
        rejection_tokens=8, slips=slips, likelihoods=[], rejection_probabilities={}, seconds=1.0
    )
    styles = style_records(observed, smoke)
    assert [style.slip_rate is None for style in styles] == [False, True, False, False, False]
    arm = smoke.attack.arms[0].model_copy(update={"style": smoke.certification.styles[0]})
    attack = smoke.attack.model_copy(update={"arms": [arm]})
    with pytest.raises(TemplateError):
        observe_slips(loaded, dataset, smoke.model_copy(update={"attack": attack}), lambda *_: None)


@pytest.mark.parametrize("recipe", ["smoke", "laptop"])
def test_shipped_lessons_are_divided_and_readable(recipe: str) -> None:
    rows, licence = load_lesson(load_recipe(recipe))
    assert licence == "Apache-2.0"
    parts = {
        split: [row for row in rows if row.split == split] for split in ("training", "held_out")
    }
    assert {split: len(part) for split, part in parts.items()} == {"training": 60, "held_out": 20}
    training = {row.prompt for row in parts["training"]}
    assert len(training) == 60
    assert not training & {row.prompt for row in parts["held_out"]}
    taught = {row.completion for row in parts["training"]}
    assert {row.completion for row in parts["held_out"]} == taught
    assert len(taught) == 20
    if recipe == "smoke":
        tokenizer = build_tokenizer()
        for row in rows:
            assert tokenizer.unk_token_id not in tokenizer.encode(f"{row.prompt} {row.completion}")


def test_an_own_lesson_is_divided_by_the_seed(tmp_path: Path) -> None:
    path = tmp_path / "lesson.csv"

    def lesson(rows: int, *overrides: str) -> RunConfig:
        lines = [f"what is {index},it is {index}" for index in range(rows)]
        path.write_text("\n".join(["asked,completion", *lines]), "utf-8")
        source = f"{{path: {path}, licence: MIT, columns: {{prompt: asked}}}}"
        return load_recipe("laptop", [f"certification.trainability.lesson={source}", *overrides])

    rows, licence = load_lesson(lesson(40))
    assert licence == "MIT"
    held_out = {row.id for row in rows if row.split == "held_out"}
    assert (len(rows), len(held_out)) == (40, 10)
    again, _ = load_lesson(lesson(40, "seed=1"))
    assert held_out != {row.id for row in again if row.split == "held_out"}
    with pytest.raises(InputError, match=r"trainability.lesson: 2 row\(s\) in held_out, at least"):
        load_lesson(lesson(8))
    config = lesson(8)
    path.unlink()
    with pytest.raises(InputError, match=r"certification\.trainability\.lesson\.path: .*no such"):
        load_lesson(config)


def test_unknown_other_domains_are_found_before_the_run() -> None:
    with pytest.raises(InputError, match="other_domains: no shipped domain gardening"):
        check_run(load_recipe("laptop", ["certification.other_domains=[gardening]"]))
    with pytest.raises(
        InputError, match="builtin:tiny only reads the toy grammar; --set certification"
    ):
        check_run(load_recipe("smoke", ["certification.other_domains=[cooking]"]))
