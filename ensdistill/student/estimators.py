"""Estimators as students: fitted to the ensemble's probabilities, which stand in the weights of rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.base import is_classifier

from ensdistill.data.samples import as_samples, subset
from ensdistill.teachers.jobs import TrainingRows
from ensdistill.teachers.members import Member
from ensdistill.teachers.prepared import prepare_recipes
from ensdistill.teachers.recipes import SklearnMembers
from ensdistill.teachers.stack.row_weights import check_takes_weights

SMALLEST = 1e-3  # classes of less probability have no copy of the row: most rows then have one or two
LEFT_OUT = 0.01  # of a row's probability at most, however many classes there are


def fit_to_probabilities(
    estimator: Any,
    samples: Any,
    probabilities: np.ndarray,
    *,
    classes: Sequence[str],
    weights: np.ndarray | None = None,
    seed: int = 0,
    name: str = "student",
    preprocess: Any = "auto",
) -> Member:
    """Fit a copy of a classifier to a distribution for each sample.

    Each sample is given once for each class, with the class's probability as its weight, so that the
    weighted log-loss of the fit is the cross entropy to the distribution. Classes below 0.001 are left out,
    up to a hundredth of the row, and the others are scaled to sum to one. A distribution of one class is a
    label: such rows alone need no weights.

    Parameters
    ----------
    estimator : classifier of scikit-learn, XGBoost, LightGBM or CatBoost
        Not fitted. It predicts probabilities.
    samples : N samples of any kind
        Frames and texts get the preprocess that :class:`ensdistill.teachers.recipes.SklearnMembers` gives
        them.
    probabilities : ndarray [N, C]
        Rows that sum to one.
    classes : sequence of str [C]
    weights : ndarray [N], optional
        How much each sample counts.
    seed : int
        For a ``random_state`` that is None.
    name : str
        The member's.
    preprocess : "auto", None, or a preprocess
        See :class:`ensdistill.teachers.recipes.SklearnMembers`.

    Returns
    -------
    Member
        The fitted copy, with its preprocess.

    Raises
    ------
    ValueError
        It is no classifier, has no ``predict_proba``, or its fit takes no weights. Hard labels instead of
        probabilities would be another method, so they are not taken unasked.

    Examples
    --------
    >>> from sklearn.tree import DecisionTreeClassifier
    >>> x, p = np.array([[0.0], [1.0]]), np.array([[0.75, 0.25], [0.1, 0.9]])
    >>> member = fit_to_probabilities(DecisionTreeClassifier(), x, p, classes=["no", "yes"])
    >>> np.exp(member.predict_logits(x)).astype(float).round(2).tolist()
    [[0.75, 0.25], [0.1, 0.9]]
    """
    check_student(estimator)
    samples = as_samples(samples)
    rows, labels, counts = expanded(probabilities, weights)
    if (labels == labels[0]).all():
        raise ValueError(
            f"probabilities: {name}: expected a second class of at least {SMALLEST:g} in some row; all "
            f"{len(probabilities)} rows are of {classes[labels[0]]!r}"
        )
    known: np.ndarray | None = counts
    if weights is None and len(rows) == len(probabilities):
        known = None
    else:
        _check_weights(estimator)
    own = SklearnMembers(estimator, name=name, preprocess=preprocess)
    (recipe,) = prepare_recipes([own], samples, len(classes), seed)
    data = TrainingRows(subset(samples, rows), labels, tuple(classes), known)
    ((_, member),) = recipe.fit(data, recipe.jobs(data.labels, seed))
    return member


def expanded(
    probabilities: np.ndarray, weights: np.ndarray | None = None, smallest: float = SMALLEST
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Each row once for each of its classes: its position, the class, both int64, and the weight, float64.

    Of each row the least classes below ``smallest`` are left out, together up to ``LEFT_OUT``; the others are
    scaled to sum to one.

    Examples
    --------
    >>> rows, labels, weights = expanded(np.array([[0.25, 0.75], [1.0, 0.0]]))
    >>> rows.tolist(), labels.tolist(), weights.tolist()
    ([0, 0, 1], [0, 1, 0], [0.25, 0.75, 1.0])
    """
    order = np.argsort(probabilities, axis=1)
    rising = np.take_along_axis(probabilities, order, 1)
    lost = (rising < smallest) & (rising.cumsum(1) <= LEFT_OUT)
    kept = np.array(probabilities, np.float64)
    np.put_along_axis(kept, order, np.where(lost, 0.0, rising), 1)
    kept /= kept.sum(1, keepdims=True)
    rows, labels = np.nonzero(kept)
    counts = kept[rows, labels] * (1.0 if weights is None else weights[rows])
    return rows, labels.astype(np.int64), counts


def check_student(estimator: Any) -> None:
    """Raise ValueError for an estimator that can't be a student."""
    kind = type(estimator).__name__
    if not is_classifier(estimator):
        raise ValueError(f"student: expected a classifier; got {kind}")
    if not hasattr(estimator, "predict_proba"):
        raise ValueError(
            f"student: expected a classifier with predict_proba; got {kind}, whose scores are no "
            "probabilities: choose another, or set the parameter that gives it probabilities"
        )


def _check_weights(estimator: Any) -> None:
    try:
        check_takes_weights(estimator, "student")
    except ValueError:
        raise ValueError(
            f"student: the fit of {type(estimator).__name__} takes no sample_weight, by which it would learn "
            "the ensemble's probabilities: choose an estimator whose fit does, or a network"
        ) from None
