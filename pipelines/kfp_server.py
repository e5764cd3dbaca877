"""Speaking to a Kubeflow Pipelines server: kfp's client, and one line for what goes wrong."""

import contextlib
import io
import json
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import kfp
import kfp_server_api
import urllib3
from backburn.components.shared.errors import BackburnError, InputError
from kfp_server_api.rest import RESTClientObject

TOKEN_VARIABLE = "KFP_TOKEN"
_SECONDS = (10, 60)  # to connect, to answer
_MOST_SHOWN = 300
_WRONG_ADDRESS = "not there; --endpoint must be the API's address, which often ends in /pipeline"


def _token() -> str | None:
    return os.environ.get(TOKEN_VARIABLE) or None


@dataclass(frozen=True)
class Server:
    """Where Kubeflow Pipelines answers.

    The token comes from the environment: an option would show it in the list of processes.
    """

    endpoint: str
    namespace: str | None = None
    ca_cert: Path | None = None
    token: str | None = field(default_factory=_token, repr=False)

    def __post_init__(self) -> None:
        parts = urlsplit(self.endpoint)
        if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc:
            raise InputError(
                "--endpoint: give http://host or https://host, perhaps with port and path, without "
                f"user and password ({TOKEN_VARIABLE} holds the token)"
            )
        if self.ca_cert is not None and not self.ca_cert.is_file():
            raise InputError(f"--ca-cert {self.ca_cert}: no such file")


@contextlib.contextmanager
def client_of(server: Server) -> Iterator[kfp.Client]:
    """Connect kfp's client to a server; what it refuses, or that it is not there, becomes one line.

    Raises:
        InputError: if no server answers, or it refuses.
        BackburnError: if it fails.
    """
    try:
        yield _connect(server)
    except kfp_server_api.ApiException as error:
        raise _explain(error, server) from error
    except urllib3.exceptions.HTTPError as error:
        reason = str(error).rpartition("): ")[2] or type(error).__name__
        raise InputError(
            f"no Kubeflow Pipelines at {server.endpoint}: {reason}. Correct --endpoint or "
            "KFP_ENDPOINT, or forward its port: kubectl port-forward svc/ml-pipeline 8888"
        ) from error


def _connect(server: Server) -> kfp.Client:
    settings = kfp_server_api.Configuration(host=server.endpoint.rstrip("/"))
    settings.retries = False
    settings.ssl_ca_cert = None if server.ca_cert is None else str(server.ca_cert)
    if server.token:
        settings.api_key["authorization"] = server.token
        settings.api_key_prefix["authorization"] = "Bearer"
    rest = _impatient(RESTClientObject(settings))
    api = kfp_server_api.ApiClient(settings)
    api.rest_client = rest
    health, _, headers = kfp_server_api.HealthzServiceApi(
        api
    ).healthz_service_get_healthz_with_http_info()
    kind = headers.get("content-type", "no type")
    if "json" not in kind:
        raise InputError(
            f"{server.endpoint}: {_WRONG_ADDRESS}: it answers with {kind}. If that is a page to "
            f"sign in, set {TOKEN_VARIABLE}"
        )
    if health.multi_user and not server.namespace:
        raise InputError(f"{server.endpoint} has a namespace for each user: give --namespace")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # that it wants a server of version 2
        client = kfp.Client(
            host=server.endpoint,
            namespace=server.namespace or "kubeflow",
            existing_token=server.token,
            ssl_ca_cert=settings.ssl_ca_cert,
        )
    client.pipelines.api_client.rest_client = rest  # every service of the client shares it
    return client


def _impatient(rest: RESTClientObject) -> RESTClientObject:
    """Limit every request's time; kfp sets no limit."""
    unlimited = rest.request

    def request(*positional: Any, **named: Any) -> Any:
        named["_request_timeout"] = named.get("_request_timeout") or _SECONDS
        try:
            return unlimited(*positional, **named)
        except kfp_server_api.ApiException as error:
            if error.status:
                raise
            # It stands for a failure of TLS, and its missing body makes kfp's client raise another.
            raise urllib3.exceptions.HTTPError(": ".join(str(error.reason).split("\n"))) from error

    rest.request = request
    return rest


def quietly() -> contextlib.AbstractContextManager[Any]:
    """Drop the links that kfp's client prints."""
    return contextlib.redirect_stdout(io.StringIO())


def _explain(error: kfp_server_api.ApiException, server: Server) -> BackburnError:
    said = _message(error)
    where = f"{server.endpoint} ({error.status} {error.reason})"
    mend = f"correct {TOKEN_VARIABLE}" if server.token else f"set {TOKEN_VARIABLE}"
    if 300 <= error.status < 400:
        target = str((error.headers or {}).get("location")).partition("?")[0]
        return InputError(
            f"{where}: it redirects to {target}. Give that address, or {mend} if it is a page to "
            "sign in"
        )
    if error.status == 401:
        return InputError(f"{where}: not signed in, {mend}{said}")
    if error.status == 404:
        return InputError(f"{where}: {_WRONG_ADDRESS}{said}")
    if error.status == 403:
        what = f"namespace {server.namespace!r} is not there or not yours, correct --namespace or "
        return InputError(
            f"{where}: {what if server.namespace else 'correct '}{TOKEN_VARIABLE}{said}"
        )
    if error.status >= 500:
        return BackburnError(f"{where}: the server failed{said}")
    return InputError(f"{where}: refused{said}")


def _message(error: kfp_server_api.ApiException) -> str:
    try:
        body = json.loads(error.body)
        text = str(body.get("message") or body.get("error_message") or "")
    except (AttributeError, TypeError, ValueError):
        return ""
    return f": {text.splitlines()[0][:_MOST_SHOWN]}" if text else ""
