"""Disjoint splits: divide, check for duplicates across splits, record digests and licences."""

import random
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

from backburn.components.shared.config import DataConfig, RunConfig
from backburn.components.shared.dataset import (
    PROMPT_SPLITS,
    over_refusal_split,
    write_header,
    write_rows,
)
from backburn.components.shared.domains import Domain, PromptRow, load_lesson, load_over_refusal
from backburn.components.shared.domains.domain import FORBIDDEN_SPLITS
from backburn.components.shared.errors import InputError
from backburn.components.shared.evidence import DataRecord, SplitRecord
from backburn.components.shared.storage import write_json

_WORD = re.compile(r"\w+")
_MOST_PAIRS_SHOWN = 10
_MOST_CHARACTERS = 8000
_TEMPLATE_SPLITS = {
    "near_miss": "near_miss",
    "near_miss_defence": "near_miss",
    "benign": "benign",
    "benign_defence": "benign",
}
_SETS_MAY_SHARE = ("near_miss", "benign")
"""Splits that only measure, as the sets of `certification.over_refusal` do."""

_MEASURING_SHARE = 0.35
"""Of the forbidden rows that name no split, at most."""

_LEAST_ROWS = {
    "defence": 2,
    "validation": 2,
    "attack": 1,
    "held_out": 5,
    "near_miss": 5,
    "near_miss_defence": 2,
    "benign": 5,
    "benign_defence": 2,
}


def make_splits(domain: Domain, config: DataConfig, seed: int) -> dict[str, list[PromptRow]]:
    """Divide a domain into disjoint splits.

    Rows that name their split keep it; the others are shuffled by the seed and fill the splits.
    Near-miss and benign rows are divided into a part the defence may train on and a part kept for
    evaluation; those of the split `defence` are all trained on, those of any other split kept.

    Raises:
        InputError: if a split is empty or too small, a row too long, or two rows of different
            splits are the same or nearly; names the rows.
    """
    sizes = {
        "defence": config.defence_prompts,
        "validation": config.validation_prompts,
        "attack": config.attack_prompts,
        "held_out": config.held_out_prompts,
    }
    rng = random.Random(seed)
    splits: dict[str, list[PromptRow]] = {
        name: [row for row in domain.forbidden if row.split == name] for name in FORBIDDEN_SPLITS
    }
    unassigned = [row for row in domain.forbidden if row.split is None]
    rng.shuffle(unassigned)
    shares = _shares(len(unassigned), sizes)
    for split in FORBIDDEN_SPLITS:
        taken, unassigned = unassigned[: shares[split]], unassigned[shares[split] :]
        splits[split] = (splits[split] + taken)[: sizes[split]]
    for name, rows in (("near_miss", domain.near_miss), ("benign", domain.benign)):
        splits[f"{name}_defence"], splits[name] = _divide(rows, config.defence_share, rng)
    _check_sizes(splits)
    _check_lengths(splits)
    _check_disjoint(splits, config.near_duplicate_threshold, domain.header.stand_in)
    return splits


def run_splits(domain: Domain, config: RunConfig) -> dict[str, list[PromptRow]]:
    """The splits of a run; see `make_splits`. Sets of `certification.over_refusal` are splits too.

    Raises:
        InputError: as `make_splits` does, if an attack arm wants more prompts than there are, and
            if a set of `certification.over_refusal` is unusable.
    """
    splits = make_splits(domain, config.data, config.seed)
    sets = {
        over_refusal_split(item.name): load_over_refusal(item, config.seed)
        for item in config.certification.over_refusal
    }
    _check_lengths(sets)
    _check_sets(sets, splits, config.data.near_duplicate_threshold)
    attack, defence = len(splits["attack"]), len(splits["defence"])
    short = [
        f"attack arm {arm.name!r} wants {arm.prompts} prompts"
        for arm in config.attack.arms
        if arm.prompts > attack + defence
    ]
    if short:
        raise InputError(
            f"the domain has {attack} attack and {defence} defence prompts, too few for its "
            f"arms; lower an arm's prompts or add rows:\n  " + "\n  ".join(short)
        )
    return {**splits, **sets}


def _divide(
    rows: Sequence[PromptRow], share: float, rng: random.Random
) -> tuple[list[PromptRow], list[PromptRow]]:
    """Two parts in which every form (question, role play, ...) has its share.

    Rows that name their split are not divided, and leave the division of the others as it is.
    """
    shuffled = [row for row in rows if row.split is None]
    rng.shuffle(shuffled)
    parts: tuple[list[PromptRow], list[PromptRow]] = (
        [row for row in rows if row.split == "defence"],
        [row for row in rows if row.split not in ("defence", None)],
    )
    owed: dict[str, float] = defaultdict(float)
    for row in shuffled:
        owed[row.form] += share
        first = owed[row.form] >= 0.5
        owed[row.form] -= first
        parts[0 if first else 1].append(row)
    if len(shuffled) < len(rows):
        for part in parts:
            rng.shuffle(part)
    return parts


def _shares(available: int, sizes: dict[str, int]) -> dict[str, int]:
    """How many unassigned rows each split gets.

    The splits that measure get what they want, together at most `_MEASURING_SHARE` of the rows;
    the defence gets the rest, up to its own limit.
    """
    measuring = {name: size for name, size in sizes.items() if name != "defence"}
    wanted, most = sum(measuring.values()), int(_MEASURING_SHARE * available)
    shares = {name: size * min(wanted, most) // wanted for name, size in measuring.items()}
    return {**shares, "defence": min(sizes["defence"], available - sum(shares.values()))}


def _check_sizes(splits: dict[str, list[PromptRow]]) -> None:
    small = [
        f"{name}: {len(splits[name])} row(s), at least {least} needed"
        for name, least in _LEAST_ROWS.items()
        if len(splits[name]) < least
    ]
    if small:
        raise InputError(
            "the dataset is too small:\n  "
            + "\n  ".join(small)
            + "\nAdd rows, or name no `split` in some: rows that name one stay in it"
        )


def _check_lengths(splits: dict[str, list[PromptRow]]) -> None:
    long = [
        f"{row.source or row.id}: {size} characters"
        for rows in splits.values()
        for row in rows
        if (size := sum(len(message.content) for message in row.messages)) > _MOST_CHARACTERS
    ]
    if long:
        raise InputError(
            f"{len(long)} row(s) longer than {_MOST_CHARACTERS} characters; shorten or remove "
            f"them:\n  " + "\n  ".join(long[:_MOST_PAIRS_SHOWN])
        )


def _check_disjoint(splits: dict[str, list[PromptRow]], threshold: float, shows_text: bool) -> None:
    """Compare every two rows of different splits by the Jaccard similarity of their word sets.

    The error quotes their beginnings if it may.
    """
    entries = [(name, row, _words(row)) for name in PROMPT_SPLITS for row in splits[name]]
    clashes: list[str] = []
    for index, (name, row, words) in enumerate(entries):
        for other_name, other, other_words in entries[index + 1 :]:
            if name == other_name:
                continue
            similarity = _similarity(words, other_words, threshold)
            if similarity >= threshold:
                quoted = f": {row.text[:70]!r} ~ {other.text[:70]!r}" if shows_text else ""
                clashes.append(
                    f"{name} {_where(row)} ~ {other_name} {_where(other)} "
                    f"({similarity:.2f}){quoted}"
                )
    if clashes:
        shown = clashes[:_MOST_PAIRS_SHOWN]
        more = [f"... and {len(clashes) - len(shown)} more"] if len(clashes) > len(shown) else []
        raise InputError(
            f"{len(clashes)} pair(s) of the same or nearly the same prompt in different splits "
            f"(word "
            f"similarity >= {threshold:g}). Remove one of each, or put both into one split:\n  "
            + "\n  ".join([*shown, *more])
        )


def _check_sets(
    sets: dict[str, list[PromptRow]], splits: dict[str, list[PromptRow]], threshold: float
) -> None:
    """Compare the rows of sets on which refusals are counted with those trained on and forbidden.

    The error shows no text: the sets are not the run's own.
    """
    others = [
        (name, row, _words(row))
        for name, rows in splits.items()
        if name not in _SETS_MAY_SHARE
        for row in rows
    ]
    clashes = [
        f"{name} {_where(row)} ~ {other_name} {_where(other)} ({similarity:.2f})"
        for name, rows in sets.items()
        for row in rows
        for words in [_words(row)]
        for other_name, other, other_words in others
        if (similarity := _similarity(words, other_words, threshold)) >= threshold
    ]
    if clashes:
        more = len(clashes) - _MOST_PAIRS_SHOWN
        tail = [f"... and {more} more"] if more > 0 else []
        raise InputError(
            f"{len(clashes)} row(s) of certification.over_refusal are the same or nearly the same "
            f"as rows the defence trains on or the domain forbids (word similarity >= "
            f"{threshold:g}). Leave them out of the set (`where`, or an edited file as "
            "`source.path`):\n  " + "\n  ".join([*clashes[:_MOST_PAIRS_SHOWN], *tail])
        )


def _words(row: PromptRow) -> frozenset[str]:
    asked = " ".join(message.content for message in row.messages if message.role == "user")
    return frozenset(_WORD.findall(asked.lower()))


def _similarity(words: frozenset[str], others: frozenset[str], threshold: float) -> float:
    """Jaccard similarity of two sets; 0 where it cannot reach the threshold."""
    smaller, larger = sorted((len(words), len(others)))
    if not smaller or smaller < threshold * larger:
        return 0.0
    return len(words & others) / len(words | others)


def _where(row: PromptRow) -> str:
    return f"[{row.source}]" if row.source else row.id


def write_dataset(folder: Path, domain: Domain, config: RunConfig) -> DataRecord:
    """Make the splits of a run and write them as an artifact.

    Returns:
        The record of rows, licences and digests.
    """
    splits = run_splits(domain, config)
    folder.mkdir(parents=True, exist_ok=True)
    records: dict[str, SplitRecord] = {}
    licences = {
        over_refusal_split(item.name): str(item.source.licence)
        for item in config.certification.over_refusal
    }
    for name, rows in splits.items():
        source = _TEMPLATE_SPLITS.get(name, "forbidden")
        records[name] = SplitRecord(
            rows=len(rows),
            sha256=write_rows(folder / f"{name}.jsonl", rows),
            licence=licences.get(name, domain.licences[source]),
            forms=dict(Counter(row.form for row in rows)),
        )
    digest = write_rows(folder / "calibration.jsonl", domain.calibration)
    records["calibration"] = SplitRecord(
        rows=len(domain.calibration),
        sha256=digest,
        licence=domain.licences["calibration"],
        forms=dict(Counter(exchange.kind for exchange in domain.calibration)),
    )
    lesson, licence = load_lesson(config)
    records["lesson"] = SplitRecord(
        rows=len(lesson),
        sha256=write_rows(folder / "lesson.jsonl", lesson),
        licence=licence,
        forms=dict(Counter(str(row.split) for row in lesson)),
    )
    write_json(folder / "refusals.json", domain.refusals)
    header = domain.header
    record = DataRecord(
        domain=header.name,
        title=header.title,
        stand_in=header.stand_in,
        rejection=header.rejection,
        rubric_version=header.rubric.version,
        splits=records,
    )
    write_header(folder, header, record)
    return record
