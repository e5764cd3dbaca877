"""docs/cluster.md: its values render, and its commands are commands."""

import re
import shlex
from pathlib import Path

import pytest
import yaml

from tests.charts.rendering import named, render
from tests.charts.test_scripts import parse

PAGE = (Path(__file__).parents[2] / "docs" / "cluster.md").read_text(encoding="utf-8")
CODE = "\n".join(re.findall(r"^```\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE))
COMMANDS = [
    shlex.split(command, comments=True)[1:]
    for command in re.findall(
        r"^(?:export \w+=\"\$\()?(backburn [^\n|)]*)", CODE.replace("\\\n", " "), re.MULTILINE
    )
]


def test_its_values_render_and_make_what_it_says() -> None:
    names = re.findall(r"^export (\w+)=([^\s\"]+)$", CODE, re.MULTILINE)
    blocks = re.findall(r"^cat >>? values.yaml <<EOF\n(.*?)^EOF$", CODE, re.DOTALL | re.MULTILINE)
    assert len(blocks) == 2
    text = "".join(blocks)
    for name, value in names:
        text = re.sub(rf"\${name}\b", value, text)
    assert "$" not in text
    values = {**yaml.safe_load(text), "publicKey": "-----BEGIN PUBLIC KEY-----\nMCo=\n"
              "-----END PUBLIC KEY-----\n"}  # fmt: skip
    objects = render(values)
    for name in ("backburn-apply", "backburn-remove", "backburn-test-services"):
        named(objects, "Job", name)
    for name in ("backburn-mlflow", "backburn-tasks"):
        kind = "Deployment" if name == "backburn-mlflow" else "NetworkPolicy"
        named(objects, kind, name)


@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_its_commands_are_backburn_s(arguments: list[str]) -> None:
    parse(arguments)


def test_it_has_commands() -> None:
    assert {"webhook-key", "promote", "ledger", "pull", "schedule"} <= {c[0] for c in COMMANDS}
