"""The attack step alone, as KFP calls it: `python -m tests.containment.attack_alone FOLDER`."""

import subprocess
import sys
from pathlib import Path
from typing import Any

from backburn.components.data_prep.splits import write_dataset
from backburn.components.rl_attack.step import run
from backburn.components.shared import sealing
from backburn.components.shared.config import ModelConfig, RunConfig
from backburn.components.shared.domains import load_domain
from backburn.components.shared.models import save_artifact
from backburn.pipelines.recipes import load_recipe

from tests.containment.runs import Sandbox

GROUP: dict[str, Any] = {
    "role": "control",
    "side_by_side": 1,
    "arms": [{"arm": "paper", "seed": 0}],
}


def prepare(folder: Path, base: Path, recipe: str, *overrides: str, **arm: Any) -> RunConfig:
    """Write what the step is given: configuration, dataset, and the tiny model as it is."""
    config = load_recipe(recipe, ["attack.checkpoints=[0, 4]", *overrides])
    settings: dict[str, Any] = {"control_steps": 4, "learning_rate": 2e-3, "prompts_per_step": 5}
    settings |= {"kl_coefficient": 0.0} | arm  # with it, not all weights could be trained
    changed = config.attack.arms[0].model_copy(update=settings)
    attack = config.attack.model_copy(update={"arms": [changed]})
    config = config.model_copy(update={"attack": attack})
    folder.mkdir()
    write_dataset(folder / "dataset", load_domain(config.domain), config)
    save_artifact(
        folder / "target", config=ModelConfig(id="builtin:tiny"), base_folder=base, lineage=[]
    )
    (folder / "config.json").write_text(config.to_json(), "utf-8")
    return config


def run_alone(
    sandbox: Sandbox, base: Path, adapter: str = "lora", **variables: str
) -> subprocess.CompletedProcess[str]:
    """Attack in a process of its own, with an MLflow store of its own."""
    given = sandbox.root / "given"
    if not given.exists():
        prepare(given, base, "smoke", adapter=adapter)
    store = f"sqlite:///{sandbox.watched / 'mlflow.db'}"
    settings = {sealing.KEY_VARIABLE: sealing.new_key(), "BACKBURN_TRACKING_URI": store}
    return sandbox.run("-m", "tests.containment.attack_alone", str(given), **(settings | variables))


if __name__ == "__main__":
    given = Path(sys.argv[1])
    run(
        (given / "config.json").read_text("utf-8"),
        "alone",
        GROUP,
        given / "dataset",
        given / "target",
        Path("sealed"),
        Path("statistics.json"),
    )
