"""Splits are disjoint, and what overlaps is named."""

import pytest
from backburn.components.data_prep.splits import make_splits, run_splits
from backburn.components.shared.config import DataConfig, DomainConfig
from backburn.components.shared.dataset import PROMPT_SPLITS
from backburn.components.shared.domains import Domain, Message, load_domain
from backburn.components.shared.errors import InputError
from backburn.pipelines.recipes import load_recipe


@pytest.mark.parametrize("name", ["cooking", "home_networking", "toy_kitchen"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_shipped_domains_split_cleanly(name: str, seed: int) -> None:
    splits = make_splits(load_domain(DomainConfig(name=name)), DataConfig(), seed)
    assert set(splits) == set(PROMPT_SPLITS)
    ids = [row.id for rows in splits.values() for row in rows]
    assert len(ids) == len(set(ids))


def changed(domain: Domain, index: int, text: str) -> Domain:
    rows = list(domain.forbidden)
    message = Message(role="user", content=text)
    rows[index] = rows[index].model_copy(update={"messages": [message]})
    return domain.model_copy(update={"forbidden": rows})


def test_a_near_duplicate_across_splits_is_named() -> None:
    domain = load_domain(DomainConfig(name="cooking"))
    held_out = next(i for i, row in enumerate(domain.forbidden) if row.split == "held_out")
    copied = changed(domain, held_out, domain.forbidden[0].text.upper() + " please")
    with pytest.raises(InputError) as caught:
        make_splits(copied, DataConfig(), 0)
    assert "forbidden.jsonl row 1]" in str(caught.value)
    assert f"forbidden.jsonl row {held_out + 1}]" in str(caught.value)


def test_too_long_a_row_is_named() -> None:
    domain = changed(load_domain(DomainConfig(name="cooking")), 4, "word " * 3000)
    with pytest.raises(InputError, match=r"forbidden.jsonl row 5: \d+ characters"):
        make_splits(domain, DataConfig(), 0)


def test_an_empty_split_is_named() -> None:
    domain = load_domain(DomainConfig(name="cooking"))
    without = [row for row in domain.forbidden if row.split != "attack"]
    with pytest.raises(InputError, match=r"attack: 0 row\(s\), at least 1 needed"):
        make_splits(domain.model_copy(update={"forbidden": without}), DataConfig(), 0)


def test_benign_rows_that_name_their_split_keep_it_and_leave_the_others_alone() -> None:
    domain = load_domain(DomainConfig(name="cooking"))
    named = {row.id for row in domain.benign if row.split == "defence"}
    kept = next(row for row in domain.benign if row.split is None)
    splits = make_splits(domain, DataConfig(), 0)
    assert named
    assert named <= {row.id for row in splits["benign_defence"]}
    without = [row for row in domain.benign if row.split is None]
    divided = make_splits(domain.model_copy(update={"benign": without}), DataConfig(), 0)
    assert {row.id for row in splits["benign"]} == {row.id for row in divided["benign"]}
    first = [
        row.model_copy(update={"split": "held_out"}) if row.id == kept.id else row
        for row in without
    ]
    evaluated = make_splits(domain.model_copy(update={"benign": first}), DataConfig(), 0)
    assert kept.id in {row.id for row in evaluated["benign"]}


def test_too_few_benign_rows_to_evaluate_on_point_at_the_rows_that_name_a_split() -> None:
    domain = load_domain(DomainConfig(name="cooking"))
    trained = [row.model_copy(update={"split": "defence"}) for row in domain.benign]
    with pytest.raises(
        InputError, match=r"benign: 0 row\(s\), at least 5 needed\n.*name no `split`"
    ):
        make_splits(domain.model_copy(update={"benign": trained}), DataConfig(), 0)


def test_rows_without_a_split_are_divided() -> None:
    domain = load_domain(DomainConfig(name="cooking"))
    rows = [row.model_copy(update={"split": None}) for row in domain.forbidden]
    for count, most, sizes in (
        (len(rows), 1000, [len(rows) - 74, 24, 10, 40]),
        (len(rows), 50, [50, 24, 10, 40]),
        (100, 1000, [67, 11, 4, 18]),
    ):
        splits = make_splits(
            domain.model_copy(update={"forbidden": rows[:count]}),
            DataConfig(defence_prompts=most),
            0,
        )
        names = ("defence", "validation", "attack", "held_out")
        assert [len(splits[name]) for name in names] == sizes


def test_arms_that_want_more_prompts_than_the_domain_has_are_named() -> None:
    domain = load_domain(DomainConfig(name="cooking"))
    config = load_recipe("laptop", ["attack.arms=[paper, harm-rlvr]"])
    assert len(run_splits(domain, config)["attack"]) == 10
    few = [row for row in domain.forbidden if row.split != "defence" or row.id.endswith("1")]
    with pytest.raises(
        InputError, match=r"10 attack and 24 defence.*\n.*'harm-rlvr' wants 64"
    ) as c:
        run_splits(domain.model_copy(update={"forbidden": few}), config)
    assert "paper" not in str(c.value)
