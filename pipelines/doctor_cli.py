"""`backburn doctor`: is a cluster ready for a recipe?"""

import dataclasses
import json
from typing import Annotated

import typer
from backburn.pipelines.kfp_options import CertificateOption, RecipeOption, SetOption, kfp_console
from rich.markup import escape

_MARKS = {"ok": "[green]✓[/]", "problem": "[bold red]✗[/]", "not asked": "[yellow]-[/]"}


def add_commands(app: typer.Typer) -> None:
    """Add the command of this module to the application."""
    app.command()(doctor)


def doctor(
    recipe: RecipeOption,
    overrides: SetOption = None,
    endpoint: Annotated[
        str | None, typer.Option(envvar="KFP_ENDPOINT", help="Address of the KFP API.")
    ] = None,
    namespace: Annotated[
        str, typer.Option("--namespace", "-n", envvar="KFP_NAMESPACE", help="Of the run's pods.")
    ] = "kubeflow",
    context: Annotated[
        str | None, typer.Option(help="Of the kubeconfig. Default: its current one.")
    ] = None,
    tracking_uri: Annotated[
        str | None,
        typer.Option(
            envvar="MLFLOW_TRACKING_URI",
            help="MLflow as this machine reaches it. Default: the recipe's tracking.uri.",
        ),
    ] = None,
    ca_cert: CertificateOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")] = False,
) -> None:
    """Check from this machine what a recipe's run needs on a cluster, and say how to mend it.

    Asks Kubeflow Pipelines, MLflow, buckets, chat judges and the Kubernetes API (as kubectl would);
    starts and changes nothing. The Secret's keys are read to see that they are usable, and never
    shown. Exit code: 0 all is well, 1 something is not, 2 bad input.
    """
    from backburn.pipelines.doctor import Doctor
    from backburn.pipelines.kfp_server import Server
    from backburn.pipelines.recipes import load_recipe

    config = load_recipe(recipe, overrides or [])
    server = None if endpoint is None else Server(endpoint, namespace, ca_cert)
    console = kfp_console()
    found = []
    for finding in Doctor(config, server, namespace, tracking_uri).findings(context):
        found.append(finding)
        if as_json:
            continue
        console.print(
            f"{_MARKS[finding.state]} {escape(finding.question)}: {escape(finding.answer)}",
            highlight=False,
            soft_wrap=True,
        )
        if finding.fix and finding.state == "problem":
            console.print(f"    {escape(finding.fix)}", highlight=False, soft_wrap=True)
    if as_json:
        typer.echo(json.dumps([dataclasses.asdict(item) for item in found], indent=2))
    problems = sum(item.state == "problem" for item in found)
    if problems and not as_json:
        console.print(f"{problems} problem(s)", highlight=False)
    raise typer.Exit(1 if problems else 0)
