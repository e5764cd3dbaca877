"""What attention by sequence and mixed precision save in a supervised step, on a CPU.

    python -m benchmarks.training_speed --run runs/<id of a laptop run>

Reads forbidden prompts with the rejection and benign ones with the baseline's own answers, forward
and backward, three ways in turn: with a mask over the whole row in float32, by sequence in float32,
and by sequence in mixed precision (see components/shared/packed_attention.py and packed_linear.py),
which is for attacks and harmless trainings: a defence is trained in float32.
"""

import argparse
import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from backburn.components.shared import sampling
from backburn.components.shared.dataset import RunDataset
from backburn.components.shared.models import add_lora, load_artifact
from backburn.components.shared.packed_linear import full_precision
from backburn.components.shared.supervised import (
    KEPT_TOKENS,
    Example,
    References,
    benign_step,
    own_answers,
    rejection_step,
)
from rich.console import Console
from rich.table import Table

from benchmarks.runs import artifact, config_of, positive

_FORBIDDEN, _BENIGN = 10, 14


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", type=Path, required=True, help="folder of a finished run")
    parser.add_argument("--rounds", type=positive, default=5, help="turns each way takes")
    options = parser.parse_args()
    config = config_of(options.run)
    data = RunDataset(artifact(options.run, "dataset"))
    settings = config.model.model_copy(update={"dtype": "auto", "device": "cpu"})
    loaded = load_artifact(artifact(options.run, "model"), settings)
    rejection = tuple(loaded.encode_completion(data.header.rejection))
    forbidden = [
        Example(tuple(loaded.encode_row(row)), rejection)
        for row in data.rows("defence")[:_FORBIDDEN]
    ]
    kept = own_answers(
        loaded,
        loaded.encode_rows(data.rows("benign_defence")[:_BENIGN]),
        KEPT_TOKENS,
        config.seed,
    )
    model = add_lora(loaded, config.defense.lora, config.seed).train()
    references = References(model, loaded, kept)
    references.log_probabilities(kept)
    ways: dict[str, list[Callable[[], AbstractContextManager[Any]]]] = {
        "mask over the row, float32": [_with_a_mask, full_precision],
        "by sequence, float32": [full_precision],
        "by sequence, mixed precision": [],
    }
    times: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
    for turn in range(options.rounds + 1):
        for way, contexts in ways.items():
            with ExitStack() as stack:
                for context in contexts:
                    stack.enter_context(context())
                start = time.perf_counter(), time.process_time()
                rejection_step(model, loaded, forbidden, 3.0)
                benign_step(model, loaded, kept, references)
                end = time.perf_counter(), time.process_time()
            model.zero_grad()
            if turn:  # the first packs the weights
                times[way].append((end[0] - start[0], end[1] - start[1]))
    table = Table("way", "seconds", "CPU s", "CPU time, ratio to the first")
    first = median(cpu for _, cpu in next(iter(times.values())))
    for way, measured in times.items():
        seconds, cpu = (median(column) for column in zip(*measured, strict=True))
        table.add_row(way, f"{seconds:.2f}", f"{cpu:.2f}", f"{cpu / first:.2f}")
    console = Console(width=100)
    console.print(f"{settings.id}, {torch.get_num_threads()} thread(s), median of {options.rounds}")
    console.print(table)


@contextmanager
def _with_a_mask() -> Iterator[None]:
    @contextmanager
    def not_replaced(*_: Any) -> Iterator[bool]:
        yield False

    with patch.object(sampling, "packed_attention", not_replaced):
        yield


if __name__ == "__main__":
    main()
