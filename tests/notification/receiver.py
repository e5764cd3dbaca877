"""A receiver of webhooks on a real port, that behaves as badly as it is told to."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

DRIP_SECONDS = 0.05


@dataclass
class Request:
    path: str
    headers: dict[str, str]
    body: bytes
    at: float


@dataclass
class Receiver:
    """What it got, and what it answers: the last answer goes on for ever."""

    answers: list[str]
    requests: list[Request] = field(default_factory=list)
    url: str = ""
    released: threading.Event = field(default_factory=threading.Event)

    def next_answer(self) -> str:
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


@contextmanager
def receiver(*answers: str) -> Iterator[Receiver]:
    """Serve: a status such as `500` or `429 retry-after=1`, or `hang`, `drip`, `drop`, `noise`."""
    found = Receiver(list(answers or ("200",)))

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            headers = {name.lower(): value for name, value in self.headers.items()}
            found.requests.append(Request(self.path, headers, body, time.monotonic()))
            answer, *extra = found.next_answer().split()
            if answer == "hang":
                found.released.wait(30)
            elif answer == "drip":  # a header without end: no single read takes long
                self.wfile.write(b"HTTP/1.1 200 OK\r\nx-slow: ")
                while not found.released.wait(DRIP_SECONDS):
                    self.wfile.write(b"z")
            elif answer == "noise":
                self.wfile.write(b"\x00\xffthis is not HTTP\r\n\r\n")
            elif answer != "drop":
                self.send_response(int(answer))
                for name, value in (item.split("=", 1) for item in extra):
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(b"ok")
            self.close_connection = True

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: object) -> None:
            pass  # a client that hung up

    server = Server(("127.0.0.1", 0), Handler)
    found.url = f"http://localhost:{server.server_port}/hook/SECRETPATH"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield found
    finally:
        found.released.set()
        server.shutdown()
        server.server_close()
        thread.join()
