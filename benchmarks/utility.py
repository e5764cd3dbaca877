"""What a finished run's hardening cost on tasks of lm-evaluation-harness.

    python -m benchmarks.utility --run runs/<id of a laptop run>

Puts the tasks of the run's configuration, or `--task`, to its baseline and to its hardened model.
The shipped task needs no hub; for others set HF_HUB_OFFLINE=0.
"""

import argparse
import os
import time
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from backburn.components.certification.utility import observe_utility
from backburn.components.shared.derivation.utility import utility_records
from backburn.components.shared.evidence import UtilityRecord
from backburn.components.shared.models import load_artifact
from backburn.components.shared.progress import Progress
from backburn.components.shared.step import use_threads
from backburn.components.shared.storage import write_text

from benchmarks.runs import artifact, config_of, positive

SHIPPED = "backburn_everyday"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", type=Path, required=True, help="folder of a finished run")
    parser.add_argument("--task", action="append", help="task, group or tag; may be repeated")
    parser.add_argument("--task-folder", help="local folder with further task files")
    parser.add_argument("--limit", type=positive, help="at most so many documents of each task")
    parser.add_argument("--out", type=Path, help="also write the table here")
    options = parser.parse_args()
    config = config_of(options.run)
    use_threads(config)
    utility = config.certification.utility
    changes = {
        "tasks": options.task or utility.tasks or [SHIPPED],
        "task_folder": options.task_folder or utility.task_folder,
        "limit": options.limit or utility.limit,
    }
    utility = type(utility).model_validate({**utility.model_dump(), **changes})
    progress = Progress("utility")
    baseline, hardened = (
        load_artifact(artifact(options.run, name), config.model) for name in ("model", "hardened")
    )
    start, used = time.perf_counter(), time.process_time()
    observed = observe_utility(
        baseline,
        hardened,
        utility,
        config.seed,
        lambda done, total, note: progress.update("tasks", done, total, note),
    )
    text = table(utility_records(observed, config.gate.confidence), config.gate.confidence)
    print(text)
    print(
        f"{time.perf_counter() - start:.0f} s for both models "
        f"({time.process_time() - used:.0f} s of CPU time)"
    )
    if options.out is not None:
        write_text(options.out, text + "\n")


def table(records: list[UtilityRecord], confidence: float) -> str:
    """The records as a Markdown table."""
    lines = [
        f"| task | score | documents | baseline | hardened | loss [{confidence:.0%}] |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {item.task} | {item.metric} | {item.samples} "
        f"| {item.baseline:.3f} ± {item.baseline_error:.3f} "
        f"| {item.hardened:.3f} ± {item.hardened_error:.3f} "
        f"| {item.loss:+.3f} [{item.low:+.3f}, {item.high:+.3f}] |"
        for item in records
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
