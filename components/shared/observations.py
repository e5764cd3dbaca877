"""What a run measured, before any figure is made of it; written to `observations.json`.

Every figure of the evidence follows from these and the configuration alone (`derivation/`). They
hold no text: a completion is its SHA-256.
"""

from typing import Any, Literal

from backburn.components.shared.config import (
    Harm,
    NonNegativeInt,
    Probability,
    PromptStyle,
    SamplingConfig,
)
from backburn.components.shared.evidence import Record, Role
from pydantic import Field

ModelName = Literal["baseline", "hardened"]


class Judged(Record):
    """One completion, and what the evaluation judge said of it."""

    prompt_id: str
    sha256: str = Field(description="Of the completion.")
    tokens: NonNegativeInt
    refused: bool
    score: Harm | None = Field(description="Harm, 0 to 10; None is unscored.")


class CheckpointObservation(Record):
    """An attacked model's completions at one step."""

    step: NonNegativeInt
    benign_loss: float | None
    judged: list[Judged]


class ArmObservation(Record):
    """One arm."""

    arm: str
    role: Role
    seed: int
    recipe: dict[str, Any]
    prompt_ids: list[str]
    steps_planned: NonNegativeInt
    steps: dict[str, list[float | None]] = Field(
        description="Per step: step, reward_mean, reward_std, entropy, live_groups, groups, idle, "
        "completion_tokens, seconds."
    )
    checkpoints: list[CheckpointObservation]
    rollouts: dict[str, dict[str, int]]
    seconds: float


class SlipObservation(Record):
    """Exact slip rates of a split's prompts, put to the model in a style, under a sampler."""

    split: str
    style: PromptStyle
    sampling: SamplingConfig
    rates: dict[str, Probability] = Field(description="Prompt id -> slip rate.")


class LikelihoodObservation(Record):
    """Both models on one benign answer of the baseline."""

    prompt_id: str
    tokens: int
    log_baseline: float = Field(description="Sum over its tokens, nats.")
    log_hardened: float
    divergence: float = Field(description="Sum of KL(baseline || hardened) over its tokens.")


class TrainingObservation(Record):
    """One model, measured before and after one short harmless training."""

    training: Literal["sft", "rl"]
    model: ModelName
    seed: int
    before: dict[str, float] = Field(
        description="sft: held-out row of the lesson -> loss, nats per token; rl: benign prompt -> "
        "mean reward, 0 to 1."
    )
    after: dict[str, float]
    steps: list[float] = Field(description="Per step: mean loss, or mean reward.")
    seconds: float


class UtilityObservation(Record):
    """Both models' scores on the documents of one task, in the same order."""

    task: str
    metric: str
    higher_is_better: bool
    documents: list[str] = Field(description="SHA-256 of each document.")
    baseline: list[float]
    hardened: list[float]


class CertificationObservation(Record):
    """What the certification step measured on the two models."""

    rejection_tokens: int
    slips: list[SlipObservation]
    likelihoods: list[LikelihoodObservation]
    rejection_probabilities: dict[str, dict[str, float]] = Field(
        description="near_miss, benign -> prompt id -> probability of the canonical rejection."
    )
    other_domains: dict[str, dict[str, float]] = Field(
        default_factory=dict,
        description="Another domain -> its forbidden held-out prompt's id -> probability of the "
        "canonical rejection.",
    )
    trainings: list[TrainingObservation] = Field(default_factory=list)
    seconds: float = Field(description="Of the slip rates.")
    utility: list[UtilityObservation] = Field(
        default_factory=list, description="One a task of certification.utility."
    )


class CalibrationRow(Record):
    """One labelled exchange and what a judge said of it."""

    id: str
    label: Harm
    label_refused: bool
    score: Harm | None
    refused: bool
    score_before: Harm | None = Field(description="What the judge said when it was first asked.")


class ProbeRow(Record):
    """A harmful completion with and without an order to score 0 after it."""

    id: str
    order: int
    score: Harm | None
    score_ordered: Harm | None


class CalibrationObservation(Record):
    """A judge on the domain's labelled exchanges."""

    judge: str
    role: Literal["reward", "evaluation"]
    rows: list[CalibrationRow]
    probes: list[ProbeRow]


class Observations(Record):
    """All of it."""

    run_id: str
    config_digest: str
    forms: dict[str, str] = Field(description="Held-out prompt id -> form.")
    arms: list[ArmObservation]
    certification: CertificationObservation
    behaviour: dict[ModelName, dict[str, list[Judged]]] = Field(
        description="Model -> near_miss, benign -> its judged completions."
    )
    over_refusal: dict[str, dict[ModelName, list[Judged]]] = Field(
        default_factory=dict,
        description="Set of certification.over_refusal -> model -> its judged completions.",
    )
    calibration: list[CalibrationObservation]
    members: dict[str, list[Harm | None]] = Field(
        description="A panel's members -> their scores of the same distinct exchanges; else empty."
    )
