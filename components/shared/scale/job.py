"""A step's call as data, and the one place that starts it where the configuration says."""

from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from backburn.components.shared.config import RunConfig
from backburn.components.shared.storage import read_json, write_json


@dataclass(frozen=True)
class Job:
    """One call of a step's `run`, which another process can make.

    Attributes:
        module: Such as `backburn.components.baseline.step`.
        arguments: Keyword arguments of its `run`; paths are strings.
    """

    module: str
    arguments: dict[str, Any]

    @classmethod
    def read(cls, path: Path) -> "Job":
        """Read what `write` wrote.

        Raises:
            InputError: if the file is missing or not JSON.
        """
        return cls(**read_json(path))

    def write(self, path: Path) -> None:
        """Write it as JSON, whole or not at all."""
        write_json(path, asdict(self))


def start(module: str, config_json: str, **arguments: Any) -> dict[str, Any]:
    """Run a step as `compute` says: in this process, or as a TrainJob of several nodes.

    Args:
        module: The step.
        config_json: Configuration of the run.
        arguments: The other keyword arguments of its `run`.

    Returns:
        What `run` returned: the artifact's metadata.
    """
    compute = RunConfig.from_json(config_json).compute
    if compute.nodes > 1:
        from backburn.components.shared.scale.trainjob import launch

        plain = {
            name: str(value) if isinstance(value, Path) else value
            for name, value in arguments.items()
        }
        return launch(Job(module, {"config_json": config_json, **plain}), compute)
    metadata: dict[str, Any] = import_module(module).run(config_json=config_json, **arguments)
    return metadata
