"""The libraries of boosted trees, by name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from functools import cache
from typing import Any

from ensdistill.teachers.members.boosted.library import Library
from ensdistill.teachers.members.boosted.of_catboost import CatBoost
from ensdistill.teachers.members.boosted.of_lightgbm import LightGBM
from ensdistill.teachers.members.boosted.of_xgboost import XGBoost

LIBRARIES: dict[str, type[Library]] = {library.name: library for library in (XGBoost, LightGBM, CatBoost)}


def library_of(value: Any) -> str | None:
    """The name of the library of the boosted trees ``value``; None for other values. Imports no library."""
    roots = [cls.__module__.partition(".")[0] for cls in type(value).__mro__]
    return next((name for name in LIBRARIES if name in roots), None)


def boosted_on_several_labels(model: Any) -> bool:
    """Whether a fitted model of one of the libraries predicts several labels for each row."""
    library = LIBRARIES[str(library_of(model))]
    return is_fitted(model) and library.of_several_labels(model)


def is_fitted(model: Any) -> bool:
    """Whether a model of one of the libraries can predict."""
    for method in ("__sklearn_is_fitted__", "is_fitted"):
        if callable(getattr(model, method, None)):
            return bool(getattr(model, method)())
    return True  # a library's own booster is made by training


@cache
def _keywords(library: str) -> frozenset[str] | None:
    return LIBRARIES[library].keywords()


def check_keywords(argument: str, name: str, estimators: Iterable[Any]) -> None:
    """Refuse misspelled parameters, which XGBoost and LightGBM take as further keywords and ignore.

    Raises
    ------
    ValueError
        An estimator has a parameter that its library does not list, with a similar name in the list.
    """
    for estimator in estimators:
        library = library_of(estimator)
        known = None if library is None else _keywords(library)
        for key in sorted(set(estimator.get_params(deep=False)) - known) if known is not None else ():
            # A parameter without a similar name may be one that the library does not list.
            if near := difflib.get_close_matches(key, known or (), 1, 0.85):
                raise ValueError(
                    f"{argument}: {name}: {type(estimator).__name__} has no parameter {key!r}, which "
                    f"{library} would ignore; did you mean {near[0]!r}?"
                )
