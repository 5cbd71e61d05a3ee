"""Boosted trees that are fitted to an objective of soft targets, by their libraries' own trainers."""

from __future__ import annotations

from collections.abc import Callable

from ensdistill.student.trees.fits import Boosted, Fit
from ensdistill.student.trees.of_catboost import fit_catboost
from ensdistill.student.trees.of_lightgbm import fit_lightgbm
from ensdistill.student.trees.of_xgboost import fit_xgboost
from ensdistill.teachers.members.boosted import library_of

_LIBRARIES: dict[str, Callable[[Fit], Boosted]] = {
    "catboost": fit_catboost,
    "lightgbm": fit_lightgbm,
    "xgboost": fit_xgboost,
}


def fit_boosted(fit: Fit) -> Boosted:
    """Fit a booster by the library of its estimator.

    Raises
    ------
    ValueError
        A parameter that has no part in this objective; names it.
    """
    return _LIBRARIES[str(library_of(fit.estimator))](fit)
