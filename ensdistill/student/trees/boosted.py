"""Boosted trees that are fitted to an objective of soft targets, by their libraries' own trainers."""

from __future__ import annotations

import re
from collections.abc import Callable
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


def check_parameters(estimator: Any) -> None:
    """Raise ValueError for a parameter of an estimator that has no part in the objective of soft targets."""
    refused = _REFUSED.get(library_of(estimator) or "", {"class_weight": ()})
    for key, value in estimator.get_params().items():
        allowed = refused.get(key.rpartition("__")[2])
        if value is not None and allowed is not None and not any(value == one for one in allowed):
            expected = " or ".join(map(repr, allowed)) or "none"
            raise ValueError(
                f"estimator: {type(estimator).__name__}: {key}: expected {expected} for a student, which is "
                f"fitted to the ensemble's probabilities; got {value!r}"
            )


def fit_boosted(fit: Fit) -> Boosted:
    """Fit a booster by the library of its estimator, whose parameters are checked.

    Raises
    ------
    ValueError
        The library refuses the rows, or a parameter.
    """
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
