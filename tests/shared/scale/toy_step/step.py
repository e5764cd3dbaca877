"""A step that reads a folder, writes a folder and a file, and takes as long as it is told."""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any


def run(
    config_json: str, run_id: str, plan: dict[str, Any], dataset: Path, model: Path, record: Path
) -> dict[str, Any]:
    rank, size = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
    print(f"rank {rank} of {size} in process {os.getpid()}", flush=True)
    if "starts" in plan and rank == "0":
        with Path(plan["starts"]).open("a") as file:
            file.write(f"{os.getpid()}\n")
    deadline = time.monotonic() + plan.get("seconds", 0)
    while time.monotonic() < deadline and not Path(plan.get("until", "/")).is_file():
        time.sleep(0.05)
    if "fail" in plan:
        print(plan["fail"], flush=True)
        sys.exit(3)
    if rank == "0":
        (model / "inner").mkdir(parents=True)
        (model / "inner" / "copy").write_bytes((dataset / "rows").read_bytes())
        secret = os.environ.get(plan.get("secret", ""), "")
        seen = {"world": size, "secret": len(secret), "scratch": os.environ.get("TMPDIR")}
        record.write_text(json.dumps(seen))
    return {"digest": "abc", "size": size}
