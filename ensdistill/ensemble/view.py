"""One live view of the members that are being trained; lines where no terminal looks on."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from ensdistill.training import Status

LINE_SECONDS = 10.0  # between two lines


class TrainingView:
    """Used as a context manager around a training that it watches: a row for each member with its loss, accuracy, rate and time left.

    Parameters
    ----------
    names : sequence of str
    console : Console, optional
        Standard error by default.

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

    def __init__(self, names: Sequence[str], console: Console | None = None) -> None:
        self.console = console or Console(stderr=True)
        self._rows: dict[str, tuple[Status | None, int, float, float, float]] = {name: (None, 0, 0.0, 0.0, 0.0) for name in names}
        self._live = Live(self._table(), console=self.console, transient=True, refresh_per_second=4) if self.console.is_terminal else None
        self._start = self._told = time.monotonic()

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
            # The rate counts from the first status of each member: in a resumed training, most steps were done before.
            first = status.step if known is None else self._rows[name][2]
            self._rows[name] = (status, place, first, now if known is None else began, now)
        if self._live is not None:
            self._live.update(self._table())
        elif now - self._told >= LINE_SECONDS:
            self._line()
            self._told = now

    def _table(self) -> Table:
        table = Table(box=None, pad_edge=False)
        for title in ("member", "", "step", "loss", "accuracy", "steps/s", "left"):
            table.add_column(title, justify="left" if title in ("member", "") else "right", no_wrap=True)
        for name in self._rows:
            table.add_row(name, *self._cells(name))
        return table

    def _cells(self, name: str) -> tuple[Any, ...]:
        status, place, first, began, told = self._rows[name]
        if status is None:
            return (ProgressBar(1, 0, width=16), "waiting")
        passed = (told if status.step == status.steps else time.monotonic()) - began
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
        known = [(s, place) for s, place, *_ in self._rows.values() if s is not None]
        if not known:
            return
        done = sum(s.step == s.steps for s, _ in known)
        losses = [float(s.losses[place]) for s, place in known if not math.isnan(s.losses[place])]
        mean = f", mean loss {sum(losses) / len(losses):.4f}" if losses else ""
        passed = time.monotonic() - self._start
        self.console.print(f"{done} of {len(self._rows)} members trained, {passed:.1f} s{mean}", style="dim", highlight=False)
