"""Every shipped recipe compiles to what was reviewed; `make golden` accepts a change."""

import pytest
from backburn.pipelines.recipes import shipped_recipes

from tests.pipelines.goldens import (
    CASES,
    GOLDEN,
    OVERRIDES,
    WHOLE,
    differences,
    golden_file,
    golden_text,
    normalised,
)


@pytest.mark.parametrize(("recipe", "pipeline"), CASES)
def test_what_a_recipe_compiles_to(recipe: str, pipeline: str) -> None:
    kept = golden_file(recipe, pipeline)
    assert kept.is_file(), f"no {kept.name}: `make golden` writes it"
    before, now = kept.read_text("utf-8"), golden_text(recipe, pipeline)
    if recipe == WHOLE:
        assert normalised(now) == normalised(before)
    else:
        assert now.splitlines() == before.splitlines()


def test_there_is_a_golden_file_for_each_recipe_and_pipeline_and_no_other() -> None:
    assert {WHOLE, "llama3-8b"} <= set(shipped_recipes())
    assert set(GOLDEN.iterdir()) == {golden_file(*case) for case in CASES}


@pytest.mark.parametrize("pipeline", OVERRIDES)
def test_a_value_that_differs_is_a_line(pipeline: str) -> None:
    whole = golden_file(WHOLE, pipeline).read_text("utf-8")
    limit = "resourceMemoryLimit: 12Gi"
    lines = differences(whole, whole.replace(limit, limit.replace("12", "13"))).splitlines()
    assert whole.count(limit) > 5
    assert [line.split(" = ")[1] for line in lines] == ['"12Gi"', '"13Gi"'] * whole.count(limit)
    assert differences(whole, whole).strip() == ""
