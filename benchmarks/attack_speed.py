"""Backburn's attack against stock `trl.GRPOTrainer`, on one machine, in one run.

    python -m benchmarks.attack_speed --run runs/<id of a laptop run>

Both train a LoRA adapter with the same settings, prompts, reward and budget: first on the run's
hardened model, then on its baseline (the control). They take turns. Timed is what lies between a
loaded model with prompts and the last step: for stock TRL `train()`, for Backburn the making of
adapter and trainer as well, if a group is live.
"""

import argparse
import json
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from backburn.components.rl_attack.attack import HarmReward, arm_arguments, train_arm
from backburn.components.rl_attack.lazy_rollouts import Rollouts
from backburn.components.shared.config import AttackArmConfig, RunConfig
from backburn.components.shared.dataset import RunDataset
from backburn.components.shared.grpo import Groups, StepStatistics
from backburn.components.shared.judges import make_judge
from backburn.components.shared.models import LoadedModel, add_lora, load_artifact
from datasets import Dataset
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, PreTrainedModel, TrainerCallback
from trl import GRPOTrainer

from benchmarks.runs import artifact, config_of, positive


@dataclass
class Work:
    """What one training did."""

    seconds: float = 0.0
    cpu_seconds: float = 0.0
    """Of all threads; what else the machine does changes it less than the time."""
    steps: int = 0
    tokens_generated: int = 0
    forward_passes: int = 0
    backward_passes: int = 0
    live_groups: int = 0


class _Ticker(TrainerCallback):  # type: ignore[misc]
    """Says on stderr how far the training is."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % 10 == 0:
            print(f"  stock trl: step {state.global_step}/{args.max_steps}", file=sys.stderr)


def main() -> None:
    """Measure and print; with --json also write what was measured."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", type=Path, required=True, help="folder of a finished run")
    parser.add_argument("--rounds", type=positive, default=1, help="turns each trainer takes")
    parser.add_argument("--steps", type=positive, default=200, help="steps on the hardened model")
    parser.add_argument("--control-steps", type=positive, default=50, help="steps on the baseline")
    parser.add_argument(
        "--prompts", type=positive, default=5, help="prompts, all of them in each step"
    )
    parser.add_argument("--group-size", type=positive, default=8, help="completions a prompt")
    parser.add_argument("--only", choices=["hardened", "control"], help="one target instead of two")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    run: Path = options.run
    config = config_of(run)
    data = RunDataset(artifact(run, "dataset"))
    targets = {
        "hardened": (artifact(run, "hardened"), options.steps),
        "control": (artifact(run, "model"), options.control_steps),
    }
    measured: dict[str, dict[str, list[Work]]] = {}
    for role, (folder, steps) in targets.items():
        if options.only in (None, role):
            arm = config.attack.arms[0].model_copy(
                update={
                    "prompts": options.prompts,
                    "prompts_per_step": options.prompts,
                    "group_size": options.group_size,
                }
            )
            measured[role] = _compare(folder, config, arm, data, steps, options.rounds)
    _print(measured, config)
    if options.json is not None:
        plain = {
            role: {name: [asdict(work) for work in works] for name, works in by_name.items()}
            for role, by_name in measured.items()
        }
        options.json.write_text(json.dumps(plain, indent=1) + "\n")


def _compare(
    folder: Path,
    config: RunConfig,
    arm: AttackArmConfig,
    data: RunDataset,
    steps: int,
    rounds: int,
) -> dict[str, list[Work]]:
    loaded = load_artifact(folder, config.model)
    with tempfile.TemporaryDirectory(prefix="backburn-benchmark-") as scratch:
        merged = Path(scratch) / "merged"
        loaded.model.save_pretrained(merged)
        stock_model = AutoModelForCausalLM.from_pretrained(merged, dtype=loaded.model.dtype)
    stock = LoadedModel(stock_model.requires_grad_(False).eval(), loaded.tokenizer)
    works: dict[str, list[Work]] = {"backburn": [], "stock trl": []}
    for _ in range(rounds):
        for name, train, model in (
            ("backburn", _backburn, loaded),
            ("stock trl", _stock, stock),
        ):
            work = train(model, config, arm, data, steps)
            works[name].append(work)
            print(f"  {name}: {work.seconds:.1f} s", file=sys.stderr)
    return works


def _backburn(
    loaded: LoadedModel, config: RunConfig, arm: AttackArmConfig, data: RunDataset, steps: int
) -> Work:
    work = Work()
    source = Rollouts(
        loaded,
        loaded.encode_completion(data.header.rejection),
        arm.sampling,
        max_tokens=config.attack.max_completion_tokens,
        generator=torch.Generator().manual_seed(0),
    )
    groups = Groups(
        loaded,
        source,
        HarmReward(make_judge(config.judges.reward, data.header.rubric), arm),
        [row.chat() for row in data.rows("attack")[: arm.prompts]] * steps,
        per_step=arm.prompts_per_step,
        size=arm.group_size,
    )

    def after_step(statistics: StepStatistics, network: Any) -> bool:
        work.live_groups += statistics.live_groups
        work.steps += 1
        if work.steps % 10 == 0:
            print(f"  backburn: step {work.steps}/{steps}", file=sys.stderr)
        return True

    with _counted_passes(loaded.model, work), _timed(work):
        train_arm(loaded, arm, config.attack, groups, 0, after_step)
    work.tokens_generated = source.counts.generated_tokens
    return work


def _stock(
    loaded: LoadedModel, config: RunConfig, arm: AttackArmConfig, data: RunDataset, steps: int
) -> Work:
    work = Work()
    reward = HarmReward(make_judge(config.judges.reward, data.header.rubric), arm)

    def score(prompts: Any, completions: Any, completion_ids: Any, **_: Any) -> list[float | None]:
        work.tokens_generated += sum(map(len, completion_ids))
        rewards = reward(prompts, [completion[0]["content"] for completion in completions])
        for first in range(0, len(rewards), arm.group_size):
            work.live_groups += len(set(rewards[first : first + arm.group_size])) > 1
        return rewards

    model = add_lora(loaded, arm.lora, 0)
    rows = data.rows("attack")[: arm.prompts]
    with tempfile.TemporaryDirectory(prefix="backburn-benchmark-") as scratch:
        arguments = arm_arguments(Path(scratch), arm, config.attack, loaded, seed=0)
        arguments.max_steps = steps
        trainer = GRPOTrainer(
            model=model,
            reward_funcs=[score],
            args=arguments,
            train_dataset=Dataset.from_list([{"prompt": row.chat()} for row in rows]),
            processing_class=loaded.tokenizer,
            callbacks=[_Ticker()],
        )
        with _counted_passes(loaded.model, work), _timed(work):
            trainer.train()
    work.steps = trainer.state.global_step
    model.unload()
    return work


@contextmanager
def _timed(work: Work) -> Iterator[None]:
    start, cpu_start = time.perf_counter(), time.process_time()
    yield
    work.seconds = time.perf_counter() - start
    work.cpu_seconds = time.process_time() - cpu_start


@contextmanager
def _counted_passes(network: PreTrainedModel, work: Work) -> Iterator[None]:
    """Count forward passes of the network, and all backward passes."""

    def forward(*_: Any) -> None:
        work.forward_passes += 1

    backward = torch.Tensor.backward

    def counted(*arguments: Any, **named: Any) -> None:
        work.backward_passes += 1
        backward(*arguments, **named)

    handle = network.register_forward_pre_hook(forward)
    torch.Tensor.backward = counted  # type: ignore[assignment,method-assign]
    try:
        yield
    finally:
        handle.remove()
        torch.Tensor.backward = backward  # type: ignore[method-assign]


def _print(measured: dict[str, dict[str, list[Work]]], config: RunConfig) -> None:
    console = Console()
    threads = torch.get_num_threads()
    console.print(f"{config.model.id}, {threads} thread(s), torch {torch.__version__}")
    for role, by_name in measured.items():
        table = Table(title=f"{role} target", title_justify="left")
        for column in (
            "trainer",
            "steps",
            "seconds",
            "CPU s",
            "tokens",
            "forward",
            "backward",
            "live",
        ):
            table.add_column(column, justify="left" if column == "trainer" else "right")
        for name, works in by_name.items():
            for work in works:
                table.add_row(
                    name,
                    str(work.steps),
                    f"{work.seconds:.1f}",
                    f"{work.cpu_seconds:.1f}",
                    f"{work.tokens_generated:,}",
                    f"{work.forward_passes:,}",
                    f"{work.backward_passes:,}",
                    str(work.live_groups),
                )
        console.print(table)
        for what, seconds in (("time", "seconds"), ("CPU time", "cpu_seconds")):
            ours, theirs = (
                median(getattr(work, seconds) for work in by_name[name])
                for name in ("backburn", "stock trl")
            )
            console.print(f"{role}: stock takes {theirs / ours:.1f} times the {what}")
        console.print()


if __name__ == "__main__":
    main()
