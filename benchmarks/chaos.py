"""Kill smoke runs with SIGKILL at random moments, resume them, and compare what they end with.

    python -m benchmarks.chaos --kills 50

Runs `smoke` once without a kill. Then other runs of it are killed - the command and all its tasks,
the command alone, or a task alone - at random moments of every step, and resumed, until there
have been enough kills. Each must end with the same evidence and decision as the first, but for
times and ids, and leave no attacked weights in any file. Exit code 1 if one does not.
"""

import argparse
import json
import shutil
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.chaos import STEPS, counted, run_whole, torture
from tests.containment.runs import Sandbox


def main() -> None:
    """Kill, resume, compare, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=50, help="at least so many in all")
    parser.add_argument("--kills-a-run", type=int, default=10)
    parser.add_argument(
        "--seed", type=int, default=0, help="of the first run; the next has one more"
    )
    parser.add_argument("--set", action="append", default=[], help="setting of the recipe")
    parser.add_argument("--json", type=Path, help="write every kill to this file")
    options = parser.parse_args()
    settings = ["compute.checkpoint_minutes=0", *options.set]
    console, start = Console(), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="backburn-chaos-") as folder:
        whole = run_whole(Sandbox(Path(folder) / "whole"), settings)
        console.print(f"left alone: {sum(whole.durations.values()):.0f} s in its steps")
        results, seed = [], options.seed
        while sum(len(result.kills) for result in results) < options.kills:
            sandbox = Sandbox(Path(folder) / f"seed-{seed}")
            result = torture(sandbox, whole, settings, seed, options.kills_a_run, console.print)
            results.append(result)
            verdict = "same result, nothing stray" if result.sound else "NOT SOUND"
            repeated = ", ".join(result.repeated) or "nothing"
            console.print(f"seed {seed}: {len(result.kills)} kills, {verdict}; again: {repeated}")
            for problem in [*result.differences, *result.stray, *result.left]:
                console.print(f"  {problem}")
            shutil.rmtree(sandbox.root)
            seed += 1
    table = Table("step", "kills")
    by_step = counted(results)
    for step in STEPS:
        table.add_row(step, str(by_step[step]))
    console.print(table)
    kills, sound = sum(by_step.values()), sum(result.sound for result in results)
    console.print(
        f"{kills} kills in {len(results)} runs (seeds {options.seed} to {seed - 1}), "
        f"{sound} sound, {time.monotonic() - start:.0f} s"
    )
    if options.json is not None:
        options.json.write_text(json.dumps([asdict(result) for result in results], indent=1) + "\n")
    raise SystemExit(sound < len(results))


if __name__ == "__main__":
    main()
