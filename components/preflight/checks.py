"""Everything that can be found wrong before the first expensive step."""

import platform
import re
import shutil
from collections.abc import Callable
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

from backburn.components.shared import sealing, signing
from backburn.components.shared.arms import arm_groups
from backburn.components.shared.config import (
    ATTACK_STEP_HARD_CAP,
    REGISTERED_NAME,
    OverRefusalConfig,
    RunConfig,
)
from backburn.components.shared.domains import (
    Domain,
    load_domain,
    load_lesson,
    load_over_refusal,
    shipped_domains,
)
from backburn.components.shared.errors import ContainmentError, InputError
from backburn.components.shared.models import TINY, check_model

_LEAST_FREE_BYTES = 2 << 30
_PACKAGES = (
    "backburn",
    "torch",
    "transformers",
    "trl",
    "peft",
    "kfp",
    "mlflow",
    "datasets",
    "lm-eval",
)


def check_run(config: RunConfig, *, has_model_steps: bool = True) -> dict[str, Any]:
    """Check a run's inputs without training anything.

    Args:
        config: Validated configuration.
        has_model_steps: Whether they run with the packages that are installed here.

    Returns:
        Facts for the preflight report.

    Raises:
        InputError: with every problem found.
    """
    problems: list[str] = []
    facts: dict[str, Any] = {"packages": installed_versions(), "python": platform.python_version()}

    def attempt(name: str, check: Callable[[], Any]) -> Any:
        try:
            facts[name] = check()
        except (InputError, ContainmentError) as error:
            problems.append(str(error))
        return facts.get(name)

    attempt("model", lambda: check_model(config.model))
    domain: Domain | None = None

    def check_domain() -> dict[str, Any]:
        nonlocal domain
        domain = load_domain(config.domain)
        return {
            "name": domain.header.name,
            "stand_in": domain.header.stand_in,
            "rows": len(domain.forbidden) + len(domain.near_miss) + len(domain.benign),
            "licences": domain.licences,
        }

    attempt("domain", check_domain)
    if not re.fullmatch(REGISTERED_NAME, config.registered_model_name):
        problems.append(
            f"tracking.registered_model: {config.registered_model_name!r}, made of model and "
            "domain, is no name that the registry takes; set one of letters, digits, spaces and ._-"
        )
    if config.model.id == TINY and config.domain_name != "toy_kitchen":
        problems.append(
            "model.id: builtin:tiny only reads the toy grammar; set domain.name to toy_kitchen"
        )
    for model in (*config.judges.reward.models, *config.judges.evaluation.models):
        if model == "semantic":
            from backburn.components.shared.judges.semantic import embedding_model_folder

            attempt("embeddings", lambda: embedding_model_folder().parent.name)
    if config.attack.sweep.trials and config.attack.sweep.storage is not None:
        attempt("sweep storage", lambda: _check_storage(str(config.attack.sweep.storage)))
    utility = config.certification.utility
    if utility.tasks:
        from backburn.components.shared.utility.tasks import check_tasks  # seconds

        attempt("utility tasks", lambda: check_tasks(utility))
    for item in config.certification.over_refusal:
        attempt(f"over-refusal {item.name}", partial(_check_set, item, config.seed))
    shipped = shipped_domains()
    for arm in config.attack.arms:
        if arm.domain is not None and arm.domain not in shipped:
            names = ", ".join(shipped)
            problems.append(
                f"attack arm {arm.name!r}: no shipped domain {arm.domain!r}; there are {names}"
            )
        if config.model.id == TINY and arm.domain not in (None, "toy_kitchen"):
            problems.append(
                f"attack arm {arm.name!r}: builtin:tiny cannot read prompts of {arm.domain}; leave "
                "the arm out"
            )
        if max(arm.steps, arm.control_steps) > ATTACK_STEP_HARD_CAP:
            problems.append(
                f"attack arm {arm.name!r}: over the hard cap of {ATTACK_STEP_HARD_CAP} steps"
            )
    others = set(config.certification.other_domains)
    if unknown := sorted(others - set(shipped)):
        problems.append(
            f"certification.other_domains: no shipped domain {', '.join(unknown)}; there are "
            f"{', '.join(shipped)}"
        )
    if config.model.id == TINY and others - {"toy_kitchen"}:
        problems.append(
            "certification.other_domains: builtin:tiny only reads the toy grammar; "
            "--set certification.other_domains=[]"
        )
    if config.compute.rollouts == "vllm" and has_model_steps:
        from backburn.components.shared.vllm_rollouts import installed_vllm  # seconds

        attempt("vllm", installed_vllm)
    attempt("lesson", lambda: len(load_lesson(config)[0]))
    free = shutil.disk_usage(".").free
    if free < _LEAST_FREE_BYTES:
        problems.append(f"only {free >> 20} MiB of disk are free here; at least 2 GiB are needed")
    if problems:
        raise InputError("\n".join(problems))
    return facts


def _check_set(item: OverRefusalConfig, seed: int) -> dict[str, Any]:
    return {"rows": len(load_over_refusal(item, seed)), "licence": item.source.licence}


def _check_storage(url: str) -> str:
    import optuna  # half a second, for runs with a sweep only

    folder = Path(url.removeprefix("sqlite:///")).parent
    if url.startswith("sqlite:///") and not folder.is_dir():
        raise InputError(
            f"attack.sweep.storage: {url!r}: there is no folder {folder}; make it, or leave the "
            "storage out and let the run keep the trials itself"
        )
    try:
        optuna.storages.get_storage(url)
    except Exception as error:  # whatever the database's driver raises
        reason = str(error).strip().splitlines()[0]
        raise InputError(
            f"attack.sweep.storage: {url!r} does not open ({type(error).__name__}: {reason}). Give "
            "an SQLAlchemy URL such as sqlite:////data/sweeps.db whose folder exists and whose "
            "server answers, or leave it out and let the run keep the trials itself"
        ) from error
    return "opens"


def check_environment() -> None:
    """Check what only the task's environment can tell: the keys that seal and sign.

    Raises:
        ContainmentError: if one of them is missing or unusable.
    """
    sealing.require_key()
    signing.require_key()


def check_pipeline(config: RunConfig, pipeline: str) -> None:
    """Check that the configuration is for the pipeline that runs.

    Raises:
        InputError: if it is for the other one.
    """
    if config.pipeline != pipeline:
        has = "has no" if config.audit is None else "has an"
        raise InputError(
            f"the pipeline `{pipeline}` was given a configuration that {has} `audit` section; "
            "submit the pipeline that `backburn compile` makes of it"
        )


def check_groups(config: RunConfig, role: str, given: list[dict[str, Any]]) -> None:
    """Check that the pipeline's groups of arms are those of its configuration.

    Raises:
        InputError: if they differ, so that no arm is forgotten or attacked twice.
    """
    expected = arm_groups(config, role)
    if sorted(map(_arms, given)) != sorted(map(_arms, expected)):
        raise InputError(
            f"the pipeline's {role} groups are not those of its configuration. Pass groups that "
            f"belong to the "
            "configuration, or compile the pipeline from it (`backburn compile`)"
        )


def _arms(group: dict[str, Any]) -> list[tuple[str, str, int]]:
    arms = [(str(group["role"]), str(arm["arm"]), int(arm["seed"])) for arm in group["arms"]]
    return [*arms, (str(group["role"]), "the sweep", 0)] if group.get("sweep") else arms


def installed_versions() -> dict[str, str]:
    """Versions of the packages a result depends on."""
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "source tree"
    return versions
