"""Pages about a cluster: commands and options exist, links resolve, names are those of the code."""

import ast
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from backburn.components.notification.event import Notification
from backburn.components.shared import errors
from backburn.components.shared.config import RunConfig
from backburn.components.shared.gate import gate_checks
from backburn.pipelines.cli import app
from backburn.pipelines.schedules import Schedule

from benchmarks import run_figures, sizing
from benchmarks.runs import put_between_markers, read_rows
from tests.charts.rendering import named, render
from tests.charts.test_scripts import parse
from tests.shared.evidence_samples import sample_evidence

ROOT = Path(__file__).parents[2]
PAGES = {
    name: (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8")
    for name in ("cluster", "operations", "sizing")
}
OPERATIONS = PAGES["operations"]


def code(page: str) -> str:
    """The code blocks of a page that are for a shell, indented ones too."""
    blocks = re.findall(r"^( *)```\n(.*?)^ *```$", page, re.DOTALL | re.MULTILINE)
    return "\n".join(re.sub(f"^{indent}", "", text, flags=re.MULTILINE) for indent, text in blocks)


CODE = code(PAGES["cluster"])
COMMANDS = {
    name: [
        shlex.split(command, comments=True)[1:]
        for command in re.findall(
            r"(?:^|\$\()(backburn [^\n|)>]*)", code(page).replace("\\\n", " "), re.MULTILINE
        )
    ]
    for name, page in PAGES.items()
}


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


@pytest.mark.parametrize(
    "arguments", [command for found in COMMANDS.values() for command in found], ids=" ".join
)
def test_commands_are_backburn_s(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KFP_ENDPOINT", "http://localhost:8888")
    parse(arguments)


def test_pages_have_commands() -> None:
    wanted = {
        "cluster": {"seal-key", "webhook-key", "promote", "ledger", "pull", "schedule"},
        "operations": {"pull", "verify", "ledger", "signing-key", "promote", "schedule"},
        "sizing": {"size"},
    }
    for page, names in wanted.items():
        assert names <= {command[0] for command in COMMANDS[page]}


def options(command: Any) -> set[str]:
    return {option for item in command.params for option in (*item.opts, *item.secondary_opts)}


@pytest.mark.parametrize("page", PAGES)
def test_commands_and_options_in_the_text_exist(page: str) -> None:
    known: set[str] = set()
    root: Any = typer.main.get_command(app)
    commands = {"": root, **root.commands}
    commands |= {
        f"schedule {name}": item for name, item in root.commands["schedule"].commands.items()
    }
    for item in commands.values():
        known |= options(item)
    prose = re.sub(r"^ *```.*?^ *```$", "", PAGES[page], flags=re.DOTALL | re.MULTILINE)
    for text in re.findall(r"`backburn ([^`]+)`", prose):
        words = text.split()
        name = words[0] if words[0] != "schedule" else " ".join(words[:2])
        assert name in commands, text
        assert {word for word in words if word.startswith("--")} <= options(commands[name]), text
    for option in re.findall(r"`(--[a-z-]+)", prose):
        assert option in known, option


def slugs(page: str) -> set[str]:
    """Anchors that GitHub gives a page's headings."""
    titles = re.findall(r"^#+ (.+)$", page, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", [*(f"docs/{name}.md" for name in PAGES), "README.md"])
def test_links_and_anchors_resolve(page: str) -> None:
    file = ROOT / page
    for link in re.findall(r"\]\(([^)\s]+)\)", file.read_text(encoding="utf-8")):
        target, _, anchor = link.partition("#")
        if "://" in target:
            continue
        found = file if not target else (file.parent / target)
        assert found.exists(), link
        if anchor:
            assert anchor in slugs(found.read_text(encoding="utf-8")), link


def test_the_readme_links_both_pages() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    section = readme.partition("## On a cluster")[2].partition("\n## ")[0]
    assert "(docs/operations.md)" in section
    assert "(docs/sizing.md)" in section


def strings(node: ast.AST) -> Iterator[str]:
    """Every text of a module, what is filled in left out as a line break."""
    for item in ast.walk(node):
        if isinstance(item, ast.JoinedStr):
            yield "".join(
                str(part.value) if isinstance(part, ast.Constant) else "\n" for part in item.values
            )
        elif isinstance(item, ast.Constant) and isinstance(item.value, str):
            yield item.value


@cache
def said_by_the_code() -> list[str]:
    files = [*ROOT.glob("components/**/*.py"), *ROOT.glob("pipelines/*.py")]
    files.append(ROOT / "charts/backburn/files/check.py")
    return [text for file in files for text in strings(ast.parse(file.read_text("utf-8")))]


def rows(heading: str) -> list[list[str]]:
    """Rows of the first table below a heading."""
    table = OPERATIONS.partition(f" {heading}\n")[2].partition("\n|")[2].partition("\n\n")[0]
    return [line.strip("|").split("|") for line in table.splitlines()[2:]]


@pytest.mark.parametrize(
    "heading", ["Messages of preflight and of the steps", "What `doctor` asks"]
)
def test_quoted_messages_are_those_of_the_code(heading: str) -> None:
    found = rows(heading)
    assert len(found) > 8
    for row in found:
        for quoted in re.findall(r"`([^`]+)`", row[0]):
            pattern = re.compile(".*".join(map(re.escape, quoted.split("..."))), re.DOTALL)
            filled = quoted.replace("BACKBURN_SEAL_KEY is", "\n is")
            filled = filled.replace("BACKBURN_SIGNING_KEY is", "\n is")
            assert any(pattern.search(t) or filled in t for t in said_by_the_code()), quoted


def test_every_class_of_error_and_every_check_of_the_gate_is_explained() -> None:
    classes = {name for name, item in vars(errors).items() if isinstance(item, type)}
    explained = {
        name for row in rows("Classes of errors") for name in re.findall(r"`(\w+)`", row[0])
    }
    assert classes <= explained
    config = RunConfig.model_validate({
        "gate": {"trainability_min": 0.5},
        "attack": {"sweep": {"trials": 1}},
        "certification": {"utility": {"tasks": ["x"]}, "over_refusal": [
            {"name": "x", "source": {"path": "x.csv", "licence": "MIT"}}]},
    })  # fmt: skip
    checks = {check.name for check in gate_checks(sample_evidence(), config)}
    told = {name for row in rows("Outcomes of the gate") for name in re.findall(r"`(\w+)`", row[0])}
    assert checks <= told
    assert told - checks <= {"evaluation_judge_paid_attack"}


def test_fields_and_tags_of_the_alerts_exist() -> None:
    fields = Notification.model_fields
    for row in rows("Alerts"):
        for name in re.findall(r"`(\w+)(?:\.\w+)?` is", row[0]):
            assert name in fields, name
    assert f"`{fields['event'].default}`" in OPERATIONS
    for tag in set(re.findall(r"`(backburn\.\w+)`", OPERATIONS)) - {"backburn.pem"}:
        assert tag in said_by_the_code(), tag
    assert {"name", "enabled", "version", "last_run"} <= set(Schedule.model_fields)


def test_mlflow_takes_the_queries(tmp_path: Path) -> None:
    (text,) = re.findall(r"^```python\n(.*?)^```$", OPERATIONS, re.DOTALL | re.MULTILINE)
    import mlflow

    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    client = mlflow.MlflowClient(tracking_uri=uri)
    made = client.create_run(
        client.create_experiment("x", artifact_location=tmp_path.as_uri()),
        tags={"backburn.step": "pipeline", "backburn.outcome": "failed"},
    )
    client.create_registered_model("m")
    client.create_model_version("m", "s3://x/y", tags={"backburn.audit": "failed"})
    names: dict[str, Any] = {}
    exec(text.replace("MlflowClient()", f"MlflowClient(tracking_uri={uri!r})"), names)
    assert [run.info.run_id for run in names["failed"]] == [made.info.run_id]
    assert not [*names["unclear"], *names["broken"], *names["demoted"]]
    assert [version.name for version in names["rejected"]] == ["m"]


@pytest.mark.parametrize(("hours", "late"), [(2, False), (30, True)])
def test_a_schedule_that_did_not_run_is_found(hours: int, late: bool, tmp_path: Path) -> None:
    last = {"created_at": (datetime.now(UTC) - timedelta(hours=hours)).isoformat()}
    item = {"name": "nightly", "enabled": True, "version": "v", "last_run": last}
    (tmp_path / "schedules.json").write_text(json.dumps([item]), "utf-8")
    (program,) = re.findall(r"^python3 -c '\n(.*?)^'$", code(OPERATIONS), re.DOTALL | re.MULTILINE)
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == (1 if late else 0), done.stderr
    assert ("nightly" in done.stderr) == late


def test_the_table_of_sizes_is_what_is_predicted_now() -> None:
    """`python -m benchmarks.sizing --write` writes it."""
    again = put_between_markers(PAGES["sizing"], "predicted", sizing.predicted_tables())
    assert again == PAGES["sizing"]


def test_the_readme_has_the_figures_of_the_last_runs() -> None:
    """`python -m benchmarks.run_figures --only-table` writes them."""
    rows = read_rows(ROOT / "benchmarks/figures.jsonl")
    page = (ROOT / "README.md").read_text("utf-8")
    assert put_between_markers(page, "runs", run_figures.short_table(rows)) == page
    with pytest.raises(ValueError, match="walks"):
        put_between_markers(page, "walks", "")
