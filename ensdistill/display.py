"""What a long command shows while it works: a bar for each piece of work with its rate and time left; plain lines where no terminal
looks on."""

from __future__ import annotations

import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        if task.fields.get("overall"):
            return Text(f"{int(task.completed)}/{int(task.total or 0)} pieces")
        speed = task.finished_speed or task.speed
        return Text(f"{speed:,.0f}/s" if speed and speed >= 10 else f"{speed:.1f}/s" if speed else "")


class Display:
    """Used as a context manager around the work.

    Parameters
    ----------
    console : Console, optional
        Standard error by default, so that standard output holds the result alone.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True)
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:>3.0f} %"),
            _Rate(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        )
        self._tasks: dict[str, TaskID] = {}
        self._started: dict[str, float] = {}
        self._overall: TaskID | None = None

    def __enter__(self) -> Display:
        self._bars.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._bars.stop()

    def start(self, finished: int, todo: int) -> None:
        """How many pieces of work there are, and how many of them need no work."""
        if finished and todo:
            self.console.print(f"{finished} finished pieces are kept, {todo} are to be done.", style="dim")
        if todo:
            self._overall = self._bars.add_task("[bold]all", total=finished + todo, completed=finished, overall=True)

    def progress(self, piece: Any, what: str, done: int, total: int) -> None:
        """A piece of work has come to ``done`` of ``total`` of ``what``."""
        key, description = str(piece), f"{piece} · {what}"
        if key not in self._tasks:
            self._tasks[key], self._started[key] = self._bars.add_task(description, total=total), time.monotonic()
        task = self._tasks[key]
        if self._bars.tasks[self._bars.task_ids.index(task)].description != description:
            self._bars.reset(task, total=total, description=description)
        self._bars.update(task, completed=done, total=total)

    def finished(self, piece: Any) -> None:
        key = str(piece)
        if key in self._tasks:
            self._bars.remove_task(self._tasks.pop(key))
        seconds = time.monotonic() - self._started.pop(key, time.monotonic())
        self.console.print(f"[green]✓[/] {key} [dim]({seconds:.1f} s)[/]", highlight=False)
        if self._overall is not None:
            self._bars.advance(self._overall)
