"""One trial: a student, or a direct one, trained by a candidate's settings and judged."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ensdistill.cache import TargetCache
from ensdistill.student.callbacks import Callback, TrainingState
from ensdistill.student.comparisons import OF_ENSEMBLE, OF_LABELS
from ensdistill.student.search.build import Built
from ensdistill.student.search.rows import Lessons
from ensdistill.student.search.space import Role, Space
from ensdistill.student.selection import Evaluation
from ensdistill.student.trainer import StudentTrainer
from ensdistill.student.trees import TreeStudent
from ensdistill.student.trees.direct import Direct
from ensdistill.student.validation import WITH_VARIANCES, Validation
from ensdistill.teachers.members import Member
from ensdistill.teachers.predict import outputs_of

EVALUATIONS = 20  # of a training; the shares of it at which trials are compared

Report = Callable[[float, int], str]
"""Called with the value after so many of the 20 evaluations; returns why the trial ends early, or nothing."""


@dataclass(frozen=True, eq=False)
class Outcome:
    """The result of a trial that was not ended early.

    Parameters
    ----------
    outputs : ndarray [V, C], float32, or Moments [V, D]
        Of the rows that judge: logits, or means and variances.
    parameters, bytes : int
    seconds : float
    steps : int
        Optimiser steps, or rounds.
    """

    outputs: Any
    parameters: int
    bytes: int
    seconds: float
    steps: int


class Ended(Exception):
    """The trial was ended early; the message is the reason."""


@dataclass(frozen=True, eq=False)
class Work:
    """What a trial trains, and on which rows.

    Parameters
    ----------
    lessons : Lessons
    built : Built
        The candidate's factory and preprocess.
    space : Space
    values : dict
        Drawn from the space.
    seed : int
    """

    lessons: Lessons
    built: Built
    space: Space
    values: dict[str, Any]
    seed: int

    @property
    def role(self) -> Role:
        return self.space.role

    def run(self, report: Report) -> Outcome:
        """Train and judge.

        Raises
        ------
        Ended
            ``report`` gave a reason.
        FloatingPointError
            The training diverged.
        """
        begun = time.perf_counter()
        fit = self._estimator if self.built.model is None else self._network
        member, steps = fit(report)
        outputs = outputs_of(member, self.lessons.judged.rows.inputs)
        return Outcome(outputs, member.parameters, member.bytes, time.perf_counter() - begun, steps)

    def _network(self, report: Report) -> tuple[Member, int]:
        lessons, values, space = self.lessons, self.values, self.space
        optimization, judged = space.optimization(values), lessons.judged
        of: Any = OF_LABELS if self.role == "direct" and judged.labelled.any() else OF_ENSEMBLE
        watched = metric = of[judged.task][0]
        if values.get("variance"):
            metric = WITH_VARIANCES[metric]
        # Trials with and without variances are compared by their means, which both have.
        watcher = _Watcher(report, watched)
        trainer = StudentTrainer(optimization, space.loss(values), ema=space.ema(values), callbacks=[watcher])
        mixture = values.get("mixture", next(iter(lessons.mixtures)))
        rows = lessons.direct if self.role == "direct" else lessons.mixtures[mixture][0]
        trained = trainer.distill(
            self.built.factory(values),
            rows,
            lessons.source(mixture),
            seed=self.seed,
            preprocess=self.built.preprocess,
            validation=Validation(
                rows=judged.rows, metric=metric, every=max(1, optimization.steps // EVALUATIONS)
            ),
        )
        if watcher.reason:
            raise Ended(watcher.reason)
        return trained.member(), optimization.steps

    def _estimator(self, report: Report) -> tuple[Member, int]:
        lessons, estimator = self.lessons, self.built.estimator_of(self.values)
        cache: TargetCache = lessons.first[1]
        rounds = int(estimator.get_params()["n_estimators"])
        if self.role == "direct":
            fitted = Direct(lessons.direct, cache.classes, self.built.preprocess, seed=self.seed)
            return fitted.on_labels(estimator, lessons.direct, self.seed), rounds
        rows, cache = lessons.mixtures[self.values.get("mixture", next(iter(lessons.mixtures)))]
        found = TreeStudent(estimator, self.space.loss(self.values), task=lessons.judged.task).fit(
            rows, cache, augment=lessons.augment, preprocess=self.built.preprocess, seed=self.seed
        )
        return found.member, rounds


class _Watcher(Callback):
    """Reports each evaluation, and ends a training for which there is a reason."""

    def __init__(self, report: Report, metric: str) -> None:
        self.report, self.metric, self.reason, self.last = report, metric, "", 0

    def on_evaluation(self, state: TrainingState) -> None:
        if self.reason or state.evaluation is None:
            return
        place = max(1, round(EVALUATIONS * state.step / state.steps))
        if place <= self.last:
            return  # a place of its own for each value
        self.last, self.reason = place, self.report(_value(state.evaluation, self.metric), place)
        if self.reason and state.step < state.steps:
            state.stop(self.reason)
        else:
            self.reason = ""  # a training that is done is judged


def _value(evaluation: Evaluation, metric: str) -> float:
    """The better one of the student's and the average's."""
    both = [evaluation.student, *([] if evaluation.average is None else [evaluation.average])]
    return min(float(getattr(one, metric)) for one in both)
