"""What many arms on one hardened model cost, beside one arm.

    python -m benchmarks.many_arms --run runs/<id of a laptop run>

Runs the `rl_attack` task itself: loading, judges, tracking and sealing are in the times.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from backburn.components.rl_attack.step import run as run_attack
from backburn.components.shared.config import RunConfig
from backburn.components.shared.sealing import KEY_VARIABLE, new_key
from backburn.components.shared.storage import read_json

from benchmarks.runs import artifact, config_of, positive


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", type=Path, required=True, help="folder of a finished run")
    parser.add_argument("--arms", type=positive, default=24, help="how many arms are many")
    parser.add_argument("--rounds", type=positive, default=2, help="turns of one arm and many arms")
    options = parser.parse_args()
    os.environ.setdefault(KEY_VARIABLE, new_key())
    values = config_of(options.run).model_dump(mode="json")
    recipe = {**values["attack"]["arms"][0], "seeds": list(range(options.arms))}
    values["attack"]["arms"] = [recipe]
    times: dict[int, list[float]] = {1: [], options.arms: []}
    with tempfile.TemporaryDirectory(prefix="backburn-benchmark-") as scratch:
        values["tracking"]["uri"] = f"sqlite:///{scratch}/mlflow.db"
        config = RunConfig.model_validate(values)
        _attack(config, options.run, 1, Path(scratch) / "warm-up")  # imports, database
        for turn in range(options.rounds):
            for count, seconds in times.items():
                folder = Path(scratch) / f"{turn}-{count}"
                seconds.append(_attack(config, options.run, count, folder))
    one, many = (sum(seconds) / len(seconds) for seconds in times.values())
    print(f"1 arm: {one:.1f} s; {options.arms} arms: {many:.1f} s; ratio {many / one:.2f}")


def _attack(config: RunConfig, run: Path, count: int, folder: Path) -> float:
    folder.mkdir()
    arm = config.attack.arms[0]
    start = time.perf_counter()
    run_attack(
        config.to_json(),
        f"benchmark-{folder.name}",
        {"role": "hardened", "arms": [{"arm": arm.name, "seed": s} for s in range(count)]},
        artifact(run, "dataset"),
        artifact(run, "hardened"),
        folder / "sealed",
        folder / "statistics.json",
    )
    seconds = time.perf_counter() - start
    records = read_json(folder / "statistics.json")["arms"]
    idle = sum(record["idle_steps"] for record in records)
    steps = sum(record["steps_run"] for record in records)
    print(f"{count} arm(s): {seconds:.1f} s, {idle} of {steps} steps idle", flush=True)
    return seconds


if __name__ == "__main__":
    main()
