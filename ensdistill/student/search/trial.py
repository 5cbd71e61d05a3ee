"""One trial: a student, or a direct one, trained by a candidate's settings and judged."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ensdistill.cache import TargetCache
from ensdistill.data.samples import in_memory, positions, stream, whole
from ensdistill.student.callbacks import Callback, TrainingState
from ensdistill.student.search.build import Built
from ensdistill.student.search.latency import Latency, called
from ensdistill.student.search.rows import Lessons, some_samples
from ensdistill.student.search.space import Role, Space
from ensdistill.student.selection import Evaluation
from ensdistill.student.trainer import StudentTrainer
from ensdistill.student.trees import TreeStudent
from ensdistill.student.trees.direct import Direct
from ensdistill.student.validation import Validation
from ensdistill.teachers.members import Member
from ensdistill.teachers.members.preprocessed import rows_for

EVALUATIONS = 20  # of a training; the shares of it at which trials are compared
_AT_ONCE = 1024

Report = Callable[[float, int], str]
"""Called with the value after so many of the 20 evaluations; returns why the trial ends early, or nothing."""


@dataclass(frozen=True, eq=False)
class Outcome:
    """The result of a trial that was not ended early.

    Parameters
    ----------
    logits : ndarray [V, C], float32
        Of the rows that judge.
    parameters, bytes : int
    seconds : float
    steps : int
        Optimiser steps, or rounds.
    latency : Latency, optional
        Of a student that is no network; that of a network needs no training.
    """

    logits: np.ndarray
    parameters: int
    bytes: int
    seconds: float
    steps: int
    latency: Latency | None = None


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
        logits = predicted(member, self.lessons.judged.rows.inputs)
        spent = time.perf_counter() - begun
        network = self.built.model is not None
        latency = None if network else called(member, some_samples(self.lessons.judged.rows, 8))
        return Outcome(logits, member.parameters, member.bytes, spent, steps, latency)

    def _network(self, report: Report) -> tuple[Member, int]:
        lessons, values, space = self.lessons, self.values, self.space
        optimization = space.optimization(values)
        labelled = bool(lessons.judged.labelled.any())
        metric: Any = "nll" if self.role == "direct" and labelled else "kl"
        watcher = _Watcher(report, metric)
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
                rows=lessons.judged.rows, metric=metric, every=max(1, optimization.steps // EVALUATIONS)
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
        found = TreeStudent(estimator, self.space.loss(self.values)).fit(
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


def predicted(member: Member, samples: Any) -> np.ndarray:
    """A member's logits [V, C], float32; lazy samples are read batch by batch."""
    parts = [whole(samples)] if in_memory(samples) else stream(samples, positions(len(samples), _AT_ONCE))
    return np.concatenate([member.predict_logits(rows_for(member, part)) for part in parts])
