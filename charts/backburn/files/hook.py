"""Upload pipelines and create schedules after an install; remove the schedules before uninstall."""

import json
import os
import subprocess
import sys
from pathlib import Path


def environment() -> dict[str, str]:
    """This one, with the token of the service account where one is mounted."""
    values = dict(os.environ)
    if file := values.get("KFP_TOKEN_FILE"):
        values["KFP_TOKEN"] = Path(file).read_text(encoding="utf-8").strip()
    return values


def backburn(arguments: list[str], *, read: bool = False) -> str:
    """Run the command; a failure ends the hook, after what the command said of it."""
    print("$ backburn", *arguments, flush=True)
    output = subprocess.PIPE if read else None
    done = subprocess.run(
        ["backburn", *arguments], env=environment(), stdout=output, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"`backburn {arguments[0]}` ended with {done.returncode}: see its message above")
    return done.stdout or ""


def main() -> None:
    """`hook.py apply|remove PLAN`."""
    action, plan = sys.argv[1], json.loads(Path(sys.argv[2]).read_text(encoding="utf-8"))
    if action == "apply":
        for command in plan["commands"]:
            backburn(command)
        return
    found = json.loads(backburn(["schedule", "list", "--json", *plan["server"]], read=True))
    names = {item["name"] for item in found}
    for name in plan["schedules"]:
        if name in names:
            backburn(["schedule", "remove", name, *plan["server"]])


main()
