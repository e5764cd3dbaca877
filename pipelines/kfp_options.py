"""What the commands that speak to Kubeflow Pipelines have in common."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

if TYPE_CHECKING:
    from backburn.components.shared.config import RunConfig

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
RecipeOption = Annotated[
    str, typer.Option("--recipe", "-r", help="A shipped recipe's name, or a YAML file.")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", "-s", help="Override a setting: dotted.path=value. May be repeated."),
]
ExperimentOption = Annotated[
    str | None, typer.Option(help="KFP experiment. Default: the recipe's tracking.experiment.")
]


def check_config(config: "RunConfig") -> None:
    """What `backburn validate` checks, but for what the cluster's images have installed."""
    from backburn.components.data_prep.splits import run_splits
    from backburn.components.preflight.checks import check_run
    from backburn.components.shared.domains import load_domain

    check_run(config, has_model_steps=False)
    run_splits(load_domain(config.domain), config)


def kfp_console() -> Console:
    """A terminal's own width, else one that the tables fit in."""
    return Console(width=None if sys.stdout.isatty() else 130, emoji=False)
