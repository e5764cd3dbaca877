"""`backburn schedule`: recurring runs on Kubeflow Pipelines."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer
from backburn.components.shared.errors import InputError
from backburn.pipelines.kfp_options import (
    CertificateOption,
    EndpointOption,
    ExperimentOption,
    NamespaceOption,
    RecipeOption,
    SetOption,
    check_config,
    kfp_console,
)
from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from backburn.components.shared.config import RunConfig
    from backburn.pipelines.schedules import Schedule, Schedules

app = typer.Typer(
    no_args_is_help=True,
    help="Schedules on Kubeflow Pipelines: recurring runs pinned to a pipeline version, with every "
    "parameter set. A token comes from KFP_TOKEN.",
)

NameArgument = Annotated[str, typer.Argument(help="Name of the schedule.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]


CronOption = Annotated[
    str,
    typer.Option(
        help="When: second, minute, hour, day of month, month, day of week, such as "
        "'0 0 3 * * 1'. In the server's time zone, by default UTC."
    ),
]
ConcurrencyOption = Annotated[
    int, typer.Option(min=1, max=10, help="Runs of this schedule at the same time.")
]
CatchUpOption = Annotated[
    bool,
    typer.Option("--catchup/--no-catchup", help="Make up for every run missed while paused."),
]
EnabledOption = Annotated[
    bool | None,
    typer.Option(
        "--enabled/--paused", help="Default: a new one is enabled, others stay as they are."
    ),
]


@app.command()
def harden(
    cron: CronOption,
    recipe: RecipeOption,
    endpoint: EndpointOption,
    name: NameArgument = "harden",
    overrides: SetOption = None,
    namespace: NamespaceOption = None,
    experiment: ExperimentOption = None,
    max_concurrency: ConcurrencyOption = 1,
    catch_up: CatchUpOption = False,
    enabled: EnabledOption = None,
    ca_cert: CertificateOption = None,
) -> None:
    """Create or update a schedule that hardens a model, attacks it and gates it."""
    from backburn.pipelines.recipes import load_recipe

    config = load_recipe(recipe, overrides or [])
    if config.audit is not None:
        raise InputError(f"recipe {recipe} has an `audit` section: use `backburn schedule audit`")
    timing = _Timing(cron, experiment, max_concurrency, catch_up, enabled)
    _put(name, recipe, config, timing, endpoint, namespace, ca_cert)


@app.command()
def audit(
    cron: CronOption,
    recipe: RecipeOption,
    endpoint: EndpointOption,
    name: NameArgument = "audit",
    reference: Annotated[
        str | None,
        typer.Option(
            "--model",
            help="models:/<name>@<alias> or models:/<name>/<version>. Default: the champion of the "
            "recipe's model.",
        ),
    ] = None,
    key: Annotated[
        Path | None, typer.Option(help="Public key (PEM) that must have signed its evidence.")
    ] = None,
    any_key: Annotated[
        bool, typer.Option("--any-key", help="Trust whoever signed the evidence, instead of --key.")
    ] = False,
    report_only: Annotated[
        bool, typer.Option("--report-only", help="Put a failure on record, but move no alias.")
    ] = False,
    overrides: SetOption = None,
    namespace: NamespaceOption = None,
    experiment: ExperimentOption = None,
    max_concurrency: ConcurrencyOption = 1,
    catch_up: CatchUpOption = False,
    enabled: EnabledOption = None,
    ca_cert: CertificateOption = None,
) -> None:
    """Create or update a schedule that attacks a registered model again."""
    from backburn.pipelines.audit_options import load_audit

    config = load_audit(recipe, overrides or [], reference, key, any_key, report_only)
    timing = _Timing(cron, experiment, max_concurrency, catch_up, enabled)
    _put(name, recipe, config, timing, endpoint, namespace, ca_cert)


class _Timing(NamedTuple):
    cron: str
    experiment: str | None
    max_concurrency: int
    catch_up: bool
    enabled: bool | None


def _put(
    name: str,
    recipe: str,
    config: "RunConfig",
    timing: _Timing,
    endpoint: str,
    namespace: str | None,
    ca_cert: Path | None,
) -> None:
    """Check everything that needs no server, then create or update."""
    from backburn.pipelines.cron import check_cron

    if not name.strip():
        raise InputError("NAME: a schedule needs a name")
    when = check_cron(timing.cron)
    check_config(config)

    from backburn.pipelines.schedules import Wanted

    wanted = Wanted(
        name=name,
        recipe=recipe,
        config=config,
        cron=when,
        experiment=timing.experiment or config.tracking.experiment,
        max_concurrency=timing.max_concurrency,
        catch_up=timing.catch_up,
        enabled=timing.enabled,
    )
    with _schedules(endpoint, namespace, ca_cert) as schedules:
        change = schedules.put(wanted)
    console = kfp_console()
    console.print(f"[green]{change.result}[/] schedule {escape(name)}", highlight=False)
    _print_details(change.schedule, console)


@app.command("list")
def list_schedules(
    endpoint: EndpointOption,
    namespace: NamespaceOption = None,
    ca_cert: CertificateOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the schedules of Backburn's pipelines, with the newest run of each."""
    with _schedules(endpoint, namespace, ca_cert) as schedules:
        found = schedules.all()
    if as_json:
        values = [item.model_dump(mode="json", exclude={"parameters"}) for item in found]
        typer.echo(json.dumps(values, indent=2))
        return
    table = Table("name", "pipeline", "version", "cron", "state", "last run", "configuration")
    for item in found:
        table.add_row(*map(escape, _row(item)))
    kfp_console().print(table if found else "no schedules")


@app.command()
def show(
    name: NameArgument,
    endpoint: EndpointOption,
    namespace: NamespaceOption = None,
    ca_cert: CertificateOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show a schedule; as JSON with all parameters of its runs."""
    with _schedules(endpoint, namespace, ca_cert) as schedules:
        found = schedules.named(name)
    if as_json:
        typer.echo(json.dumps([item.model_dump(mode="json") for item in found], indent=2))
        return
    for item in found:
        _print_details(item, kfp_console())


def _add_action(action: str, past: str, purpose: str) -> None:
    @app.command(action, help=purpose)
    def act(
        name: NameArgument,
        endpoint: EndpointOption,
        namespace: NamespaceOption = None,
        ca_cert: CertificateOption = None,
    ) -> None:
        with _schedules(endpoint, namespace, ca_cert) as schedules:
            getattr(schedules, action)(name)
        kfp_console().print(f"[green]{past}[/] schedule {escape(name)}", highlight=False)


_add_action("pause", "paused", "Start no more runs; those in progress go on.")
_add_action("resume", "resumed", "Start runs again.")
_add_action("remove", "removed", "Delete a schedule; its runs stay, also those in progress.")


@contextmanager
def _schedules(endpoint: str, namespace: str | None, ca_cert: Path | None) -> "Iterator[Schedules]":
    from backburn.pipelines.kfp_server import Server, client_of
    from backburn.pipelines.schedules import Schedules

    with client_of(Server(endpoint, namespace, ca_cert)) as client:
        yield Schedules(client, namespace)


def _row(item: "Schedule") -> list[str]:
    return [
        item.name,
        item.pipeline,
        _version(item),
        item.cron or "by interval",
        "enabled" if item.enabled else "paused",
        _last(item),
        (item.config_digest or "not JSON")[:16],
    ]


def _print_details(item: "Schedule", console: Console) -> None:
    names = ("name", "pipeline", "version", "cron", "state", "last run", "configuration")
    more = {
        "runs at once": str(item.max_concurrency),
        "missed runs": "made up for" if item.catch_up else "left out",
        "id": item.recurring_run_id,
    }
    for label, value in {**dict(zip(names, _row(item), strict=True)), **more}.items():
        console.print(f"  {label:<13} {escape(value)}", highlight=False, soft_wrap=True)


def _version(item: "Schedule") -> str:
    """A version's name without the pipeline's, which it begins with."""
    if item.version is None:
        return "deleted: its runs fail"
    return item.version.removeprefix(f"{item.pipeline}-")


def _last(item: "Schedule") -> str:
    run = item.last_run
    return f"{run.created_at:%Y-%m-%d %H:%M} {run.state.lower()}" if run else "none yet"
