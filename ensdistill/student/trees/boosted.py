"""Boosted trees that are fitted to an objective of soft targets, by their libraries' own trainers."""

from __future__ import annotations

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
# By library and parameter the values that an estimator may have, beside None.
_REFUSED: dict[str, dict[str, tuple[Any, ...]]] = {
    "catboost": of_catboost.REFUSED,
    "lightgbm": of_lightgbm.REFUSED,
    "xgboost": of_xgboost.REFUSED,
}


def check_parameters(estimator: Any) -> None:
    """Raise ValueError for a parameter of a booster that has no part in the objective of soft targets; names
    it."""
    given = estimator.get_params()
    for key, allowed in _REFUSED[str(library_of(estimator))].items():
        value = given.get(key)
        if value is not None and not any(value == one for one in allowed):
            expected = " or ".join(map(repr, allowed)) or "none"
            raise ValueError(
                f"estimator: {type(estimator).__name__}: {key}: expected {expected} for a student, which is "
                f"fitted to the ensemble's probabilities; got {value!r}"
            )


def fit_boosted(fit: Fit) -> Boosted:
    """Fit a booster by the library of its estimator, whose parameters are checked."""
    return _LIBRARIES[str(library_of(fit.estimator))](fit)
