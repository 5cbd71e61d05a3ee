"""A live view of a training on a terminal: loss, scores, rate and time left."""

from __future__ import annotations

from time import monotonic

from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from ensdistill.common.progress import Progress, UnitProgress
from ensdistill.student.callbacks import Callback, TrainingState
from ensdistill.student.comparisons import LARGER_IS_BETTER

EVERY = 0.1  # seconds between two changes of the view


def figures(state: TrainingState) -> str:
    """The present loss, and the scores of the last evaluation, in a few words."""
    parts = [f"loss {state.loss:.4g}"] if state.step else []
    if state.evaluation is not None:
        scores = vars(state.evaluation.student)
        order = ("kl", "distance", "agreement", "nll", "accuracy", "rmse")
        shown = [name for name in order if scores[name] is not None][:2]
        for name in shown:
            parts.append(f"{name} {scores[name]:{'.1%' if name in LARGER_IS_BETTER else '.4g'}}")
    return " · ".join(parts)


class Figures(Callback):
    """Keeps a training's state in sight of a report of progress; its text is :func:`figures`."""

    only_watches = True

    def __init__(self) -> None:
        self._state: TrainingState | None = None

    def on_start(self, state: TrainingState) -> None:
        self._state = state

    def __str__(self) -> str:
        return "" if self._state is None else figures(self._state)

    def beside(self, report: UnitProgress, name: str) -> Progress:
        """The report of one training's steps, with these figures."""
        return lambda done, total: report(name, done, total, self)


class LiveView(Callback):
    """Shows a training on a terminal while it runs; without a terminal, nothing.

    Parameters
    ----------
    console : rich.console.Console, optional
        Standard error by default.

    Examples
    --------
    >>> from ensdistill import StudentTrainer
    >>> trainer = StudentTrainer(callbacks=[LiveView()])
    """

    only_watches = True

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True)
        self._bars: Bars | None = None
        self._task = TaskID(0)
        self._shown = 0.0

    def on_start(self, state: TrainingState) -> None:
        if state.rank or not self.console.is_terminal:
            return
        self._bars = Bars(
            TextColumn("student"),
            BarColumn(bar_width=20),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[figures]}"),
            console=self.console,
            transient=True,
        )
        self._first, self._begun = state.step, monotonic()
        self._task = self._bars.add_task(
            "student", total=state.steps, completed=state.step, figures="", rate=""
        )
        self._bars.start()

    def on_step(self, state: TrainingState) -> None:
        if self._bars is not None and monotonic() - self._shown >= EVERY:
            self._show(state)

    def on_evaluation(self, state: TrainingState) -> None:
        self._show(state)

    def on_end(self, state: TrainingState) -> None:
        self._show(state)
        if self._bars is not None and state.choice is not None:
            self.console.print(f"student: {state.choice}", highlight=False, soft_wrap=True)

    def close(self) -> None:
        if self._bars is not None:
            self._bars.stop()
            self._bars = None

    def _show(self, state: TrainingState) -> None:
        if self._bars is None:
            return
        self._shown = monotonic()
        speed = (state.step - self._first) / max(self._shown - self._begun, 1e-9)
        rate = f"{speed:,.0f} steps/s" if speed >= 10 else f"{speed:.1f} steps/s"
        self._bars.update(self._task, completed=state.step, figures=figures(state), rate=rate)
