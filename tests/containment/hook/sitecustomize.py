"""What a test does inside a Backburn process: interpreters with this folder on their path run it.

The product knows nothing of it. CONTAINMENT_PATTERNS names a folder for byte patterns of attacked
weights, CONTAINMENT_WORDS a suffix for words of the toy grammar, CONTAINMENT_FAULT what goes wrong.
"""

import importlib.abc
import importlib.machinery
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

FAULT_STEP = 2


class _Patcher(importlib.abc.MetaPathFinder):
    """Calls a function on a module once it is loaded."""

    def __init__(self, patches: dict[str, Callable[[Any], None]]) -> None:
        self._patches = patches

    def find_spec(
        self, fullname: str, path: Any, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        patch = self._patches.get(fullname)
        if patch is None:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path)
        assert spec is not None
        loader: Any = spec.loader
        execute = loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            patch(module)

        loader.exec_module = exec_module
        return spec


def mark_words(toy: Any) -> None:
    """Dishes and ingredients, which no benign text has, become unmistakable; order is kept."""
    suffix = os.environ["CONTAINMENT_WORDS"]
    for group in (toy.DISHES, toy.INGREDIENTS):
        group[:] = [word + suffix for word in group]


def spy_on_attack(attack: Any) -> None:
    """Write patterns of the weights after every step, outside of what is searched; then fail."""
    from tests.containment.patterns import write_patterns

    class Spied(attack.GroupTrainer):  # type: ignore[misc]
        def __init__(self, *, peft_model: Any, args: Any, on_step: Any, **others: Any) -> None:
            def spying(statistics: Any) -> Any:
                folder = Path(os.environ["CONTAINMENT_PATTERNS"])
                write_patterns(peft_model, folder / f"{os.getpid()}-{statistics.step}.json")
                fault = os.environ.get("CONTAINMENT_FAULT")
                if fault and statistics.step >= FAULT_STEP:
                    _leave_weights(peft_model, Path(args.output_dir))
                    _fail(fault)
                return on_step(statistics)

            super().__init__(peft_model=peft_model, args=args, on_step=spying, **others)

    attack.GroupTrainer = Spied


def _leave_weights(network: Any, scratch: Path) -> None:
    """As a library would that writes into the folder it was given."""
    from safetensors.torch import save_file

    save_file({n: p.detach().clone() for n, p in network.named_parameters()}, scratch / "w.st")


def _fail(fault: str) -> None:
    if fault == "raise":
        raise RuntimeError("the test says so")
    os.kill(os.getpid(), getattr(signal, fault))


def move_memory(scratch: Any) -> None:
    """A place in memory of the test's own: another process would clean up in the common one."""
    scratch._MEMORY = Path(os.environ["CONTAINMENT_MEMORY"])


def break_judge(judges: Any) -> None:
    """A judge whose exception quotes what it was asked, as libraries' exceptions do."""

    def judge(self: Any, exchanges: Any) -> Any:
        raise ValueError(f"cannot read {[tuple(item) for item in exchanges]}")

    judges.LexicalJudge.judge = judge


_PATCHES: dict[str, Callable[[Any], None]] = {}
if "CONTAINMENT_WORDS" in os.environ:
    _PATCHES["backburn.components.shared.domains.toy"] = mark_words
if "CONTAINMENT_MEMORY" in os.environ:
    _PATCHES["backburn.components.shared.scratch"] = move_memory
if "CONTAINMENT_PATTERNS" in os.environ:
    _PATCHES["backburn.components.rl_attack.attack"] = spy_on_attack
if os.environ.get("CONTAINMENT_FAULT") == "judge":
    _PATCHES["backburn.components.shared.judges.lexical"] = break_judge
if _PATCHES:
    sys.meta_path.insert(0, _Patcher(_PATCHES))
