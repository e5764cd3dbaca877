"""A step that reads a folder, writes a folder and a file, and takes as long as it is told."""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from backburn.components.shared.scale import distributed


def run(
    config_json: str, run_id: str, plan: dict[str, Any], dataset: Path, model: Path, record: Path
) -> dict[str, Any]:
    first, size = distributed.is_primary(), distributed.processes()
    if first:
        print(f"first of {size} in process {os.getpid()}", flush=True)
    if "starts" in plan and first:
        with Path(plan["starts"]).open("a") as file:
            file.write(f"{os.getpid()}\n")
    deadline = time.monotonic() + plan.get("seconds", 0)
    while time.monotonic() < deadline and not Path(plan.get("until", "/")).is_file():
        time.sleep(0.05)
    if "fail" in plan:
        print(plan["fail"], flush=True)
        sys.exit(3)
    if first:
        (model / "inner").mkdir(parents=True)
        (model / "inner" / "copy").write_bytes((dataset / "rows").read_bytes())
        secret = os.environ.get(plan.get("secret", ""), "")
        seen = {"world": size, "secret": len(secret), "scratch": os.environ.get("TMPDIR")}
        record.write_text(json.dumps(seen))
    return {"digest": "abc", "size": size}
