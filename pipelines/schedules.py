"""KFP recurring runs of the pipelines: a pinned version, and every parameter explicit."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple

import kfp
import kfp_server_api
import urllib3
from backburn.components.shared.config import RunConfig
from backburn.components.shared.errors import BackburnError, InputError
from backburn.components.shared.storage import canonical_json, sha256_text
from backburn.pipelines.compilation import BUILDERS
from backburn.pipelines.kfp_server import quietly
from backburn.pipelines.uploads import DIGEST_CHARACTERS, equal, find_pipeline, upload
from pydantic import BaseModel

_PAGE = 100


class LastRun(BaseModel):
    """The newest run that a schedule started."""

    run_id: str
    state: str
    created_at: datetime


class Schedule(BaseModel):
    """One recurring run."""

    name: str
    pipeline: str
    version: str | None
    """None if the version was deleted: its runs would fail."""
    cron: str | None
    enabled: bool
    catch_up: bool
    max_concurrency: int
    config_digest: str | None
    created_at: datetime
    last_run: LastRun | None
    recurring_run_id: str
    parameters: dict[str, Any]


@dataclass(frozen=True)
class Wanted:
    """A schedule as it shall be."""

    name: str
    recipe: str
    config: RunConfig
    cron: str
    experiment: str
    max_concurrency: int
    catch_up: bool
    enabled: bool | None
    """None: as it is; a new one is enabled."""


class Change(NamedTuple):
    """What `Schedules.put` did."""

    result: Literal["created", "updated", "unchanged"]
    schedule: Schedule


class _Terms(NamedTuple):
    """What makes two recurring runs equal; the fields are arguments of `create_recurring_run`."""

    experiment_id: str
    pipeline_id: str
    version_id: str
    params: dict[str, Any]
    cron_expression: str | None
    max_concurrency: int
    no_catchup: bool
    service_account: str | None


class Schedules:
    """The schedules of one namespace: recurring runs of Backburn's own pipelines.

    Recurring runs of other pipelines are neither shown nor touched.
    """

    def __init__(self, client: kfp.Client, namespace: str | None) -> None:
        self._client, self._namespace = client, namespace
        self._versions: dict[tuple[str, str], str | None] = {}

    def all(self) -> list[Schedule]:
        """Every schedule, by name."""
        pipelines = self._pipelines()
        found = [self._describe(run, pipelines) for run in self._recurring_runs(pipelines)]
        return sorted(found, key=lambda item: (item.name, item.created_at))

    def named(self, name: str) -> list[Schedule]:
        """The schedules of a name: one, unless an update was interrupted.

        Raises:
            InputError: if there is none.
        """
        pipelines = self._pipelines()
        return [self._describe(run, pipelines) for run in self._require(name, pipelines)]

    def pause(self, name: str) -> None:
        """Start no more runs; those in progress go on."""
        for run in self._require(name, self._pipelines()):
            self._client.disable_recurring_run(run.recurring_run_id)

    def resume(self, name: str) -> None:
        """Start runs again."""
        for run in self._require(name, self._pipelines()):
            self._client.enable_recurring_run(run.recurring_run_id)

    def remove(self, name: str) -> None:
        """Delete a schedule; its runs stay, also those in progress."""
        for run in self._require(name, self._pipelines()):
            self._delete(run.recurring_run_id)

    def put(self, wanted: Wanted) -> Change:
        """Create a schedule, or replace it if anything differs.

        KFP cannot change a recurring run: a new one is created, and then the old one deleted. If
        the first fails the old one stays; if the second fails, doing the same again ends it.

        Raises:
            InputError: if the name is taken by a schedule of another pipeline.
            BackburnError: if the old one could not be deleted.
        """
        pipelines = self._pipelines()
        present = list(self._recurring_runs(pipelines, wanted.name))
        for run in present:
            other = pipelines[run.pipeline_version_reference.pipeline_id]
            if other != pipeline_name(wanted.config.pipeline):
                raise InputError(
                    f"schedule {wanted.name!r} runs {other}: choose another name, or remove it "
                    f"first (`backburn schedule remove {wanted.name}`)"
                )
        enabled = wanted.enabled
        if enabled is None:
            enabled = not present or any(_enabled(run) for run in present)
        with quietly():
            terms = self._terms(wanted)
            kept = next(
                (r for r in present if (_terms_of(r), _enabled(r)) == (terms, enabled)), None
            )
            new = kept or self._client.create_recurring_run(
                job_name=wanted.name,
                description=f"recipe {Path(wanted.recipe).stem}, configuration "
                f"{wanted.config.digest()[:DIGEST_CHARACTERS]}",
                enabled=enabled,
                **terms._asdict(),
            )
        old = [r.recurring_run_id for r in present if r.recurring_run_id != new.recurring_run_id]
        for identity in old:
            try:
                self._delete(identity)
            except (kfp_server_api.ApiException, urllib3.exceptions.HTTPError) as error:
                raise BackburnError(
                    f"schedule {wanted.name!r} is there as wanted ({new.recurring_run_id}), but "
                    f"the earlier one ({identity}) could not be deleted and is still there. Give "
                    "the same command again"
                ) from error
        result: Literal["created", "updated", "unchanged"] = (
            "updated" if old else "unchanged" if kept else "created"
        )
        return Change(result, self._describe(new, self._pipelines()))

    def _terms(self, wanted: Wanted) -> _Terms:
        """Compile, upload what is not there yet, and find the ids."""
        uploaded = upload(self._client, self._namespace, wanted.config)
        experiment = self._client.create_experiment(wanted.experiment, namespace=self._namespace)
        return _Terms(
            experiment_id=experiment.experiment_id,
            pipeline_id=uploaded.pipeline_id,
            version_id=uploaded.version_id,
            params=uploaded.parameters,
            cron_expression=wanted.cron,
            max_concurrency=wanted.max_concurrency,
            no_catchup=not wanted.catch_up,
            service_account=wanted.config.compute.service_account,
        )

    def _pipelines(self) -> dict[str, str]:
        """Id -> name of the pipelines whose recurring runs are schedules."""
        names = map(pipeline_name, BUILDERS)
        found = [find_pipeline(self._client, self._namespace, name) for name in names]
        return {pipeline.pipeline_id: pipeline.display_name for pipeline in found if pipeline}

    def _recurring_runs(self, pipelines: dict[str, str], name: str | None = None) -> Iterator[Any]:
        given = None if name is None else equal("display_name", name)
        for run in _pages(
            self._client.list_recurring_runs,
            "recurring_runs",
            namespace=self._namespace,
            filter=given,
        ):
            reference = run.pipeline_version_reference
            if reference is not None and reference.pipeline_id in pipelines:
                yield run

    def _require(self, name: str, pipelines: dict[str, str]) -> list[Any]:
        if found := list(self._recurring_runs(pipelines, name)):
            return found
        others = sorted({run.display_name for run in self._recurring_runs(pipelines)})
        there = f"there are {', '.join(others)}" if others else "there is none here"
        raise InputError(f"no schedule {name!r}: {there}")

    def _delete(self, identity: str) -> None:
        self._client.recurring_runs.recurring_run_service_delete_recurring_run(
            identity,
            propagation_policy="ORPHAN",  # the default also ends its runs in progress
        )

    def _describe(self, run: Any, pipelines: dict[str, str]) -> Schedule:
        terms = _terms_of(run)
        return Schedule(
            name=run.display_name,
            pipeline=pipelines[terms.pipeline_id],
            version=self._version_name(terms.pipeline_id, terms.version_id),
            cron=terms.cron_expression,
            enabled=_enabled(run),
            catch_up=not terms.no_catchup,
            max_concurrency=terms.max_concurrency,
            config_digest=_config_digest(terms.params.get("config")),
            created_at=run.created_at,
            last_run=self._last_run(run.recurring_run_id),
            recurring_run_id=run.recurring_run_id,
            parameters=terms.params,
        )

    def _version_name(self, pipeline_id: str, version_id: str) -> str | None:
        key = pipeline_id, version_id
        if key not in self._versions:
            try:
                self._versions[key] = self._client.get_pipeline_version(*key).display_name
            except kfp_server_api.ApiException as error:
                if error.status != 404:
                    raise
                self._versions[key] = None
        return self._versions[key]

    def _last_run(self, recurring_run_id: str) -> LastRun | None:
        runs = self._client.list_runs(
            page_size=1,
            sort_by="created_at desc",
            namespace=self._namespace,
            filter=equal("recurring_run_id", recurring_run_id),
        ).runs
        if not runs:
            return None
        return LastRun(run_id=runs[0].run_id, state=runs[0].state, created_at=runs[0].created_at)


def pipeline_name(key: str) -> str:
    """Name on the server of the pipeline that `BUILDERS[key]` builds."""
    return f"backburn-{key}"


def _terms_of(run: Any) -> _Terms:
    cron = run.trigger.cron_schedule if run.trigger else None
    return _Terms(
        experiment_id=run.experiment_id,
        pipeline_id=run.pipeline_version_reference.pipeline_id,
        version_id=run.pipeline_version_reference.pipeline_version_id,
        params=(run.runtime_config.parameters if run.runtime_config else None) or {},
        cron_expression=cron.cron if cron else None,
        max_concurrency=int(run.max_concurrency),
        no_catchup=bool(run.no_catchup),  # the server leaves out what is false
        service_account=run.service_account or None,
    )


def _config_digest(text: Any) -> str | None:
    """Of a configuration as it was written, by whatever version; None if somebody broke it."""
    try:
        return sha256_text(canonical_json(json.loads(text)))
    except (TypeError, ValueError):
        return None


def _enabled(run: Any) -> bool:
    return bool(run.status == kfp_server_api.V2beta1RecurringRunStatus.ENABLED)


def _pages(call: Callable[..., Any], items: str, **arguments: Any) -> Iterator[Any]:
    token = ""
    while True:
        answer = call(page_token=token, page_size=_PAGE, **arguments)
        yield from getattr(answer, items) or ()
        token = answer.next_page_token
        if not token:
            return
