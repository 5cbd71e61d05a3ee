"""The progress of a long command: a bar for each piece of work with its rate and time left; plain lines
without a terminal."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column
from rich.text import Text

from ensdistill.cli.manner import manner
from ensdistill.cli.messages import warning_line

NARROW = 100  # columns of a terminal below which the elapsed time gives way to the description


class Rate(ProgressColumn):
    """Pieces a second."""

    def render(self, task: Task) -> Text:
        if task.fields.get("overall"):
            return Text(f"{int(task.completed)}/{int(task.total or 0)}")
        speed = task.finished_speed or task.speed
        if not speed:
            return Text("")
        return Text(
            f"{speed / 1000:,.0f}k/s"
            if speed >= 10_000
            else f"{speed:,.0f}/s"
            if speed >= 10
            else f"{speed:.1f}/s"
        )


class Display:
    """Used as a context manager around the work.

    Parameters
    ----------
    console : Console, optional
        Standard error by default, so that standard output holds the result alone. With ``--quiet`` only
        warnings are shown on it.

    Attributes
    ----------
    done : int
        Pieces of work that were finished in its context.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console, self._quiet = console or Console(stderr=True), manner().quiet
        narrow = self.console.width < NARROW
        rest = 36 if narrow else 56  # the other columns' widths below, and a space before each
        self._bars = Progress(
            # The one column that gives way: the numbers beside it mean nothing when they are cut.
            TextColumn(
                "{task.description}[dim]{task.fields[figures]}",
                table_column=Column(no_wrap=True, overflow="ellipsis", max_width=self.console.width - rest),
            ),
            BarColumn(bar_width=12 if narrow else 24, table_column=Column(width=12 if narrow else 24)),
            TextColumn("{task.percentage:>3.0f} %", table_column=Column(no_wrap=True, min_width=5)),
            Rate(table_column=Column(no_wrap=True, min_width=8, justify="right")),
            *([] if narrow else [TimeElapsedColumn(table_column=Column(no_wrap=True, min_width=7))]),
            TimeRemainingColumn(table_column=Column(no_wrap=True, min_width=7)),
            console=self.console,
            transient=True,
            disable=self._quiet or not self.console.is_terminal,
        )
        self._tasks: dict[str, TaskID] = {}
        self._overall: TaskID | None = None
        self._warnings: set[str] = set()
        self.done = 0

    def __enter__(self) -> Display:
        self._bars.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._bars.stop()

    def start(self, finished: int, todo: int) -> None:
        """Print how many of the pieces of work are finished, and show a bar for all of them.

        Without a terminal there are no bars, so a line has the number of pieces to wait for.
        """
        if todo and not finished and not self._quiet and not self.console.is_terminal:
            self.console.print(f"{todo} piece{'s' if todo > 1 else ''} of work to do.", highlight=False)
        if finished and todo and not self._quiet:
            self.console.print(
                f"{finished} finished piece{'s' if finished > 1 else ''} kept, {todo} to do.",
                style="dim",
                highlight=False,
            )
        if todo:
            self._overall = self._bars.add_task(
                "[bold]all pieces", total=finished + todo, completed=finished, overall=True, figures=""
            )

    def progress(self, piece: Any, what: str, done: int, total: int, figures: str = "") -> None:
        """Move the bar of a piece of work to ``done`` of ``total``; ``what`` names its current step, and
        ``figures`` are its present loss and scores."""
        key, description = str(piece), f"{piece} · {what}"
        if key not in self._tasks:
            self._tasks[key] = self._bars.add_task(description, total=total, figures="")
        task = self._tasks[key]
        if self._bars.tasks[self._bars.task_ids.index(task)].description != description:
            self._bars.reset(task, total=total, description=description)
        self._bars.update(task, completed=done, total=total, figures=f" · {figures}" if figures else "")

    def warning(self, text: str) -> None:
        """Print a warning, once however many workers raise it."""
        if text not in self._warnings:
            self._warnings.add(text)
            self.console.print(warning_line(text), markup=False, highlight=False, soft_wrap=True)

    def preflight(self, found: Any) -> None:
        """Print the forecast of a job whose caches are finished; ``ensdistill preflight`` has all of it."""
        if self._quiet:
            return
        from ensdistill.cli.preflight import summary

        for line in summary(found):
            self.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def finished(self, piece: Any, seconds: float) -> None:
        """A piece of work is finished; ``seconds`` are its own, by the process that did it."""
        key = str(piece)
        if key in self._tasks:
            self._bars.remove_task(self._tasks.pop(key))
        if not self._quiet:
            self.console.print(f"[green]✓[/] {key} [dim]({seconds:.1f} s)[/]", highlight=False)
        self.done += 1
        if (
            self._overall is not None and not self._bars.tasks[0].finished
        ):  # the report comes on top of the pieces
            self._bars.advance(self._overall)
