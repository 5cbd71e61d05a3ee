"""Checks of the arguments of ``fit`` and ``predict``: scikit-learn's own, for frames and texts as well."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from numbers import Real
from typing import Any

import numpy as np
from sklearn.utils import assert_all_finite, check_consistent_length, column_or_1d
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import validate_data

from ensdistill.data import Rows, Split, as_multilabels
from ensdistill.data import batches as b
from ensdistill.data.batches.tables import Tables
from ensdistill.data.labels import is_missing
from ensdistill.data.rows import as_weights
from ensdistill.data.samples import Held, joined, whole
from ensdistill.data.splits import stratified_split
from ensdistill.data.tasks import known_rows, unlabelled_like
from ensdistill.teachers.members.base import as_classes

FEATURES = ("n_features_in_", "feature_names_in_")


@dataclass(frozen=True)
class Form:
    """The form of the samples that a classifier was fitted to; plain JSON.

    Parameters
    ----------
    kind : {"array", "table", "text"}
    shape : tuple of int
        Of one sample of an array.
    columns : dict of str to str
        Names and types of a frame's columns.
    """

    kind: str
    shape: tuple[int, ...] = ()
    columns: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Data:
    """The checked arguments of ``fit``.

    Parameters
    ----------
    samples, pool : samples
        ``pool`` may be None.
    labels : ndarray
        Positions in ``values``, int64 [N]; or labels of another task, in a form of
        :mod:`ensdistill.data.tasks`.
    values : ndarray [C]
        The classes as the user has them; names of labels, or of numbers.
    weights : ndarray [N], float64, or None
    """

    samples: Any
    pool: Any
    labels: np.ndarray
    values: np.ndarray
    weights: np.ndarray | None

    @property
    def classes(self) -> tuple[str, ...]:
        return as_classes("y", self.values.tolist()) or ()


@contextmanager
def kept_on_error(estimator: Any) -> Iterator[None]:
    """An error in here leaves the estimator with the features of its earlier fit, to whose student they
    belong."""
    before = {name: vars(estimator)[name] for name in FEATURES if name in vars(estimator)}
    try:
        yield
    except BaseException:
        for name in FEATURES:
            vars(estimator).pop(name, None)
        vars(estimator).update(before)
        raise


def check_fit(
    estimator: Any,
    X: Any,
    y: Any,
    X_unlabeled: Any,
    sample_weight: Any,
    allow_nan: bool,
    numbers: bool = False,
) -> tuple[Data, Form]:
    """The arguments of ``fit``, and the form that every later input has to have; ``numbers`` says whether y
    holds those of a regression.

    Sets ``n_features_in_`` and ``feature_names_in_``.

    Raises
    ------
    TypeError, ValueError
        Arguments that scikit-learn refuses, with its message; unlabelled samples unlike the others.
    """
    name = type(estimator).__name__
    if y is None:
        raise ValueError(f"This {name} estimator requires y to be passed, but the target y is None.")
    samples, form = _first(estimator, X, allow_nan)
    values, labels = _numbers(y) if numbers else _several(y) or _labels(y)
    check_consistent_length(X, labels)
    weights = None if sample_weight is None else as_weights("sample_weight", sample_weight, len(labels))
    pool = None if X_unlabeled is None else _unlabelled(estimator, X_unlabeled, form, allow_nan)
    if pool is not None:
        samples, pool = _alike(samples, pool, form)
    if weights is not None and not weights.all():
        # A row of weight 0 is as good as absent, so it has no part in folds and in the student's rows.
        if not weights.any():
            raise ValueError("sample_weight: expected a weight above 0; all are zero")
        there = np.flatnonzero(weights)
        samples, labels, weights = samples[there], labels[there], weights[there]
        samples = samples if form.kind == "array" else Held(samples)
        if labels.ndim == 1:
            present, labels = np.unique(labels, return_inverse=True)
            values = values[present]
    if labels.ndim == 2:
        _check_table(labels)
        return Data(_with_gaps(samples), pool, labels, values, weights), form
    if len(values) < 2:
        more = "" if sample_weight is None else " with a weight above 0"
        raise ValueError(
            f"y: expected rows of at least two classes; got 1 class, {values.tolist()[0]!r}, in "
            f"{len(labels)} sample(s){more}"
        )
    if len({str(value) for value in values.tolist()}) < len(values):
        raise ValueError(f"y: expected classes of different names; got {values.tolist()}")
    return Data(_with_gaps(samples), pool, labels.astype(np.int64), values, weights), form


def check_predict(estimator: Any, X: Any, form: Form, allow_nan: bool) -> Any:
    """The samples of ``predict``: an array, or a frame or texts as they are.

    Raises
    ------
    TypeError, ValueError
        Samples of another kind than those of the fit, or other columns.
    """
    if form.kind == "text":
        if not is_texts(X):
            raise TypeError(f"X: expected a list of strings, as at the fit; got {type(X).__name__}")
        return list(X)
    if form.kind == "table" and _is_frame(X):
        validate_data(estimator, X, reset=False, skip_check_array=True)
        _check_rows(X)
        return X
    array = _array(estimator, X, False, allow_nan or form.kind == "table")
    if form.kind == "table":
        return _as_frame(array, form)
    if array.shape[1:] != form.shape:
        raise ValueError(f"X: expected samples of shape {list(form.shape)}; got {list(array.shape[1:])}")
    return array


def is_texts(X: Any) -> bool:
    """Whether it is a list, a column or an array [N] of strings."""
    shape, kind = getattr(X, "shape", None), getattr(getattr(X, "dtype", None), "kind", "O")
    listed = isinstance(X, (list, tuple)) or (shape is not None and len(shape) == 1 and kind in "OUT")
    return listed and len(X) > 0 and all(isinstance(text, str) for text in X)


def split_of(data: Data, share: float | None, seed: int) -> tuple[Split, str]:
    """The rows to learn from, those without labels, and the rows that are held out for the judgement.

    Returns
    -------
    split : Split
    reason : str
        Why no rows are held out; then the test part is a stand-in, of which nothing is read.
    """
    samples = data.samples if data.pool is None else joined([data.samples, data.pool])
    samples = _with_gaps(samples)
    count, classes = len(data.labels), data.classes
    labels = unlabelled_like(np.resize(data.labels, (len(samples), *data.labels.shape[1:])))
    labels[:count] = data.labels
    reason = "validation_fraction is None"
    if share is not None:
        if isinstance(share, bool) or not (isinstance(share, Real) and 0 < share < 1):
            raise ValueError(f"validation_fraction: expected a share in (0, 1), or None; got {share!r}")
        table = data.labels.ndim == 2
        held = max(round(share * count), 1 if table else len(classes))
        rarest = count // 2 if table else np.bincount(data.labels).min()
        if rarest < LEAST:
            which = "there are" if table else f"the rarest class has {rarest} of"
            reason = f"{which} {count} rows, and the judgement needs {2 * LEAST if table else LEAST}"
        else:
            try:
                split = stratified_split(
                    samples, labels, classes, labelled=count - held, pool=0, test=None, seed=seed
                )
                return _weighted(split, data), ""
            except ValueError as error:  # too many equal rows, which have to stay together
                reason = str(error)
    rows = Rows(samples, np.arange(len(samples)), labels)
    test = replace(rows.take(np.array([0])), uids=np.array([len(rows)]))
    split = Split(rows.take(np.arange(count)), rows.take(np.arange(count, len(rows))), test, classes)
    return _weighted(split, data), reason


LEAST = 5  # rows of each class, of which some are held out and the others are divided into folds


def _weighted(split: Split, data: Data) -> Split:
    if data.weights is None:
        return split
    weights = data.weights
    labelled = replace(split.labelled, weights=weights[split.labelled.uids])
    test = replace(split.test, weights=weights[np.minimum(split.test.uids, len(weights) - 1)])
    return replace(split, labelled=labelled, test=test)


def _first(estimator: Any, X: Any, allow_nan: bool) -> tuple[Any, Form]:
    """Samples and form of the X of a fit."""
    for name in FEATURES:  # of an earlier fit to samples of another kind
        vars(estimator).pop(name, None)
    if is_texts(X):
        return Held(list(X)), Form("text")
    if _is_frame(X):
        _check_rows(X)
        validate_data(estimator, X, reset=True, skip_check_array=True)
        return Held(X), Form("table", columns=b.describe(X)["columns"])
    array = _array(estimator, X, True, allow_nan)
    return array, Form("array", array.shape[1:])


def _array(estimator: Any, X: Any, reset: bool, allow_nan: bool) -> np.ndarray:
    found: np.ndarray = validate_data(
        estimator,
        X,
        reset=reset,
        dtype="numeric",
        allow_nd=True,
        ensure_all_finite="allow-nan" if allow_nan else True,
    )
    return found


def _is_frame(X: Any) -> bool:
    """Whether it is a frame whose columns have names; one without (integers) is an array, as in
    scikit-learn."""
    names = list(getattr(X, "column_names", getattr(X, "columns", [])))  # pyarrow's, or those of the others
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"X: expected columns of different names; {names.count(twice[0])} are {twice[0]!r}")
    if not Tables().holds(X):
        return False
    return all(isinstance(name, str) for name in names)


def _check_rows(X: Any) -> None:
    if b.count(X) == 0:
        raise ValueError(f"Found array with 0 sample(s) (shape={X.shape}) while a minimum of 1 is required.")
    import narwhals.stable.v2 as nw

    frame = nw.from_native(X, eager_only=True)
    for name in frame.columns:
        if frame[name].dtype.is_float():
            wrong = np.isinf(frame[name].to_numpy().astype(np.float64))
            if wrong.any():
                raise ValueError(
                    f"column {name!r}: expected finite numbers or gaps; row {int(wrong.argmax())} has an "
                    f"infinity ({int(wrong.sum())} such rows)"
                )


def _labels(y: Any) -> tuple[np.ndarray, np.ndarray]:
    try:
        values = column_or_1d(_plain(y), warn=True)
    except TypeError as error:  # labels of several kinds
        raise TypeError(f"y: expected labels of one kind; got several ({error})") from error
    if values.dtype.kind == "O" and any(gaps := [is_missing(value) for value in values.tolist()]):
        raise ValueError(
            f"Input y contains NaN: the label of row {gaps.index(True)} is missing ({sum(gaps)} such rows); "
            "pass rows without a label as X_unlabeled"
        )
    assert_all_finite(values, input_name="y")
    check_classification_targets(values)
    found, labels = np.unique(values, return_inverse=True)
    return found, labels


def shape_of(y: Any) -> tuple[int, ...]:
    """That of labels, which may be a list, a frame, or what an array can be made of."""
    return tuple(getattr(y, "shape", None) or np.asarray(y).shape)


def _several(y: Any) -> tuple[np.ndarray, np.ndarray] | None:
    """Names and labels, int8 [N, C], where y has several columns; None for one column of classes."""
    shape = shape_of(y)
    if len(shape) != 2 or shape[1] < 2:
        return None
    return _column_names(y, shape[1]), as_multilabels(y, argument="y")


def _numbers(y: Any) -> tuple[np.ndarray, np.ndarray]:
    """Names and numbers, float64 [N, D], of a regression."""
    shape = shape_of(y)
    names = _column_names(y, shape[1] if len(shape) == 2 else 1)
    if len(shape) < 2 or shape[1] == 1:
        y = column_or_1d(_plain(y), warn=True)
        if y.dtype.kind == "O" and any(gaps := [is_missing(value) for value in y.tolist()]):
            raise ValueError(f"Input y contains NaN: the number of row {gaps.index(True)} is missing")
    try:
        values = np.asarray(y, np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"y: expected numbers; {error}. DistilledClassifier takes classes") from error
    assert_all_finite(values, input_name="y")
    return names, values.reshape(len(values), -1)


def _column_names(y: Any, count: int) -> np.ndarray:
    names = list(getattr(y, "columns", []))
    if len(names) == count:
        return np.array([str(name) for name in names])
    name = getattr(y, "name", None)
    return np.array([name if isinstance(name, str) and count == 1 else str(i) for i in range(count)])


def _check_table(labels: np.ndarray) -> None:
    """Raise ValueError for numbers or labels of too few rows, and for rows without a label."""
    if len(labels) < 2:
        raise ValueError(f"y: expected at least two rows; got 1 sample (n_samples = {len(labels)})")
    if len(rows := np.flatnonzero(~known_rows(labels))):
        raise ValueError(
            f"y: expected a label in each row; row {rows[0]} has none ({len(rows)} such rows): pass these "
            "rows as X_unlabeled"
        )


def _plain(y: Any) -> Any:
    """Nullable integers and booleans of pandas without a gap as NumPy's own: scikit-learn makes floats of
    them."""
    kind = getattr(getattr(y, "dtype", None), "kind", "")
    nullable = hasattr(y, "isna") and not isinstance(getattr(y, "dtype", None), np.dtype)
    return (
        y.to_numpy(dtype={"i": np.int64, "u": np.uint64, "b": bool}[kind])
        if (nullable and kind in ("i", "u", "b") and not y.isna().any())
        else y
    )


def _unlabelled(estimator: Any, X: Any, form: Form, allow_nan: bool) -> Any:
    try:
        if form.kind == "table" and not _is_frame(X):
            raise TypeError(f"expected a frame with the columns of X, {list(form.columns)}")
        samples = check_predict(estimator, X, form, allow_nan)
    except (TypeError, ValueError) as error:
        raise type(error)(f"X_unlabeled: {error}") from error
    return samples if form.kind == "array" else Held(samples)


def _alike(samples: Any, pool: Any, form: Form) -> tuple[Any, Any]:
    """Both of one dtype; integers become floats where the other's column is one of floats."""
    if form.kind == "array":
        common = np.result_type(samples, pool)
        return samples.astype(common, copy=False), pool.astype(common, copy=False)
    if form.kind == "text":
        return samples, pool
    import narwhals.stable.v2 as nw

    own, other = form.columns, b.describe(pool.batch)["columns"]
    unlike = [name for name in own if own[name] != other[name]]
    numbers = [name for name in unlike if {own[name], other[name]} == {"integer", "float"}]
    if wrong := [name for name in unlike if name not in numbers]:
        raise ValueError(
            f"X_unlabeled: column {wrong[0]!r}: expected {own[wrong[0]]}, as in X; got {other[wrong[0]]}"
        )
    if numbers:
        cast = nw.col(*numbers).cast(nw.Float64)
        frames = (nw.from_native(one.batch, eager_only=True) for one in (samples, pool))
        samples, pool = (Held(frame.with_columns(cast).to_native()) for frame in frames)
    return samples, pool


def _with_gaps(samples: Any) -> Any:
    """An array with NaN as held samples, in which values may be missing; a split refuses them in an array."""
    if isinstance(samples, np.ndarray) and samples.dtype.kind == "f" and np.isnan(samples).any():
        return Held(samples)
    return samples


def _as_frame(array: np.ndarray, form: Form) -> Any:
    """An array as the frame of the fit; scikit-learn has warned that its columns have no names."""
    if texts := [name for name, kind in form.columns.items() if kind not in ("integer", "float", "boolean")]:
        raise TypeError(f"X: expected a frame, as at the fit, whose column {texts[0]!r} holds no numbers")
    import pandas as pd

    return pd.DataFrame(whole(array), columns=list(form.columns))
