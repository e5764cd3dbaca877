"""Public sets of prompts on which refusals are counted, read from files or `datasets` ids."""

import random
from typing import Any

from backburn.components.shared.config import OverRefusalConfig
from backburn.components.shared.domains.domain import PromptRow
from backburn.components.shared.domains.loading import parse_rows, read_source
from backburn.components.shared.errors import InputError


def load_over_refusal(config: OverRefusalConfig, seed: int) -> list[PromptRow]:
    """Read one set.

    Args:
        config: Where it is, and which of its rows count.
        seed: Of the choice, if there are more rows than `limit`.

    Returns:
        Its prompts, in the set's order; ids begin with the set's name.

    Raises:
        InputError: naming the set, and what is wrong with its source, columns or rows.
    """
    key = f"certification.over_refusal[{config.name}].source"
    found = list(read_source(config.source, key, config.name, config.where))
    if config.limit is not None and config.limit < len(found):
        chosen = random.Random(seed).sample(range(len(found)), config.limit)
        found = [found[place] for place in sorted(chosen)]
    rows: list[tuple[str, dict[str, Any]]] = []
    for place, fields in found:
        kept: dict[str, Any] = {
            name: fields[name] for name in ("messages", "prompt") if name in fields
        }
        if not kept:
            raise InputError(
                f"{key}: {place} has neither a column `prompt` nor `messages`; name the column in "
                "`columns`, for example {prompt: question}"
            )
        rows.append((place, {"id": f"{config.name}:{fields['id']}", **kept}))
    try:
        return parse_rows(rows, PromptRow)
    except InputError as error:
        raise InputError(f"{key}: {error}") from error
