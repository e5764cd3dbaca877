"""What a person sees while a run goes on, and when it ends."""

import json
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from backburn.components.shared.evidence import Summary
from backburn.components.shared.gate import digits
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn
from rich.table import Table
from rich.text import Text

_PLAIN_INTERVAL_SECONDS = 15.0


@dataclass
class _Task:
    name: str
    phase: str
    done: int
    total: int
    note: str
    began: float
    phase_began: float
    last: float
    finished: bool = False

    @property
    def remaining(self) -> float | None:
        """Seconds to the end of the phase, from its own pace."""
        if self.done <= 0 or self.total <= self.done or self.phase == "starting":
            return None
        return (self.last - self.phase_began) / self.done * (self.total - self.done)


class Watcher:
    """Follows a run's events: live on a terminal, a line now and then elsewhere."""

    def __init__(self, events: Path, console: Console) -> None:
        self._events = events
        self._console = console
        self._tasks: dict[str, _Task] = {}
        self._offset = events.stat().st_size if events.is_file() else 0  # of an earlier attempt
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._printed: dict[str, float] = {}
        self._live: Live | None = None

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live = Live(self._render(), console=self._console, refresh_per_second=4)
            self._live.start()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join(timeout=5)
        self._read()
        if self._live is not None:
            self._live.update(self._render())
            self._live.stop()

    def _watch(self) -> None:
        while not self._stop.wait(0.3):
            self._read()
            if self._live is not None:
                self._live.update(self._render())

    def _read(self) -> None:
        if not self._events.is_file():
            return
        with self._events.open("rb") as file:
            file.seek(self._offset)
            content = file.read()
        complete = content.rfind(b"\n") + 1
        self._offset += complete
        for line in content[:complete].splitlines():
            self._apply(json.loads(line))

    def _apply(self, event: dict[str, Any]) -> None:
        now = float(event["time"])
        task = self._tasks.get(event["task"])
        if event.get("kept"):
            task = _Task(event["task"], "kept", 1, 1, "", now, now, now, finished=True)
            self._tasks.setdefault(task.name, task)
            self._print(f"  {task.name}: kept from an earlier attempt", task, True)
            return
        if event.get("finished"):
            if task is not None:
                task.finished, task.last = True, now
                self._print(
                    f"  {task.name}: done in {_duration(task.last - task.began)}", task, True
                )
            return
        phase = str(event["phase"])
        if task is None:
            task = _Task(event["task"], phase, 0, 0, "", now, now, now)
            self._tasks[task.name] = task
        if phase != task.phase:
            task.phase, task.phase_began = phase, now
        task.done, task.total, task.note = (
            int(event["done"]),
            int(event["total"]),
            str(event["note"]),
        )
        task.last = now
        if phase != "starting":
            note = f" ({task.note})" if task.note else ""
            self._print(f"  {task.name}: {phase} {task.done}/{task.total}{note}", task, False)

    def _print(self, text: str, task: _Task, always: bool) -> None:
        if self._live is not None:
            return
        now = time.monotonic()
        if always or now - self._printed.get(task.name, 0.0) >= _PLAIN_INTERVAL_SECONDS:
            self._printed[task.name] = now
            self._console.print(text, highlight=False)

    def _render(self) -> RenderableType:
        lines: list[RenderableType] = []
        for task in self._tasks.values():
            if task.finished:
                took = "kept" if task.phase == "kept" else _duration(task.last - task.began)
                lines.append(Text.assemble(("✓ ", "green"), task.name, (f"  {took}", "dim")))
                continue
            bar = Progress(
                SpinnerColumn(),
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TextColumn("[dim]{task.fields[note]}"),
            )
            left = task.remaining
            eta = "" if left is None else f"~{_duration(left)} left  "
            bar.add_task(
                f"{task.name}: {task.phase}",
                total=max(task.total, 1),
                completed=task.done,
                note=eta + task.note,
            )
            lines.append(bar)
        return Group(*lines) if lines else Text("starting ...", style="dim")


def print_summary(
    summary: Summary, folder: Path, console: Console, before: Summary | None = None
) -> None:
    """The closing table: the outcome, every gated figure, and where to look next.

    Args:
        summary: Of the run.
        folder: Of the run.
        console: Where it is printed.
        before: Of the run that was judged again; what differs from it is shown beside.
    """
    print_figures(summary, console, before)
    console.print(f"Took {_duration(summary.seconds['total'])}. Where to look next:")
    console.print(f"  report    {folder / 'report.html'}", highlight=False)
    console.print(f"  evidence  {folder / 'evidence.json'}", highlight=False)
    console.print(f"  summary   {folder / 'summary.json'}", highlight=False)
    served = summary.tracking_uri.startswith(("http://", "https://"))
    show = "" if served else "mlflow ui --backend-store-uri "
    console.print(f"  MLflow    {show}{summary.tracking_uri}", highlight=False)
    print_registry(summary, console)


def print_figures(summary: Summary, console: Console, before: Summary | None = None) -> None:
    """Every gated figure and the outcome; see `print_summary`."""
    style = {"passed": "bold green", "failed": "bold red", "inconclusive": "bold yellow"}
    table = Table(title=f"Run {summary.run_id}", title_justify="left")
    table.add_column("figure")
    table.add_column("value", justify="right")
    table.add_column("limit", justify="right")
    if before is not None:
        table.add_column(f"in {before.run_id}", justify="right")
    for name, value in summary.figures.items():
        limit = summary.thresholds[name]
        row = list(_figure(value, limit))
        if before is not None and name in before.figures:
            old, _ = _figure(before.figures[name], limit)
            row.append("" if old == row[0] else old)
        table.add_row(name, *row)
    console.print(table)
    then = "" if before is None else f" (there: {before.outcome})"
    console.print(f"Gate: [{style[summary.outcome]}]{summary.outcome}[/]{then}")
    for reason in summary.reasons:
        console.print(f"  - {reason}", highlight=False)


def print_registry(summary: Summary, console: Console) -> None:
    """What an audit or a registration did."""
    if summary.audit is not None:
        what = summary.audit
        words = {
            "none": "it keeps its alias",
            "reported": "put on record; no alias moved",
            "demoted": "[bold red]demoted[/]",
        }
        console.print(
            f"  audited   models:/{what.name}/{what.version}: {words[what.action]}; champion "
            f"{what.champion or '-'}",
            highlight=False,
        )
    if summary.registration is not None:
        where = summary.registration
        console.print(
            f"  model     models:/{where.name}@{where.alias} (version {where.version})",
            highlight=False,
        )


def _figure(value: float | None, limit: float) -> tuple[str, str]:
    return ("missing", f"{limit:.4g}") if value is None else digits(value, limit)


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{int(seconds) // 60} min {int(seconds) % 60:02d} s"
