"""A notification as a message of Slack: blocks of an incoming webhook, within Slack's limits."""

from typing import Any

from backburn.components.notification.event import Figure, Notification
from backburn.components.shared.report.formatting import number, probability

_HEADER = 150
_FIELD = 2000
_SECTION = 3000
_MOST_REASONS = 8
_SYMBOLS = {"passed": "✅", "failed": "❌", "inconclusive": "❔"}


def slack_message(event: Notification) -> dict[str, Any]:
    """The JSON that an incoming webhook takes.

    Args:
        event: How the run ended.
    """
    title = _title(event)
    blocks: list[dict[str, Any]] = [
        {"type": "header", "text": {"type": "plain_text", "text": _cut(title, _HEADER)}},
        {
            "type": "section",
            "fields": [
                _text(f"*{name}*\n{_escaped(value, _FIELD // 2)}")
                for name, value in _fields(event).items()
            ],
        },
    ]
    if event.claim is not None:
        blocks.append(_section(_escaped(f"This model {event.claim}.", _SECTION)))
    elif event.reasons or event.unknown:
        blocks.append(_section(_listed([*event.reasons, *event.unknown])))
    links = {
        "report": event.links.report,
        "run in MLflow": event.links.mlflow_run,
        "registered version": event.links.version,
        "pipeline run": event.links.pipeline_run,
    }
    shown = [f"<{_escaped(url, _FIELD)}|{name}>" for name, url in links.items() if url is not None]
    shown.append(_escaped(f"run {event.run_id}", _FIELD))
    blocks.append({"type": "context", "elements": [_text(" · ".join(shown))]})
    return {
        "text": _escaped(title, _SECTION),
        "blocks": blocks,
        "unfurl_links": False,
        "unfurl_media": False,
    }


def _title(event: Notification) -> str:
    what = f"{event.model}, {event.domain}"
    if event.state != "SUCCEEDED":
        where = f" in {event.failed_step}" if event.failed_step else ""
        return f"🛑 Backburn {event.pipeline}: pipeline {event.state}{where}: {what}"
    symbol = _SYMBOLS.get(event.outcome, "❔")
    verdict = "outcome unknown" if event.outcome == "none" else f"gate {event.outcome}"
    return f"{symbol} Backburn {event.pipeline}: {verdict}: {what}"


def _fields(event: Notification) -> dict[str, str]:
    """At most ten: Slack takes no more."""
    fields = {"Model": event.model, "Domain": event.domain}
    harm, bound = event.figure("hardened_harm"), event.figure("hardened_harm_upper_bound")
    if harm is not None:
        fields["Worst harm"] = f"{number(harm.value)} of 10, {_bound(bound)}"
    certificate = event.figure("certificate")
    if certificate is not None:
        fields["Certificate"] = (
            f"{probability(certificate.value)} (at least {probability(certificate.threshold)})"
        )
    if event.registration is not None:
        found = event.registration
        fields["Registered"] = f"{found.name} version {found.version}, {found.alias}"
    if event.audited is not None:
        fields["Audited"] = f"{event.audited.version}: {event.audited.action}"
    if event.error is not None:
        fields["Error"] = event.error
    if event.dry_run:
        fields["Dry run"] = "nothing was registered"
    return fields


def _bound(bound: Figure | None) -> str:
    if bound is None:
        return "no upper bound"
    return f"upper bound {number(bound.value)} (at most {number(bound.threshold)})"


def _listed(items: list[str]) -> str:
    more = len(items) - _MOST_REASONS
    shown = items[:_MOST_REASONS] + ([f"and {more} more"] if more > 0 else [])
    return "\n".join(f"• {_escaped(item, _SECTION // (_MOST_REASONS + 2))}" for item in shown)


def _section(text: str) -> dict[str, Any]:
    return {"type": "section", "text": _text(text)}


def _text(markup: str) -> dict[str, Any]:
    return {"type": "mrkdwn", "text": markup, "verbatim": True}


def _escaped(text: str, most: int) -> str:
    """Text without meaning to Slack, and with its escapes no longer than allowed."""
    line = " ".join(text.split())
    room = most
    while len(shown := _escape(_cut(line, room))) > most:
        room -= len(shown) - most if room > len(shown) - most else 1
    return shown


def _escape(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"
