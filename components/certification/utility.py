"""What both models can still do: tasks of lm-evaluation-harness, document by document.

Importing the harness takes seconds: only runs with tasks import this module.
"""

import contextlib
import io
from collections.abc import Callable, Sequence
from typing import Any

from backburn.components.shared.config import UtilityConfig
from backburn.components.shared.models import LoadedModel
from backburn.components.shared.observations import UtilityObservation
from backburn.components.shared.scale.sharding import in_step
from backburn.components.shared.utility.tasks import load_tasks, metric_of, score_of, task_manager
from lm_eval import evaluator
from lm_eval.models.huggingface import HFLM

# Outside of a repository git would complain on stderr, in the middle of a task's log.
evaluator.get_git_commit_hash = lambda: None

_MODELS = ("baseline", "hardened")


def observe_utility(
    baseline: LoadedModel,
    hardened: LoadedModel,
    config: UtilityConfig,
    seed: int,
    report: Callable[[int, int, str], None],
) -> list[UtilityObservation]:
    """Score both models on every configured task.

    Args:
        baseline: The model before hardening.
        hardened: And after it.
        config: Tasks and how they are asked.
        seed: Of the harness, few-shot examples included.
        report: Called as `report(done, total, note)`; a model's total grows as its requests are
            known.

    Returns:
        One observation a task, in the order of their names; without text.

    Raises:
        InputError: if a task cannot be loaded or scored.
    """
    manager = task_manager(config)
    scored: list[dict[str, dict[str, Any]]] = []
    for name, loaded in zip(_MODELS, (baseline, hardened), strict=True):
        tasks = load_tasks(manager, config.tasks)
        samples = _evaluate(loaded, manager, list(tasks.values()), config, seed, name, report)
        scored.append(
            {task: _scores(task, tasks[task], found, config) for task, found in samples.items()}
        )
    before, after = scored
    observed: list[UtilityObservation] = []
    for task in sorted(before):
        first, second = before[task].pop("scores"), after[task].pop("scores")
        if before[task] != after[task]:
            raise RuntimeError(f"task {task} put other documents to the hardened model")
        observed.append(
            UtilityObservation(task=task, **before[task], baseline=first, hardened=second)
        )
    return observed


def _evaluate(
    loaded: LoadedModel,
    manager: Any,
    tasks: list[Any],
    config: UtilityConfig,
    seed: int,
    name: str,
    report: Callable[[int, int, str], None],
) -> dict[str, list[dict[str, Any]]]:
    """Samples of each task, as the harness logs them."""
    model = _ReportingModel(
        loaded, config.batch_size, lambda done, total: report(done, total, name)
    )
    with contextlib.redirect_stderr(io.StringIO()), in_step(loaded.model):  # its progress bars
        results = evaluator.simple_evaluate(
            model,
            tasks=tasks,
            task_manager=manager,
            num_fewshot=config.few_shot,
            limit=config.limit,
            bootstrap_iters=0,  # intervals are made from the samples
            apply_chat_template=config.chat_template,
            fewshot_as_multiturn=config.chat_template,
            random_seed=seed,
            numpy_random_seed=seed,
            torch_random_seed=seed,
            fewshot_random_seed=seed,
        )
    samples: dict[str, list[dict[str, Any]]] = results["samples"]
    return samples


def _scores(
    name: str, task: Any, samples: Sequence[dict[str, Any]], config: UtilityConfig
) -> dict[str, Any]:
    """Documents and scores of the task's metric, of its first filter."""
    metric, higher_is_better = metric_of(name, task, config)
    kept = [sample for sample in samples if sample["filter"] == samples[0]["filter"]]
    return {
        "metric": metric,
        "higher_is_better": higher_is_better,
        "documents": [str(sample["doc_hash"]) for sample in kept],
        "scores": [score_of(sample, metric) for sample in kept],
    }


class _ReportingModel(HFLM):  # type: ignore[misc]
    """A loaded model as the harness wants it, silent but for `report(done, total)`."""

    def __init__(
        self, loaded: LoadedModel, batch_size: int, report: Callable[[int, int], None]
    ) -> None:
        super().__init__(pretrained=loaded.model, tokenizer=loaded.tokenizer, batch_size=batch_size)
        self._report = report
        self._done = self._requests = 0

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = True) -> list[Any]:
        return self._counted(super().loglikelihood, requests)

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = True) -> list[Any]:
        return self._counted(super().loglikelihood_rolling, requests)

    def generate_until(self, requests: list[Any], disable_tqdm: bool = True) -> list[Any]:
        return self._counted(super().generate_until, requests)

    def _model_call(self, inps: Any, *further: Any, **named: Any) -> Any:
        logits = super()._model_call(inps, *further, **named)
        self._advance(len(inps))
        return logits

    def _model_generate(self, context: Any, *further: Any, **named: Any) -> Any:
        tokens = super()._model_generate(context, *further, **named)
        self._advance(len(context))
        return tokens

    def _counted(self, answer: Callable[..., list[Any]], requests: list[Any]) -> list[Any]:
        self._requests += len(requests)
        answers = answer(requests, disable_tqdm=True)
        self._done = self._requests
        self._advance(0)
        return answers

    def _advance(self, rows: int) -> None:
        self._done = min(self._done + rows, self._requests)  # rows can serve several requests
        self._report(self._done, self._requests)
