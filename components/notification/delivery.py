"""Delivering a message to one webhook: signed, repeated while that may help, never redirected."""

import base64
import os
import random
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from ipaddress import ip_address
from urllib.parse import urlsplit

import requests
from backburn.components.shared.config import WebhookConfig
from standardwebhooks import Webhook
from tenacity import RetryCallState, Retrying, retry_if_exception_type, stop_before_delay

_PREFIX = "whsec_"
_KEY_BYTES = 32
_LEAST_KEY_BYTES, _MOST_KEY_BYTES = 24, 64
_FIRST_WAIT, _LONGEST_WAIT = 0.5, 15.0
_IN_CLUSTER = (".svc", ".cluster.local", ".localhost")


class Undeliverable(Exception):  # noqa: N818 - an outcome of sending, not an error of ours
    """Why a webhook did not take the message; never holds its address."""


class _Busy(Undeliverable):
    """It may take the message a little later."""

    def __init__(self, why: str, wait: float | None = None) -> None:
        super().__init__(why)
        self.wait = wait


@dataclass(frozen=True)
class Letter:
    """What is posted; the id is the same on every attempt."""

    id: str
    body: bytes


def new_key() -> str:
    """A fresh signing key in the form of Standard Webhooks."""
    return _PREFIX + base64.b64encode(os.urandom(_KEY_BYTES)).decode()


def deliver(
    letter: Letter, webhook: WebhookConfig, request_seconds: float, total_seconds: float
) -> str:
    """Post a letter; returns what became of it, in words.

    Connection errors, timeouts, 429 and 5xx are tried again while time is left, later each time or
    when the receiver says; any other answer is final.

    Args:
        letter: Its body is sent as it is.
        webhook: Names the variables that hold address and key.
        request_seconds: Timeout of one request.
        total_seconds: Time for all attempts.

    Raises:
        Undeliverable: if the address or key is not usable, or the receiver did not take it.
    """
    url = _checked(os.environ[webhook.url_variable], webhook.url_variable)
    signer = None if webhook.format == "slack" else _signer(webhook.key_variable)
    for attempt in Retrying(
        retry=retry_if_exception_type(_Busy),
        wait=_wait,
        stop=stop_before_delay(total_seconds),
        reraise=True,
    ):
        with attempt:
            status = _post(url, letter, signer, min(request_seconds, total_seconds))
    signed = "" if webhook.format == "slack" else ", signed" if signer else ", unsigned"
    return f"delivered (HTTP {status}{signed})"


def _post(url: str, letter: Letter, signer: Webhook | None, seconds: float) -> int:
    now = datetime.now(UTC)
    headers = {
        "content-type": "application/json",
        "user-agent": "backburn",
        "webhook-id": letter.id,
        "webhook-timestamp": str(int(now.timestamp())),
    }
    if signer is not None:
        headers["webhook-signature"] = signer.sign(letter.id, now, letter.body.decode())
    try:
        with requests.post(
            url,
            data=letter.body,
            headers=headers,
            timeout=seconds,
            allow_redirects=False,
            stream=True,  # the answer's body is of no interest, and may have no end
            auth=_no_netrc,
        ) as answer:
            status: int = answer.status_code
            wait = answer.headers.get("retry-after")
    except requests.RequestException as error:  # its message holds the address
        raise _Busy(f"no answer ({type(error).__name__})") from None
    if status == requests.codes.too_many_requests or status >= 500:
        raise _Busy(f"HTTP {status}", _seconds_until(wait))
    if 300 <= status < 400:
        raise Undeliverable(f"HTTP {status}: it redirects, which is not followed")
    if not 200 <= status < 300:
        raise Undeliverable(f"HTTP {status}")
    return status


def _no_netrc(request: requests.PreparedRequest) -> requests.PreparedRequest:
    return request


def _wait(state: RetryCallState) -> float:
    asked = state.outcome.exception() if state.outcome is not None else None
    if isinstance(asked, _Busy) and asked.wait is not None:
        return asked.wait
    longest = min(_LONGEST_WAIT, _FIRST_WAIT * 2**state.attempt_number)
    return random.uniform(longest / 2, longest)


def _seconds_until(retry_after: str | None) -> float | None:
    """What a Retry-After header asks for; None if there is none, or it is unreadable."""
    if retry_after is None:
        return None
    try:
        if retry_after.strip().isdigit():
            return float(retry_after)
        moment = parsedate_to_datetime(retry_after)
        return max(0.0, (moment - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError, OverflowError):
        return None


def _checked(text: str, variable: str) -> str:
    """The address, if it is one that may be used.

    Plain HTTP is for receivers on this machine or in this cluster.
    """
    url = text.strip()
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname or "", parts.port
    except ValueError:
        host = ""
    if not host or parts.scheme not in ("http", "https"):
        raise Undeliverable(f"{variable} holds no http(s) address")
    if parts.scheme == "http" and not _near(host):
        raise Undeliverable(
            f"{variable} is a plain http address: use https, or a receiver on this machine or in "
            "this cluster (localhost, a Service's name, *.svc, *.cluster.local)"
        )
    return url


def _near(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return "." not in host or host.rstrip(".").endswith(_IN_CLUSTER)


def _signer(variable: str) -> Webhook | None:
    text = os.environ.get(variable, "").strip()
    if not text:
        return None
    try:
        key = base64.b64decode(text.removeprefix(_PREFIX), validate=True)
    except ValueError:
        key = b""
    if not _LEAST_KEY_BYTES <= len(key) <= _MOST_KEY_BYTES:
        raise Undeliverable(
            f"{variable} is no key (whsec_ and base64 of {_LEAST_KEY_BYTES} to {_MOST_KEY_BYTES} "
            "bytes): nothing was sent. Make one with `backburn webhook-key`"
        )
    return Webhook(key)
