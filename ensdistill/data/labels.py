"""Labels of any kind that tables hold, as class indices and names."""

from __future__ import annotations

from typing import Any

import numpy as np

from ensdistill.data.batches.arrays import is_tensor
from ensdistill.data.rows import BadRows

LARGEST = 2**53  # up to here a float64 holds every integer


def as_labels(
    labels: Any,
    wanted: tuple[str, ...] | None = None,
    *,
    indices: bool = False,
    unlabelled: int | None = None,
    argument: str = "data",
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Class indices, int64 [N], and the names of the classes.

    Parameters
    ----------
    labels : array-like [N]
        Integers, and floats that are whole numbers, are class indices. Strings and booleans are names
        ("False" and "True"): from NumPy, lists, tensors, or a column of pandas, polars or pyarrow, categories
        included.
    wanted : tuple of str, optional
        The names by index. By default they are the labels' own names, or "0", "1", ... Names are sorted,
        unless the labels are a column of ordered categories (of pandas and pyarrow with ``ordered``, or
        polars' ``Enum``), whose order stays.
    indices : bool
        Whether numbers are class indices for certain, also where ``wanted`` holds such numbers as names.
    unlabelled : int, optional
        The number that stands for a missing label. It is returned as it is.
    argument : str
        The argument that an error message names.

    Raises
    ------
    ValueError
        A missing label (None, NaN, NA), a fraction, several kinds of labels, or names and indices that
        ``wanted`` doesn't hold. It names the rows.

    Examples
    --------
    >>> as_labels(np.array(["b", "a", "b"], object))
    (array([1, 0, 1]), ('a', 'b'))
    >>> as_labels([True, False])
    (array([1, 0]), ('False', 'True'))
    >>> as_labels([2.0, 0.0, 1.0, -100.0], unlabelled=-100)
    (array([   2,    0,    1, -100]), ('0', '1', '2'))
    """
    values = _values(labels, argument)
    if values.dtype.kind in "SUb" and values.ndim == 1:
        named = _names(values)
        order = wanted if wanted is not None else in_category_order(labels, named)
        return _by_name(named, order, values.dtype.kind == "b")
    if values.dtype.kind not in "iuf" or values.ndim != 1:
        got = f"{values.dtype} {list(values.shape)}"
        remedy = (
            "; one-hot rows are labels.argmax(1); several labels, or numbers, of a row have a task of their "
            "own, multilabel or regression"
            if values.ndim == 2 and values.dtype.kind in "biuf"
            else ""
        )
        raise ValueError(
            f"{argument}: expected labels [N] that are class indices or names; got {got}{remedy}"
        )
    if values.dtype.kind == "f":
        _refuse(
            argument, ~np.isfinite(values), values, "is missing" if np.isnan(values).any() else "is infinite"
        )
        _refuse(
            argument, values != np.floor(values), values, "is a fraction: expected class indices, or names"
        )
    expected = f"0..{'C' if wanted is None else len(wanted)}-1"
    _refuse(
        argument,
        np.abs(values.astype(np.float64)) > LARGEST,
        values,
        f"is no class index: expected {expected}",
    )
    found = values.astype(np.int64)
    known = np.ones(len(found), bool) if unlabelled is None else found != unlabelled
    if not known.any():
        raise ValueError(
            f"{argument}: expected rows with a label; got {len(found)} rows, none of which has one"
        )
    if wanted is not None and not indices:
        _check_one_reading(found[known], wanted)
    names = _numbers(found[known], argument) if wanted is None else wanted
    span = f"expected labels in 0..{len(names) - 1}" + ("" if unlabelled is None else f" (or {unlabelled})")
    _refuse(argument, known & ((found < 0) | (found >= len(names))), found, "", span)
    return found, names


def _values(labels: Any, argument: str) -> np.ndarray:
    """The labels as an array of one plain kind: numbers, booleans, or strings."""
    if is_tensor(labels):
        labels = labels.detach().cpu()
        labels = labels.float().numpy() if labels.dtype.is_floating_point else labels.numpy()
    # By way of objects: NumPy makes strings of ["a", None] and of [1, "a"].
    values = np.array(labels, object) if isinstance(labels, (list, tuple)) else np.asarray(labels)
    if values.ndim != 1 or values.dtype.kind not in "OT":
        return values
    plain = [v.item() if isinstance(v, np.generic) or is_tensor(v) else v for v in values.tolist()]
    _refuse(argument, np.array([is_missing(v) for v in plain], bool), values, "is missing")
    kinds = {kind: [isinstance(v, kind) for v in plain] for kind in (bool, str, bytes, (int, float))}
    kinds[int, float] = [
        number and not boolean for number, boolean in zip(kinds[int, float], kinds[bool], strict=True)
    ]
    found = [kind for kind, those in kinds.items() if any(those)]
    if len(found) == 1 and all(kinds[found[0]]):
        return np.array(plain)
    row = next((i for i, v in enumerate(plain) if type(v) is not type(plain[0])), 0)
    raise ValueError(
        f"{argument}: expected labels of one kind, class indices or names; row 0 holds {plain[0]!r}, row "
        f"{row} holds "
        f"{plain[row]!r}. Make them alike, for example by labels.astype(str)"
    )


def in_category_order(labels: Any, names: np.ndarray) -> tuple[str, ...] | None:
    """The labels' different names in the order of a column of ordered categories; None for any other
    labels."""
    dtype: Any = getattr(labels, "dtype", None)
    if getattr(dtype, "ordered", False) or type(dtype).__name__ == "Enum":  # pandas, polars
        categories = list(dtype.categories)
    elif getattr(getattr(labels, "type", None), "ordered", False):  # pyarrow, in chunks or not
        chunked = labels.unify_dictionaries().chunks if hasattr(labels, "unify_dictionaries") else [labels]
        categories = chunked[0].dictionary.to_pylist() if chunked else []
    else:
        return None
    present = set(names.tolist())
    return tuple(name for name in map(str, categories) if name in present)


def is_missing(value: Any) -> bool:
    return (
        value is None
        or type(value).__name__ in ("NAType", "NaTType")
        or (isinstance(value, float) and value != value)
    )


def _names(values: np.ndarray) -> np.ndarray:
    if values.dtype.kind == "S":
        return np.char.decode(values, "utf-8")
    return np.where(values, "True", "False") if values.dtype.kind == "b" else values


def _by_name(
    labels: np.ndarray, wanted: tuple[str, ...] | None, boolean: bool
) -> tuple[np.ndarray, tuple[str, ...]]:
    names = tuple(np.unique(labels).tolist()) if wanted is None else wanted
    if unknown := sorted(set(labels.tolist()) - set(names)):
        remedy = (
            "; if False is the first of the classes and True the second, pass labels.astype(int)"
            if boolean
            else ""
        )
        raise ValueError(
            f"classes: expected all names among the labels; {unknown} are missing from {list(names)}{remedy}"
        )
    position = {name: i for i, name in enumerate(names)}
    return np.array([position[name] for name in labels.tolist()], np.int64), names


def _numbers(labels: np.ndarray, argument: str) -> tuple[str, ...]:
    """The names 0..C-1 of classes that have indices alone.

    Labels with gaps are refused: labels from 1 on may be counted from there, and each be an index too high.
    """
    there = np.unique(labels).tolist()
    if len(there) > 1 and there[0] >= 0 and there[-1] >= len(there):
        got = f"{len(there)} different ones, {there[:5]}{' ...' * (len(there) > 5)}, up to {there[-1]}"
        raise ValueError(
            f"{argument}: expected labels in 0..C-1, class indices, with rows of each; got {got}. "
            "If they are names, pass labels.astype(str); if they are indices, name all classes by classes=; "
            "if they are quantities, state the task regression"
        )
    return tuple(str(i) for i in range(there[-1] + 1))


def _check_one_reading(indices: np.ndarray, wanted: tuple[str, ...]) -> None:
    """Refuse labels 0, 1 with classes ("1", "0"): label 0 is the class "1" by its index and the class "0" by
    its name."""
    for index in np.unique(indices).tolist():
        if str(index) in wanted and wanted.index(str(index)) != index:
            own = repr(wanted[index]) if 0 <= index < len(wanted) else "no class"
            raise ValueError(
                f"classes: in {list(wanted)}, label {index} is {own} by its index and {str(index)!r} by its "
                "name; pass "
                "labels.astype(str) if the labels are names, or Rows if they are indices"
            )


def _refuse(argument: str, bad: np.ndarray, values: np.ndarray, fault: str, expected: str = "") -> None:
    rows = np.flatnonzero(bad)
    if len(rows) == 0:
        return
    value = values[rows[0]]
    shown = value.item() if isinstance(value, np.generic) else value
    more = f"rows {rows[:5].tolist()}{' ...' * (len(rows) > 5)}, {len(rows)} in all"
    if expected:
        raise BadRows(f"{argument}: {expected}; row {rows[0]} has {shown} ({more})", rows)
    raise BadRows(f"{argument}: the label of row {rows[0]}, {shown!r}, {fault} ({more})", rows)
