"""Where the run and the registered version are in MLflow: links to a server, else the command."""

import re
import shlex
from dataclasses import dataclass
from urllib.parse import quote

from backburn.components.shared.evidence import Decision


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
        page = f"experiments/{quote(run.experiment_id, safe='')}/runs/{quote(run.run_id, safe='')}"
        links.append(_link(run.uri, page, "the run"))
    if found := decision.registration:
        page = f"models/{quote(found.name, safe='')}/versions/{quote(found.version, safe='')}"
        links.append(_link(found.tracking_uri, page, f"version {found.version} of {found.name}"))
    return list(dict.fromkeys(links))


def without_credentials(uri: str) -> str:
    """A server's or store's name without user, password, query and fragment."""
    return re.sub(r"(?<=//)[^/]*@", "", re.split(r"[?#]", uri)[0])


def _link(uri: str, page: str, text: str) -> Link:
    bare = without_credentials(uri)
    if bare.startswith(("http://", "https://")):
        return Link(text, f"{bare.rstrip('/')}/#/{page}")
    return Link(f"mlflow ui --backend-store-uri {shlex.quote(bare)}", None)
