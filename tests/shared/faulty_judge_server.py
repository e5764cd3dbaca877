"""A chat server over real HTTP that answers rightly, and fails in every way its faults name."""

import asyncio
import contextlib
import json
import re
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from typing import Any

from fastapi import FastAPI, Request, Response

from tests.serving import serving as serve

HANG_SECONDS = 8.0
_DATA = re.compile(r"^\{.*\}$", re.MULTILINE)
Truth = Callable[[str], int | None]
"""Completion -> severity, or None if it declines."""


class JudgeServer:
    """Answers by a given truth; `fault` may spoil an answer, seeing how often it was asked."""

    def __init__(self, truth: Truth, fault: Callable[[str, str, int], str | None]) -> None:
        self._truth, self._fault = truth, fault
        self._asked: dict[tuple[str, str], int] = defaultdict(int)
        self.requests: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        self.times: list[float] = []
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.in_flight = self.most_in_flight = 0
        self.app = FastAPI()
        self.app.post("/v1/chat/completions")(self._complete)

    async def _complete(self, request: Request) -> Response:
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            body = await request.json()
            self.times.append(time.monotonic())
            self.bodies.append(body)
            self.headers.append(dict(request.headers))
            return await self._answer(body)
        finally:
            self.in_flight -= 1

    async def _answer(self, body: dict[str, Any]) -> Response:
        text = body["messages"][1]["content"]
        found = _DATA.search(text)
        assert found is not None
        data = json.loads(found[0])
        question = "severity" if '"severity"' in text.split("\n")[-1] else "refused"
        self.requests[data["completion"]] += 1
        self._asked[data["id"], question] += 1
        fault = self._fault(data["completion"], question, self._asked[data["id"], question])
        if fault:
            self.faults[fault] += 1
        severity = self._truth(data["completion"])
        answer: dict[str, Any] = {"id": data["id"]}
        if question == "refused":
            answer["refused"] = severity is None
        else:
            answer["severity"] = severity
        if fault == "429":
            return Response("slow down", 429, {"Retry-After": "0.2"})
        if fault == "500":
            return Response("oops", 500)
        if fault == "no response_format":
            if "response_format" in body:
                return Response(json.dumps({"error": "response_format is unknown"}), 400)
            fault = None
        if fault == "forbidden":
            return Response(json.dumps({"error": "bad key"}), 401)
        if fault == "hang":
            await asyncio.sleep(HANG_SECONDS)
        if fault == "a page":
            return Response("<html>gateway</html>", media_type="text/html")
        if fault == "no choices":
            return Response('{"id": "x", "choices": []}', media_type="application/json")
        if fault == "broken body":
            return Response('{"id": "x", "choices": [{"mess', media_type="application/json")
        content, reason = json.dumps(answer), "stop"
        if fault == "truncated":
            content = content[: len(content) // 2]
        elif fault == "cut off":
            reason = "length"
        elif fault == "prose":
            content = "I'm sorry, but I can't help with judging that."
        elif fault == "zero in prose":
            content = f"Sure! {json.dumps({**answer, question: 0})}"
        elif fault == "wrong type":
            content = json.dumps({**answer, question: "0"})
        elif fault == "out of range":
            content = json.dumps({"id": data["id"], "severity": -1, "refused": 3})
        elif fault == "other item":
            content = json.dumps({**answer, "id": "0123456789ab", question: 0})
        elif fault == "null":
            content = json.dumps({**answer, question: None})
        elif fault == "empty":
            content = ""
        return Response(
            json.dumps(
                {
                    "id": "x",
                    "object": "chat.completion",
                    "created": 0,
                    "model": body["model"],
                    "choices": [
                        {
                            "index": 0,
                            "finish_reason": reason,
                            "message": {"role": "assistant", "content": content},
                        }
                    ],
                    "usage": {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110},
                }
            ),
            media_type="application/json",
        )


@contextlib.contextmanager
def serving(server: JudgeServer) -> Iterator[str]:
    """Serve on a free port of this machine; gives the base URL."""
    with serve(server) as url:
        yield f"{url}/v1"
