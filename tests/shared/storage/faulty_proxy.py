"""A proxy before an S3 server that breaks some of its answers on purpose."""

import http.client
import io
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

FAULTS = ("reset", "unavailable", "slow", "truncated", "wrong_bytes", "dribble")
_HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding"}


class FaultyProxy:
    """Which answers break, and how; counts what it did."""

    def __init__(self, port: int, seconds: float) -> None:
        self.port = port
        self.seconds = seconds
        """Longer than clients wait."""
        self.share = 0.0
        self.faults: tuple[str, ...] = FAULTS
        self.random = random.Random(0)
        self.done: Counter[str] = Counter()
        self._lock = threading.Lock()

    def choose(self) -> str | None:
        with self._lock:
            if self.random.random() >= self.share:
                return None
            fault = self.random.choice(self.faults)
            self.done[fault] += 1
            return fault


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    proxy: FaultyProxy

    def _pass_on(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        fault = self.proxy.choose()
        if fault == "reset":
            self._reset()
            return
        if fault == "slow":
            time.sleep(self.proxy.seconds)
            self._reset()
            return
        if fault == "unavailable":
            self.send_response(503, "Slow Down")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        upstream = http.client.HTTPConnection("127.0.0.1", self.proxy.port, timeout=60)
        headers = {k: v for k, v in self.headers.items() if k.lower() not in _HOP_BY_HOP}
        upstream.request(self.command, self.path, body, headers)
        answer = upstream.getresponse()
        content = answer.read()
        upstream.close()
        self.send_response(answer.status, answer.reason)
        for name, value in answer.getheaders():
            if name.lower() not in {*_HOP_BY_HOP, "content-length", "date", "server"}:
                self.send_header(name, value)
        size = answer.getheader("Content-Length") if self.command == "HEAD" else len(content)
        self.send_header("Content-Length", str(size or 0))
        self.end_headers()
        if self.command == "HEAD" or not content:
            return
        if fault == "truncated":
            self.wfile.write(content[: len(content) // 2])
            self._reset()
        elif fault == "dribble":
            self.wfile.write(content[:1])
            self.wfile.flush()
            time.sleep(self.proxy.seconds)
            self._reset()
        elif fault == "wrong_bytes" and answer.status in (200, 206):
            place = self.proxy.random.randrange(len(content))
            wrong = bytes([content[place] ^ 0x40])
            self.wfile.write(content[:place] + wrong + content[place + 1 :])
        else:
            self.wfile.write(content)

    def _reset(self) -> None:
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self.connection.close()
        self.wfile, self.rfile = io.BytesIO(), io.BytesIO()  # type: ignore[assignment]

    def __getattr__(self, name: str) -> Callable[[], None]:
        if name.startswith("do_"):
            return self._pass_on
        raise AttributeError(name)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def faulty_proxy(port: int, seconds: float) -> Iterator[tuple[FaultyProxy, str]]:
    """A proxy before the server at a port; gives it and its address."""
    proxy = FaultyProxy(port, seconds)
    handler = type("Handler", (_Handler,), {"proxy": proxy})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.handle_error = lambda *_: None  # type: ignore[method-assign,assignment]
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield proxy, f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
