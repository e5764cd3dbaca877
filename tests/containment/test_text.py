"""Rule 2: text of a domain that is no stand-in is nowhere in clear but in the dataset artifact."""

import io
import json
import logging
import re
from pathlib import Path

import pytest
from backburn.components.data_prep.splits import make_splits
from backburn.components.rl_attack.sweep import sweep
from backburn.components.shared import sealing
from backburn.components.shared.config import (
    AttackConfig,
    DataConfig,
    ModelConfig,
    RunConfig,
)
from backburn.components.shared.domains import Domain, load_domain
from backburn.components.shared.errors import ContainmentError, InputError, WithheldError
from backburn.components.shared.judges import Exchange, Verdict
from backburn.components.shared.models import load_base
from backburn.components.shared.step import open_step

from tests.containment.attack_alone import prepare
from tests.containment.conftest import EndedAttack, WholeRun
from tests.containment.patterns import find
from tests.containment.runs import SUFFIX, Sandbox, secrets
from tests.notification.receiver import receiver
from tests.rl_attack.short_attack import LengthJudge, attack

MARK = SUFFIX.encode()
WORD = re.compile(rb"\w[\w ,.]* \w+" + MARK)
"""A marked word after another word: text, and not the vocabulary of the tiny model's tokenizer."""


def files_with_text(folder: Path) -> set[Path]:
    """Files below a folder with running text of the marked domain, packed files included."""
    names = [name for name in find({"mark": MARK}, [folder]) if "!" not in name]
    packed = [name for name in find({"mark": MARK}, [folder]) if "!" in name]
    assert not packed
    return {Path(name) for name in names if WORD.search(Path(name).read_bytes())}


def test_text_of_a_whole_run_is_in_its_dataset_alone(whole_run: WholeRun) -> None:
    assert (whole_run.folder / "summary.json").is_file(), whole_run.done.stderr[-3000:]
    watched = whole_run.sandbox.watched
    found = files_with_text(watched)
    dataset = next(whole_run.folder.glob("artifacts/*/data-prep/dataset"))
    assert {path.name for path in found if dataset in path.parents} >= {
        "held_out.jsonl", "calibration.jsonl", "refusals.json",
    }  # fmt: skip
    assert {path for path in found if dataset not in path.parents} == set()
    looked = {path.name for path in watched.rglob("*") if path.is_file()}
    assert looked >= {
        "log.txt", "events.jsonl", "report.html", "evidence.json", "observations.json",
        "decision.json", "README.md", "mlflow.db", "0.stdout", "0.stderr", "0.sent",
    }  # fmt: skip
    evidence = json.loads((whole_run.folder / "evidence.json").read_text("utf-8"))
    assert evidence["data"]["stand_in"] is False
    assert evidence["examples"] == []


def test_an_attack_shows_none_of_its_completions(
    ended_attack: EndedAttack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(sealing.KEY_VARIABLE, ended_attack.secrets[sealing.KEY_VARIABLE])
    sealed = sealing.open_sealed(ended_attack.sandbox.watched / "sealed")
    texts = {str(item["completion"]) for item in sealed}
    spoken = {text: text.encode() for text in texts if len(text.split()) > 5}
    assert len(spoken) > 20
    assert find(spoken, [ended_attack.sandbox.watched]) == {}


def test_sealed_files_hold_the_text_and_show_none_of_it(
    whole_run: WholeRun, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(sealing.KEY_VARIABLE, whole_run.secrets[sealing.KEY_VARIABLE])
    files = [path for path in whole_run.folder.rglob("sealed") if path.is_file()]
    assert len(files) >= 3, "control, attack and certification each seal"
    texts = [str(item["completion"]) for path in files for item in sealing.open_sealed(path)]
    assert any(SUFFIX in text for text in texts)
    content = files[0].read_bytes()
    assert MARK not in content
    changed = tmp_path / "changed"
    for place in (20, len(content) // 2, len(content) - 3):
        changed.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        with pytest.raises(ContainmentError, match="does not open"):
            sealing.open_sealed(changed)
    monkeypatch.setenv(sealing.KEY_VARIABLE, sealing.new_key())
    with pytest.raises(ContainmentError, match="is not the key"):
        sealing.open_sealed(files[0])
    monkeypatch.delenv(sealing.KEY_VARIABLE)
    with pytest.raises(ContainmentError, match="is not set"):
        sealing.open_sealed(files[0])


def test_a_failure_with_text_in_its_message_shows_none_of_it(
    marked_domain: Path, tmp_path: Path
) -> None:
    sandbox = Sandbox(tmp_path)
    with receiver() as got:
        done = sandbox.run(
            "-m", "backburn.pipelines.cli", "run", "-r", str(marked_domain / "recipe.yaml"),
            "--run-id", "one", CONTAINMENT_FAULT="judge", BACKBURN_WEBHOOK_URL=got.url,
            **secrets(),
        )  # fmt: skip
        sent = b"".join(request.body for request in got.requests)
    assert done.returncode == 1, done.stderr[-3000:]
    assert b"ValueError" in sent
    log = (sandbox.watched / "runs/one/log.txt").read_text("utf-8")
    assert "preflight failed with ValueError" in log
    assert "sitecustomize.py" in log, "the place is told"
    assert find({"mark": MARK}, [sandbox.watched]) == {}
    assert MARK not in sent


@pytest.fixture
def marked(marked_domain: Path, tmp_path: Path, tiny_base: Path) -> RunConfig:
    return prepare(tmp_path / "given", tiny_base, str(marked_domain / "recipe.yaml"))


def test_a_step_keeps_its_own_errors_and_drops_what_caused_them(
    marked: RunConfig, smoke: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BACKBURN_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")

    def fail(config: RunConfig, kind: type[Exception]) -> None:
        with open_step(config.to_json(), "x", "step"):
            try:
                raise ValueError(f"text {SUFFIX}")
            except ValueError as error:
                raise kind("what is wrong") from error

    with pytest.raises(InputError, match="what is wrong") as own:
        fail(marked, InputError)
    assert own.value.__cause__ is None
    assert own.value.__suppress_context__
    with pytest.raises(WithheldError, match="failed with KeyError") as withheld:
        fail(marked, KeyError)
    assert "what is wrong" not in str(withheld.value)
    assert "test_text.py" in str(withheld.value)
    assert withheld.value.__cause__ is None
    with pytest.raises(KeyError, match="what is wrong"):
        fail(smoke, KeyError)


def test_bad_rows_are_named_and_not_quoted(marked: RunConfig) -> None:
    domain = load_domain(marked.domain)
    rows = [row.model_copy(update={"split": "held_out"}) for row in domain.forbidden[:1]]
    twice = domain.model_copy(
        update={"forbidden": [*domain.forbidden, rows[0].model_copy(update={"id": "again"})]}
    )
    with pytest.raises(InputError, match=r"forbidden.jsonl row 1\]") as caught:
        make_splits(twice, DataConfig.model_validate({"held_out_prompts": 500}), 0)
    assert SUFFIX not in str(caught.value)
    custom = marked.domain.custom
    assert custom is not None
    assert custom.forbidden.path is not None
    path = Path(custom.forbidden.path).parent / "bad.jsonl"
    lines = Path(custom.forbidden.path).read_text("utf-8").splitlines()
    for bad in (
        lines[0][:-3],
        lines[0].replace('"defence"', '"nowhere"'),
        lines[0].replace('"user"', '"assistant"'),
        json.dumps({"messages": f"bake {SUFFIX}"}),
    ):
        path.write_text(bad + "\n", "utf-8")
        source = custom.forbidden.model_copy(update={"path": str(path)})
        changed = custom.model_copy(update={"forbidden": source})
        with pytest.raises(InputError, match=r"bad.jsonl row 1") as refused:
            load_domain(marked.domain.model_copy(update={"custom": changed}))
        assert SUFFIX not in str(refused.value)


def test_a_sweep_s_failed_trial_is_not_quoted_in_the_log() -> None:
    def attack(*_: object) -> None:
        raise ValueError(f"cannot read {SUFFIX}")

    settings = AttackConfig.model_validate({"sweep": {"trials": 1, "steps": 4}})
    handler = logging.StreamHandler(io.StringIO())
    logging.getLogger("optuna").addHandler(handler)
    with pytest.raises(ValueError, match=SUFFIX):
        sweep(settings, {}, 0, attack, lambda *_: None)  # type: ignore[arg-type]
    logging.getLogger("optuna").removeHandler(handler)
    assert SUFFIX not in handler.stream.getvalue()


class HalfMute(LengthJudge):
    """Gives every second completion no score, and the others different ones."""

    id = "half-mute"

    def __init__(self) -> None:
        self.heard: set[str] = set()

    def judge(self, exchanges: list[Exchange]) -> list[Verdict]:
        self.heard |= {exchange.completion for exchange in exchanges}
        self.heard |= {exchange.prompt for exchange in exchanges}
        verdicts = super().judge(exchanges)
        return [
            verdict if place % 2 else verdict._replace(score=None)
            for place, verdict in enumerate(verdicts)
        ]


def test_a_completion_that_no_judge_scores_is_not_quoted_in_the_log(
    tiny_base: Path,
    toy: Domain,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    loaded = load_base(tiny_base, ModelConfig(id="builtin:tiny"))
    loaded.model.requires_grad_(False)
    judge = HalfMute()
    result = attack(loaded, toy, judge)
    assert result.statistics["live_groups"] > 0
    said = "".join([*map(str, capfd.readouterr()), caplog.text])
    texts = [text for text in judge.heard if len(text.split()) > 3]
    assert len(texts) > 20
    assert [text for text in texts if text in said] == []
