"""Callbacks of a student's training: methods that are called along the way, with a view of its state."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn

from ensdistill.common.processes import Processes
from ensdistill.student.selection import Choice, Evaluation
from ensdistill.student.tracking import Record

HOOKS = ("on_start", "on_step", "on_evaluation", "on_checkpoint", "on_end")


class TrainingState:
    """A training as its callbacks see it. All attributes are to be read only; :meth:`stop` ends the training.

    Attributes
    ----------
    step, steps : int
        Steps that are done, and steps of the whole training.
    rank : int
        Of this process among those that train; each has callbacks of its own.
    module : Module
        The student, on its device. Its weights must not be changed. With ``shard`` they are DTensors, and a
        forward pass needs all processes.
    seconds : float
        Since this run of the training started.
    evaluation : Evaluation or None
        The last one.
    choice : Choice or None
        The best weights so far; in ``on_end`` those that the training returns.
    checkpoint : Path or None
        The last file that was written in this run.
    reason : str
        Why the training ends early; empty where it does not.
    """

    def __init__(self, module: nn.Module, optimizer: Any, step: int, steps: int, rank: int) -> None:
        self.module, self.step, self.steps, self.rank = module, step, steps, rank
        self.evaluation: Evaluation | None = None
        self.choice: Choice | None = None
        self.checkpoint: Path | None = None
        self.reason = ""
        self._optimizer, self._begun = optimizer, perf_counter()
        self._loss: Tensor | None = None

    @property
    def loss(self) -> float:
        """The loss of the last step over this process's rows; over those of all processes outside of
        ``on_step``. NaN before the first step."""
        return float("nan") if self._loss is None else float(self._loss)

    @property
    def learning_rate(self) -> float:
        """Of the next step; of the first group of parameters, where there are several."""
        return float(self._optimizer.param_groups[0]["lr"])

    @property
    def seconds(self) -> float:
        return perf_counter() - self._begun

    def stop(self, reason: str) -> None:
        """End the training after the present block of 32 steps, in all processes."""
        self.reason = self.reason or str(reason) or "a callback stopped it"


class Callback:
    """What is called during a training. A subclass overrides the hooks that it needs.

    Callbacks run in all processes of a training (``state.rank`` tells them apart), between steps, and the
    training waits for them. They change no bits of it; an exception that one raises ends it.

    Attributes
    ----------
    only_watches : bool
        A class that sets it promises never to call ``state.stop``. A job then keeps a finished student when
        such a callback is added, changed or removed, and lets it watch the baselines too.

    Examples
    --------
    >>> class LongEnough(Callback):
    ...     def on_evaluation(self, state):
    ...         if state.evaluation.student.agreement > 0.99:
    ...             state.stop("the student agrees with the ensemble")
    """

    only_watches = False

    def on_start(self, state: TrainingState) -> None:
        """Before the first step of this run; after a resume ``state.step`` is above 0."""

    def on_step(self, state: TrainingState) -> None:
        """After every step. Reading ``state.loss`` waits for the device."""

    def on_evaluation(self, state: TrainingState) -> None:
        """After every evaluation of a training with validation: ``state.evaluation``."""

    def on_checkpoint(self, state: TrainingState) -> None:
        """After a checkpoint was written: ``state.checkpoint``. Process 0 wrote it."""

    def on_end(self, state: TrainingState) -> None:
        """After the last step: the student has the weights that are returned, those of ``state.choice``."""

    def close(self) -> None:
        """After the training, also one that failed: release what is open."""


def check_callbacks(callbacks: Sequence[Callback]) -> tuple[Callback, ...]:
    """The callbacks as a tuple.

    Raises
    ------
    TypeError
        One is a class or derives from another one than Callback, so that a misspelt hook would not be called.
    ValueError
        A method that begins with ``on_`` and is no hook.
    """
    if isinstance(callbacks, Callback) or not isinstance(callbacks, Sequence):
        raise TypeError(f"callbacks: expected a list of them; got {type(callbacks).__name__}")
    for callback in callbacks:
        if not isinstance(callback, Callback):
            got = f"the class {callback.__name__}" if isinstance(callback, type) else type(callback).__name__
            raise TypeError(f"callbacks: expected instances of ensdistill.student.Callback; got {got}")
        for name in dir(callback):
            if name.startswith("on_") and name not in HOOKS:
                raise ValueError(
                    f"callbacks: {type(callback).__name__}.{name} is no hook; there are {', '.join(HOOKS)}"
                )
    return tuple(callbacks)


class Hooks(AbstractContextManager["Hooks"]):
    """Calls the hooks of all callbacks of a training.

    Parameters
    ----------
    callbacks : sequence of Callback
    record : Record
        Takes down the same events.
    state : TrainingState
    group : Processes
    """

    def __init__(
        self, callbacks: Sequence[Callback], record: Record, state: TrainingState, group: Processes
    ) -> None:
        self.callbacks, self.record, self.state, self.group = callbacks, record, state, group
        self._each_step = [c for c in callbacks if type(c).on_step is not Callback.on_step]

    def start(self) -> None:
        self.record.start(self.state.step)
        self._call("on_start")

    def step(self, step: int, loss: Tensor) -> None:
        if self._each_step:
            self.state.step, self.state._loss = step, loss
            self._call("on_step", self._each_step)

    def block(self, step: int, losses: Tensor) -> None:
        """A block is done; ``losses`` are those of all processes."""
        self.state.step, self.state._loss = step, losses[-1]
        self.record.block(step, losses, self.state.learning_rate)

    def evaluation(self, evaluation: Evaluation, choice: Choice | None) -> None:
        self.state.evaluation, self.state.choice = evaluation, choice
        self.record.evaluation(evaluation)
        self._call("on_evaluation")

    def checkpoint(self, file: Path | None) -> None:
        if file is None:
            return
        self.state.checkpoint = file
        self.record.checkpoint(self.state.step, file)
        self._call("on_checkpoint")

    def stopped(self) -> bool:
        """Whether a callback of any process wants to end the training."""
        if not self.callbacks or self.group.count == 1:
            return bool(self.state.reason)
        any_of_them = self.group.mean(torch.tensor(float(bool(self.state.reason)))).item() > 0
        if any_of_them and not self.state.reason:
            self.state.reason = "a callback of another process stopped it"
        return any_of_them

    def end(self, choice: Choice, reason: str) -> None:
        self.state.choice, self.state.reason = choice, self.state.reason or reason
        self.record.end(self.state.step, choice, self.state.reason)
        self._call("on_end")

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Release what callbacks and trackers hold, also after a training that failed."""
        for callback in self.callbacks:
            callback.close()
        self.record.close(failed=kind is not None)

    def _call(self, hook: str, callbacks: Sequence[Callback] | None = None) -> None:
        for callback in self.callbacks if callbacks is None else callbacks:
            before = self.state.reason
            getattr(callback, hook)(self.state)
            if callback.only_watches and self.state.reason != before:
                name = type(callback).__name__
                raise ValueError(
                    f"callbacks: {name}.{hook} stopped the training ({self.state.reason}), but {name} sets "
                    "only_watches; remove that line from the class"
                )
