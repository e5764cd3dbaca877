"""Keys and tokens, each with a value found nowhere else, are in no file and no output."""

import io
import traceback
from pathlib import Path

import pytest
from backburn.components.shared.config import ChatJudgeConfig
from backburn.components.shared.domains import Domain
from backburn.components.shared.errors import InputError
from backburn.components.shared.judges import Exchange
from backburn.components.shared.judges.chat import ChatJudge
from backburn.components.shared.judges.verdict_cache import VerdictCache
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from tests.containment.conftest import EndedAttack, WholeRun
from tests.containment.patterns import find
from tests.containment.runs import Sandbox, secret_patterns, secrets
from tests.serving import serving


def test_a_whole_run_writes_no_secret(whole_run: WholeRun) -> None:
    patterns = secret_patterns(whole_run.secrets)
    assert len(set(patterns.values())) == len(patterns) == 9
    assert find(patterns, whole_run.sandbox.places()) == {}


def test_an_attack_writes_no_secret(ended_attack: EndedAttack) -> None:
    patterns = secret_patterns(ended_attack.secrets)
    assert find(patterns, ended_attack.sandbox.places()) == {}


@pytest.mark.parametrize(
    "change",
    [
        "judges.evaluation={kind: chat, chat: {base_url: 'http://127.0.0.1:9/v1', model: m}}",
        "tracking.uri=http://127.0.0.1:9",
    ],
    ids=["judge", "MLflow"],
)
def test_a_run_that_fails_for_want_of_a_server_writes_no_secret(
    tmp_path: Path, change: str
) -> None:
    sandbox, given = Sandbox(tmp_path), secrets()
    short = "judges.evaluation.chat.retries=0" if "chat" in change else "seed=1"
    done = sandbox.run(
        "-m", "backburn.pipelines.cli", "run", "-r", "smoke", "--set", change, "--set", short,
        **given,
    )  # fmt: skip
    assert done.returncode in (1, 2), done.stderr[-3000:]
    assert "Traceback" not in done.stderr
    assert find(secret_patterns(given), sandbox.places()) == {}


class EchoingServer:
    """Refuses every key and says which one it was, with the question, as some servers do."""

    def __init__(self) -> None:
        self.app = FastAPI()
        self.app.post("/v1/chat/completions")(self._refuse)

    async def _refuse(self, request: Request) -> JSONResponse:
        told = request.headers["authorization"] + (await request.body()).decode()
        return JSONResponse({"error": {"message": told}}, 401)


def test_a_judge_server_s_answer_is_not_quoted(
    toy: Domain, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BACKBURN_JUDGE_API_KEY", "secret-4711")
    exchange = Exchange("marked prompt", "marked completion")
    with serving(EchoingServer()) as address:
        config = ChatJudgeConfig.model_validate({"base_url": f"{address}/v1", "model": "m"})
        judge = ChatJudge(toy.header.rubric, config, "chat:m", VerdictCache(None))
        with pytest.raises(InputError, match="401") as caught:
            judge.judge([exchange])
    shown = io.StringIO()
    traceback.print_exception(caught.value, file=shown)
    assert "BACKBURN_JUDGE_API_KEY" in shown.getvalue()
    assert "secret-4711" not in shown.getvalue()
    assert "marked" not in shown.getvalue()
