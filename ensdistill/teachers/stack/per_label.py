"""``MultiOutputClassifier`` where labels are unknown, or alike in all rows of a fit: label by label."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.sparse import issparse

from ensdistill.data import BadRows
from ensdistill.data import batches as b
from ensdistill.data.tasks import UNKNOWN
from ensdistill.teachers.stack.row_weights import fit_weighted


def of_labels(estimator: Any) -> bool:
    """Whether an estimator, or the last step of a pipeline, fits a copy of one classifier to each label."""
    from sklearn.multioutput import MultiOutputClassifier
    from sklearn.pipeline import Pipeline

    if type(estimator) is Pipeline:
        return of_labels(estimator.steps[-1][1])
    return type(estimator) is MultiOutputClassifier


def check_known(name: str, labels: np.ndarray) -> None:
    """Raise ValueError for labels [N, C] with unknown ones, which no other estimator takes."""
    rows = np.flatnonzero((labels == UNKNOWN).any(1))
    if len(rows):
        raise BadRows(
            f"labels: {name}: expected known labels; row {rows[0]} lacks "
            f"{(labels[rows[0]] == UNKNOWN).sum()} of {labels.shape[1]} ({len(rows)} such rows). "
            "sklearn's MultiOutputClassifier(estimator), and networks, leave these out of the fit",
            rows,
        )


def fit_labels(estimator: Any, name: str, features: Any, labels: np.ndarray, weights: Any) -> Any:
    """Fit a ``MultiOutputClassifier``, each copy to the rows whose label is known; the transformers of a
    pipeline before it are fitted to all rows.

    A label that is the same in all of these rows gets a constant classifier, because most others refuse one
    class. Otherwise the copies are those that the estimator's own ``fit`` makes.

    Parameters
    ----------
    estimator : MultiOutputClassifier, or a Pipeline that ends in one
    name : str
        The member's, for messages.
    features : ndarray [N, F], or a frame
    labels : ndarray [N, C], int8
        0, 1, and -1 for an unknown label.
    weights : ndarray [N], or None

    Raises
    ------
    ValueError
        A label is unknown in all rows; names it.
    """
    from joblib import Parallel, delayed
    from sklearn.pipeline import Pipeline

    if isinstance(estimator, Pipeline):
        last = estimator.steps[-1][1]
        made = estimator[:-1].fit_transform(features) if len(estimator) > 1 else features
        fit_labels(last, name, made, labels, weights)
        return estimator
    fits = Parallel(n_jobs=estimator.n_jobs)(
        delayed(_fit_one)(estimator.estimator, f"{name}, label {c}", features, column, weights)
        for c, column in enumerate(labels.T)
    )
    estimator.estimators_ = fits
    estimator.classes_ = [one.classes_ for one in fits]
    for attribute in ("n_features_in_", "feature_names_in_"):
        known = [getattr(one, attribute) for one in fits if hasattr(one, attribute)]
        if known:
            setattr(estimator, attribute, known[0])
    return estimator


def _fit_one(estimator: Any, name: str, features: Any, labels: np.ndarray, weights: Any) -> Any:
    from sklearn.base import clone
    from sklearn.dummy import DummyClassifier

    rows = np.flatnonzero(labels != UNKNOWN)
    if not len(rows):
        raise ValueError(f"labels: {name}: expected a known value in some row; got none")
    target = labels[rows].astype(np.int64)
    chosen = features
    if len(rows) < len(labels):
        chosen = features[rows] if issparse(features) else b.take(features, rows)
    constant = len(np.unique(target)) == 1
    copy = DummyClassifier(strategy="prior") if constant else clone(estimator)
    own = None if weights is None or constant else weights[rows]
    return fit_weighted(copy, name, chosen, target, own, {})
