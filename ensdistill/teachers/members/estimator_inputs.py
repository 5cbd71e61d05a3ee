"""The inputs of scikit-learn's estimators: arrays, frames with the columns of the fit, and texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ensdistill.teachers.members.base import flat
from ensdistill.teachers.members.inputs import columns_of, kind


def features_for(name: str, estimator: Any, inputs: Any) -> Any:
    """An array as [N, features], texts as they are.

    Raises
    ------
    ValueError
        Another number of features than at the fit.
    TypeError
        Images, a mapping, or texts for an estimator that was fitted to features.
    """
    expected = getattr(estimator, "n_features_in_", None)
    if isinstance(inputs, np.ndarray):
        features = flat(inputs)
        if expected is not None and features.ndim == 2 and features.shape[1] != expected:
            fitted = f"{name} was fitted to {expected} features (columns)"
            raise ValueError(f"inputs: {fitted}; got {features.shape[1]}")
        return features
    if (found := kind(inputs)) != "text" or expected is not None:
        takes = "texts or features" if expected is None else f"{expected} features (columns)"
        raise TypeError(
            f"inputs: {name} takes {takes}; got a batch of kind {found!r}: put a vectorizer "
            "(TfidfVectorizer) before it in a Pipeline, or give it a preprocess, "
            "Ensemble.from_members([(model, preprocess)])"
        )
    return inputs


def table_for(name: str, estimator: Any, frame: Any) -> Any:
    """A frame with the columns of the fit, in their order; of an estimator that was fitted to an array, the
    frame as it is.

    Raises
    ------
    ValueError
        A column that the estimator needs is missing; names the member and the column.
    """
    import narwhals.stable.v2 as nw

    table = nw.from_native(frame, eager_only=True)
    names = getattr(estimator, "feature_names_in_", None)
    if names is None:
        if isinstance(count := getattr(estimator, "n_features_in_", None), int) and count != table.shape[1]:
            fitted = f"{name} was fitted to {count} features (columns)"
            raise ValueError(f"inputs: {fitted}; got {table.shape[1]}")
        return table.to_pandas() if table.implementation.is_pyarrow() else frame
    present, needed = set(table.columns), set(needed_columns(estimator, list(names)))
    chosen = [column for column in names if column in present or column in needed]
    return columns_of(name, frame, chosen)


def needed_columns(estimator: Any, names: Sequence[str]) -> Sequence[str]:
    """The columns that an estimator reads: of a pipeline that begins with a ``ColumnTransformer`` only those
    that it transforms or passes on."""
    from sklearn.compose import ColumnTransformer
    from sklearn.pipeline import Pipeline

    first = estimator
    while isinstance(first, Pipeline):
        first = first.steps[0][1]
    if not isinstance(first, ColumnTransformer):
        return names
    needed: list[str] = []
    for _, transformer, columns in first.transformers_:
        if isinstance(transformer, str) and transformer == "drop":
            continue
        listed = [columns] if isinstance(columns, str) else columns
        if not isinstance(listed, (list, tuple, np.ndarray)) or not all(isinstance(c, str) for c in listed):
            return names  # by position, mask or slice
        needed += listed
    return needed


def readings(estimator: Any, table: Any, given: Any) -> list[Any]:
    """The frames that ``table`` can mean to an estimator: one in most cases.

    A gap in a column of texts, booleans or categories is None in polars and in objects of pandas, and NaN in
    other columns of pandas. scikit-learn treats the two differently. Categories of a fitted encoder show by
    which of them the estimator was fitted; without such a sign both frames are returned.

    Parameters
    ----------
    estimator : fitted estimator
    table : frame
        As `table_for` returned it.
    given : frame
        The frame of which it was made. One of pandas has one reading, the estimator's own.
    """
    import narwhals.stable.v2 as nw

    came_from = nw.from_native(given, eager_only=True).implementation
    if not (came_from.is_polars() or came_from.is_pyarrow()):
        return [table]
    frame = table.to_pandas() if came_from.is_polars() else table
    gaps = [name for name in frame.columns if frame[name].dtype.kind == "O" and frame[name].isna().any()]
    if not gaps:
        return [table]
    with_none = table if came_from.is_polars() else _filled(frame, gaps, None)
    marks: set[str] = set()
    _find_marks(estimator, marks)
    if marks == {"none"}:
        return [with_none]
    with_nan = _filled(frame, gaps, np.nan)
    return [with_nan] if marks == {"nan"} else [with_none, with_nan]


def _filled(frame: Any, columns: Sequence[str], gap: float | None) -> Any:
    """A frame of pandas with this value in the gaps of columns of objects; gaps of categories are NaN."""
    changed = frame.copy(deep=False)
    for name in columns:
        if type(frame[name].dtype).__name__ != "CategoricalDtype":
            objects = frame[name].astype(object)
            objects[frame[name].isna()] = gap
            changed[name] = objects
    return changed


def _find_marks(value: Any, marks: set[str]) -> None:
    """Add "none" or "nan" to ``marks`` for such a category of an encoder in ``value``, at any depth."""
    if isinstance(value, (list, tuple)):
        for one in value:
            _find_marks(one, marks)
    elif isinstance(value, dict):
        _find_marks(list(value.values()), marks)
    elif hasattr(value, "get_params") and not isinstance(value, type):
        for categories in getattr(value, "categories_", ()):
            if np.asarray(categories).dtype.kind == "O":
                marks |= {"none" for one in categories if one is None}
                marks |= {"nan" for one in categories if isinstance(one, float) and np.isnan(one)}
        _find_marks(list(vars(value).values()), marks)
