"""Local tasks that start warm: forked from a server that has imported the heavy libraries once.

torch, transformers, TRL and MLflow take ten seconds to import, and kfp.local starts a new
interpreter for every task. This runs the same KFP executor on the same component code in a process
forked from a `multiprocessing` fork server instead. The server only imports: it computes nothing,
so forking is safe.
"""

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from backburn.components.shared.scratch import scratch_folder
from backburn.pipelines.finished_tasks import FinishedTasks
from backburn.pipelines.task_locks import task_lock

_PRELOADED = [
    "kfp.dsl.executor_main",
    "backburn.components.shared.grpo",
    "peft",
    "backburn.components.shared.tracking",
    "transformers.models.llama.modeling_llama",
    "transformers.models.bert.modeling_bert",
    "backburn.components.judge_evaluation.step",
    "backburn.components.promotion.step",
]
_PROGRAM_POSITION = 3
_PATIENCE_SECONDS = 10
_MARKER = "kfp.dsl.executor_main"


@contextmanager
def warm_tasks(log: Path, finished: FinishedTasks, lock_file: Path) -> Iterator[None]:
    """Let kfp.local's subprocess tasks fork from a warm server while this context is open.

    Args:
        log: File to which the tasks' output is appended.
        finished: Tasks that need not run again.
        lock_file: Held by every task while it runs.
    """
    from kfp.local import subprocess_task_handler as handler

    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    lock = threading.Lock()
    original = handler.run_local_subprocess

    def run_warm(full_command: list[str], env_vars: dict[str, str] | None = None) -> int:
        if len(full_command) <= _PROGRAM_POSITION or _MARKER not in full_command[2]:
            return int(original(full_command=full_command, env_vars=env_vars))
        if finished.holds(full_command):
            return 0
        environment = {**os.environ, **(env_vars or {})}
        program, arguments = full_command[_PROGRAM_POSITION], full_command[_PROGRAM_POSITION + 1 :]
        places = (str(Path.cwd()), str(log), str(lock_file.resolve()))
        task: Any = context.Process(
            target=_execute, args=(program, arguments, environment, *places)
        )
        with lock:
            task.start()
        task.join()
        if task.exitcode == 0:
            finished.note(full_command)
        return int(task.exitcode or 0)

    handler.run_local_subprocess = run_warm
    try:
        yield
    finally:
        handler.run_local_subprocess = original
        stop_tasks()


def stop_tasks() -> None:
    """End every task that is running here, at once."""
    tasks = multiprocessing.active_children()
    for task in tasks:
        task.terminate()
    for task in tasks:
        task.join(timeout=_PATIENCE_SECONDS)
        if task.is_alive():
            task.kill()


def _execute(
    program: str,
    arguments: list[str],
    environment: dict[str, str],
    folder: str,
    log: str,
    lock_file: str,
) -> None:
    """In the forked process: become the KFP executor of one component."""
    threading.Thread(target=_end_with_the_command, daemon=True).start()
    os.environ.clear()
    os.environ.update(environment)
    os.environ["_KFP_RUNTIME"] = "true"
    os.chdir(folder)
    handle = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
    from kfp.dsl import executor_main

    with task_lock(Path(lock_file)), scratch_folder() as scratch:
        module = scratch / "ephemeral_component.py"
        module.write_text(program, encoding="utf-8")
        sys.argv = ["executor_main", "--component_module_path", str(module), *arguments]
        executor_main.executor_main()


def _end_with_the_command() -> None:
    """A task outlives nobody: when the command that started it is killed, it ends as well."""
    command = multiprocessing.parent_process()
    assert command is not None
    command.join()
    os.kill(os.getpid(), signal.SIGTERM)
