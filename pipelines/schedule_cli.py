"""`backburn schedule`: recurring runs on Kubeflow Pipelines."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from backburn.components.shared.config import RunConfig
    from backburn.pipelines.schedules import Schedule, Schedules

PIPELINES = {"harden": "Harden a model, attack it and gate it, again and again."}
"""Commands that create a schedule, one for each of `compilation.COMPILERS`."""

app = typer.Typer(
    no_args_is_help=True,
    help="Schedules on Kubeflow Pipelines: recurring runs pinned to a pipeline version, with every "
    "parameter set. A token comes from KFP_TOKEN.",
)

NameArgument = Annotated[str, typer.Argument(help="Name of the schedule.")]
EndpointOption = Annotated[
    str, typer.Option("--endpoint", envvar="KFP_ENDPOINT", help="Address of the KFP API.")
]
NamespaceOption = Annotated[
    str | None,
    typer.Option(
        "--namespace", "-n", envvar="KFP_NAMESPACE", help="Needed if each user has a namespace."
    ),
]
CertificateOption = Annotated[
    Path | None,
    typer.Option("--ca-cert", envvar="KFP_CA_CERT", help="Certificates (PEM) to trust for https."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]


def _add_setter(pipeline: str, purpose: str) -> None:
    @app.command(pipeline, help=f"Create or update a schedule: {purpose[0].lower()}{purpose[1:]}")
    def put(
        cron: Annotated[
            str,
            typer.Option(
                help="When: second, minute, hour, day of month, month, day of week, such as "
                "'0 0 3 * * 1'. In the server's time zone, by default UTC."
            ),
        ],
        recipe: Annotated[
            str, typer.Option("--recipe", "-r", help="A shipped recipe's name, or a YAML file.")
        ],
        endpoint: EndpointOption,
        name: Annotated[str, typer.Argument(help="Name of the schedule.")] = pipeline,
        overrides: Annotated[
            list[str] | None,
            typer.Option("--set", "-s", help="Override a setting: dotted.path=value."),
        ] = None,
        namespace: NamespaceOption = None,
        experiment: Annotated[
            str | None,
            typer.Option(help="KFP experiment. Default: the recipe's tracking.experiment."),
        ] = None,
        max_concurrency: Annotated[
            int, typer.Option(min=1, max=10, help="Runs of this schedule at the same time.")
        ] = 1,
        catch_up: Annotated[
            bool,
            typer.Option(
                "--catchup/--no-catchup", help="Make up for every run missed while paused."
            ),
        ] = False,
        enabled: Annotated[
            bool | None,
            typer.Option(
                "--enabled/--paused", help="Default: a new one is enabled, others stay as they are."
            ),
        ] = None,
        ca_cert: CertificateOption = None,
    ) -> None:
        from backburn.components.shared.errors import InputError
        from backburn.pipelines.cron import check_cron
        from backburn.pipelines.recipes import load_recipe

        if not name.strip():
            raise InputError("NAME: a schedule needs a name")
        when = check_cron(cron)
        config = load_recipe(recipe, overrides or [])
        _check(config)

        from backburn.pipelines.schedules import Wanted

        wanted = Wanted(
            name=name,
            pipeline=pipeline,
            recipe=recipe,
            config=config,
            cron=when,
            experiment=experiment or config.tracking.experiment,
            max_concurrency=max_concurrency,
            catch_up=catch_up,
            enabled=enabled,
        )
        with _schedules(endpoint, namespace, ca_cert) as schedules:
            change = schedules.put(wanted)
        console = _console()
        console.print(f"[green]{change.result}[/] schedule {escape(name)}", highlight=False)
        _print_details(change.schedule, console)


for _pipeline, _purpose in PIPELINES.items():
    _add_setter(_pipeline, _purpose)


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
    _console().print(table if found else "no schedules")


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
        _print_details(item, _console())


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
        _console().print(f"[green]{past}[/] schedule {escape(name)}", highlight=False)


_add_action("pause", "paused", "Start no more runs; those in progress go on.")
_add_action("resume", "resumed", "Start runs again.")
_add_action("remove", "removed", "Delete a schedule; its runs stay, also those in progress.")


@contextmanager
def _schedules(endpoint: str, namespace: str | None, ca_cert: Path | None) -> "Iterator[Schedules]":
    from backburn.pipelines.kfp_server import Server, client_of
    from backburn.pipelines.schedules import Schedules

    with client_of(Server(endpoint, namespace, ca_cert)) as client:
        yield Schedules(client, namespace)


def _check(config: "RunConfig") -> None:
    """What `backburn validate` checks."""
    from backburn.components.data_prep.splits import run_splits
    from backburn.components.preflight.checks import check_run
    from backburn.components.shared.domains import load_domain

    check_run(config)
    run_splits(load_domain(config.domain), config)


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


def _console() -> Console:
    return Console(width=None if sys.stdout.isatty() else 130)
