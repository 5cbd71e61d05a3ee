"""The trainer of students that are not networks, from a cache's targets."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

import numpy as np

from ensdistill.cache import TargetCache
from ensdistill.data import Rows
from ensdistill.data.augmentation import Augmentation
from ensdistill.data.samples import as_samples, subset
from ensdistill.loss.settings import DEFAULTS, LossSettings, check_trained
from ensdistill.student.sources import check_in_cache
from ensdistill.student.trees.boosted import check_parameters, fit_boosted
from ensdistill.student.trees.fits import Fit
from ensdistill.student.trees.judge import DEFAULT_VALIDATION, Judge, check_validation
from ensdistill.student.trees.objective import Objective, check_settings
from ensdistill.student.trees.targets import of_cache
from ensdistill.student.trees.ways import NAMES, Way, check_regressor_weights, fit_way, ways_of
from ensdistill.student.validation import Validation, split_rows
from ensdistill.teachers.members import BoostedMember, Member, Preprocessed
from ensdistill.teachers.members.boosted import library_of
from ensdistill.teachers.prepared import Prepared, prepare_recipes, unprepared
from ensdistill.teachers.recipes import SklearnMembers
from ensdistill.teachers.stack.fitting import features_of, is_estimator

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
        held-out rows; empty where none were held out.
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

    Parameters
    ----------
    estimator : classifier or regressor
        Of scikit-learn, LightGBM, XGBoost or CatBoost; not fitted. Its parameters are those of the student.
    loss : LossSettings, optional
        Temperature, alpha, combiner and label smoothing. Estimators of scikit-learn have temperature 1.
    way : {"auto", "expansion", "regression"}
        Of an estimator of scikit-learn.

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
        loss: LossSettings = DEFAULTS,
        way: Literal["auto", "expansion", "regression"] = "auto",
    ) -> None:
        if not is_estimator(estimator):
            got = estimator if isinstance(estimator, type) else type(estimator).__name__
            raise TypeError(
                "estimator: expected one of scikit-learn, LightGBM, XGBoost or CatBoost that is yet to be "
                f"fitted; got {got}"
            )
        check_trained("loss", loss)
        check_settings(loss)
        self.estimator, self.loss = estimator, loss
        self.library = library_of(estimator)
        if way not in ("auto", *get_args(Way)):
            raise ValueError(f"way: expected auto, expansion or regression; got {way!r}")
        self.ways: list[Way] = [] if self.library else ways_of(estimator)
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
        if not (self.library or len(self.ways) > 1):
            validation = None  # there is nothing to choose
        check_in_cache(cache, rows)
        own, settings = split_rows(validation, rows, cache, seed)
        samples, objective = of_cache(self.loss, own, cache, member, augment)
        judge = None
        if settings is not None:
            check_validation(settings)
            assert isinstance(settings.rows, Rows)
            strange = np.setdiff1d(settings.rows.uids, cache.uids)
            if len(strange):
                raise ValueError(
                    f"validation: uid {strange[0]} has no targets in the cache {cache.path}, with which an "
                    f"estimator is compared ({len(strange)} such uids); pass rows of the cache, or a share"
                )
            at = 1.0 if cache.temperature is None else cache.temperature
            compared = replace(self.loss, temperature=at, alpha=1.0, label_smoothing=0.0)
            judge = Judge(*of_cache(compared, settings.rows, cache, member, augment), settings)
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
        recipe = self._recipe(samples, classes, preprocess, seed, name)
        made = recipe.preprocess if isinstance(recipe, Prepared) else None
        own: Any = unprepared(recipe)

        def prepared(some: Any) -> Any:
            return features_of(recipe.inputs(some) if isinstance(recipe, Prepared) else some)

        if judge is not None:
            judge = replace(judge, samples=prepared(as_samples(judge.samples)))
        fit = Fit(own.estimator, prepared(samples), objective, judge, tuple(classes), seed, name)
        member, way, figures = (self._boosted if self.library else self._of_sklearn)(fit)
        return FittedStudent(member if made is None else Preprocessed(member, made), way, figures)

    def _recipe(self, samples: Any, classes: Any, preprocess: Any, seed: int, name: str) -> Any:
        recipe = SklearnMembers(self.estimator, name=name, preprocess=preprocess)
        return prepare_recipes([recipe], samples, len(classes), seed)[0]

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
