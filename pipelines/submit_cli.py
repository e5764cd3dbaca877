"""`backburn upload`, `submit` and `follow`: single runs on Kubeflow Pipelines."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from backburn.components.shared.errors import BackburnError, InputError
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

if TYPE_CHECKING:
    import kfp
    from backburn.components.shared.config import RunConfig
    from backburn.pipelines.submission import Progress
    from backburn.pipelines.uploads import Uploaded

EXIT_INTERRUPTED = 130

TrackingOption = Annotated[
    str | None,
    typer.Option(
        envvar="MLFLOW_TRACKING_URI",
        help="MLflow server as this machine reaches it, for the gate's outcome. Default: the "
        "recipe's tracking.uri.",
    ),
]
TimeoutOption = Annotated[
    float | None, typer.Option(help="Seconds to wait at most; the run goes on. Default: no limit.")
]
IntervalOption = Annotated[float, typer.Option(min=0.1, help="Seconds between looks at the run.")]


def add_commands(app: typer.Typer) -> None:
    """Add the commands of this module to the application."""
    for command in (upload, submit, follow):
        app.command()(command)


def upload(
    recipe: RecipeOption,
    endpoint: EndpointOption,
    overrides: SetOption = None,
    namespace: NamespaceOption = None,
    ca_cert: CertificateOption = None,
) -> None:
    """Upload a recipe's pipeline to Kubeflow Pipelines as a version; run nothing.

    The same content is uploaded once. With an `audit` section the pipeline is `audit`. A token
    comes from KFP_TOKEN.
    """
    config = _checked(recipe, overrides)
    with _client(endpoint, namespace, ca_cert) as client:
        _upload(client, namespace, config, kfp_console())


def submit(
    recipe: RecipeOption,
    endpoint: EndpointOption,
    overrides: SetOption = None,
    name: Annotated[str | None, typer.Option(help="Of the run. Default: what it is.")] = None,
    namespace: NamespaceOption = None,
    experiment: ExperimentOption = None,
    wait: Annotated[
        bool, typer.Option("--wait/--no-wait", help="Wait for the end and the gate's outcome.")
    ] = True,
    timeout: TimeoutOption = None,
    interval: IntervalOption = 10.0,
    tracking_uri: TrackingOption = None,
    ca_cert: CertificateOption = None,
) -> None:
    """Run a recipe's pipeline on Kubeflow Pipelines, wait, and leave with the gate's exit code.

    The recipe is checked, compiled, uploaded as a version and run with every parameter set. Ctrl-C
    ends the waiting, not the run. Exit code: 0 the gate passed, 1 it did not, a task failed or the
    outcome is not known, 2 bad input. A token comes from KFP_TOKEN.
    """
    from backburn.pipelines import submission

    config = _checked(recipe, overrides)
    console = kfp_console()
    with _client(endpoint, namespace, ca_cert) as client:
        uploaded = _upload(client, namespace, config, console)
        run_id = submission.start(
            client,
            namespace,
            uploaded,
            experiment or config.tracking.experiment,
            name or submission.run_name(config, recipe),
            config.compute.service_account,
        )
        console.print(f"run      {run_id}", highlight=False)
        console.print(f"page     {_page(endpoint, run_id)}", highlight=False, soft_wrap=True)
        if not wait:
            console.print(f"`backburn follow {run_id}` waits for its end", highlight=False)
            return
        uri = tracking_uri or config.tracking.uri
        _follow(client, run_id, uri, interval, timeout, console)


def follow(
    run_id: Annotated[str, typer.Argument(help="Id of the run, as `submit` printed it.")],
    endpoint: EndpointOption,
    namespace: NamespaceOption = None,
    timeout: TimeoutOption = None,
    interval: IntervalOption = 10.0,
    tracking_uri: TrackingOption = None,
    ca_cert: CertificateOption = None,
) -> None:
    """Wait for a run on Kubeflow Pipelines; progress, links and exit code as of `submit`."""
    with _client(endpoint, namespace, ca_cert) as client:
        _follow(client, run_id, tracking_uri, interval, timeout, kfp_console())


def _checked(recipe: str, overrides: list[str] | None) -> "RunConfig":
    from backburn.pipelines.recipes import load_recipe

    config = load_recipe(recipe, overrides or [])
    check_config(config)
    return config


@contextmanager
def _client(endpoint: str, namespace: str | None, ca_cert: Path | None) -> "Iterator[kfp.Client]":
    from backburn.pipelines.kfp_server import Server, client_of

    with client_of(Server(endpoint, namespace, ca_cert)) as client:
        yield client


def _upload(
    client: "kfp.Client", namespace: str | None, config: "RunConfig", console: Console
) -> "Uploaded":
    from backburn.pipelines.uploads import upload as upload_pipeline

    uploaded = upload_pipeline(client, namespace, config)
    note = "uploaded" if uploaded.new else "there already"
    console.print(f"version  {uploaded.version} ({note})", highlight=False)
    return uploaded


def _page(endpoint: str, run_id: str) -> str:
    return f"{endpoint.rstrip('/')}/#/runs/details/{run_id}"


def _follow(
    client: "kfp.Client",
    run_id: str,
    tracking_uri: str | None,
    interval: float,
    timeout: float | None,
    console: Console,
) -> None:
    from backburn.pipelines import submission

    shown: dict[str, str] = {}

    def report(progress: "Progress") -> None:
        for task in progress.tasks:
            if shown.get(task.name) != task.state:
                shown[task.name] = task.state
                console.print(f"  {escape(task.name)}: {task.state.lower()}", highlight=False)

    try:
        ended = submission.follow(client, run_id, report, interval, timeout)
    except KeyboardInterrupt:
        console.print(f"\nThe run goes on; `backburn follow {run_id}` waits for it again")
        raise typer.Exit(EXIT_INTERRUPTED) from None
    if ended.state != "SUCCEEDED":
        tasks = f": {', '.join(ended.failed)}" if ended.failed else ""
        raise BackburnError(f"run {run_id} ended {ended.state.lower()}{tasks}; see its page")
    uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
    if not uri:
        raise BackburnError(
            f"run {run_id} succeeded, but what its gate decided is in MLflow: give --tracking-uri "
            "or set MLFLOW_TRACKING_URI"
        )
    try:
        summary = submission.read_summary(uri, run_id)
    except InputError as error:
        raise BackburnError(
            f"run {run_id} succeeded, but what its gate decided could not be read: {error}"
        ) from error
    from backburn.pipelines.console import print_figures, print_registry

    print_figures(summary, console)
    print_registry(summary, console)
    raise typer.Exit(summary.exit_code)
