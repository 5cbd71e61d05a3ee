"""The stages behind ``DistilledClassifier.fit`` and its like: teachers, cache, student, report."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.impute import SimpleImputer
from sklearn.pipeline import make_pipeline

from ensdistill.cache import TargetCache, cache_targets
from ensdistill.cache.floors import TEMPERATURE
from ensdistill.common.optimization import Optimization
from ensdistill.data import Rows, Split
from ensdistill.data.samples import form
from ensdistill.data.tasks import has_gaps, rows_of_rarest
from ensdistill.data.transfer import TransferSet
from ensdistill.job.defaults import Defaults, defaults, scaler_of
from ensdistill.job.kinds_of_labels import Labels
from ensdistill.loss.regression import RegressionSettings
from ensdistill.loss.settings import LossSettings
from ensdistill.sklearn.judgement import Report, report_of
from ensdistill.sklearn.searching import Search, search_of
from ensdistill.sklearn.students import Estimator, Lesson, Student, as_student
from ensdistill.sklearn.teachers import Taught, fitted_teachers, train_teachers
from ensdistill.student.search import SearchResult
from ensdistill.teachers import looks_up
from ensdistill.teachers.base import BaseEnsemble
from ensdistill.teachers.labelled_targets import LabelledTargets
from ensdistill.teachers.members import Member, Moments
from ensdistill.teachers.recipes import TorchMembers

Done = Callable[[str, float], None]


@dataclass(frozen=True)
class Settings:
    """The parameters of a classifier, with the choices that the rows decide.

    Parameters
    ----------
    teachers : "auto", list, or Ensemble
    teacher_minutes : float or None
    prefit : bool
    student : Student
    loss : LossSettings
    transfer : TransferSet
    default : Defaults or None
    preprocess
        Of module classes among the teachers.
    n_jobs : int or None
    progress : bool
    search : Search or None
        In place of the student and its loss.
    """

    teachers: Any
    teacher_minutes: float | None
    prefit: bool
    student: Student
    loss: LossSettings
    transfer: TransferSet
    default: Defaults | None
    preprocess: Any
    n_jobs: int | None
    progress: bool
    search: Search | None = None


@dataclass(frozen=True)
class Fitted:
    """The result of a fit."""

    ensemble: Any
    student: Member
    report: Report | None
    search: SearchResult | None


def settings_of(estimator: Any, split: Split) -> Settings:
    """The settings that a classifier's parameters and the rows make, checked.

    Raises
    ------
    TypeError, ValueError
        A parameter that is none; names it.
    """
    if estimator.optimization is not None and not isinstance(estimator.optimization, Optimization):
        kind = type(estimator.optimization).__name__
        raise TypeError(f"optimization: expected an Optimization, or None; got {kind}")
    _check_counts(estimator.n_jobs, estimator.verbose)
    default = _defaults(split)
    preprocess: Any = "auto"
    if form(split.labelled.inputs)["kind"] == "array" and split.labelled.inputs[:1].ndim == 2:
        preprocess = _after_filling(scaler_of(split.labelled.inputs))
    config = None if default is None else default.distill.students["student"]
    student, loss = (
        as_student(estimator.student, config, estimator.optimization, preprocess),
        _loss(estimator),
    )
    if isinstance(student, Estimator):
        student.check(loss, split.labelled.weights is not None, split.task)
    if split.task == "regression":
        RegressionSettings.of(loss)
    return Settings(
        teachers=estimator.teachers,
        teacher_minutes=estimator.teacher_minutes,
        prefit=estimator.prefit or isinstance(estimator.teachers, BaseEnsemble),
        student=student,
        loss=loss,
        transfer=_transfer(estimator.synthetic, default, split),
        default=default,
        preprocess=preprocess,
        n_jobs=estimator.n_jobs,
        progress=estimator.verbose > 1,
        search=search_of(estimator),
    )


def _check_counts(n_jobs: Any, verbose: Any) -> None:
    if n_jobs is not None and (not isinstance(n_jobs, Integral) or isinstance(n_jobs, bool)):
        raise TypeError(f"n_jobs: expected a whole number, or None; got {n_jobs!r}")
    if n_jobs == 0:
        raise ValueError("n_jobs: expected at least 1, or -1 for all cores; got 0")
    if not isinstance(verbose, (Integral, np.bool_)):
        raise TypeError(f"verbose: expected 0, 1 or 2; got {verbose!r}")


def fit(settings: Settings, split: Split, seed: int, judged: bool, done: Done) -> Fitted:
    """Train teachers and student; with ``judged`` also the models of the report.

    ``done`` is called with the name of each stage and its seconds. Where labelled rows judge a search, it is
    done with teachers that do not learn from them; then the teachers train on all rows, for the student.
    """
    times: dict[str, float] = {}
    started = time.perf_counter()

    def finished(stage: str) -> None:
        times[stage] = time.perf_counter() - started - sum(times.values())
        done(stage, times[stage])

    student, loss, search, found, made = settings.student, settings.loss, settings.search, None, None
    with tempfile.TemporaryDirectory() as folder:
        if search is not None:
            rest, validation = search.divided(split, settings.transfer, seed)
            apart = validation is not None
            made = _made(settings, rest, seed, Path(folder) / "trial", finished, "trial " if apart else "")
            taught, rows, cache = made
            found, student, loss = search.run(rows, cache, validation, taught.ensemble, seed)
            finished("search")
            made = None if apart else made
        taught, rows, cache = made or _made(settings, split, seed, Path(folder), finished)
        lesson = Lesson(split, rows, cache, loss, seed, Path(folder))
        member = student.distilled(lesson)
        finished("student")
        report = None
        if judged:
            report = report_of(taught, student, member, lesson, times)
            finished("report")
    return Fitted(taught.ensemble, member, report, found)


def _made(
    settings: Settings, split: Split, seed: int, folder: Path, finished: Callable[[str], None], name: str = ""
) -> tuple[Taught, Rows, TargetCache]:
    """The teachers, the transfer set, and the cache of their targets."""
    taught = _taught(settings, split, seed)
    finished(f"{name}teachers")
    transfer = settings.transfer.build(split, seed, taught.ensemble)
    cache = cache_targets(
        _targets(taught, settings.prefit),
        transfer.rows,
        folder / "targets",
        max_temperature=max(TEMPERATURE, settings.loss.temperature),
        seed=seed,
    )
    finished(f"{name}cache")
    return taught, transfer.rows, cache


def _taught(settings: Settings, split: Split, seed: int) -> Taught:
    if settings.prefit:
        if settings.teacher_minutes is not None:
            raise ValueError(
                "teacher_minutes: expected None, because the teachers are fitted already; got "
                f"{settings.teacher_minutes!r}"
            )
        return fitted_teachers(settings.teachers, split)
    default = None if settings.default is None else settings.default.teachers
    networks = [one for one in (default.recipes if default else []) if isinstance(one, TorchMembers)]
    return train_teachers(
        settings.teachers,
        split,
        seed,
        minutes=settings.teacher_minutes,
        default=default,
        preprocess=settings.preprocess,
        optimization=networks[0].optimization if networks else Optimization(),
        n_jobs=settings.n_jobs,
        progress=settings.progress,
    )


class _Source:
    """Targets for a cache that is not kept: without the digest of every member, which takes seconds for a
    forest."""

    def __init__(self, targets: Any) -> None:
        self.targets, self.weights, self.task = targets, targets.weights, targets.task
        self.names, self.classes, self.combiner = targets.names, targets.classes, targets.combiner

    def predict_logits(self, inputs: Any) -> Any:
        return self.targets.predict_logits(inputs)

    def predict_moments(self, inputs: Any) -> Any:
        return self.targets.predict_moments(inputs)

    def calibrated(self, moments: Any) -> Any:
        return self.targets.calibrated(moments)

    def for_uids(self, uids: np.ndarray, among: np.ndarray | None = None) -> Any:
        return self.targets.for_uids(uids, among)

    def fingerprint(self) -> dict[str, Any]:
        return {"members": list(self.names)}


def _targets(taught: Taught, prefit: bool) -> _Source:
    """The ensemble's; out of fold on the labelled rows where a member looks up the rows it was fitted to."""
    if prefit or taught.held_out is None or not any(looks_up(one) for one in taught.ensemble.members):
        return _Source(taught.ensemble)
    held_out = taught.held_out
    rows = held_out.mean if isinstance(held_out, Moments) else held_out
    uids = np.arange(rows.shape[1])  # the labelled rows are the first of the transfer set
    return _Source(LabelledTargets(taught.ensemble, uids, held_out=taught.held_out))


def _loss(estimator: Any) -> LossSettings:
    named = {"temperature": estimator.temperature, "alpha": estimator.alpha}
    given = {name: value for name, value in named.items() if value is not None}
    if estimator.loss is not None and given:
        raise ValueError(f"loss: expected either loss or {', '.join(given)}; got both")
    if estimator.loss is not None and not isinstance(estimator.loss, LossSettings):
        raise TypeError(f"loss: expected LossSettings; got {type(estimator.loss).__name__}")
    return estimator.loss or LossSettings(**given)


def _transfer(synthetic: Any, default: Defaults | None, split: Split) -> TransferSet:
    if isinstance(synthetic, str) and synthetic == "auto":
        chosen = TransferSet() if default is None else default.cache.transfer
        try:
            chosen.check(split)
            return chosen
        except ValueError:  # equal rows alone, for example, which have no neighbours
            return TransferSet()
    if synthetic is not None and not isinstance(synthetic, (list, tuple)):
        raise TypeError(f"synthetic: expected 'auto', None or a list of sources; got {synthetic!r}")
    for source in synthetic or []:
        if not hasattr(source, "make"):
            raise TypeError(f"synthetic: expected sources, such as Munge(rows=5000); got {source!r}")
    chosen = TransferSet(synthetic=list(synthetic or []))
    try:
        chosen.check(split)
    except ValueError as error:
        raise ValueError(f"synthetic: {error}") from error
    return chosen


def _defaults(split: Split) -> Defaults | None:
    """The defaults for the samples, None where there are none; arrays may have gaps, which are filled."""
    given = split.labelled.labels
    labels = Labels(split.task, len(split.classes), has_gaps(given), rows_of_rarest(given))
    try:
        found = defaults(split.labelled.inputs, len(split.labelled), len(split.pool), labels)
    except TypeError:
        return None
    members = [_filled(one) for one in found.teachers.recipes]
    student = _filled(found.distill.students["student"])
    return Defaults(
        replace(found.teachers, members=members),
        found.cache,
        replace(found.distill, students={"student": student}),
    )


def _filled(one: Any) -> Any:
    scaler = getattr(one, "preprocess", None)
    return replace(one, preprocess=_after_filling(scaler)) if hasattr(scaler, "fit_transform") else one


def _after_filling(scaler: Any) -> Any:
    return make_pipeline(SimpleImputer(strategy="median", keep_empty_features=True), scaler)
