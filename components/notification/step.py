"""The notification step: runs last, whatever happened, closes the run's record and tells others.

Nothing outside can fail it: without MLflow it tells what it knows, and a webhook that does not take
the message is a line in the log. It never sees KFP's error message, which may quote rows.
"""

import json
import os
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from typing import Generic, Literal, TypeVar, get_args

from backburn.components.notification.delivery import Letter, Undeliverable, deliver
from backburn.components.notification.event import (
    Audited,
    Figure,
    Links,
    Notification,
    RegisteredVersion,
)
from backburn.components.notification.record import RunRecord, close_and_read
from backburn.components.notification.slack import slack_message
from backburn.components.shared.attestation import REPORT
from backburn.components.shared.config import RunConfig, WebhookConfig
from backburn.components.shared.evidence import Outcome
from backburn.components.shared.progress import Progress
from backburn.components.shared.report.links import run_url, version_url
from backburn.components.shared.storage import sha256_text
from backburn.components.shared.tracking import (
    AUDIT_ACTION_TAG,
    AUDITED_TAG,
    CLAIM_TAG,
    ERROR_TAG,
    FAILED_STEP_TAG,
    OUTCOME_TAG,
    PIPELINE_TAG,
    PIPELINE_URL_TAG,
)

_Result = TypeVar("_Result")


def run(config_json: str, run_id: str, state: str) -> str:
    """Close the run's record in MLflow and tell the webhooks; returns the message, JSON.

    Args:
        config_json: Configuration of the run.
        run_id: Id of the pipeline run.
        state: KFP's final state, such as SUCCEEDED or FAILED.
    """
    progress = Progress("notification")
    config = RunConfig.from_json(config_json)
    event = describe(config, run_id, state, _read(config, run_id, state))
    for note in event.unknown:
        _say(f"not known: {note}")
    notify(event, config)
    text = event.model_dump_json()
    progress.finish(text)
    return text


def describe(config: RunConfig, run_id: str, state: str, record: RunRecord) -> Notification:
    """What is told of a run.

    Args:
        config: Of the run.
        run_id: Id of the pipeline run.
        state: The pipeline's final state.
        record: What MLflow has of it.
    """
    tags, decision, outcome = record.tags, record.decision, _outcome(record)
    failed = state != "SUCCEEDED"
    return Notification(
        time=datetime.now(UTC).isoformat(timespec="seconds"),
        run_id=run_id,
        pipeline=tags.get(PIPELINE_TAG, "harden") if record.tracked is not None else "unknown",
        state=state,
        outcome=outcome,
        failed_step=tags.get(FAILED_STEP_TAG) if failed else None,
        error=tags.get(ERROR_TAG) if failed else None,
        reasons=[] if decision is None else decision.reasons,
        figures=[] if decision is None else [Figure.of(check) for check in decision.checks],
        model=config.model.id,
        domain=config.domain_name,
        claim=tags.get(CLAIM_TAG) if outcome == "passed" else None,
        dry_run=config.gate.dry_run,
        registration=_registered(record),
        audited=_audited(tags),
        links=_links(record),
        unknown=record.unknown,
    )


def notify(event: Notification, config: RunConfig) -> None:
    """Tell every webhook that wants to know; returns in bounded time and raises nothing."""
    limits = config.notification
    deadline = time.monotonic() + limits.total_seconds
    errands = {}
    for webhook in limits.webhooks:
        name = webhook.url_variable
        if not os.environ.get(name):
            _say(f"{name} is not set: no webhook is called")
        elif webhook.when == "failure" and event.good:
            _say(f"{name}: not called, as it wants failures only")
        else:
            errands[name] = _Errand(
                partial(
                    deliver,
                    _letter(event, webhook),
                    webhook,
                    limits.request_seconds,
                    limits.total_seconds,
                )
            )
    for name, errand in errands.items():
        try:
            _say(f"{name}: {errand.result(deadline - time.monotonic())}")
        except Undeliverable as error:
            _say(f"{name}: not delivered: {error}")
        except Exception as error:  # its message may hold the address
            _say(f"{name}: not delivered: {type(error).__name__}")


class _Errand(threading.Thread, Generic[_Result]):
    """Work that is waited for only so long; if it hangs it ends with the task, not before."""

    def __init__(self, work: Callable[[], _Result]) -> None:
        super().__init__(daemon=True)
        self._work = work
        self._found: list[_Result] = []
        self._error: Exception | None = None
        self.start()

    def run(self) -> None:
        try:
            self._found.append(self._work())
        except Exception as error:
            self._error = error

    def result(self, seconds: float) -> _Result:
        """What the work returned.

        Raises:
            TimeoutError: if it has not ended by then.
            Exception: what it raised.
        """
        self.join(max(0.0, seconds))
        if self._error is not None:
            raise self._error
        if not self._found:
            raise TimeoutError
        return self._found[0]


def _read(config: RunConfig, run_id: str, state: str) -> RunRecord:
    """What MLflow says, or that it says nothing."""
    try:
        reading = _Errand(lambda: close_and_read(config, run_id, state))
        return reading.result(config.notification.total_seconds)
    except Exception as error:  # its message may hold anything
        lacking = f"outcome and figures: MLflow did not answer ({type(error).__name__})"
        return RunRecord(unknown=[lacking])


def _letter(event: Notification, webhook: WebhookConfig) -> Letter:
    content = slack_message(event) if webhook.format == "slack" else event.model_dump(mode="json")
    said = f"{event.run_id}\n{event.state}\n{event.outcome}\n{webhook.url_variable}"
    return Letter(
        id=f"backburn_{sha256_text(said)[:32]}",
        body=json.dumps(content, ensure_ascii=False).encode(),
    )


def _outcome(record: RunRecord) -> Outcome | Literal["none"]:
    if record.decision is not None:
        return record.decision.outcome
    outcomes: tuple[Outcome, ...] = get_args(Outcome)
    return next((known for known in outcomes if record.tags.get(OUTCOME_TAG) == known), "none")


def _registered(record: RunRecord) -> RegisteredVersion | None:
    found = None if record.decision is None else record.decision.registration
    if found is None:
        return None
    return RegisteredVersion(name=found.name, version=found.version, alias=found.alias)


def _audited(tags: dict[str, str]) -> Audited | None:
    version = tags.get(AUDITED_TAG)
    if version is None:
        return None
    return Audited(version=version, action=tags.get(AUDIT_ACTION_TAG, "none"))


def _links(record: RunRecord) -> Links:
    page = None if record.tracked is None else run_url(record.tracked)
    registration = None if record.decision is None else record.decision.registration
    return Links(
        mlflow_run=page,
        report=f"{page}/artifacts/{REPORT}" if page and record.decision is not None else None,
        version=None if registration is None else version_url(registration),
        pipeline_run=record.tags.get(PIPELINE_URL_TAG),
    )


def _say(text: str) -> None:
    print(f"[notification] {text}", flush=True)
