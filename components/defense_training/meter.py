"""What a defence is given, what it measures as it goes, and what it leaves behind."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from backburn.components.shared.config import SamplingConfig
from backburn.components.shared.domains import PromptRow
from backburn.components.shared.evidence import PhaseRecord
from backburn.components.shared.models import LoadedModel
from backburn.components.shared.sampling import completion_logits, scored, slip_rate
from backburn.components.shared.scale import distributed
from backburn.components.shared.supervised import Example, References

Report = Callable[[str, int, int, str], None]
_MOST_SET_ASIDE = 16
_SET_ASIDE_SHARE = 0.15
_TEMPERATURE_ONE = SamplingConfig(temperature=1.0)


@dataclass(frozen=True)
class DefenseData:
    """Prompts of a defence."""

    defence: Sequence[PromptRow]
    validation: Sequence[PromptRow]
    near_miss: Sequence[PromptRow]
    benign: Sequence[PromptRow]
    rejection: str
    refusals: Mapping[str, str] = field(default_factory=dict)
    """Defence prompt id -> explanatory refusal; for the defence `refusal` only."""
    topic: str = ""


@dataclass
class DefenseResult:
    """The trained adapter's model and what each phase did."""

    peft_model: Any
    phases: list[PhaseRecord] = field(default_factory=list)
    consolidation_curve: list[dict[str, float]] = field(default_factory=list)
    neutralization_steps: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Kept:
    """Answers that training must not change, and what the baseline says of them."""

    near_miss: Sequence[Example]
    benign: Sequence[Example]
    references: References


class Meter:
    """Measures the model in training on prompts it is not trained on."""

    def __init__(
        self,
        loaded: LoadedModel,
        data: DefenseData,
        near_miss: Sequence[Example],
        benign: Sequence[Example],
        references: References,
    ) -> None:
        self._loaded = loaded
        self._rejection = loaded.encode_completion(data.rejection)
        self._validation = loaded.encode_rows(data.validation)
        self._near_miss = [list(example.prompt) for example in near_miss]
        self._benign = [list(example.prompt) for example in benign]
        self._answers = benign
        self._references = references

    def slips(self, model: Any) -> list[float]:
        """Slip rate of each validation prompt."""
        return self._rates(model, self._validation)

    def near_miss_rejection(self, model: Any) -> float:
        """Mean probability of the rejection on near-miss prompts."""
        return 1.0 - mean(self._rates(model, self._near_miss))

    def benign_rejection(self, model: Any) -> float:
        """Mean probability of the rejection on benign prompts."""
        return 1.0 - mean(self._rates(model, self._benign))

    def benign_kl(self, model: Any) -> float:
        """KL(baseline || model) per token of the baseline's own benign answers, in nats."""
        own = distributed.own(self._answers)
        entries = completion_logits(
            self._loaded, [e.prompt for e in own], [e.completion for e in own], model=model
        )
        parts: list[torch.Tensor] = []
        reference = self._references.log_probabilities(own).cpu()
        if own:
            ours = torch.cat([entry.logits for entry in entries]).log_softmax(-1)
            lost = (reference.exp() * (reference - ours)).sum(-1)
            parts = list(lost.split([len(example.completion) for example in own]))
        return float(torch.cat(distributed.gathered(parts)).mean())

    def record(
        self, model: Any, phase: str, enabled: bool, steps: int, seconds: float
    ) -> PhaseRecord:
        """A row of the ablation table."""
        slips = self.slips(model)
        return PhaseRecord(
            phase=phase,
            enabled=enabled,
            steps=steps,
            seconds=seconds,
            slip_rate=mean(slips),
            worst_slip_rate=max(slips),
            near_miss_rejection=self.near_miss_rejection(model),
            benign_rejection=self.benign_rejection(model),
            benign_kl=self.benign_kl(model),
        )

    def _rates(self, model: Any, prompts: Sequence[Sequence[int]]) -> list[float]:
        return scored(
            lambda entry: slip_rate(entry, _TEMPERATURE_ONE),
            self._loaded,
            prompts,
            [self._rejection] * len(prompts),
            model=model,
        )


def set_aside(rows: Sequence[PromptRow]) -> tuple[Sequence[PromptRow], Sequence[PromptRow]]:
    """Prompts to train on, and some to measure on."""
    count = max(1, min(_MOST_SET_ASIDE, round(_SET_ASIDE_SHARE * len(rows))))
    return rows[count:], rows[:count]


def mean(values: Sequence[float]) -> float:
    """Mean; 0 of nothing."""
    return sum(values) / len(values) if values else 0.0
