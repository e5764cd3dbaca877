"""What passes between a launcher and its TrainJob: a folder of the job's own on a shared volume."""

import re
import shutil
from importlib import import_module
from pathlib import Path
from typing import Any

from backburn.components.shared.config import ComputeConfig
from backburn.components.shared.errors import BackburnError
from backburn.components.shared.scale import delivery
from backburn.components.shared.scale.job import Job
from backburn.components.shared.storage import canonical_json, digests, read_json, sha256_text
from kfp.dsl.types.type_utils import is_parameter_type

_WORKER = "backburn.components.shared.scale.worker"
_LONGEST_NAME = 47
"""JobSet wants names of pods, such as NAME-node-0-63-abcde, to be DNS labels of at most 63."""
_DIGEST_CHARACTERS = 10


def job_name(job: Job) -> str:
    """Name of a task's TrainJob: equal for a task that is tried again, else different.

    A DNS label that leaves room for the names of its pods: step, run id and a digest of both and of
    the arguments that tell tasks of one step apart; not of files, which may move.
    """
    package = job.module.rpartition(".")[0]
    files = {name for names in artifacts(job.module) for name in names}
    told = {k: v for k, v in job.arguments.items() if k not in files | {"config_json"}}
    digest = sha256_text(canonical_json([job.module, told]))[:_DIGEST_CHARACTERS]
    title = _label(f"{package.rpartition('.')[2]}-{job.arguments['run_id']}")
    return f"{title[: _LONGEST_NAME - _DIGEST_CHARACTERS - 1].rstrip('-')}-{digest}"


def artifacts(module: str) -> tuple[list[str], list[str]]:
    """Names of the arguments that are files, as the step's KFP face declares them.

    Args:
        module: The step, such as `backburn.components.baseline.step`.

    Returns:
        Names of inputs, names of outputs.
    """
    package = module.rpartition(".")[0]
    face = getattr(import_module(f"{package}.component"), package.rpartition(".")[2])
    inputs, outputs = face.component_spec.inputs, face.component_spec.outputs
    return [n for n, item in inputs.items() if not is_parameter_type(item.type)], list(outputs)


class Exchange:
    """The folder over which a job gets its inputs and returns its outputs.

    Attributes:
        name: Of the job.
        step: Name of the component, such as rl-attack.
        root: The shared volume.
        compute: Settings of model steps.
        folder: Below `root`, of this job alone.
        command: Arguments of torchrun.
    """

    def __init__(self, root: Path, job: Job, compute: ComputeConfig) -> None:
        """Plan it; nothing is written yet."""
        self.name, self.root, self.compute = job_name(job), root.resolve(), compute
        self.step = job.module.split(".")[-2].replace("_", "-")
        self.folder = self.root / self.name
        self._job, self._result = self.folder / "job.json", self.folder / "result.json"
        self.command = ["-m", _WORKER, str(self._job), str(self._result)]
        inputs, outputs = artifacts(job.module)
        self._here = {item: Path(job.arguments[item]).resolve() for item in (*inputs, *outputs)}
        self._there = {item: self.folder / item for item in self._here}
        self._inputs, self._outputs = inputs, outputs
        there = {item: str(path) for item, path in self._there.items()}
        self._sent = Job(
            delivery.__name__,
            {
                "module": job.module,
                "arguments": {**job.arguments, **there},
                "inputs": {item: digests(self._here[item]) for item in inputs},
                "outputs": outputs,
            },
        )

    def holds_this_job(self) -> bool:
        """Whether the folder was filled for the same call on the same inputs."""
        return self._job.is_file() and Job.read(self._job) == self._sent

    def send(self) -> None:
        """Fill the folder, which was another job's if there was one."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        for item in self._inputs:
            _copy(self._here[item], self._there[item])
        self._sent.write(self._job)

    def receive(self) -> dict[str, Any]:
        """Bring the outputs to where the task wants them, each whole or not at all.

        Raises:
            BackburnError: if an output is not what the node says it wrote.
        """
        answer = read_json(self._result)
        for item in self._outputs:
            here = self._here[item]
            arriving = here.with_name(f".{here.name}.arriving")
            _copy(self._there[item], arriving)
            if digests(arriving) != answer["outputs"][item]:
                raise BackburnError(
                    f"{self._there[item]}: the launcher sees other files than TrainJob {self.name} "
                    "wrote. Is compute.workspace_claim one volume that all nodes share "
                    "(ReadWriteMany)?"
                )
            arriving.replace(here)
        metadata: dict[str, Any] = answer["metadata"]
        return metadata

    def remove(self) -> None:
        """Leave nothing of this job on the volume."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target)
    elif source.is_file():
        shutil.copyfile(source, target)
    else:
        raise BackburnError(f"{source}: no such file or folder")


def _label(text: str) -> str:
    """Text as part of a DNS label."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
