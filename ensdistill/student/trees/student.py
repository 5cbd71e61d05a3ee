"""The trainer of students that are not networks, from a cache's targets."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

import numpy as np

from ensdistill.cache import TargetCache
from ensdistill.common.tasks import Task, check_task, task_of
from ensdistill.data import Rows
from ensdistill.data.augmentation import Augmentation
from ensdistill.data.samples import as_samples, subset
from ensdistill.loss.regression import RegressionSettings
from ensdistill.loss.settings import DEFAULTS, LossSettings, check_trained
from ensdistill.student.sources import check_in_cache
from ensdistill.student.trees.boosted import check_parameters, fit_boosted
from ensdistill.student.trees.fits import Fit
from ensdistill.student.trees.judge import DEFAULT_VALIDATION, Judge, check_validation
from ensdistill.student.trees.numbers import HeldNumbers, check_error, check_regressor, fit_numbers, uneven
from ensdistill.student.trees.objective import Objective, check_settings
from ensdistill.student.trees.prepared import Fitting, Prepared, constant_member, constant_share, rows_of
from ensdistill.student.trees.targets import Numbers, labels_of_cache, numbers_of_cache, of_cache
from ensdistill.student.trees.ways import NAMES, Way, check_regressor_weights, fit_way, ways_of
from ensdistill.student.validation import Validation, split_rows
from ensdistill.teachers.members import BoostedMember, ColumnsMember, Member
from ensdistill.teachers.members.boosted import library_of
from ensdistill.teachers.stack.fitting import is_estimator

Chosen = tuple[Member, str, dict[str, tuple[float, float]]]
"""The fields of a :class:`FittedStudent`, before its preprocess is put before it."""


@dataclass(frozen=True)
class FittedStudent:
    """A student that is fitted, and how it was chosen.

    Parameters
    ----------
    member : Member
        With its preprocess: it predicts raw samples. ``save(folder)`` writes its library's own format.
    way : str
        ``KL objective, 120 of 300 rounds``, ``weighted expansion`` or ``regression on log-odds``.
    validation : dict of str to (float, float)
        For each way that was tried the agreement with the ensemble and the KL from it, in nats, on the
        held-out rows; empty where none were held out. Of several labels the mean agreement and the sum of
        the KLs; of a regression the distance of :class:`ensdistill.student.comparisons.Scores`, twice.
    """

    member: Member
    way: str
    validation: dict[str, tuple[float, float]] = field(default_factory=dict)


class TreeStudent:
    """Fits boosted trees, and estimators of scikit-learn, to a cache's targets.

    LightGBM, XGBoost and CatBoost are trained with the loss of a :class:`~ensdistill.student.StudentTrainer`:
    gradient alpha·T·(q_T - p) + (1 - alpha)·(q_1 - y), and the diagonal of its Hessian (CatBoost: the whole
    of it). They stop early where they come no nearer to the ensemble on held-out rows; DART keeps all its
    rounds. An estimator's own settings of early stopping and of metrics count for *direct* only. The result
    is a model of the library's own softmax objective.

    Classifiers of scikit-learn have two ways: each row once for each class, with the probabilities as
    weights, or the regressor of the same kind on the log-odds. Both are fitted, and the better on held-out
    rows is kept.

    Of the task multilabel there is one such model for each label. Of the task regression a regressor is
    fitted to the ensemble's mean, by its library's squared error or Huber's.

    Parameters
    ----------
    estimator : classifier or regressor
        Of scikit-learn, LightGBM, XGBoost or CatBoost; not fitted. Its parameters are those of the student.
    loss : LossSettings or RegressionSettings, optional
        Temperature, alpha, combiner and label smoothing. Estimators of scikit-learn have temperature 1, and
        regressions alpha alone. ``RegressionSettings("huber", delta=0.5)``: boosters have Huber's error, with
        ``delta`` in units of the targets' spread.
    way : {"auto", "expansion", "regression"}
        Of an estimator of scikit-learn.
    task : {"classification", "multilabel", "regression"}
        That of the cache.

    Raises
    ------
    TypeError, ValueError
        No estimator, one that can't learn probabilities, or a setting of the loss that it can't have.

    Examples
    --------
    >>> from lightgbm import LGBMClassifier
    >>> TreeStudent(LGBMClassifier(n_estimators=300), LossSettings(temperature=2.0)).loss.temperature
    2.0
    """

    def __init__(
        self,
        estimator: Any,
        loss: LossSettings | RegressionSettings = DEFAULTS,
        way: Literal["auto", "expansion", "regression"] = "auto",
        task: Task = "classification",
    ) -> None:
        if not is_estimator(estimator):
            got = estimator if isinstance(estimator, type) else type(estimator).__name__
            raise TypeError(
                "estimator: expected one of scikit-learn, LightGBM, XGBoost or CatBoost that is yet to be "
                f"fitted; got {got}"
            )
        self.estimator, self.task, self.library = estimator, check_task(task), library_of(estimator)
        if isinstance(loss, LossSettings):
            check_trained("loss", loss)
            check_settings(loss)
        if task == "regression":
            self.numbers = loss if isinstance(loss, RegressionSettings) else RegressionSettings.of(loss)
            self.ways: list[Way] = []
            check_regressor(estimator)
            check_error(estimator, self.numbers)
            if way != "auto":
                raise ValueError(f"way: expected auto for the task regression; got {way!r}")
            return
        if isinstance(loss, RegressionSettings):
            raise ValueError(
                f"loss: RegressionSettings are of the task regression; got the task {task}: pass LossSettings"
            )
        self.loss = loss
        if way not in ("auto", *get_args(Way)):
            raise ValueError(f"way: expected auto, expansion or regression; got {way!r}")
        self.ways = [] if self.library else ways_of(estimator)
        if way != "auto":
            if self.library or way not in self.ways:
                known = ", ".join(["auto", *self.ways])
                raise ValueError(f"way: expected one of {known} for {type(estimator).__name__}; got {way!r}")
            self.ways = [way]
        self._check_library()
        self.check_weights(0 < loss.alpha < 1)

    def fit(
        self,
        rows: Rows,
        cache: TargetCache,
        *,
        validation: Validation | Rows | float | None = DEFAULT_VALIDATION,
        member: str | None = None,
        augment: Augmentation | None = None,
        preprocess: Any = "auto",
        seed: int = 0,
        name: str = "student",
    ) -> FittedStudent:
        """Fit a copy of the estimator to the cache's targets of some rows.

        Parameters
        ----------
        rows : Rows
            Of the cache's transfer set.
        cache : TargetCache
        validation : Validation, Rows, or float, optional
            Rows of the cache that the student is not fitted to, or the share of ``rows`` that is held out;
            see :class:`~ensdistill.student.validation.Validation`. The round of a booster that is the best on
            them is kept, and the better way of an estimator. By default a tenth of the rows, with a patience
            of 50 rounds. None: all rounds, and the first way.
        member : str, optional
            Learn from this one member instead of the mixture.
        augment : Augmentation, optional
            That of the cache, if it has one: the estimator is fitted to all versions of a row.
        preprocess : "auto", None, a preprocess, or an object with ``fit``
            See :class:`ensdistill.teachers.recipes.SklearnMembers`; fitted to ``rows`` without their labels.
        seed : int
            For the held-out rows, and for a ``random_state`` that is None.
        name : str
            The member's.

        Raises
        ------
        CacheMismatch
            The rows are not those of the cache, or the augmentation is not.
        ValueError
            Targets or labels that the loss can't be computed from; or ``validation`` has rows of ``rows``.
        """
        if not isinstance(cache, TargetCache):
            raise TypeError(
                "cache: expected a TargetCache, because an estimator learns from all targets at once; got "
                f"{type(cache).__name__}: store its targets by ensdistill.cache_targets"
            )
        if task_of(cache) != self.task:
            raise ValueError(
                f"cache: expected one of the task {self.task}, as TreeStudent(task=...) states; the cache "
                f"{cache.path} is of the task {task_of(cache)}"
            )
        if not (self.library or len(self.ways) > 1):
            validation = None  # there is nothing to choose
        check_in_cache(cache, rows)
        own, settings = split_rows(validation, rows, cache, seed)
        if settings is not None:
            check_validation(settings, self.task)
            assert isinstance(settings.rows, Rows)
            strange = np.setdiff1d(settings.rows.uids, cache.uids)
            if len(strange):
                raise ValueError(
                    f"validation: uid {strange[0]} has no targets in the cache {cache.path}, with which an "
                    f"estimator is compared ({len(strange)} such uids); pass rows of the cache, or a share"
                )
        held: Any = None if settings is None else settings.rows
        if self.task == "regression":
            samples, numbers = numbers_of_cache(self.numbers.alpha, own, cache, member, augment)
            found = None if held is None else numbers_of_cache(1.0, held, cache, member, augment)
            fitting = Fitting(samples, cache.classes, preprocess, seed, name)
            return self._fit_numbers(fitting, numbers, found, settings, cache.scale)
        at = 1.0 if cache.temperature is None else cache.temperature
        compared = replace(self.loss, temperature=at, alpha=1.0, label_smoothing=0.0)
        if self.task == "multilabel":
            samples, objectives = labels_of_cache(self.loss, own, cache, member, augment)
            judges: list[Judge] | None = None
            if settings is not None:
                judged, others = labels_of_cache(compared, held, cache, member, augment)
                judges = [Judge(judged, one, settings) for one in others]
            fitting = Fitting(samples, cache.classes, preprocess, seed, name)
            return self.fit_labels(fitting, objectives, judges)
        samples, objective = of_cache(self.loss, own, cache, member, augment)
        judge = None
        if settings is not None:
            judge = Judge(*of_cache(compared, held, cache, member, augment), settings)
        return self.fit_to(samples, objective, cache.classes, preprocess, seed, name, judge)

    def check_weights(self, uneven: bool) -> None:
        """Raise ValueError where rows count unevenly, as those with and without a label do at an alpha below
        1, and the estimator takes no weights."""
        if uneven and self.ways == ["regression"]:
            check_regressor_weights(self.estimator)

    def fit_to(
        self,
        samples: Any,
        objective: Objective,
        classes: Any,
        preprocess: Any = "auto",
        seed: int = 0,
        name: str = "student",
        judge: Judge | None = None,
    ) -> FittedStudent:
        """Fit a copy of the estimator to an objective of some samples; ``judge`` has others.

        Raises
        ------
        ValueError
            All rows have weight 0, or the library refuses the fit.
        """
        samples, used = as_samples(samples), np.flatnonzero(objective.weights > 0)
        if not len(used):
            raise ValueError("rows.weights: expected a row of a weight above 0; got none")
        if len(used) < len(objective):
            samples, objective = subset(samples, used), objective.take(used)
        made = Prepared.of(self.estimator, Fitting(samples, classes, preprocess, seed, name))
        if judge is not None:
            judge = replace(judge, samples=made.features(as_samples(judge.samples)))
        fit = Fit(made.estimator, made.features(samples), objective, judge, tuple(classes), seed, name)
        member, way, figures = self._chosen(fit)
        return FittedStudent(made.member(member), way, figures)

    def _chosen(self, fit: Fit) -> Chosen:
        return (self._boosted if self.library else self._of_sklearn)(fit)

    def fit_labels(
        self, fitting: Fitting, objectives: list[Objective], judges: list[Judge] | None
    ) -> FittedStudent:
        """A classifier of two classes for each label, on features that all of them share."""
        made = Prepared.of(self.estimator, fitting)
        features = made.features(fitting.samples)
        judged = None if judges is None else made.features(as_samples(judges[0].samples))
        members, ways, figures = [], [], []
        for c, (label, objective) in enumerate(zip(fitting.classes, objectives, strict=True)):
            name = f"{fitting.name}: {label}"
            if (share := constant_share(objective)) is not None:
                members.append(constant_member(share, features, name))
                continue
            own, used = features, np.flatnonzero(objective.weights > 0)
            if len(used) < len(objective):
                own, objective = rows_of(features, used), objective.take(used)
            judge = None if judges is None else replace(judges[c], samples=judged)
            fit = Fit(made.estimator, own, objective, judge, ("no", "yes"), fitting.seed, name)
            member, way, _ = self._chosen(fit)
            members.append(member)
            ways.append(way)
            if judge is not None:
                figures.append(_judged(judge, member))
        found = ColumnsMember(members, name=fitting.name, classes=fitting.classes, task="multilabel")
        way = f"{len(members)} models, one a label"
        if ways:
            way += f" ({ways[0]}{', others differ' if len(set(ways)) > 1 else ''})"
        summed = {}
        if figures:
            summed[way] = float(np.mean([one for one, _ in figures])), float(sum(kl for _, kl in figures))
        return FittedStudent(made.member(found), way, summed)

    def _fit_numbers(
        self, fitting: Fitting, numbers: Numbers, held: Any, settings: Any, scale: Any
    ) -> FittedStudent:
        used = np.flatnonzero(numbers.weights > 0)
        if not len(used):
            raise ValueError("rows.weights: expected a row of a weight above 0; got none")
        numbers = Numbers(numbers.targets[used], numbers.weights[used])
        made = Prepared.of(self.estimator, fitting)
        features = made.features(subset(as_samples(fitting.samples), used))
        others = None
        if held is not None:
            judged = np.flatnonzero(held[1].weights > 0)
            if not len(judged):
                raise ValueError("validation: expected a row of a weight above 0; got none")
            others = HeldNumbers(
                made.features(subset(as_samples(held[0]), judged)),
                held[1].targets[judged],
                uneven(held[1].weights[judged]),
                settings.patience,
            )
        error = self.numbers, np.asarray(scale, np.float64)
        member, way = fit_numbers(made.estimator, features, numbers, others, fitting, error)
        figures = {}
        if others is not None:
            own: Any = member
            away = (own.predict_moments(others.features).mean - others.targets) / scale
            distance = float(np.average(np.square(away).mean(1), weights=others.weights))
            figures = {way: (distance, distance)}
        return FittedStudent(made.member(member), way, figures)

    def _boosted(self, fit: Fit) -> Chosen:
        made = fit_boosted(fit)
        own = getattr(made.model, "classes_", None)
        columns = list(fit.names) if own is not None and len(own) == fit.classes else None
        member = BoostedMember(made.model, name=fit.name, classes=fit.names, columns=columns)
        way = f"KL objective, {made.rounds} of {made.allowed} rounds"
        return member, way, {} if fit.judge is None else {way: _judged(fit.judge, member)}

    def _of_sklearn(self, fit: Fit) -> Chosen:
        judge, best = fit.judge, -np.inf
        figures: dict[str, tuple[float, float]] = {}
        for way in self.ways if judge is not None else self.ways[:1]:
            member = fit_way(way, fit)
            value = 0.0
            if judge is not None:
                figures[NAMES[way]] = _judged(judge, member)
                value = judge.value(figures[NAMES[way]])
            if value > best:  # the first of equals stays
                best, chosen = value, (member, NAMES[way])
        return *chosen, figures

    def _check_library(self) -> None:
        """Refuse settings that the estimator's library does not have, before there are rows."""
        kind, loss = type(self.estimator).__name__, self.loss
        check_parameters(self.estimator)
        if self.library is None and loss.temperature != 1:
            raise ValueError(
                f"loss.temperature: expected 1 for {kind}, an estimator that is fitted to the probabilities "
                f"themselves; got {loss.temperature}: choose a booster, or a network"
            )
        if self.library is None:
            return
        if not hasattr(self.estimator, "predict_proba"):
            raise ValueError(f"estimator: expected a classifier; got {kind}")
        if self.library == "catboost" and loss.temperature != 1 and 0 < loss.alpha < 1:
            raise ValueError(
                f"loss.temperature: expected 1 for {kind} where alpha is below 1, because CatBoost learns "
                f"the ensemble's probabilities and the labels at one temperature; got {loss.temperature}: "
                "choose temperature 1, alpha 1, or LightGBM or XGBoost"
            )


def _judged(judge: Judge, member: Member) -> tuple[float, float]:
    return judge.figures(member.predict_logits(judge.samples))
