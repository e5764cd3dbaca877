"""Values, their schema and their description stay together, and with the code's own defaults."""

import json
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from backburn.components.shared.config import ComputeConfig

from tests.charts.rendering import CASES, CHART, Values
from tests.charts.test_network import STEPS
from tests.charts.values_table import README, described_values, readme

SCHEMA = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))
VALUES = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
FREE = {"recipes", "gate", "global"}  # what they hold is Backburn's to check, or Helm's


def leaves(values: Any, path: str = "") -> Iterator[str]:
    """Dotted paths of everything that is no mapping with keys."""
    if isinstance(values, dict) and values:
        for key, value in values.items():
            yield from leaves(value, f"{path}.{key}" if path else key)
    else:
        yield path


def test_the_readme_s_table_is_that_of_the_values() -> None:
    found = README.read_text(encoding="utf-8")
    assert found == readme(), "write it anew: python -m tests.charts.values_table"


def test_every_value_is_described() -> None:
    described = {value.key for value in described_values()}
    for leaf in leaves(VALUES):
        parts = leaf.split(".")
        above = {".".join(parts[:n]) for n in range(1, len(parts) + 1)}
        assert above & described, f"{leaf}: put a line `# -- ...` above it in values.yaml"


def test_the_schema_is_a_schema_and_takes_every_case() -> None:
    validator = jsonschema.Draft7Validator(SCHEMA)
    validator.check_schema(SCHEMA)
    for name, values in {**CASES, "values.yaml": VALUES}.items():
        assert [error.message for error in validator.iter_errors(values)] == [], name


def objects(schema: Any, path: str = "") -> Iterator[tuple[str, Values]]:
    """Every object in the schema, with where it is."""
    if isinstance(schema, dict):
        if schema.get("type") == "object":
            yield path, schema
        for key, value in schema.items():
            yield from objects(value, f"{path}/{key}")


@pytest.mark.parametrize(("path", "schema"), objects(SCHEMA), ids=lambda item: str(item)[:60])
def test_unknown_keys_are_refused_everywhere(path: str, schema: Values) -> None:
    if FREE & set(path.split("/")[2:3]):
        return
    assert "additionalProperties" in schema, path
    if schema["additionalProperties"] is not False:  # a map: labels, quantities
        assert "properties" not in schema, path


def test_the_schema_knows_the_values_and_no_others() -> None:
    assert set(SCHEMA["properties"]) - {"global"} == set(VALUES)
    for section, values in VALUES.items():
        known = SCHEMA["properties"][section].get("properties")
        if known is not None:
            assert set(known) == set(values), section


def test_the_steps_of_the_schema_are_the_steps_there_are() -> None:
    hub = SCHEMA["properties"]["networkPolicy"]["properties"]["hub"]["properties"]
    assert sorted(hub["steps"]["items"]["enum"]) == STEPS


def test_names_and_versions_are_those_of_the_code() -> None:
    image = VALUES["images"]["task"]
    assert f"{image['repository']}:{image['tag']}" == ComputeConfig().image
    assert VALUES["secret"]["existingSecret"] == ComputeConfig().secret_name
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text(encoding="utf-8"))
    project = tomllib.loads((Path(CHART).parents[1] / "pyproject.toml").read_text("utf-8"))
    version = project["project"]["version"]
    assert (chart["version"], chart["appVersion"]) == (version, version)
    assert VALUES["images"]["tools"]["tag"] == version
