"""One live view of the members that are being trained; lines where no terminal looks on."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from ensdistill.teachers.stack import Status

LINE_SECONDS = 10.0  # between two lines
LOOK_SECONDS = 1.0  # between two looks at the members that others have finished


class TrainingView:
    """Used as a context manager around a training that it watches: a row for each member with its loss,
    accuracy, rate and time left.

    Parameters
    ----------
    names : sequence of str
    console : Console, optional
        Standard error by default.
    ranks : mapping from str to int, optional
        For the members that other processes train, which.
    finished : callable (name) -> bool, optional
        Whether a member of which no status has come is done: by another process, or in an earlier training.

    Examples
    --------
    >>> import io
    >>> import numpy as np
    >>> out = io.StringIO()
    >>> with TrainingView(["a", "b"], Console(file=out, width=80)) as view:
    ...     view(Status(("a", "b"), 32, 32, np.array([0.5, 0.25]), np.array([0.9, 1.0])))
    >>> out.getvalue().split()[:5]
    ['2', 'of', '2', 'members', 'trained,']
    """

    def __init__(
        self,
        names: Sequence[str],
        console: Console | None = None,
        *,
        ranks: Mapping[str, int] | None = None,
        finished: Callable[[str], bool] | None = None,
    ) -> None:
        self.console = console or Console(stderr=True)
        self._ranks, self._finished = dict(ranks or {}), finished
        self._done: set[str] = set()  # of those of which no status has come
        self._looked = -math.inf
        self._rows: dict[str, tuple[Status | None, int, float, float, float]] = {
            name: (None, 0, 0.0, 0.0, 0.0) for name in names
        }
        self._start = self._told = time.monotonic()
        self._live: Live | None = None
        if self.console.is_terminal:
            self._live = Live(
                get_renderable=self._table, console=self.console, transient=True, refresh_per_second=4
            )

    def __enter__(self) -> TrainingView:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: Any) -> None:
        if self._live is not None:
            self._live.stop()
        self._line()

    def __call__(self, status: Status) -> None:
        now = time.monotonic()
        for place, name in enumerate(status.names):
            known, _, _, began, _ = self._rows[name]
            # The rate counts from the first status of each member: in a resumed training, most steps were
            # done before.
            first = status.step if known is None else self._rows[name][2]
            self._rows[name] = (status, place, first, now if known is None else began, now)
        if self._live is None and now - self._told >= LINE_SECONDS:
            self._line()
            self._told = now

    def _look(self, every: float = 0.0) -> None:
        now = time.monotonic()
        if self._finished is not None and now - self._looked >= every:
            self._looked = now
            silent = [
                name for name, (status, *_) in self._rows.items() if status is None and name not in self._done
            ]
            self._done.update(name for name in silent if self._finished(name))

    def _table(self) -> Table:
        """The present state; the live view calls this again and again, on a thread of its own."""
        self._look(LOOK_SECONDS)
        table = Table(box=None, pad_edge=False)
        for title in ("member", "", "step", "loss", "accuracy", "steps/s", "left"):
            table.add_column(title, justify="left" if title in ("member", "") else "right", no_wrap=True)
        for name in self._rows:
            table.add_row(name, *self._cells(name))
        return table

    def _cells(self, name: str) -> tuple[Any, ...]:
        status, place, first, began, told = self._rows[name]
        if status is None:
            done = name in self._done
            state = "done" if done else f"rank {self._ranks[name]}" if name in self._ranks else "waiting"
            return (ProgressBar(1, int(done), width=16), state)
        passed = told - began
        rate = (status.step - first) / passed if status.step > first and passed > 0 else math.nan
        left = (status.steps - status.step) / rate if rate > 0 else math.nan
        loss, accuracy = float(status.losses[place]), float(status.accuracies[place])
        return (
            ProgressBar(status.steps, status.step, width=16),
            f"{status.step}/{status.steps}",
            "" if math.isnan(loss) else f"{loss:.4f}",
            "" if math.isnan(accuracy) else f"{accuracy:.1%}",
            "" if math.isnan(rate) else f"{rate:,.0f}" if rate >= 10 else f"{rate:.1f}",
            "" if math.isnan(left) else f"{int(left) // 60}:{int(left) % 60:02d}",
        )

    def _line(self) -> None:
        self._look()
        known = [(s, place) for s, place, *_ in self._rows.values() if s is not None]
        others = sum(self._rows[name][0] is None for name in self._done)
        if not known and not others:
            return
        done = sum(s.step == s.steps for s, _ in known) + others
        losses = [float(s.losses[place]) for s, place in known if not math.isnan(s.losses[place])]
        whose = f" of {len(losses)} of them" if others else ""
        mean = f", mean loss{whose} {sum(losses) / len(losses):.4f}" if losses else ""
        passed = time.monotonic() - self._start
        self.console.print(
            f"{done} of {len(self._rows)} members trained, {passed:.1f} s{mean}", style="dim", highlight=False
        )
