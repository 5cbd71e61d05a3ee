"""The samples of a fit as an estimator takes them, and labels that are the same in all rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ensdistill.student.estimators import SMALLEST
from ensdistill.student.trees.objective import LEAST, Objective
from ensdistill.teachers import prepared as recipes
from ensdistill.teachers.members import Member, Preprocessed, SklearnMember
from ensdistill.teachers.recipes import SklearnMembers
from ensdistill.teachers.stack.fitting import features_of


@dataclass(frozen=True, eq=False)
class Fitting:
    """The samples of a fit, and the settings that its parts share.

    Parameters
    ----------
    samples : samples of N rows
    classes : sequence of str [C]
    preprocess : "auto", None, a preprocess, or an object with ``fit``
    seed : int
    name : str
        The member's.
    """

    samples: Any
    classes: Sequence[str]
    preprocess: Any
    seed: int
    name: str


@dataclass(frozen=True, eq=False)
class Prepared:
    """An estimator with its preprocess, which is fitted to the samples.

    Parameters
    ----------
    recipe : object
        Of :func:`ensdistill.teachers.prepared.prepare_recipes`.
    """

    recipe: Any

    @classmethod
    def of(cls, estimator: Any, fitting: Fitting) -> Prepared:
        recipe = SklearnMembers(estimator, name=fitting.name, preprocess=fitting.preprocess)
        return cls(recipes.prepare_recipes([recipe], fitting.samples, len(fitting.classes), fitting.seed)[0])

    @property
    def estimator(self) -> Any:
        """The estimator, not fitted."""
        own: Any = recipes.unprepared(self.recipe)
        return own.estimator

    def features(self, samples: Any) -> Any:
        """Samples as the estimator takes them."""
        own = self.recipe
        return features_of(own.inputs(samples) if isinstance(own, recipes.Prepared) else samples)

    def member(self, fitted: Member) -> Member:
        """The fitted member with the preprocess before it."""
        own = self.recipe
        return Preprocessed(fitted, own.preprocess) if isinstance(own, recipes.Prepared) else fitted


def rows_of(features: Any, index: np.ndarray) -> Any:
    """Some rows of an array, a frame or a list."""
    if isinstance(features, list):
        return [features[i] for i in index]
    if hasattr(features, "iloc"):
        return features.iloc[index]
    return features[index]


def constant_share(objective: Objective) -> float | None:
    """The probability of a label that is nearly the same in all rows, which no estimator learns; None of
    others."""
    merged = objective.merged()
    p, weights = (objective.targets, objective.weights) if merged is None else merged[:2]
    used = weights > 0
    if not used.any():
        p, weights, used = objective.targets, np.ones(len(objective)), np.ones(len(objective), bool)
    column = p[used, 1]
    if not ((column < SMALLEST).all() or (column > 1 - SMALLEST).all()):
        return None
    return float(np.clip(np.average(column, weights=weights[used]), LEAST, 1 - LEAST))


def constant_member(share: float, features: Any, name: str) -> Member:
    """A classifier of two classes that gives each row the same probability."""
    from sklearn.dummy import DummyClassifier

    few = rows_of(features, np.array([0, 0]))
    made = DummyClassifier(strategy="prior").fit(few, [0, 1], sample_weight=[1 - share, share])
    return SklearnMember(made, name=name, classes=("no", "yes"))
