"""The libraries of boosted trees, by name."""

from __future__ import annotations

from typing import Any

from ensdistill.teachers.members.boosted.library import Library
from ensdistill.teachers.members.boosted.of_catboost import CatBoost
from ensdistill.teachers.members.boosted.of_lightgbm import LightGBM
from ensdistill.teachers.members.boosted.of_xgboost import XGBoost

LIBRARIES: dict[str, type[Library]] = {library.name: library for library in (XGBoost, LightGBM, CatBoost)}


def library_of(value: Any) -> str | None:
    """The name of the library whose boosted trees ``value`` holds; None for any other value. Imports no library."""
    roots = [cls.__module__.partition(".")[0] for cls in type(value).__mro__]
    return next((name for name in LIBRARIES if name in roots), None)
