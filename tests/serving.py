"""Serving an application on a free port of this machine."""

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from typing import Protocol

import uvicorn
from fastapi import FastAPI


class Served(Protocol):
    """What has an application to serve."""

    app: FastAPI


@contextlib.contextmanager
def serving(server: Served) -> Iterator[str]:
    """Serve until the context ends; gives the address."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    config = uvicorn.Config(server.app, host="127.0.0.1", port=port, log_level="critical")
    running = uvicorn.Server(config)
    thread = threading.Thread(target=running.run, daemon=True)
    thread.start()
    while not running.started:
        time.sleep(0.02)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        running.should_exit = True
        thread.join(10)
