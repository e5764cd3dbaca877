"""What the commands that run a pipeline on this machine have in common."""

from enum import StrEnum
from typing import Annotated

import typer

NO_NETWORK = "none"
"""Name of the Docker network that leads nowhere."""


class Runner(StrEnum):
    """What a task of a local run runs in."""

    PROCESS = "process"
    DOCKER = "docker"


RunnerOption = Annotated[
    Runner,
    typer.Option(help="What each task runs in: a process, or a container of `compute.image`."),
]
NetworkOption = Annotated[
    str,
    typer.Option(help="Docker network of the containers, such as bridge. Attacks never have one."),
]
