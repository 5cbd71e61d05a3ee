"""One fit of an estimator to an objective of soft targets, as boosted trees of each library take it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ensdistill.student.trees.judge import Judge
from ensdistill.student.trees.objective import Objective
from ensdistill.teachers.members.base import two_logits


@dataclass(frozen=True)
class Boosted:
    """A library's booster, with the rounds that were kept of those that were allowed."""

    model: Any
    rounds: int
    allowed: int


@dataclass(frozen=True, eq=False)
class Fit:
    """The arguments of one fit.

    Parameters
    ----------
    estimator : estimator
        Not fitted. The parameters of an LGBMClassifier, XGBClassifier or CatBoostClassifier are those of the
        booster.
    features : ndarray [N, F], frame, or list of texts
        As the estimator takes them.
    objective : Objective
        Of these rows, none of weight 0.
    judge : Judge or None
        Its rows decide the number of rounds, or the way in which the estimator learns.
    names : tuple of str [C]
        Of the classes.
    seed : int
        For a ``random_state`` that is None.
    name : str
        The member's, for messages.
    """

    estimator: Any
    features: Any
    objective: Objective
    judge: Judge | None
    names: tuple[str, ...]
    seed: int
    name: str

    @property
    def classes(self) -> int:
        return self.objective.targets.shape[1]

    def parameters(self, dropped: Sequence[str]) -> dict[str, Any]:
        """The estimator's parameters that are set, without those of the names ``dropped``."""
        given = self.estimator.get_params()
        return {key: value for key, value in given.items() if value is not None and key not in dropped}

    def derivatives(self, scores: np.ndarray, factor: float) -> tuple[np.ndarray, np.ndarray]:
        """Gradient and Hessian of a library's raw scores: [N, C], or [N] for the margin of two classes.

        ``factor`` multiplies the diagonal of the Hessian of several classes, as the library's own softmax
        objective does: a step of one class leaves out that the scores of the others move too.
        """
        full = as_logits(scores, len(self.objective), self.classes)
        gradient, curvature = self.objective.gradient(full), self.objective.curvature(full)
        # The margin is the difference of the two scores, of which each moves by half.
        return (gradient[:, 1], curvature[:, 1]) if self.classes == 2 else (gradient, factor * curvature)

    def value(self, scores: np.ndarray) -> float:
        """The judge's value of raw scores for its rows."""
        assert self.judge is not None
        scores = as_logits(scores, len(self.judge.objective), self.classes)
        return self.judge.value(self.judge.figures(scores))

    def judge_for(self, kind: str | None) -> Judge | None:
        """The judge of the rounds of this kind of boosting; None where all rounds are kept. DART scales
        earlier trees anew in each round, so that its first rounds alone are not the model that they were."""
        return None if kind == "dart" else self.judge

    def start(self) -> np.ndarray:
        """The base score: [C], or the margin [1] of two classes."""
        start = self.objective.start()
        return np.array([start[1] - start[0]]) if self.classes == 2 else start


def as_logits(scores: np.ndarray, rows: int, classes: int) -> np.ndarray:
    """Raw scores of a library as logits [N, C], float64."""
    scores = np.asarray(scores, np.float64)
    return two_logits(scores.reshape(rows)) if classes == 2 else scores.reshape(rows, classes)
