"""Finding lm-evaluation-harness tasks, and refusing those that cannot be run.

The harness reads relative `data_files` from the current folder. Here they start at the task's own
file, so that a task and its data can lie together anywhere. Importing the harness takes seconds:
only runs with tasks import this module.
"""

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from backburn.components.shared.config import UtilityConfig
from backburn.components.shared.errors import InputError
from backburn.components.shared.parsing import MOST_YAML_BYTES, check_yaml, one_line, shown
from backburn.components.shared.storage import is_folder, read_bytes

_SHIPPED = Path(__file__).parent
_KEY = "certification.utility"
_LOCAL_FORMATS = ("json", "csv", "parquet", "arrow", "text")
_HINT = "`python -m lm_eval ls tasks` lists those of the harness"


def task_manager(config: UtilityConfig) -> Any:
    """An lm_eval TaskManager that knows every task the configuration names.

    Raises:
        InputError: if a task file is unreadable or a name is unknown.
    """
    from lm_eval.tasks import TaskManager

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    folders = [_SHIPPED]
    if config.task_folder is not None:
        folders.append(_task_folder(config.task_folder))
    for harness in (False, True):  # the harness's own 14,000 files take a quarter of a minute
        manager = TaskManager(include_path=list(folders), include_defaults=harness)
        unknown = [name for name in config.tasks if name not in manager.task_index]
        if not unknown:
            break
    if unknown:
        known = ", ".join(TaskManager(include_path=folders, include_defaults=False).all_tasks)
        raise InputError(
            f"{_KEY}.tasks: no task, group or tag {', '.join(unknown)}. In the shipped tasks and "
            f"task_folder there are: {known}; {_HINT}"
        )
    for entry in manager.task_index.values():
        if entry.yaml_path is not None and any(entry.yaml_path.is_relative_to(f) for f in folders):
            _anchor(entry)
    return manager


def check_tasks(config: UtilityConfig) -> dict[str, str]:
    """Check the tasks without running them: names, task files, local data and metrics.

    Data on the hub is not fetched.

    Returns:
        Task -> `local data`, with the number of documents, or `hub data`.

    Raises:
        InputError: naming the task and what is wrong.
    """
    manager = task_manager(config)
    found: dict[str, str] = {}
    for name in config.tasks:
        for leaf in _leaves(manager.task_index, name):
            entry = manager.task_index.get(leaf)
            settings = (entry.cfg if entry is not None else None) or {}
            if settings.get("dataset_path") in _LOCAL_FORMATS:
                for task in load_tasks(manager, [leaf]).values():
                    metric_of(leaf, task, config)
                    found[leaf] = f"local data, {len(task.eval_docs)} documents"
                continue
            found[leaf] = "hub data"
            if settings.get("unsafe_code"):
                raise _unsafe([leaf])
            if settings.get("metric_list"):
                averaged = [
                    item["metric"]
                    for item in settings["metric_list"]
                    if item.get("aggregation", "mean") == "mean"
                ]
                _choose(leaf, averaged, config)
    absent = sorted(set(config.metrics) - set(found))
    if absent:
        raise InputError(
            f"{_KEY}.metrics: no task {', '.join(absent)} is run; there are: {', '.join(found)}"
        )
    return found


def load_tasks(manager: Any, names: list[str]) -> dict[str, Any]:
    """Every single task of names, groups and tags, with its data.

    Raises:
        InputError: if a task or its data cannot be loaded.
    """
    import datasets

    datasets.disable_progress_bars()
    try:
        tasks: dict[str, Any] = manager.load(list(names))["tasks"]
    except Exception as error:  # whatever a task file or its data make the harness raise
        raise InputError(
            f"{_KEY}.tasks: {', '.join(names)} cannot be loaded ({type(error).__name__}: "
            f"{one_line(error)}). Check the task file, that its data can be reached, and the "
            "packages it needs"
        ) from error
    unsafe = [name for name, task in tasks.items() if getattr(task, "UNSAFE_CODE", False)]
    if unsafe:
        raise _unsafe(unsafe)
    return tasks


def metric_of(name: str, task: Any, config: UtilityConfig) -> tuple[str, bool]:
    """The metric of a task that counts, and whether more of it is better.

    Raises:
        InputError: if the task does not average it over documents.
    """
    averaged = [item for item, how in task.aggregation().items() if how.__name__ == "mean"]
    metric = _choose(name, averaged, config)
    return metric, bool(task.higher_is_better()[metric])


def score_of(sample: Mapping[str, Any], metric: str) -> float:
    """A document's score.

    Raises:
        InputError: if it is not a number.
    """
    value = sample[metric]
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise InputError(
            f"{_KEY}.metrics: {metric} gives {value!r} for a document, which is not a number; "
            "name another metric of the task"
        )
    return float(value)


def _choose(name: str, averaged: list[str], config: UtilityConfig) -> str:
    wanted = config.metrics.get(name)
    if averaged and (wanted is None or wanted in averaged):
        return wanted or averaged[0]
    lacking = "no averaged metric" if wanted is None else f"no averaged metric {wanted!r}"
    raise InputError(
        f"{_KEY}.metrics: task {name} has {lacking}; it averages: {', '.join(averaged) or 'none'}. "
        "Two models are compared document by document, so others cannot be used"
    )


def _unsafe(names: list[str]) -> InputError:
    return InputError(
        f"{_KEY}.tasks: {', '.join(names)} runs code that the model writes, which a run does not "
        "do; leave it out"
    )


def _task_folder(text: str) -> Path:
    """The user's folder, each of whose files has to be readable."""
    from lm_eval.tasks._yaml_loader import load_yaml

    folder = Path(text).expanduser().resolve()
    if not is_folder(folder):
        raise InputError(
            f"{_KEY}.task_folder: no folder {shown(text)}; relative paths start at the current "
            "folder"
        )
    problems: list[str] = []
    for path in sorted(folder.rglob("*.yaml")):
        try:
            check_yaml(read_bytes(str(path), MOST_YAML_BYTES), str(path))
            load_yaml(path, resolve_func=False)
        except InputError as error:
            problems.append(str(error))
        except Exception as error:  # the harness would pass over the file in silence
            problems.append(f"{path}: {one_line(error)}")
    if problems:
        raise InputError(f"{_KEY}.task_folder: not readable:\n  " + "\n  ".join(problems))
    return folder


def _anchor(entry: Any) -> None:
    """Let the relative data files of a task start at its own file."""
    from lm_eval.tasks._yaml_loader import load_yaml

    kwargs = (entry.cfg or {}).get("dataset_kwargs") or {}
    if "data_files" not in kwargs:
        return
    settings = load_yaml(entry.yaml_path)  # with its functions
    folder = entry.yaml_path.parent
    settings["dataset_kwargs"] = {**kwargs, "data_files": _absolute(kwargs["data_files"], folder)}
    entry.cfg, entry.yaml_path = settings, None


def _absolute(files: Any, folder: Path) -> Any:
    if isinstance(files, Mapping):
        return {split: _absolute(item, folder) for split, item in files.items()}
    if isinstance(files, list):
        return [_absolute(item, folder) for item in files]
    return files if "://" in str(files) else str(folder / str(files))


def _leaves(index: Mapping[str, Any], name: str) -> list[str]:
    """Single tasks of a name; what a group defines in place is named by the group."""
    entry = index.get(name)
    if entry is None:
        return [name]
    kind = entry.kind.name
    if kind == "TAG":
        return [leaf for task in sorted(entry.tags) for leaf in _leaves(index, task)]
    members = (entry.cfg or {}).get("task")
    if kind == "GROUP" and isinstance(members, list):
        named = [item if isinstance(item, str) else item.get("task") for item in members]
        return [leaf for task in named if task for leaf in _leaves(index, task)]
    return [name]
