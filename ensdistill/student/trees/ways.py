"""The two ways in which an estimator of scikit-learn learns probabilities: weights of rows, or regression."""

from __future__ import annotations

import importlib
import inspect
from typing import Any, Literal

import numpy as np
from sklearn.base import is_classifier, is_regressor

from ensdistill.student.estimators import LEFT_OUT, SMALLEST, check_student, fit_to_probabilities
from ensdistill.student.trees.fits import Fit
from ensdistill.teachers.members import Member, SklearnMember
from ensdistill.teachers.stack.fitting import copy_of, seeds_of
from ensdistill.teachers.stack.row_weights import fit_weighted, takes_weights

Way = Literal["expansion", "regression"]
NAMES = {"expansion": "weighted expansion", "regression": "regression on log-odds"}
# Classifiers whose regressor has another name. The first two are linear models of squared error.
_OTHERS = {
    "LogisticRegression": ("sklearn.linear_model", "Ridge"),
    "RidgeClassifier": ("sklearn.linear_model", "Ridge"),
    "SVC": ("sklearn.svm", "SVR"),
    "NuSVC": ("sklearn.svm", "NuSVR"),
    "LinearSVC": ("sklearn.svm", "LinearSVR"),
}
_OWN = ("criterion", "class_weight", "loss", "max_features", "C", "probability", "dual", "penalty", "solver")


def ways_of(estimator: Any) -> list[Way]:
    """The ways in which an estimator can learn probabilities, the first of equals first.

    Raises
    ------
    ValueError
        There is none; the message names the reason.
    """
    found: list[Way] = []
    if is_classifier(estimator) and hasattr(estimator, "predict_proba") and takes_weights(estimator):
        found.append("expansion")
    if regressor_of(estimator) is not None:
        found.append("regression")
    if not found:
        check_student(estimator)  # its message names the lack
        raise ValueError(
            f"student: the fit of {type(estimator).__name__} takes no sample_weight, by which it would learn "
            "the ensemble's probabilities, and scikit-learn has no regressor of its kind: choose an "
            "estimator whose fit does, or a network"
        )
    return found


def regressor_of(estimator: Any) -> Any:
    """The regressor of the same kind with the same parameters, for several outputs; None where there is none.

    Of a pipeline the last step is exchanged. Parameters that mean something else in a regressor (the
    criterion of a split, the loss) have their defaults; a linear model's C becomes Ridge's alpha = 1 / C.

    Examples
    --------
    >>> from sklearn.ensemble import RandomForestClassifier
    >>> found = regressor_of(RandomForestClassifier(30, max_depth=4))
    >>> type(found).__name__, found.max_depth
    ('RandomForestRegressor', 4)
    """
    from sklearn.multioutput import MultiOutputRegressor
    from sklearn.pipeline import Pipeline

    if isinstance(estimator, Pipeline):
        name, last = estimator.steps[-1]
        made = regressor_of(last)
        if made is None:
            return None
        before = [
            (place, step if isinstance(step, str) else copy_of(step)) for place, step in estimator.steps[:-1]
        ]
        return Pipeline([*before, (name, made)])
    if is_regressor(estimator):
        found = copy_of(estimator)
    elif not is_classifier(estimator) or not type(estimator).__module__.startswith("sklearn."):
        return None
    else:
        found = _counterpart(estimator)
    if found is None or found.__sklearn_tags__().target_tags.multi_output:
        return found
    return MultiOutputRegressor(found)


def _counterpart(estimator: Any) -> Any:
    cls = type(estimator)
    place = ".".join(cls.__module__.split(".")[:2])
    module, name = _OTHERS.get(cls.__name__, (place, cls.__name__.replace("Classifier", "Regressor")))
    found = getattr(importlib.import_module(module), name, None)
    if name == cls.__name__ or found is None:
        return None
    if any(hasattr(part, "fit") and is_classifier(part) for part in estimator.get_params().values()):
        return None  # the classifiers within would need regressors, too
    given, known = estimator.get_params(deep=False), inspect.signature(found).parameters
    same = {key: value for key, value in given.items() if key in known and key not in _OWN}
    if name == "Ridge":
        same = {"alpha": 1 / given["C"] if "C" in given else given["alpha"]}
    elif "C" in known and "C" in given:
        same["C"] = given["C"]
    if isinstance(given.get("max_features"), (int, float)) or given.get("max_features") in ("sqrt", "log2"):
        same |= {"max_features": given["max_features"]}
    return found(**{key: copy_of(v) if hasattr(v, "get_params") else v for key, v in same.items()})


def fit_way(way: Way, fit: Fit) -> Member:
    """Fit a copy of an estimator to the distributions that the objective's targets and labels make up, in one
    way."""
    merged = fit.objective.merged()
    assert merged is not None  # the student's constructor has checked the temperature
    probabilities, weights, _ = merged
    counts = None if np.ptp(weights) == 0 else weights
    if way == "expansion":
        return fit_to_probabilities(
            fit.estimator,
            fit.features,
            probabilities,
            classes=fit.names,
            weights=counts,
            seed=fit.seed,
            name=fit.name,
            preprocess=None,
        )
    made = regressor_of(fit.estimator)
    made.set_params(**seeds_of(made, fit.seed))
    if counts is not None:
        check_regressor_weights(fit.estimator)
    features = fit.features
    features = features.astype(np.float64) if isinstance(features, np.ndarray) else features
    fitted = fit_weighted(made, fit.name, features, log_odds(probabilities), counts, {})
    return SklearnMember(fitted, name=fit.name, classes=fit.names, output="decision")


def check_regressor_weights(estimator: Any) -> None:
    """Raise ValueError where the regressor of an estimator's kind takes no weights of rows."""
    if not takes_weights(regressor_of(estimator)):
        raise ValueError(
            f"student: the fit of {type(estimator).__name__} takes no sample_weight, which rows of different "
            "weights need, and an alpha below 1: choose an estimator whose fit does, or alpha=1"
        )


def log_odds(probabilities: np.ndarray) -> np.ndarray:
    """Log-probabilities [N, C] less their mean, float64.

    No probability counts as less than 0.001, of more than ten classes than 0.01 / C: the least classes gain a
    hundredth of a row at most.

    Examples
    --------
    >>> log_odds(np.array([[0.8, 0.2]])).round(3).tolist()
    [[0.693, -0.693]]
    """
    logs = np.log(np.maximum(probabilities, min(SMALLEST, LEFT_OUT / probabilities.shape[1])))
    found: np.ndarray = logs - logs.mean(1, keepdims=True)
    return found
