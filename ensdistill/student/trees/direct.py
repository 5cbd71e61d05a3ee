"""*Direct* for a student that is no network: the same estimator on labels, with its library's own loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from ensdistill.common.random import derive_seed
from ensdistill.data import Rows
from ensdistill.data.copies import stratified_folds
from ensdistill.data.samples import subset, whole
from ensdistill.data.tasks import UNKNOWN, UNLABELLED
from ensdistill.loss.settings import LossSettings
from ensdistill.student.trees.numbers import fit_numbers
from ensdistill.student.trees.objective import LEAST, Objective
from ensdistill.student.trees.of_catboost import ROUNDS as CATBOOST
from ensdistill.student.trees.of_lightgbm import ROUNDS as LIGHTGBM
from ensdistill.student.trees.prepared import Fitting, Prepared, constant_member
from ensdistill.student.trees.student import TreeStudent
from ensdistill.student.trees.targets import Numbers
from ensdistill.teachers.choices import Choices
from ensdistill.teachers.jobs import TrainingRows
from ensdistill.teachers.members import ColumnsMember, Member, Moments
from ensdistill.teachers.members.boosted import library_of
from ensdistill.teachers.members.moments import predictions_of
from ensdistill.teachers.prepared import prepare_recipes
from ensdistill.teachers.recipes import SklearnMembers
from ensdistill.teachers.stack.fitting import copy_of, stops_early

SHORTER = (4, 16)  # the rounds divided by so much
# By parameter the factors of other values that are tried, each towards more regularisation.
STRONGER = {"min_samples_leaf": (4, 16), "C": (0.1, 0.01), "alpha": (10, 100), "n_neighbors": (4, 16)}
OWN = "own parameters"


@dataclass(frozen=True, eq=False)
class Direct:
    """How an estimator is fitted to labels.

    Parameters
    ----------
    rows : Rows
        All have a label.
    classes : sequence of str
    preprocess : "auto", None, a preprocess, or an object with ``fit``
        See :class:`ensdistill.teachers.recipes.SklearnMembers`.
    smoothing : float
        Of the labels of ``smoothed``.
    folds : int
        Of the rows; equal rows are in one fold.
    seed : int
    """

    rows: Rows
    classes: Sequence[str]
    preprocess: Any = "auto"
    smoothing: float = 0.1
    folds: int = 3
    seed: int = 0

    def search(
        self,
        estimator: Any,
        found: Choices,
        progress: Callable[[int, int], None] | None = None,
    ) -> tuple[str, Any]:
        """The name of the parameters of least NLL on held-out folds, and the estimator with them.

        Parameters
        ----------
        estimator : estimator
        found : Choices
            Holds the judgements afterwards, those of :meth:`smoothed` among them; of those that it holds
            already no model is fitted.
        progress : callable (done, total), optional
            In fits.
        """
        rows, tried = self.rows, choices(estimator, len(self.rows))
        parts = stratified_folds(
            rows.inputs, rows.labels, self.folds, derive_seed("direct folds", self.seed), rows.groups
        )
        total = (len(tried) + self.smooths) * len(parts)

        def held_out(fit: Callable[[Any, Rows, int], Member], one: Any, before: int) -> Any:
            found = np.zeros((len(rows), len(self.classes)), np.float64)
            for i, (own, held) in enumerate(parts):
                member = fit(one, rows.take(own), derive_seed("direct fold", self.seed, i))
                found[held] = predictions_of(member, whole(subset(rows.inputs, held)))
                if progress is not None:
                    progress(before + i + 1, total)
            return Moments(found, None) if rows.task == "regression" else found.astype(np.float32)

        losses = {
            name: found.nll(name, partial(held_out, self.on_labels, one, i * len(parts)))
            for i, (name, one) in enumerate(tried.items())
        }
        best = min(losses, key=lambda name: losses[name])  # the first of equals
        if self.smooths:
            last = partial(held_out, self.on_smoothed_labels, tried[best], total - len(parts))
            found.nll(self.smoothed(best), last)
        return best, tried[best]

    @property
    def smooths(self) -> bool:
        """Whether there is a baseline on smoothed labels; numbers are not smoothed."""
        return self.rows.task != "regression"

    def smoothed(self, recipe: str) -> str:
        """The name of the choice of these parameters on smoothed labels."""
        return f"{recipe}, label smoothing {self.smoothing:g}"

    def on_labels(self, estimator: Any, rows: Rows, seed: int, name: str = "direct") -> Member:
        """A copy, fitted to labels by its library; of several labels, or numbers where it takes one alone,
        a copy for each."""
        if rows.task != "classification":
            return self._on_columns(estimator, rows, seed, name)
        recipe = SklearnMembers(estimator, name=name, preprocess=self.preprocess)
        (own,) = prepare_recipes([recipe], rows.inputs, len(self.classes), seed)
        data = TrainingRows(rows.inputs, rows.labels, tuple(self.classes), rows.weights)
        ((_, member),) = own.fit(data, own.jobs(data.labels, seed))
        return member

    def on_smoothed_labels(self, estimator: Any, rows: Rows, seed: int) -> Member:
        """A copy, fitted to smoothed labels in the way in which it learns probabilities."""
        if rows.task == "multilabel":
            return self._on_smoothed_columns(estimator, rows, seed)
        count = len(self.classes)
        targets = (1 - self.smoothing) * np.eye(count)[rows.labels] + self.smoothing / count
        unknown = np.full(len(rows), -100)
        objective = Objective.of(LossSettings(), targets, unknown, rows.weights)
        return (
            TreeStudent(estimator)
            .fit_to(rows.inputs, objective, self.classes, self.preprocess, seed, "direct")
            .member
        )

    def _on_columns(self, estimator: Any, rows: Rows, seed: int, name: str) -> Member:
        fitting = Fitting(rows.inputs, self.classes, self.preprocess, seed, name)
        made = Prepared.of(estimator, fitting)
        if rows.task == "regression":
            weights = np.ones(len(rows)) if rows.weights is None else rows.weights
            numbers, names = Numbers(rows.labels, weights), tuple(self.classes)
            features = made.features(rows.inputs)
            member, _ = fit_numbers(made.estimator, features, numbers, None, names, seed, name)
            return made.member(member)
        samples = made.samples(rows.inputs)
        members: list[Member] = []
        for c, label in enumerate(self.classes):
            own = f"{name}: {label}"
            known = np.flatnonzero(rows.labels[:, c] != UNKNOWN)
            column = rows.labels[known, c].astype(np.int64)
            if len(np.unique(column)) < 2:
                share = float(np.clip(column.mean(), LEAST, 1 - LEAST)) if len(column) else 0.5
                members.append(constant_member(share, made.features(rows.inputs), own))
                continue
            chosen = None if rows.weights is None else rows.weights[known]
            data = TrainingRows(subset(samples, known), column, ("no", "yes"), chosen)
            recipe = SklearnMembers(made.estimator, name=own.replace("/", " "), preprocess=None)
            ((_, member),) = recipe.fit(data, recipe.jobs(column, seed))
            members.append(member)
        return made.member(ColumnsMember(members, name=name, classes=self.classes, task="multilabel"))

    def _on_smoothed_columns(self, estimator: Any, rows: Rows, seed: int) -> Member:
        known = rows.labels != UNKNOWN
        p = (1 - self.smoothing) * (rows.labels == 1) + self.smoothing / 2
        weights = np.ones(len(rows)) if rows.weights is None else rows.weights
        unknown = np.full(len(rows), UNLABELLED)
        objectives = [
            Objective.of(LossSettings(), np.stack([1 - p[:, c], p[:, c]], 1), unknown, weights * known[:, c])
            for c in range(len(self.classes))
        ]
        fitting = Fitting(rows.inputs, self.classes, self.preprocess, seed, "direct")
        return TreeStudent(estimator, task="multilabel").fit_labels(fitting, objectives, None).member


def choices(estimator: Any, rows: int) -> dict[str, Any]:
    """The estimator itself, and copies with fewer rounds or more regularisation, by the parameter's value.

    Examples
    --------
    >>> from sklearn.ensemble import RandomForestClassifier
    >>> list(choices(RandomForestClassifier(min_samples_leaf=2), rows=1000))
    ['min_samples_leaf=2', 'min_samples_leaf=8', 'min_samples_leaf=32']
    """
    name, values = _searched(estimator, rows)
    if name is None:
        return {OWN: estimator}
    short = name.rpartition("__")[2]
    made = {f"{short}={value:g}": copy_of(estimator).set_params(**{name: value}) for value in values[1:]}
    return {f"{short}={values[0]:g}": estimator} | made


def _searched(estimator: Any, rows: int) -> tuple[str | None, list[Any]]:
    """The parameter that is searched, and its values; the estimator's own is the first."""
    from sklearn.pipeline import Pipeline

    library = library_of(estimator)
    if library is not None:
        if stops_early(estimator):
            return None, []
        given, places = estimator.get_params(), {"catboost": CATBOOST, "lightgbm": LIGHTGBM}
        known = places.get(library, ("n_estimators",))
        name = next((one for one in known if given.get(one) is not None), known[0])
        own = given.get(name) or (1000 if library == "catboost" else 100)
        return name, _shorter(int(own))
    prefix, part = "", estimator
    while isinstance(part, Pipeline):
        prefix, part = f"{prefix}{part.steps[-1][0]}__", part.steps[-1][1]
    given = part.get_params(deep=False)
    if isinstance(given.get("learning_rate"), float):
        rounds = [one for one in ("max_iter", "n_estimators") if isinstance(given.get(one), int)]
        if rounds:
            return prefix + rounds[0], _shorter(given[rounds[0]])
    for name, factors in STRONGER.items():
        own = given.get(name)
        if not isinstance(own, (int, float)) or isinstance(own, bool) or own <= 0:
            continue
        values = [own, *(own * factor for factor in factors)]
        if name == "n_neighbors":
            values = [value for value in values if value == own or value <= rows // 4]
        whole_numbers = name == "n_neighbors" or (isinstance(own, int) and name == "min_samples_leaf")
        return prefix + name, [int(value) for value in values] if whole_numbers else values
    return None, []


def _shorter(rounds: int) -> list[int]:
    return list(dict.fromkeys([rounds, *(max(1, rounds // factor) for factor in SHORTER)]))
