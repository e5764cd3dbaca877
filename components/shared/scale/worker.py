"""One process of a step, as torchrun starts it.

    python -m backburn.components.shared.scale.worker JOB RESULT

JOB is a file that `Job.write` made; RESULT gets what the step returned, as JSON, from the process
that also writes everything else.
"""

import signal
import sys
import time
from pathlib import Path

from backburn.components.shared.scale import distributed
from backburn.components.shared.scale.job import Job
from backburn.components.shared.storage import write_json

_LAST_SECONDS = 5
"""For the process that writes to say in MLflow that the step failed, once another has."""


def main(job: Path, result: Path) -> None:
    """Run a step as one of its processes."""
    from torch.distributed.elastic.multiprocessing.errors import record

    try:
        record(_work)(job, result)
    except BaseException:
        if not distributed.is_primary():
            time.sleep(_LAST_SECONDS)
        raise


def _work(job: Path, result: Path) -> None:
    distributed.join()
    if distributed.is_primary():
        # The loss of another ends this one with SIGTERM, while it may be reporting that very loss.
        signal.signal(signal.SIGTERM, lambda *_: signal.alarm(_LAST_SECONDS))
    made = Job.read(job).run()
    if distributed.is_primary():
        write_json(result, made)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
