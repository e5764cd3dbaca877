"""What `helm test` runs: do the services answer, are the keys there, is the network closed."""

import base64
import binascii
import http.client
import json
import os
import socket
import ssl
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

END = time.monotonic() + float(os.environ.get("CHECK_SECONDS", "60"))
"""Policies and services of a new pod take some seconds: until then, a problem may pass."""
SECRET = Path(os.environ.get("CHECK_SECRET", "/etc/backburn/secret"))
KEYS_OF_32_BYTES = ("BACKBURN_SEAL_KEY", "BACKBURN_SIGNING_KEY")


def key_problem(secret: str, key: str) -> str | None:
    """What is wrong with a key of the Secret; its value is never shown."""
    file = SECRET / key
    if not file.is_file() or not file.read_bytes().strip():
        return f"Secret {secret!r} has no {key}: see docs/cluster.md for how to make it"
    if key in KEYS_OF_32_BYTES:
        try:
            size = len(base64.b64decode(file.read_bytes().strip(), altchars=b"-_", validate=True))
        except binascii.Error:
            size = 0
        if size != 32:
            return (
                f"{key} in Secret {secret!r} is no key: make one with `backburn seal-key` or "
                "`backburn signing-key`"
            )
    return None


def answer_problem(service: dict[str, Any], ca: str | None) -> str | None:
    """Why a service does not answer as it should."""
    context = ssl.create_default_context(cafile=ca)
    try:
        with urllib.request.urlopen(service["url"], timeout=5, context=context) as response:
            status = response.status
    except urllib.error.HTTPError as error:
        status = error.code
    except (OSError, http.client.HTTPException) as error:
        return (
            f"{service['name']} does not answer at {service['url']} ({error}): correct "
            f"{service['setting']}, or look at its pods"
        )
    if status == service.get("status", status) and status < 500:
        return None
    return f"{service['name']} answers {status} at {service['url']}: correct {service['setting']}"


def address(text: str) -> tuple[str, int]:
    """Host and port of `host:port` or a URL."""
    if text == "$(KUBERNETES)":
        return os.environ["KUBERNETES_SERVICE_HOST"], int(os.environ["KUBERNETES_SERVICE_PORT"])
    parts = urlsplit(text if "://" in text else f"tcp://{text}")
    return parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)


def connects(text: str) -> bool:
    """Whether a connection can be opened."""
    try:
        socket.create_connection(address(text), timeout=3).close()
    except OSError:
        return False
    return True


def reach_problem(target: dict[str, Any]) -> str | None:
    """Why an attack's pod cannot do its work."""
    if connects(target["address"]):
        return None
    host, port = address(target["address"])
    return (
        f"a pod of the step rl-attack does not reach {target['name']} at {host}:{port}: "
        f"correct {target['setting']}"
    )


def way_out(forbidden: str) -> str | None:
    """That the network is open, if it is."""
    if not connects(forbidden):
        return None
    return (
        f"a pod of the step rl-attack reaches {forbidden}: the cluster's network plugin does "
        "not enforce NetworkPolicies, or another policy allows it. Attacks are not contained"
    )


def patiently(check: Callable[[], str | None]) -> str | None:
    """Try until there is no problem or the time is over, at least once."""
    while (problem := check()) is not None and time.monotonic() < END:
        time.sleep(1)
    return problem


def main() -> None:
    """`check.py PLAN`: list every problem; the exit code says whether there was one."""
    plan = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    results = [(f"key {key}", key_problem(plan["secret"], key)) for key in plan.get("keys", [])]
    for service in plan.get("answers", []):
        found = patiently(partial(answer_problem, service, plan.get("ca")))
        results.append((f"{service['name']} answers", found))
    for target in plan.get("reaches", []):
        found = patiently(partial(reach_problem, target))
        results.append((f"rl-attack reaches {target['name']}", found))
    if "forbidden" in plan:
        found = patiently(partial(way_out, plan["forbidden"]))
        results.append(("rl-attack has no other way out", found))
    for name, problem in results:
        print(f"ok      {name}" if problem is None else f"FAILED  {problem}")
    sys.exit(any(problem for _, problem in results))


main()
