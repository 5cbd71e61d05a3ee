"""The outputs of scikit-learn's estimators: the method that returns them, by task, and their form."""

from __future__ import annotations

import inspect
import warnings
from typing import Any

import numpy as np

from ensdistill.common.tasks import Task
from ensdistill.teachers.members.boosted.libraries import boosted_on_several_labels, library_of
from ensdistill.teachers.members.moments import as_moments


def methods_for(name: str, estimator: Any, task: Task, output: str) -> tuple[str, ...]:
    """The methods by which an estimator may predict, the preferred one first; ``output`` as for
    ``SklearnMember``.

    Raises
    ------
    ValueError
        The estimator is a classifier, and the task a regression, or the reverse; or ``output`` is none for
        that task.
    """
    if task == "regression":
        if output != "auto":
            raise ValueError(f"output: {name}: expected auto for the task regression; got {output!r}")
        if not predicts_numbers(estimator) and hasattr(estimator, "predict_proba"):
            raise ValueError(f"task: {name} is a classifier; expected a regressor for the task regression")
        return ("predict",)
    if task == "multilabel" and predicts_numbers(estimator):
        raise ValueError(
            f"task: {name} is a regressor; expected a classifier of several labels for the task multilabel, "
            "such as MultiOutputClassifier(LogisticRegression())"
        )
    scores = "decision_function" if task == "multilabel" or not predicts_numbers(estimator) else "predict"
    # A regressor that was fitted to one-hot rows predicts probabilities; only the caller can state that.
    chances = ("predict_proba", "predict") if scores == "predict" else ("predict_proba",)
    return {"auto": ("predict_proba", scores), "probability": chances, "decision": (scores,)}[output]


def predicts_numbers(estimator: Any) -> bool:
    """Whether an estimator is a regressor: by scikit-learn's tags, or by a predicted distribution of numbers,
    as NGBoost's, which has no tags."""
    from sklearn.base import is_regressor

    if hasattr(estimator, "pred_dist"):
        return not hasattr(estimator, "predict_proba")
    return bool(is_regressor(estimator))


def spread_of(estimator: Any) -> str | None:
    """How a regressor returns its uncertainty: ``return_std``, ``pred_dist``, or None where it doesn't."""
    if hasattr(estimator, "pred_dist"):
        return "pred_dist"
    last = estimator
    while hasattr(last, "steps"):  # a pipeline passes the argument on to its last step
        last = last.steps[-1][1]
    try:
        return "return_std" if "return_std" in inspect.signature(last.predict).parameters else None
    except (TypeError, ValueError):  # a method without a signature
        return None


def moments_by(name: str, estimator: Any, spread: str | None, features: Any) -> np.ndarray:
    """A regressor's means, float64 [N, D], or [N, 2 D] with the variances after them."""
    if spread is None:
        return as_moments(name, estimator.predict(features)).mean
    if spread == "return_std":
        mean, deviation = estimator.predict(features, return_std=True)
    else:
        distribution = estimator.pred_dist(features)
        mean, deviation = distribution.mean(), distribution.std()
    found = as_moments(name, mean, np.square(deviation))
    assert found.variance is not None
    return np.concatenate([found.mean, found.variance], axis=1)


def outputs_of(estimator: Any) -> int | None:
    """The count of numbers that a fitted regressor predicts for a row; None where nothing shows it."""
    for part in ("best_estimator_", "steps"):
        inner = getattr(estimator, part, None)
        if inner is not None:
            return outputs_of(inner[-1][1] if part == "steps" else inner)
    if isinstance(count := getattr(estimator, "n_outputs_", None), int):
        return count
    if library_of(estimator) is not None or hasattr(estimator, "pred_dist"):
        return 1
    coefficients = getattr(estimator, "coef_", None)
    if coefficients is not None:
        return 1 if np.ndim(coefficients) == 1 else len(coefficients)
    return _numbers_by_trial(estimator)


def _numbers_by_trial(estimator: Any) -> int | None:
    """The count in the prediction for a row of zeros; of an estimator that takes no such row 1 where
    scikit-learn's tags allow no more."""
    from sklearn.utils import get_tags

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a row without the columns' names
            found = np.asarray(estimator.predict(np.zeros((1, estimator.n_features_in_))))
        return 1 if found.ndim == 1 else found.shape[1]
    except Exception:  # the kind depends on the estimator, here and below
        pass
    try:
        return None if get_tags(estimator).target_tags.multi_output else 1
    except Exception:
        return None


def of_several_labels(estimator: Any) -> bool:
    """Whether a fitted classifier states that it has several labels for each row; False if unknown."""
    for part in ("best_estimator_", "steps"):
        inner = getattr(estimator, part, None)
        if inner is not None:
            return of_several_labels(inner[-1][1] if part == "steps" else inner)
    if library_of(estimator) is not None:
        return boosted_on_several_labels(estimator)
    # MLPClassifier and RidgeClassifier keep the form of their labels there alone.
    form = getattr(getattr(estimator, "_label_binarizer", None), "y_type_", "")
    known = getattr(estimator, "classes_", None)
    listed = isinstance(known, list) and any(np.ndim(labels) for labels in known)
    return form == "multilabel-indicator" or bool(getattr(estimator, "multilabel_", False)) or listed


def answers_in_pairs(estimator: Any) -> bool:
    """Whether an estimator's ``decision_function`` has columns of pairs of classes, as an SVC's."""
    from sklearn.ensemble import BaggingClassifier

    if (
        getattr(estimator, "decision_function_shape", "ovr") == "ovo"
        and len(getattr(estimator, "classes_", ())) > 2
    ):
        return True
    parts = [
        getattr(estimator, name, None)
        for name in ("best_estimator_", "estimator_", "final_estimator_", "estimator")
    ]
    parts += [step for _, step in getattr(estimator, "steps", ())[-1:]]
    parts += estimator.estimators_ if isinstance(estimator, BaggingClassifier) else []
    return any(answers_in_pairs(part) for part in parts if part is not None)
