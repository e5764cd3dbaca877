"""What a run needs: memory of each model step, GPU hours, main memory, disk and object store.

An estimate from the configuration, the model's architecture and the domain's prompts; nothing is
loaded. Each step is described by the passes that it makes (`components/shared/sizing.py`) with
every completion taken to be as long as it may get. Judges and the loading of weights are left out
of the hours.
"""

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from backburn.components.shared.arms import arm_groups
from backburn.components.shared.config import (
    AttackArmConfig,
    LoraSettings,
    RefusalTrainingConfig,
    RunConfig,
)
from backburn.components.shared.errors import InputError
from backburn.components.shared.sizing import (
    ADAPTER_BYTES,
    ARCHITECTURES,
    FLOAT32,
    Adapter,
    Architecture,
    Gpu,
    Pass,
    activation_bytes,
    architecture_of,
    cache_bytes,
    gathered_bytes,
    head_bytes,
    logit_bytes,
    read,
    rollout,
    train,
)

CHARACTERS_PER_TOKEN = 4.0
"""Of English text; other languages have fewer."""
TEMPLATE_TOKENS = 30
"""Of a chat template around one prompt."""
PROCESS_BYTES = 4e9
"""Python, torch and CUDA in main memory."""
_MEASURED, _BENIGN_LOSS_PROMPTS, _ROOM = 20, 24, 64
_GENERIC_REFUSAL_TOKENS = 45.0
_MOST_GPUS = 8 * 64
_MOST_ROWS, _MOST_PACKED, _MOST_TRAINED, _SET_ASIDE = 96, 2048, 2048, 16
Work = list[tuple[float, Pass]]


@dataclass(frozen=True)
class Prompts:
    """How many prompts each split has, and how long texts are, in tokens."""

    counts: dict[str, int]
    longest: dict[str, float]
    mean: float
    """Of all prompts."""
    rejection: float
    refusal: float


@dataclass
class StepSize:
    """What one step needs. The task of a group of arms is such a step."""

    name: str
    tasks: int = 1
    copies_of_weights: float = 1.0
    passes: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Pass -> bytes of what is trained meanwhile (with gradients, optimiser and copies that are
    kept) and bytes that the pass holds at its peak. Passes come one after the other."""
    rows: int = 0
    """Of the largest GRPO step: how many are in memory at once."""
    row_bytes: float = 0.0
    """What each of them holds."""
    rows_trained: float = 0.0
    """Bytes of what is trained meanwhile."""
    host: float = 0.0
    """Bytes of main memory, weights on their way to the GPU included."""
    work: Work = field(default_factory=list)
    """Of all tasks together."""
    moving: Work = field(default_factory=list)
    """What comes on top if the arms' weights move."""

    def largest(self) -> str:
        """The pass with which most is held."""
        return max(self.passes, key=lambda title: sum(self.passes[title]))


@dataclass(frozen=True)
class Sizing:
    """What a run needs."""

    model: Architecture
    width: int
    steps: list[StepSize]
    store: dict[str, float]
    """Bytes in the object store, KFP's and MLflow's, by what they are."""
    disk: float
    """Bytes of a model step's cache volume or container: the weights as they are fetched."""
    sharing: int = 1
    """GPUs that divide the weights of a step."""

    @property
    def weights(self) -> float:
        """Bytes of the model's weights that a GPU holds all the time."""
        return self.width * self.model.parameters / self.sharing

    def gpu_bytes(self, step: StepSize) -> float:
        """Peak of a step on each GPU: weights, and what is trained with the largest pass."""
        gathered = gathered_bytes(self.model, self.width) if self.sharing > 1 else 0.0
        trained = sum(step.passes[step.largest()])
        return step.copies_of_weights * self.weights + gathered + trained

    def fits(self, step: StepSize, gpu: Gpu) -> bool:
        """Whether a step fits on a kind of GPU."""
        return self.gpu_bytes(step) <= gpu.usable * gpu.memory

    def seconds(self, work: Work, gpu: Gpu) -> float:
        """Time of a step's work, of all its GPUs together."""
        return gpu.seconds(work, self.sharing)

    def fitting_rows(self, step: StepSize, gpu: Gpu) -> int:
        """Rows of its GRPO step that fit on a card beside weights and what is trained."""
        held = self.gpu_bytes(step) - sum(step.passes[step.largest()])
        left = gpu.usable * gpu.memory - held - step.rows_trained
        return max(0, int(left // step.row_bytes)) if step.rows else 0

    def hours(self, gpu: Gpu) -> tuple[float, float]:
        """GPU hours of a run in which no hardened arm meets a live group, and in which all do."""
        least = sum(self.seconds(step.work, gpu) for step in self.steps) / 3600
        return least, least + sum(self.seconds(step.moving, gpu) for step in self.steps) / 3600


def read_architecture(config: RunConfig, given: str | None = None) -> Architecture:
    """The sizes of a run's model.

    Args:
        config: Names the model.
        given: A config.json, or a name of `ARCHITECTURES`, to be used instead.

    Raises:
        InputError: if they are not known here.
    """
    name = given or config.model.id
    if name in ARCHITECTURES:
        return ARCHITECTURES[name]
    path = Path(name).expanduser()
    path = path / "config.json" if path.is_dir() else path
    if not path.is_file():
        from huggingface_hub import try_to_load_from_cache

        valid = name.count("/") == 1 and not name.startswith((".", "/", "~"))
        found = try_to_load_from_cache(name, "config.json") if valid else None
        if not isinstance(found, str):
            raise InputError(
                f"{'--architecture' if given else 'model.id'}: the sizes of {name!r} are not known "
                "here. Give --architecture the model's config.json, or one of: "
                + ", ".join(ARCHITECTURES)
            )
        path = Path(found)
    try:
        return architecture_of(json.loads(path.read_text(encoding="utf-8")), str(path))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not readable as JSON: {error}") from error


def read_prompts(config: RunConfig) -> Prompts:
    """Count a run's prompts, and estimate their lengths from their characters.

    Raises:
        InputError: if the domain or its splits are unusable, as a run would say it.
    """
    from backburn.components.data_prep.splits import run_splits
    from backburn.components.shared.domains import load_domain

    domain = load_domain(config.domain)
    splits = run_splits(domain, config)
    lengths = {
        name: [
            TEMPLATE_TOKENS + sum(len(m.content) for m in row.messages) / CHARACTERS_PER_TOKEN
            for row in rows
        ]
        for name, rows in splits.items()
    }
    every = [length for split in lengths.values() for length in split]
    refusals = [len(text) / CHARACTERS_PER_TOKEN for text in domain.refusals.values()]
    return Prompts(
        {name: len(rows) for name, rows in splits.items()},
        {name: max(found, default=0.0) for name, found in lengths.items()},
        sum(every) / len(every),
        len(domain.header.rejection) / CHARACTERS_PER_TOKEN + 1,
        sum(refusals) / len(refusals) if refusals else _GENERIC_REFUSAL_TOKENS,
    )


def size_run(config: RunConfig, model: Architecture, prompts: Prompts) -> Sizing:
    """Size every step of a run that loads the model."""
    sizer = _Sizer(config, model, prompts)
    audits = config.audit is not None
    steps = [
        sizer.baseline(),
        *([] if audits else [sizer.defense()]),
        sizer.certification(),
        sizer.attack("control"),
        sizer.attack("hardened"),
    ]
    return Sizing(model, sizer.width, steps, sizer.store(), sizer.weights, sizer.sharing)


def sharded(config: RunConfig, gpus: int) -> RunConfig:
    """The run with its weights divided over so many GPUs of one machine."""
    changes = {"sharding": "full", "processes": gpus, "nodes": 1, "gpus": gpus}
    compute = config.compute.model_copy(update=changes)
    return config.model_copy(update={"compute": compute})


def fewest_gpus(config: RunConfig, model: Architecture, prompts: Prompts, gpu: Gpu) -> int | None:
    """GPUs over which a step's weights have to be divided to fit; None: 512 are too few.

    One means that every step fits without.
    """
    for count in range(1, _MOST_GPUS + 1):
        found = size_run(sharded(config, count), model, prompts)
        if all(found.fits(step, gpu) for step in found.steps):
            return count
    return None


def growth(config: RunConfig) -> Iterator[tuple[str, RunConfig]]:
    """Changes of the attack's budget, one at a time, for a table of what they cost."""
    for title, changes in (
        ("as configured", {}),
        ("twice the seeds", {"seeds": lambda seeds: [*seeds, *(1000 + s for s in seeds)]}),
        ("twice the group size", {"group_size": lambda size: 2 * size}),
        ("twice the prompts a step", {"prompts_per_step": lambda count: 2 * count}),
        ("half the steps", {"steps": lambda steps: max(1, steps // 2)}),
        ("one control seed an arm", {"control_seeds": lambda seeds: seeds[:1]}),
    ):
        arms = []
        for arm in config.attack.arms:
            values = {name: change(getattr(arm, name)) for name, change in changes.items()}
            values["prompts"] = max(arm.prompts, values.get("prompts_per_step", 0))
            arms.append(arm.model_copy(update=values))
        attack = config.attack.model_copy(update={"arms": arms})
        yield title, config.model_copy(update={"attack": attack})


class _Sizer:
    """Counts the passes of each step; names follow the code that makes them."""

    def __init__(self, config: RunConfig, model: Architecture, prompts: Prompts) -> None:
        from backburn.components.shared.supervised import BEGINNING, KEPT_TOKENS

        self.config, self.model, self.prompts = config, model, prompts
        self.width = FLOAT32 if config.model.dtype == "float32" else 2
        self.weights = float(self.width * model.parameters)
        compute = config.compute
        self.sharing = compute.processes * compute.nodes if compute.sharding == "full" else 1
        self.cap = config.attack.max_completion_tokens
        self.kept = min(self.cap, KEPT_TOKENS)
        self.beginning = min(self.kept, BEGINNING)
        self.copies = 0.0
        """Bytes of further copies of the adapter that the present step keeps."""

    def baseline(self) -> StepSize:
        """`components/baseline/step.py`; counted as if the model had to be aligned."""
        settings = self.config.baseline
        adapter = _adapter(settings.lora)
        step = StepSize("baseline")
        measured = min(_MEASURED, self.prompts.counts["validation"])
        self._draws(step, measured, 1, self.cap)
        if settings.when != "never":
            rows = self.prompts.counts["benign_defence"] + self.prompts.counts["near_miss_defence"]
            kept = min(settings.steps * settings.benign_per_step, rows)
            self._draws(step, kept, 1, self.kept)
            self._align(step, settings, adapter)
            self._draws(step, measured, 1, self.cap, adapter.rank)
            step.host += self._references(kept, 0)
        step.host += self.weights + PROCESS_BYTES
        return step

    def defense(self) -> StepSize:
        """`components/defense_training`."""
        config, counts = self.config.defense, self.prompts.counts
        adapter = _adapter(config.lora)
        step = StepSize("defense_training")
        # Consolidation keeps its best state, a running average and the state being measured.
        self.copies = 3.0 * FLOAT32 * self.model.lora(adapter.rank, adapter.share)
        whole = counts["near_miss_defence"] + counts["benign_defence"]
        put_differently = int((config.role_plays + config.restyled) * whole)
        self._draws(step, whole, 1, self.kept)
        self._draws(step, put_differently, 1, self.beginning)
        meterings = 2.0
        if config.method == "neutralization":
            warm, rl, cons = config.warm_start, config.neutralization, config.consolidation
            if warm.enabled:
                self._supervised(
                    step, warm.steps, warm.forbidden_per_step, self.prompts.rejection, adapter
                )
                self._supervised(step, warm.steps, warm.benign_per_step, self.kept, adapter)
            if rl.enabled:
                self._grpo(step, step.work, rl.steps, rl.prompts_per_step, rl.group_size, self.cap,
                           adapter, ("defence", "near_miss_defence", "benign_defence"),
                           reference=rl.kl_coefficient > 0)  # fmt: skip
            if cons.enabled:
                rejections = cons.forbidden_per_step + cons.recovery_per_step
                benign = cons.near_miss_per_step + cons.benign_per_step
                self._supervised(step, cons.max_steps, rejections, self.prompts.rejection, adapter)
                self._supervised(step, cons.max_steps, benign, self.kept, adapter)
                meterings += 2 + cons.max_steps / cons.check_every
        elif config.method == "entropy":
            entropy = config.entropy
            self._grpo(step, step.work, entropy.steps, entropy.prompts_per_step,
                       entropy.group_size, self.cap, adapter, ["defence"])  # fmt: skip
            drawn = entropy.prompts_per_step * entropy.group_size
            self._supervised(step, entropy.steps, drawn, self.cap, adapter)
            self._supervised(step, entropy.steps, entropy.benign_per_step, self.kept, adapter)
        else:
            self._align(step, config.refusal, adapter)
        aside = min(_SET_ASIDE, counts["benign_defence"])
        short = counts["validation"] + 2 * aside
        self._reads(step, meterings, short, self.prompts.rejection, adapter.rank)
        self._reads(step, meterings, aside, self.kept, adapter.rank)
        step.host = self.weights + self._references(whole, put_differently) + PROCESS_BYTES
        self.copies = 0.0
        return step

    def certification(self) -> StepSize:
        """`components/certification`, tasks of lm-evaluation-harness left out: both models."""
        from backburn.components.shared.derivation.certificate import needed_rates

        config, counts = self.config.certification, self.prompts.counts
        step = StepSize("certification", copies_of_weights=2.0)
        for split, _ in {(split, style) for split, style, _ in needed_rates(self.config)}:
            self._reads(step, 1, counts[split], self.prompts.rejection)
        sets = [count for name, count in counts.items() if name.startswith("over_refusal_")]
        for rows in (counts["near_miss"], counts["benign"], *sets):
            for _ in range(2):
                self._draws(step, rows, config.behaviour_completions, self.cap)
        self._reads(step, 2, counts["benign"], self.cap)
        training = config.trainability
        if training.enabled:
            adapter = _adapter(training.lora)
            runs = 2 * len(training.seeds)
            self._supervised(
                step, runs * training.sft_steps, training.sft_rows_per_step, 20.0, adapter
            )
            self._grpo(step, step.work, runs * training.rl_steps, training.rl_prompts_per_step,
                       training.rl_group_size, training.rl_max_tokens, adapter,
                       ["benign_defence"])  # fmt: skip
            for _ in range(2 + runs):
                self._draws(step, training.rl_evaluation_prompts,
                            training.rl_evaluation_completions, training.rl_max_tokens)  # fmt: skip
        step.host = self.weights + PROCESS_BYTES
        return step

    def attack(self, role: str) -> StepSize:
        """`components/rl_attack`: every arm of one role, and the sweep's trials."""
        groups = arm_groups(self.config, role)
        title = "control arms" if role == "control" else "hardened arms"
        step = StepSize(f"rl_attack, {title}", tasks=len(groups))
        arms = [
            (arm, len(arm.control_seeds if role == "control" else arm.seeds))
            for arm in self.config.attack.arms
        ]
        sweep = self.config.attack.sweep
        if role == "hardened" and sweep.trials:
            first = self.config.attack.arms[0]
            trial = first.model_copy(update={"steps": sweep.steps})
            arms += [(trial, sweep.trials), (first, len(first.seeds))]
        for arm, seeds in arms:
            if seeds:
                self._arm(step, arm, seeds, role)
        held = self.prompts.counts["held_out"] + max(arm.prompts for arm in self.config.attack.arms)
        tables = held * self.prompts.rejection * self.model.vocabulary * FLOAT32
        step.host = self.weights + tables + PROCESS_BYTES
        return step

    def store(self) -> dict[str, float]:
        """Bytes of what a run leaves in KFP's store and in MLflow's; adapters are in float32."""
        first, second = self.config.baseline.lora, self.config.defense.lora
        before = FLOAT32 * self.model.lora(first.rank, first.upper_share)
        # Stacking gives every block that either has the sum of both ranks.
        share = max(first.upper_share, second.upper_share)
        after = FLOAT32 * self.model.lora(first.rank + second.rank, share)
        drawn = sum(
            len(self.config.attack.checkpoints)
            * self.prompts.counts["held_out"]
            * self.config.attack.completions_per_prompt
            * (len(arm.seeds) + len(arm.control_seeds))
            for arm in self.config.attack.arms
        )
        sealed = drawn * self.cap * CHARACTERS_PER_TOKEN * 1.5
        hardened = 0.0 if self.config.audit else float(after)
        return {
            "baseline adapter, KFP": float(before),
            "hardened adapter, KFP": float(after),
            "hardened adapter, MLflow": hardened,
            "sealed completions until judged, KFP": sealed,
        }

    def _arm(self, step: StepSize, arm: AttackArmConfig, seeds: int, role: str) -> None:
        """An arm whose weights stand still costs a reading of each prompt; see `Rollouts`."""
        settings, held_out = self.config.attack, self.prompts.counts["held_out"]
        steps = arm.control_steps if role == "control" else arm.steps
        checkpoints = len({s for s in settings.checkpoints if s <= steps} | {steps})
        full = arm.adapter == "full"
        adapter = Adapter(0) if full else _adapter(arm.lora)
        moves = role == "control" or arm.moves_without_signal
        if not moves:
            self._reads(step, 1, held_out + arm.prompts, self.prompts.rejection)
        work = step.work if moves else step.moving
        splits = ["attack", "defence"][: 1 + (arm.prompts > self.prompts.counts["attack"])]
        self._grpo(step, work, seeds * steps, arm.prompts_per_step, arm.group_size, self.cap,
                   adapter, splits, reference=arm.kl_coefficient > 0)  # fmt: skip
        for _ in range(seeds * checkpoints):
            self._draws(
                step, held_out, settings.completions_per_prompt, self.cap, adapter.rank, work
            )
        self._reads(step, seeds * checkpoints, _BENIGN_LOSS_PROMPTS, self.kept, adapter.rank, work)

    def _align(self, step: StepSize, settings: RefusalTrainingConfig, adapter: Adapter) -> None:
        self._supervised(
            step, settings.steps, settings.forbidden_per_step, self.prompts.refusal, adapter
        )
        self._supervised(step, settings.steps, settings.benign_per_step, self.kept, adapter)

    def _supervised(
        self, step: StepSize, steps: int, rows: int, completion: float, adapter: Adapter
    ) -> None:
        """Steps of `rejection_step` or `benign_step`, in packed rows."""
        if not rows:
            return
        passes, tokens = _packed(rows * (self.prompts.mean + completion))
        kept, again = rows * completion / passes, self.sharing > 1
        # Attention that is computed again reads the whole row, with a mask: `packed_attention`.
        apart = 1 if again else rows / passes
        work = train(self.model, tokens, kept, self.width, adapter, rows=apart, again=again)
        step.work.append((steps * passes, work))
        part = min(1.0, max(1 / self.sharing, passes / rows))  # of a pass, at least one example
        held = activation_bytes(self.model, part * tokens, self.width, adapter, again)
        held += logit_bytes(self.model, part * kept, self.width)
        self._hold(step, "supervised step", held, adapter)

    def _grpo(
        self,
        step: StepSize,
        work: Work,
        steps: int,
        prompts: int,
        size: int,
        completion: float,
        adapter: Adapter,
        splits: Sequence[str],
        reference: bool = False,
    ) -> None:
        """Steps of `GroupTrainer` on a GPU: padded rows, prompts in each.

        Where they do not fit into one pass, all are read without keeping activations, and then
        each part is read again for its backward pass. GPUs that divide the weights read theirs in
        one pass.
        """
        rows = prompts * size
        longest = self._longest(splits) + completion
        divided = self.sharing > 1
        most = math.ceil(rows / self.sharing) if divided else int(_MOST_TRAINED // longest)
        at_once = min(rows, max(1, most))
        tokens, kept = rows * (self.prompts.mean + completion), rows * completion
        drawn = rollout(self.model, prompts, size, self.prompts.mean, completion, self.width,
                        adapter.rank)  # fmt: skip
        work += [(steps * count, item) for count, item in drawn]
        read_at_once = rows if divided else at_once  # by all GPUs together
        parts = rows / read_at_once
        part, kept_part = tokens / parts, kept / parts
        trained_part = train(
            self.model, part, kept_part, self.width, adapter, read_at_once, again=divided
        )
        work.append((steps * parts, trained_part))
        again = int(reference) + int(read_at_once < rows)
        if again:
            again_read = read(self.model, part, kept_part, self.width, rows=read_at_once)
            work.append((steps * parts * again, again_read))
        held = activation_bytes(self.model, at_once * longest, self.width, adapter, divided)
        held += head_bytes(self.model, at_once * completion, self.width)
        title = f"GRPO step, {at_once} of {rows} rows at once"
        trained = self._hold(step, title, held, adapter)
        if trained + held > step.rows_trained + step.rows * step.row_bytes:
            step.rows, step.row_bytes, step.rows_trained = at_once, held / at_once, trained

    def _draws(
        self,
        step: StepSize,
        prompts: int,
        copies: int,
        completion: float,
        rank: int = 0,
        work: Work | None = None,
    ) -> None:
        """`draw_completions`, in batches of at most 96 rows."""
        if not prompts:
            return
        own = math.ceil(prompts / self.sharing)
        batches = math.ceil(own / max(1, _MOST_ROWS // copies))
        each = math.ceil(own / batches)
        drawn = rollout(self.model, each * self.sharing, copies, self.prompts.mean, completion,
                        self.width, rank)  # fmt: skip
        target = step.work if work is None else work
        target += [(batches * count, item) for count, item in drawn]
        rows = each * copies
        longest = self._longest(self.prompts.counts) + completion + _ROOM
        logits = rows * self.model.vocabulary * (self.width + 3 * FLOAT32)
        cache = cache_bytes(self.model, rows, longest, self.width)
        self._hold(step, f"rollout, {rows} rows", cache + logits)

    def _reads(
        self,
        step: StepSize,
        times: float,
        prompts: int,
        completion: float,
        rank: int = 0,
        work: Work | None = None,
    ) -> None:
        """`completion_logits`, in packed rows."""
        if not prompts:
            return
        passes, tokens = _packed(prompts * (self.prompts.mean + completion))
        kept = prompts * completion / passes
        item = read(self.model, tokens, kept, self.width, rank, rows=prompts / passes)
        (step.work if work is None else work).append((times * passes, item))
        logits = kept * self.model.vocabulary * (self.width + FLOAT32)
        self._hold(step, "reading of given completions", logits)

    def _longest(self, splits: Iterable[str]) -> float:
        return max(self.prompts.longest[name] for name in splits)

    def _hold(
        self, step: StepSize, title: str, held: float, adapter: Adapter | None = None
    ) -> float:
        """Remember what a pass holds; returns the bytes of what is trained meanwhile."""
        trained = 0.0 if adapter is None else self._trained(adapter)
        before = step.passes.get(title, (0.0, 0.0))
        step.passes[title] = max(before, (trained, held), key=sum)
        return trained

    def _trained(self, adapter: Adapter) -> float:
        """Parameters, gradients and AdamW's moments.

        In full training, beside the weights: a copy to restore and gradients in the weights' dtype,
        moments in float32, and float32 weights if theirs is less: 16 bytes either way.
        """
        if adapter.rank:
            parameters = self.model.lora(adapter.rank, adapter.share)
            return ADAPTER_BYTES * parameters + self.copies
        return 16.0 * self.model.parameters

    def _references(self, whole: int, beginnings: int) -> float:
        """`References`: float32 log-probabilities of kept answers, in main memory."""
        tokens = whole * self.kept + beginnings * self.beginning
        return float(tokens * self.model.vocabulary * FLOAT32)


def _adapter(settings: LoraSettings) -> Adapter:
    return Adapter(settings.rank, settings.upper_share)


def _packed(tokens: float) -> tuple[int, float]:
    """Passes over so many tokens, and the tokens of each; see `packs`."""
    passes = max(1, math.ceil(tokens / _MOST_PACKED))
    return passes, tokens / passes


def gpus_at_once(config: RunConfig) -> int:
    """GPUs a run uses at most: controls beside the hardening, or beside the hardened arms."""
    controls, attacks = (
        min(len(arm_groups(config, role)), config.attack.parallel_groups)
        for role in ("control", "hardened")
    )
    return (controls + max(1, attacks)) * max(1, config.compute.gpus)
