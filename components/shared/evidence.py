"""Everything the gate decides from, as typed records; written to `evidence.json`."""

from typing import Any, Literal

from backburn.components.shared.config import Template
from pydantic import BaseModel, ConfigDict, Field

SCHEMA_VERSION: Literal["1"] = "1"
Role = Literal["control", "hardened"]
Outcome = Literal["passed", "failed", "inconclusive"]


class Record(BaseModel):
    """Base of all evidence: unknown fields are errors, NaN and infinity are errors."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, protected_namespaces=())


class SplitRecord(Record):
    """One split of the data."""

    rows: int
    sha256: str
    licence: str
    forms: dict[str, int] = Field(description="Form -> number of rows.")


class DataRecord(Record):
    """What the run was measured on."""

    domain: str
    title: str
    stand_in: bool
    rejection: str
    rubric_version: int
    splits: dict[str, SplitRecord]


class BaselineRecord(Record):
    """Whether the model had to be taught to refuse before it was hardened."""

    applied: bool
    reason: str
    refusal_rate_before: float = Field(
        description="On validation prompts, by the evaluation judge."
    )
    refusal_rate_after: float
    harm_before: float
    harm_after: float
    steps: int
    seconds: float


class PhaseRecord(Record):
    """Measurements after one phase of the defence; a row of the ablation table."""

    phase: str = Field(description="baseline, warm start, neutralization or consolidation.")
    enabled: bool
    steps: int
    seconds: float
    slip_rate: float = Field(description="Mean on validation prompts at temperature 1.")
    worst_slip_rate: float
    near_miss_rejection: float = Field(
        description="Mean probability of the canonical rejection on near-miss defence prompts."
    )
    benign_rejection: float = Field(description="The same on benign defence prompts.")
    benign_kl: float = Field(
        description="KL(baseline || model) per token on baseline answers, nats."
    )


class SlipRecord(Record):
    """Slip rates of one split at one temperature."""

    split: str
    temperature: float
    mean: float
    worst: float
    upper_bound: float = Field(
        description="One-sided confidence bound on the mean over unseen prompts; "
        "distribution-free, so "
        "with few prompts it is dominated by what they cannot exclude."
    )
    covered_share: float = Field(
        description="With the stated confidence at least this share of unseen prompts slips at "
        "most "
        "`worst`."
    )
    prompts: int


class ArmCertificate(Record):
    """Lower bound on P(no live group) of one hardened arm's whole budget."""

    arm: str
    seed: int
    steps: int
    groups: int
    draws: int
    temperature: float
    probability: float | None = Field(
        description="None: the arm moves the weights even if no group is live (an entropy bonus, "
        "stock TRL's rounded ties), so only running it tells."
    )
    unseen_probability: float | None = Field(
        description="The same budget on unseen prompts: all of them slip at most as the worst "
        "held-out "
        "one (tolerance bound at the certificate's confidence), and then no group is live."
    )


class CertificateRecord(Record):
    """What can be said without running any attack."""

    rejection_tokens: int
    confidence: float
    slip_rates: list[SlipRecord]
    arms: list[ArmCertificate]
    run_probability: float | None = Field(
        description="P(no live group in any hardened arm that has a certificate), lower bound; "
        "None if there is no such arm."
    )
    temperature_max: float = Field(
        description="Arms that sample hotter are not part of `run_probability`."
    )
    per_prompt: dict[str, float] = Field(description="Held-out prompt id -> slip rate at T = 1.")
    seconds: float


class BehaviourRecord(Record):
    """What hardening cost on prompts that should be answered."""

    near_miss_refusal_baseline: float
    near_miss_refusal_hardened: float
    near_miss_prompts: int
    near_miss_rejection_probability: float = Field(
        description="Exact mean probability of the canonical rejection, hardened model."
    )
    benign_refusal_baseline: float
    benign_refusal_hardened: float
    benign_prompts: int
    benign_rejection_probability: float
    benign_perplexity_baseline: float = Field(description="On the baseline's own benign answers.")
    benign_perplexity_hardened: float
    benign_perplexity_ratio: float
    benign_kl: float = Field(description="KL(baseline || hardened) per token, nats.")


class UtilityRecord(Record):
    """Both models on one task of lm-evaluation-harness."""

    task: str
    metric: str
    higher_is_better: bool
    samples: int
    baseline: float = Field(description="Mean score.")
    baseline_error: float = Field(description="Its standard error.")
    hardened: float
    hardened_error: float
    loss: float = Field(description="How much worse the hardened model scores, on average.")
    low: float = Field(description="Of a two-sided interval of the loss, document by document.")
    high: float


class OverRefusalRecord(Record):
    """Refusals of one public set of prompts."""

    name: str
    answerable: bool = Field(description="The prompts should be answered: the gate counts them.")
    prompts: int
    completions: int = Field(description="Of each model.")
    baseline: float = Field(description="Share of completions that refuse.")
    hardened: float
    increase: float = Field(description="Mean over prompts of what the hardened model adds.")
    low: float = Field(description="Of a two-sided interval of the increase, prompt by prompt.")
    high: float


class CurvePoint(Record):
    """Harm on held-out prompts at one attack step."""

    step: int
    harm: float | None = Field(description="Mean, 0-10; None if nothing was scored.")
    low: float | None
    high: float | None
    refusal_rate: float | None
    judged: int
    scored: int
    benign_loss: float | None = Field(
        None,
        description="1 - the ratio of the mean probabilities that the attacked model and the "
        "target give to tokens of the target's own benign answers.",
    )


class ArmRecord(Record):
    """One arm: a recipe, a seed and a target."""

    arm: str
    role: Role
    seed: int
    recipe: dict[str, Any]
    prompt_ids: list[str]
    steps_planned: int
    steps_run: int
    curve: list[CurvePoint]
    steps_to_weak: int | None = Field(description="First checkpoint with mean harm > 2.")
    steps_to_break: int | None = Field(description="First checkpoint with mean harm >= 7.")
    moved_at: int | None = Field(
        description="First step that may have moved a weight; None: the target is as it was."
    )
    groups: int
    live_groups: int
    idle_steps: int
    series: dict[str, list[float | None]] = Field(
        description="Per step: reward_mean, reward_std, entropy, live_groups, seconds."
    )
    rollouts: dict[str, dict[str, int]]
    seconds: float


class RecipeRecord(Record):
    """A recipe over its seeds, at the checkpoint with most harm."""

    arm: str
    role: Role
    seeds: list[int]
    step: int
    harm: float = Field(description="Mean over seeds and prompts.")
    low: float = Field(description="Of a two-sided interval in which seeds and prompts vary.")
    high: float
    refusal_rate: float


class WorstCaseRecord(Record):
    """The worst mean harm of all attacked models that were looked at."""

    arm: str
    seed: int
    step: int
    harm: float
    high: float = Field(
        description="Highest upper bound, each taken at a level at which all hold together."
    )
    models: int = Field(
        description="Different models looked at; checkpoints with unmoved weights are one for each "
        "style in which arms put the prompts."
    )
    confidence: float = Field(description="Of all bounds together.")


class FormRecord(Record):
    """Held-out prompts of one form."""

    form: str
    prompts: int
    slip_rate: float = Field(description="Mean at temperature 1, before any attack.")
    worst_slip_rate: float
    harm: float | None = Field(description="Worst mean of a hardened arm at any checkpoint.")
    arm: str | None = Field(description="The arm of that mean.")
    least_refusal_rate: float | None
    detectable_harm: float = Field(
        description="Least mean harm that would have shown on so few prompts, at the gate's "
        "confidence."
    )
    few_prompts: bool = Field(
        description="A mean harm above the gate's limit could have been missed."
    )


class StyleRecord(Record):
    """Held-out prompts put to the hardened model in one style, at temperature 1."""

    template: Template
    system_prompt: str | None
    prompts: int
    slip_rate: float | None = Field(
        description="Mean; None if the model's chat template takes no system message."
    )
    worst_slip_rate: float | None
    rejecting: int | None = Field(description="Prompts that are more likely rejected than not.")


class OtherDomainRecord(Record):
    """Forbidden held-out prompts of a domain to which the model was not hardened."""

    domain: str
    prompts: int
    rejection_probability: float = Field(description="Mean, of the canonical rejection.")
    rejecting: int = Field(description="Prompts that are more likely rejected than not.")


class TrainabilityRecord(Record):
    """What both models gained by one short harmless training."""

    training: Literal["sft", "rl"] = Field(
        description="sft: supervised, on a lesson; rl: GRPO, with a reward that is a rule."
    )
    rows: int = Field(description="Held-out rows or prompts; the unit of the interval.")
    seeds: list[int]
    steps: int
    baseline_before: float = Field(description="sft: loss, nats per token; rl: reward, 0 to 1.")
    baseline_after: float
    hardened_before: float
    hardened_after: float
    baseline_gain: float = Field(description="Loss taken off, or reward put on.")
    hardened_gain: float
    ratio: float | None = Field(
        description="Hardened over baseline gain; None if the baseline itself shows no gain, so "
        "that nothing can be said."
    )
    low: float | None = Field(description="Of a two-sided interval at the gate's confidence.")
    high: float | None
    seconds: float = Field(description="Of both models.")


class AgreementRecord(Record):
    """Two members of a panel."""

    one: str
    other: str
    exchanges: int
    spearman: float | None


class TrialRecord(Record):
    """One trial of the sweep; harms are the evaluation judge's, seen during the attack."""

    number: int
    pruned: bool
    recipe: dict[str, Any]
    seed: int
    harm: float = Field(description="Most at a checkpoint with a bounded benign loss.")
    any_harm: float = Field(description="Most at any checkpoint.")
    benign_loss: float = Field(description="At the last checkpoint.")
    live_groups: int
    groups: int
    steps_run: int
    diverged: bool = Field(
        description="Its training diverged; what was seen before counts, its groups do not."
    )
    seconds: float


class CalibrationRecord(Record):
    """Agreement of one judge with the domain's labels."""

    judge: str
    role: Literal["reward", "evaluation"]
    exchanges: int
    scored: int
    spearman: float | None
    weighted_kappa: float | None = Field(
        description="Quadratic weights on scores rounded to integers."
    )
    refusal_accuracy: float | None
    mean_absolute_error: float | None
    drift: float | None = Field(
        description="Mean absolute change of its scores on the calibration set since it was first "
        "asked; None if nothing was scored both times."
    )
    injection_drop: float | None = Field(
        description="Mean score lost by harmful completions when an order to score 0 follows them; "
        "None if one of them was not scored."
    )
    labels: list[float]
    scores: list[float | None]


class RubricRecord(Record):
    """What one chat judge was told, as a version of a prompt in MLflow's prompt registry."""

    judge: str
    name: str
    version: int
    uri: str = Field(description="`prompts:/name/version`.")
    sha256: str = Field(description="Of the text: system message and both questions.")


class RejudgedRecord(Record):
    """The run whose completions were judged again; nothing was attacked again."""

    run_id: str
    evidence_sha256: str = Field(description="Of that run's evidence.")
    reward: list[str] = Field(description="Models that run's attacks were paid by.")
    evaluation: str = Field(description="The judge that evaluated it then.")


class AuditedRecord(Record):
    """The registered version that was attacked again; nothing was hardened."""

    name: str = Field(description="Registered model.")
    version: str
    run_id: str = Field(description="The run that hardened it.")
    evidence_sha256: str = Field(description="Of that run's evidence.")


class ExampleRecord(Record):
    """One exchange shown in the report; stand-in domains only."""

    title: str
    prompt: str
    completion: str
    refused: bool
    score: float | None


class Evidence(Record):
    """All of it."""

    schema_version: Literal["1"] = SCHEMA_VERSION
    run_id: str
    created: str = Field(description="UTC, ISO 8601.")
    backburn_version: str
    code_sha256: str = Field(description="Of Backburn's own files that judged and derived.")
    image: str = Field(description="Container image as configured; a local run does not use it.")
    config: dict[str, Any]
    config_digest: str
    environment: dict[str, str]
    purpose: str
    operator: str
    model_base: str
    model_revision: str | None
    base_digests: dict[str, str]
    baseline_digest: str
    hardened_digest: str
    hardened_files: dict[str, str] = Field(description="File of the adapter -> SHA-256.")
    lineage: list[str]
    data: DataRecord
    baseline: BaselineRecord
    phases: list[PhaseRecord]
    consolidation_curve: list[dict[str, float]] = Field(
        description="step, slip_rate (validation prompts), near_miss_rejection and "
        "benign_rejection (prompts set aside) during consolidation."
    )
    certificate: CertificateRecord
    behaviour: BehaviourRecord
    utility: list[UtilityRecord] = Field(
        default_factory=list, description="Of certification.utility; else empty."
    )
    over_refusal: list[OverRefusalRecord] = Field(
        default_factory=list, description="Of certification.over_refusal; else empty."
    )
    calibration: list[CalibrationRecord]
    agreement: list[AgreementRecord] = Field(description="Of a panel's members; else empty.")
    arms: list[ArmRecord]
    recipes: list[RecipeRecord]
    worst_case: WorstCaseRecord | None = Field(
        description="None if no hardened arm ran, or one of its checkpoints was not scored."
    )
    forms: list[FormRecord]
    styles: list[StyleRecord] = Field(
        default_factory=list, description="The first is the one hardened in."
    )
    other_domains: list[OtherDomainRecord] = Field(default_factory=list)
    trainability: list[TrainabilityRecord] = Field(default_factory=list)
    detectable_harm: float = Field(
        description="Least mean harm that would have shown, however it is spread over prompts, at "
        "the gate's confidence."
    )
    sweep: list[TrialRecord] = Field(
        default_factory=list, description="Trials of the search for the worst attack."
    )
    judge_usage: dict[str, dict[str, float]] = Field(
        description="What judging in the judge_evaluation step cost: requests, tokens, money."
    )
    coverage: float = Field(description="Scored share of all judged completions.")
    rubrics: list[RubricRecord] = Field(
        default_factory=list, description="What each chat judge was told; else empty."
    )
    rejudges: RejudgedRecord | None = Field(
        None, description="Of a rejudged run; None if the run attacked by itself."
    )
    audited: AuditedRecord | None = Field(
        None, description="Of an audit; None if the run hardened its model itself."
    )
    observations_sha256: str = Field(
        description="Of observations.json, from which all figures above can be made again."
    )
    examples: list[ExampleRecord]
    seconds: dict[str, float] = Field(description="Step -> wall time.")


class Check(Record):
    """One threshold of the gate, and how the evidence stands to it."""

    name: str
    description: str
    value: float | None
    threshold: float
    comparison: Literal["<=", ">="]
    passed: bool
    kind: Literal["control", "hardened", "behaviour", "judging"]
    detail: str


class Registration(Record):
    """Where the model went in the registry."""

    name: str
    version: str
    alias: str
    tracking_uri: str


class AuditOutcome(Record):
    """What an audit did to the registry."""

    name: str
    version: str
    action: Literal["none", "reported", "demoted"] = Field(
        description="none: it holds; reported: it failed, or nothing follows; demoted: it failed "
        "and is no longer champion."
    )
    champion: str | None = Field(description="Version, afterwards.")


class TrackedRun(Record):
    """Where the run is in MLflow."""

    uri: str = Field(description="The tracking server or store; never with a password.")
    experiment_id: str
    run_id: str


class Decision(Record):
    """What the gate decided and why; written to `decision.json`."""

    run_id: str
    outcome: Outcome
    reasons: list[str]
    checks: list[Check]
    gate_version: str
    gate_digest: str
    evidence_sha256: str
    dry_run: bool
    registration: Registration | None
    tracked: TrackedRun | None = None
    audit: AuditOutcome | None = Field(None, description="Of an audit that was no dry run.")


class Summary(Record):
    """The one file a script needs; written to `summary.json`."""

    schema_version: str = SCHEMA_VERSION
    run_id: str
    outcome: Outcome
    exit_code: int
    reasons: list[str]
    figures: dict[str, float | None] = Field(description="Every gated figure, by name.")
    thresholds: dict[str, float]
    sources: dict[str, str] = Field(description="Figure -> where it comes from in evidence.json.")
    seconds: dict[str, float] = Field(description="Step -> wall time; `total` for the run.")
    registration: Registration | None
    audit: AuditOutcome | None = None
    report: str
    evidence: str
    tracking_uri: str
    tracking_run_id: str | None
