"""The configuration of an audit, from a recipe and the options of a command."""

import json
from collections.abc import Sequence
from pathlib import Path

from backburn.components.shared.config import RunConfig
from backburn.components.shared.errors import InputError
from backburn.pipelines.recipes import load_recipe


def load_audit(
    recipe: str,
    overrides: Sequence[str],
    reference: str | None,
    key: Path | None,
    any_key: bool,
    report_only: bool,
) -> RunConfig:
    """Read a recipe as that of an audit; options count more than its own `audit` section.

    Args:
        recipe: See `load_recipe`.
        overrides: The same.
        reference: The registered version; None is the recipe's own.
        key: File of the public key that must have signed its evidence.
        any_key: Trust whoever signed.
        report_only: Move no alias.

    Raises:
        InputError: with every problem of the outcome, or if it is not said whose signature counts.
    """
    given = list(overrides)
    if load_recipe(recipe, given).audit is None:
        given.append("audit={}")
    if reference is not None:
        given.append(f"audit.model={json.dumps(reference)}")
    if key is not None:
        given.append(f"audit.trusted_key={json.dumps(_read(key))}")
    if report_only:
        given.append("audit.on_failure=report")
    config = load_recipe(recipe, given)
    if config.audit is not None and (config.audit.trusted_key is None) != any_key:
        raise InputError(
            "say whose signature counts: --key with a public key (or audit.trusted_key in the "
            "recipe), or --any-key to trust whoever signed"
        )
    return config


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--key {path}: cannot be read: {error}") from error
