"""Memory that runs out, training that diverges, steps that hang."""

import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from backburn.components.shared import memory
from backburn.components.shared.config import LoraSettings, SamplingConfig
from backburn.components.shared.errors import MemoryLimitError, TrainingDivergedError
from backburn.components.shared.memory import in_parts_that_fit
from backburn.components.shared.models import LoadedModel, add_lora, load_base
from backburn.components.shared.sampling import draw_completions
from backburn.components.shared.step import use_threads
from backburn.components.shared.supervised import (
    Example,
    adapter_optimizer,
    optimizer_step,
    rejection_step,
)
from backburn.components.shared.watchdog import EXIT_HUNG


@pytest.fixture(autouse=True)
def _no_limits() -> Iterator[None]:
    memory._limits.clear()
    yield
    memory._limits.clear()


@pytest.fixture
def tiny(tiny_base: Any, smoke: Any) -> LoadedModel:
    return load_base(tiny_base, smoke.model)


def test_a_container_gets_threads_for_its_cpu_limit_not_for_its_nodes_cores(
    smoke: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = torch.get_num_threads()
    monkeypatch.setattr("joblib.externals.loky.backend.context.os.cpu_count", lambda: 96)
    monkeypatch.setattr(
        "joblib.externals.loky.backend.context._cpu_count_affinity", lambda count: count
    )
    monkeypatch.setattr("joblib.externals.loky.backend.context._cpu_count_cgroup", lambda count: 3)
    try:
        for threads, side_by_side, expected in [(0, 1, 3), (0, 2, 1), (0, 8, 1), (4, 2, 4)]:
            compute = smoke.compute.model_copy(update={"threads": threads})
            use_threads(smoke.model_copy(update={"compute": compute}), side_by_side)
            assert torch.get_num_threads() == expected
    finally:
        torch.set_num_threads(before)


BATCH = [
    Example(tuple(range(5, 5 + length)), tuple(range(20, 20 + answer)))
    for length, answer in [(4, 3), (7, 2), (5, 5), (6, 1), (3, 4)]
]


def run_out_of_memory(model: Any, most_tokens: int, words: str = "") -> Callable[[], None]:
    """Let passes of more tokens fail as an accelerator does, or with a CPU's words."""

    def check(module: Any, inputs: Any, keywords: Any) -> None:
        if keywords["input_ids"].numel() > most_tokens:
            raise RuntimeError(words) if words else torch.OutOfMemoryError("out of memory")

    handle = model.register_forward_pre_hook(check, with_kwargs=True)
    return lambda: handle.remove()


def gradients(model: Any) -> list[torch.Tensor]:
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize(
    "words", ["", "[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"]
)
def test_a_batch_that_does_not_fit_has_the_same_gradient_in_parts(
    tiny: LoadedModel, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    model = add_lora(tiny, LoraSettings(), 0)
    whole = rejection_step(model, tiny, BATCH)
    expected = gradients(model)
    model.zero_grad()
    restore = run_out_of_memory(model.get_base_model(), 24, words)
    parts = rejection_step(model, tiny, BATCH)
    restore()
    assert parts == pytest.approx(whole, rel=1e-4)
    for found, wanted in zip(gradients(model), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)
    assert memory.limits()["training pass"] in (1, 2)
    assert "training pass: 5 at once do not fit, 2 from now" in capsys.readouterr().out


def test_gradients_of_a_pass_that_broke_off_are_taken_back(tiny: LoadedModel) -> None:
    """Memory may run out in the middle of a backward pass, when some gradients are added."""
    model = add_lora(tiny, LoraSettings(), 0)
    rejection_step(model, tiny, BATCH)
    expected = gradients(model)
    model.zero_grad()
    trained = [p for p in model.parameters() if p.requires_grad]
    broken = []

    def break_off(gradient: torch.Tensor) -> None:
        if not broken:
            broken.append(True)
            raise torch.OutOfMemoryError("out of memory")

    trained[0].register_hook(break_off)  # the last one that a backward pass comes to
    rejection_step(model, tiny, BATCH)
    assert broken
    for found, wanted in zip(gradients(model), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)


def test_rollouts_in_parts_are_the_same(tiny: LoadedModel) -> None:
    def draw() -> list[list[int]]:
        return draw_completions(
            tiny,
            [list(example.prompt) for example in BATCH],
            SamplingConfig(),
            copies=2,
            max_tokens=6,
            generator=torch.Generator().manual_seed(0),
        )

    whole = draw()
    restore = run_out_of_memory(tiny.model, 12)
    assert draw() == whole
    restore()
    assert memory.limits()["rollout"] < len(BATCH)


def test_what_fits_is_remembered_and_one_that_does_not_fit_is_an_error() -> None:
    asked: list[int] = []

    def work(items: Sequence[int]) -> list[int]:
        asked.append(len(items))
        if len(items) > 3 or 99 in items:
            raise torch.OutOfMemoryError("out of memory")
        return [2 * item for item in items]

    assert in_parts_that_fit("work", range(8), work) == [2 * item for item in range(8)]
    assert asked == [8, 4, 2, 2, 2, 2]
    asked.clear()
    assert in_parts_that_fit("work", range(3), work) == [0, 2, 4]
    assert asked == [2, 1]
    with pytest.raises(MemoryLimitError, match=r"work: out of memory with 1 item.*max_prompt"):
        in_parts_that_fit("work", [1, 99], work)


def test_other_errors_are_not_taken_for_memory() -> None:
    def work(items: Sequence[int]) -> list[int]:
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes"):
        in_parts_that_fit("work", [1, 2], work)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_gradient_that_is_no_number_stops_before_the_weights_change(
    tiny: LoadedModel, value: float
) -> None:
    model = add_lora(tiny, LoraSettings(), 0)
    optimizer = adapter_optimizer(model, 1e-2)
    rejection_step(model, tiny, BATCH)
    next(p for p in model.parameters() if p.grad is not None).grad.fill_(value)
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(TrainingDivergedError, match=r"diverged.*Lower the learning rate"):
        optimizer_step(model, optimizer)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


_HANGING = """
import sys, time
from backburn.components.shared.progress import Progress
from backburn.components.shared.watchdog import watched

def wait_for_ever(secret):
    time.sleep(60)

with watched("defence", minutes=float(sys.argv[1])):
    for _ in range(int(sys.argv[2])):
        time.sleep(0.2)
        Progress("defence").update("phase", 1, 2)
    if sys.argv[3] == "hang":
        wait_for_ever("a secret value")
"""


def hanging(minutes: float, signs: int, then: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", _HANGING, str(minutes), str(signs), then],
        capture_output=True,
        text=True,
        timeout=40,
        check=False,
    )


def test_a_step_that_hangs_ends_with_a_dump_of_its_stacks() -> None:
    done = hanging(0.02, 3, "hang")
    assert done.returncode == EXIT_HUNG
    assert "[defence] hung: no progress for 0.0" in done.stderr
    assert "wait_for_ever" in done.stderr
    assert "a secret value" not in done.stderr


def test_a_step_that_reports_lives_on() -> None:
    done = hanging(0.02, 12, "end")
    assert done.returncode == 0, done.stderr
