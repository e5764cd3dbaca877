"""What torchrun starts: `python -m backburn.components.shared.scale.worker JOB RESULT`."""

import sys
from importlib import import_module
from pathlib import Path

from backburn.components.shared.scale import distributed
from backburn.components.shared.scale.job import Job
from backburn.components.shared.storage import write_json


def main() -> None:
    """Make the call in the file JOB; rank 0 writes what it returned to RESULT."""
    job, result = Job.read(Path(sys.argv[1])), Path(sys.argv[2])
    if distributed.is_primary():
        write_json(result, import_module(job.module).run(**job.arguments))


if __name__ == "__main__":
    main()
