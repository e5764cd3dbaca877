"""Run the pipeline's tasks in containers on this machine: the images a cluster runs, shut in.

A container has a read-only root, no capabilities, a user that is not root, and temporary files in
memory alone. It sees the runs folder, the caches, and what files the configuration names; nothing
else of this machine. It has no network, and no flag gives one to an attack.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backburn.components.shared import sealing, signing
from backburn.components.shared.checkpoints import FOLDER_VARIABLE
from backburn.components.shared.config import RunConfig
from backburn.components.shared.errors import InputError
from backburn.components.shared.progress import EVENTS_VARIABLE
from backburn.components.shared.storage import cache_folder
from backburn.components.shared.tracking import URI_VARIABLE
from backburn.pipelines.finished_tasks import FinishedTasks, step_of
from backburn.pipelines.local_options import NO_NETWORK
from kubernetes.utils import parse_quantity

if TYPE_CHECKING:
    from docker import DockerClient
    from docker.models.containers import Container

_ATTACK = "rl_attack"
_SIGNING_STEPS = ("preflight", "promotion")
_LABEL = "io.backburn.run"
_USER_IF_ROOT = 1001
_VARIABLES = (
    EVENTS_VARIABLE, URI_VARIABLE, FOLDER_VARIABLE, sealing.KEY_VARIABLE, "PYTHONWARNINGS",
)  # fmt: skip
_FILE_SETTINGS = ("path", "task_folder")


def check_containers(config: RunConfig) -> None:
    """Ask for Docker and the images before a run's folder is made.

    Raises:
        InputError: if no Docker engine answers, an image is neither here nor to be pulled, or the
            configuration needs what a container without a network cannot reach.
    """
    if config.tracking.uri:
        raise InputError(
            f"tracking.uri: {config.tracking.uri}: with --runner docker runs are tracked in the "
            "runs folder, since attacks have no network. Leave tracking.uri out"
        )
    with _engine() as engine:
        for image in {config.compute.image, config.compute.tools_image or config.compute.image}:
            _require(engine, image)


@contextmanager
def container_tasks(
    config: RunConfig,
    runs: Path,
    run_id: str,
    log: Path,
    finished: FinishedTasks,
    network: str = NO_NETWORK,
) -> Iterator[None]:
    """Let kfp.local's Docker tasks run shut in while this context is open.

    Args:
        config: Names the files that tasks may read.
        runs: Folder of all runs and the local MLflow store; tasks may write to it.
        run_id: Label of the containers.
        log: File to which the tasks' output is appended.
        finished: Tasks that need not run again.
        network: Docker network of every task but the attacks.
    """
    from kfp.local import docker_task_handler as handler
    from kfp.local.status import Status

    stop_containers(run_id)  # of a command that was killed
    user = os.getuid() or _USER_IF_ROOT
    cache = cache_folder()
    cache.mkdir(parents=True, exist_ok=True)
    if os.getuid() == 0:  # files of root belong to group 0, which the container's user is in
        stores = [cache, runs / "mlflow-artifacts", log.parent]
        below = [path for store in stores for path in (store, *store.rglob("*"))]
        for path in (runs, *runs.glob("mlflow.db*"), *below):
            if path.exists():
                path.chmod(path.stat().st_mode | (0o070 if path.is_dir() else 0o060))

    class ShutInTask(handler.DockerTaskHandler):  # type: ignore[misc]
        """One task; kfp's own handler takes a container that is gone for one that succeeded."""

        def run(self) -> Status:
            if finished.holds(self.full_command):
                return Status.SUCCESS
            step = step_of(self.full_command)
            attack = step == _ATTACK
            names = [*_VARIABLES, *((signing.KEY_VARIABLE,) if step in _SIGNING_STEPS else ())]
            given = {name: os.environ[name] for name in names if name in os.environ}
            volumes = {
                str(runs.resolve()): "rw",
                str(cache.resolve()): "ro" if attack else "rw",
                **{str(path): "ro" for path in _files(config)},
            }
            with _engine() as engine:
                container = engine.containers.run(
                    self.image,
                    self.full_command,
                    detach=True,
                    environment={
                        **self.env_vars,
                        **given,
                        "BACKBURN_CACHE": str(cache.resolve()),
                        "HF_HOME": str(cache.resolve() / "huggingface"),
                        "HOME": "/tmp",
                    },
                    volumes={path: {"bind": path, "mode": mode} for path, mode in volumes.items()},
                    working_dir=str(Path.cwd()),
                    user=f"{user}:0",
                    network_mode=NO_NETWORK if attack else network,
                    read_only=True,
                    tmpfs={"/tmp": "rw,nosuid,nodev,exec,mode=1777"},
                    cap_drop=["ALL"],
                    security_opt=["no-new-privileges"],
                    init=True,
                    shm_size=_bytes(config.compute.shared_memory),
                    device_requests=_accelerators(config.compute.gpus),
                    labels={_LABEL: run_id},
                )
                if _ended(container, log) != 0:
                    return Status.FAILURE
            finished.note(self.full_command)
            return Status.SUCCESS

    original = handler.DockerTaskHandler
    handler.DockerTaskHandler = ShutInTask
    try:
        yield
    finally:
        handler.DockerTaskHandler = original
        stop_containers(run_id)


def stop_containers(run_id: str) -> None:
    """Remove every container of a run, at once."""
    with _engine() as engine:
        for container in engine.containers.list(all=True, filters={"label": f"{_LABEL}={run_id}"}):
            with suppress(Exception):  # gone by itself
                container.remove(force=True)


def _ended(container: "Container", log: Path) -> int:
    """Copy a container's output until it ends; its exit code."""
    try:
        with log.open("ab", buffering=0) as file:
            for part in container.logs(stream=True, follow=True):
                file.write(part)
        return int(container.wait()["StatusCode"])
    finally:
        container.remove(force=True)


@contextmanager
def _engine() -> "Iterator[DockerClient]":
    import docker

    try:
        client = docker.from_env()
        client.ping()
    except docker.errors.DockerException as error:
        raise InputError(
            f"--runner docker: no Docker engine answers ({error}). Start it, or set DOCKER_HOST to "
            "where it listens"
        ) from error
    try:
        yield client
    finally:
        client.close()


def _require(engine: "DockerClient", image: str) -> None:
    from docker.errors import DockerException, ImageNotFound

    try:
        try:
            engine.images.get(image)
        except ImageNotFound:
            engine.images.pull(image)
    except DockerException as error:
        raise InputError(
            f"compute.image: {image} is not on this machine and cannot be pulled ({error}). Build "
            "it with `make images`, or set compute.image to one that is there"
        ) from error


def _files(config: RunConfig) -> list[Path]:
    """Local files and folders that the configuration names."""
    named = [config.model.id]

    def collect(value: Any) -> None:
        if isinstance(value, dict):
            named.extend(str(value[key]) for key in _FILE_SETTINGS if value.get(key))
            for item in value.values():
                collect(item)
        elif isinstance(value, list):
            for item in value:
                collect(item)

    collect(config.model_dump(mode="json"))
    paths = [Path(name).expanduser().absolute() for name in named]
    return [path for path in paths if path.exists()]


def _bytes(quantity: str | None) -> int | None:
    """A size as Kubernetes writes it, for Docker, which does not know `8Gi`."""
    return None if quantity is None else int(parse_quantity(quantity))


def _accelerators(count: int) -> list[Any]:
    from docker.types import DeviceRequest

    return [DeviceRequest(count=count, capabilities=[["gpu"]])] if count else []
