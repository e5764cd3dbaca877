"""Where the run and the registered version are in MLflow: links to a server, else the command."""

import re
import shlex
from dataclasses import dataclass
from urllib.parse import quote

from backburn.components.shared.evidence import Decision, Registration, TrackedRun


@dataclass(frozen=True)
class Link:
    """One way to MLflow; `url` is None if `text` is a command for the reader's shell."""

    text: str
    url: str | None


def mlflow_links(decision: Decision) -> list[Link]:
    """Links to the run and the registered version; for a local store the command that shows it.

    No link carries credentials: user, password, query and fragment of a server's name are dropped.

    Args:
        decision: Holds the tracked run and the registration, either of them or none.

    Returns:
        Each link or command once.
    """
    links = []
    if run := decision.tracked:
        links.append(_link(run.uri, run_url(run), "the run"))
    if found := decision.registration:
        text = f"version {found.version} of {found.name}"
        links.append(_link(found.tracking_uri, version_url(found), text))
    return list(dict.fromkeys(links))


def run_url(run: TrackedRun) -> str | None:
    """The run's page; None for a store without a server."""
    return _url(run.uri, run_page(run))


def version_url(found: Registration) -> str | None:
    """The registered version's page; None for a store without a server."""
    return _url(found.tracking_uri, version_page(found))


def run_page(run: TrackedRun) -> str:
    """Where a server has the run's page."""
    return f"#/experiments/{quote(run.experiment_id, safe='')}/runs/{quote(run.run_id, safe='')}"


def version_page(found: Registration) -> str:
    """Where a server has the registered version's page."""
    return f"#/models/{quote(found.name, safe='')}/versions/{quote(found.version, safe='')}"


def without_credentials(uri: str) -> str:
    """A server's or store's name without user, password, query and fragment."""
    return re.sub(r"(?<=//)[^/]*@", "", re.split(r"[?#]", uri)[0])


def _url(uri: str, page: str) -> str | None:
    bare = without_credentials(uri)
    return f"{bare.rstrip('/')}/{page}" if bare.startswith(("http://", "https://")) else None


def _link(uri: str, url: str | None, text: str) -> Link:
    if url is not None:
        return Link(text, url)
    return Link(f"mlflow ui --backend-store-uri {shlex.quote(without_credentials(uri))}", None)
