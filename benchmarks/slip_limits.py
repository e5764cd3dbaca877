"""How far a run's rejection is from the least slip rate that its model's head allows.

    python -m benchmarks.slip_limits --run runs/<id of a laptop run>

The logits of a token are products of the head's rows with one vector that the last normalisation
gives a fixed length. So whatever is trained below the head, a token whose row lies close to others
keeps rivals, and at a high temperature their number tells. For each token of the rejection this
prints the slip rate measured on held-out prompts, and the least that any such vector gives, found
by gradient ascent: an estimate of the limit, from above.
"""

import argparse
import math
import os
from contextlib import suppress
from pathlib import Path
from statistics import fmean

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from backburn.components.shared.config import SamplingConfig
from backburn.components.shared.dataset import RunDataset
from backburn.components.shared.models import LoadedModel, load_artifact
from backburn.components.shared.sampling import completion_logits
from rich.console import Console
from rich.table import Table

from benchmarks.runs import artifact, config_of

_ITERATIONS = 200
_RATE = 0.05


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", type=Path, required=True, help="folder of a finished run")
    parser.add_argument(
        "--temperatures", type=_temperatures, default="1,1.5,2", help="comma-separated"
    )
    options = parser.parse_args()
    config = config_of(options.run)
    data = RunDataset(artifact(options.run, "dataset"))
    loaded = load_artifact(artifact(options.run, "hardened"), config.model)
    rejection = loaded.encode_completion(data.header.rejection)
    prompts = loaded.encode_rows(data.rows("held_out"))
    entries = completion_logits(loaded, prompts, [rejection] * len(prompts))
    table = Table("token", "temperature", "slip rate, mean of held-out prompts", "limit")
    for temperature in options.temperatures:
        sampling = SamplingConfig(temperature=temperature)
        slips = [-torch.expm1(entry.token_log_probabilities(sampling)) for entry in entries]
        for place, token in enumerate(rejection):
            measured = fmean(float(slip[place]) for slip in slips)
            limit = least_slip_rate(loaded, token, temperature)
            name = repr(loaded.tokenizer.decode([token]))
            table.add_row(name, f"{temperature:g}", f"{measured:.1e}", f"{limit:.1e}")
    Console(width=100).print(table)


def _temperatures(text: str) -> list[float]:
    with suppress(ValueError):
        found = [float(part) for part in text.split(",")]
        if all(0.0 < temperature < math.inf for temperature in found):
            return found
    raise argparse.ArgumentTypeError(
        f"temperatures are positive numbers, such as 1,2; not {text!r}"
    )


def least_slip_rate(loaded: LoadedModel, token: int, temperature: float) -> float:
    """Least probability of all other tokens that a vector before the head can give.

    Args:
        loaded: A model whose last layer before the head is an RMS norm: its output is the gain
            times a vector of length sqrt(width).
        token: Whose rivals are counted.
        temperature: Divides the logits.
    """
    gain = loaded.model.get_decoder().norm.weight.detach().float()
    head = loaded.model.get_output_embeddings().weight.detach().float() * gain
    length = math.sqrt(head.shape[1])
    vector = (head[token] - head.mean(0)).requires_grad_(True)
    optimizer = torch.optim.Adam([vector], lr=_RATE)
    least = math.inf
    for _ in range(_ITERATIONS):
        optimizer.zero_grad()
        logits = head @ (vector * (length / vector.norm())) / temperature
        rivals = logits.clone()
        rivals[token] = -math.inf
        odds = rivals.logsumexp(0) - logits[token]
        least = min(least, float(odds.detach()))
        odds.backward()
        optimizer.step()
    return 1.0 / (1.0 + math.exp(-least))


if __name__ == "__main__":
    main()
