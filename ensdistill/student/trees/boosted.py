"""Boosted trees that are fitted to an objective of soft targets, by their libraries' own trainers."""

from __future__ import annotations

import re
from collections.abc import Callable
from difflib import get_close_matches
from typing import Any

from ensdistill.student.trees import of_catboost, of_lightgbm, of_xgboost
from ensdistill.student.trees.fits import Boosted, Fit
from ensdistill.teachers.members.boosted import library_of

_LIBRARIES: dict[str, Callable[[Fit], Boosted]] = {
    "catboost": of_catboost.fit_catboost,
    "lightgbm": of_lightgbm.fit_lightgbm,
    "xgboost": of_xgboost.fit_xgboost,
}
_ERRORS = ("CatBoostError", "LightGBMError", "XGBoostError")
# By library and parameter the values that an estimator may have, beside None.
_REFUSED: dict[str, dict[str, tuple[Any, ...]]] = {
    "catboost": of_catboost.REFUSED,
    "lightgbm": of_lightgbm.REFUSED,
    "xgboost": of_xgboost.REFUSED,
}


# XGBClassifier has "binary:logistic" by default, and replaces it by itself.
_TWO_CLASSES: dict[tuple[str | None, str], tuple[str, ...]] = {
    ("lightgbm", "objective"): ("binary",),
    ("catboost", "objective"): ("Logloss", "CrossEntropy"),
    ("catboost", "loss_function"): ("Logloss", "CrossEntropy"),
}


def check_parameters(estimator: Any) -> None:
    """Raise ValueError for a parameter of an estimator that has no part in the objective of soft targets."""
    _check_names(estimator)
    refused = _REFUSED.get(library_of(estimator) or "", {"class_weight": ()})
    for key, value in estimator.get_params().items():
        allowed = refused.get(key.rpartition("__")[2])
        if value is not None and allowed is not None and not any(value == one for one in allowed):
            expected = " or ".join(map(repr, allowed)) or "none"
            raise ValueError(
                f"estimator: {type(estimator).__name__}: {key}: expected {expected} for a student, which is "
                f"fitted to the ensemble's probabilities; got {value!r}"
            )


def _check_names(estimator: Any) -> None:
    """Raise ValueError for a parameter that the library does not have: it would be ignored.

    CatBoost refuses such ones itself. XGBoost has no list of its names, so only slips of the estimator's own
    are found.
    """
    names = {"lightgbm": of_lightgbm.parameter_names, "xgboost": of_xgboost.parameter_names}
    if (library := library_of(estimator) or "") not in names:
        return
    own, others = names[library]()
    own |= set(type(estimator)._get_param_names())
    for key in sorted(set(estimator.get_params()) - own - others):
        near = get_close_matches(key, own, 1, 0.8) or get_close_matches(key, others, 1, 0.8)
        if near or library == "lightgbm":
            raise ValueError(
                f"estimator: {type(estimator).__name__}: {key}: no such parameter; "
                + (f"did you mean {near[0]}?" if near else "LightGBM would ignore it: leave it out")
            )


def _check_objective(fit: Fit) -> None:
    """Raise ValueError for the objective of two classes where there are more."""
    for key, value in fit.estimator.get_params().items():
        if fit.classes > 2 and value in _TWO_CLASSES.get((library_of(fit.estimator), key), ()):
            raise ValueError(
                f"estimator: {type(fit.estimator).__name__}: {key}: {value!r} is for two classes, and "
                f"{fit.name} has {fit.classes}; leave it out"
            )


def fit_boosted(fit: Fit) -> Boosted:
    """Fit a booster by the library of its estimator, whose parameters are checked.

    Raises
    ------
    ValueError
        The library refuses the rows, or a parameter.
    """
    _check_objective(fit)
    try:
        return _LIBRARIES[str(library_of(fit.estimator))](fit)
    except Exception as error:
        if type(error).__name__ not in _ERRORS:
            raise
        # The first line without its time and place in the source; XGBoost's others are a stack trace.
        reason = re.sub(r"^(\[[\d:]+\] )?\S+\.\w+:\d+: ", "", str(error).strip().splitlines()[0])
        raise ValueError(
            f"estimator: {fit.name}: {type(fit.estimator).__name__} refuses the fit: {reason}"
        ) from error
