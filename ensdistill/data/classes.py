"""Labels of any kind as classes by name, with the values that they had."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ensdistill.data.labels import LARGEST, in_category_order, is_missing
from ensdistill.data.rows import UNLABELLED, BadRows

MOST_NUMBERS = 50  # different numbers that are classes without a doubt
MOST_LISTED = 200  # classes that a user may write down
ROWS_EACH = 10  # rows for each number, above which more of them are classes too


def classes_of(
    labels: Any, order: Sequence[Any] | None = None, *, argument: str = "target"
) -> tuple[np.ndarray, tuple[str, ...], tuple[Any, ...]]:
    """Class indices, names and original values.

    Parameters
    ----------
    labels : sequence [N]
        Strings, booleans, numbers, categories, or objects whose ``str`` names them: a column of pandas,
        polars or pyarrow, a list, an array. None, NaN and NA stand for an unknown label.
    order : sequence, optional
        All labels, or their names, in the order of the class indices. By default categories that have an
        order keep it; numbers and booleans are sorted by value, others by name.
    argument : str
        The argument that an error message names.

    Returns
    -------
    indices : ndarray [N], int64
        Into the classes; -100 where the label is unknown.
    names : tuple of str
    values : tuple
        The labels themselves by class index. Floats that are whole numbers become integers: a column of
        integers with gaps holds floats.

    Raises
    ------
    ValueError
        No label is known, all are alike, they are of several kinds, a label is not in ``order``, or the
        labels look like numbers to be predicted rather than classes.

    Examples
    --------
    >>> classes_of([3, 10, None, 3])
    (array([   0,    1, -100,    0]), ('3', '10'), (3, 10))
    >>> classes_of([True, False], order=["True", "False"])
    (array([0, 1]), ('True', 'False'), (True, False))
    """
    values = [_plain(value) for value in _listed(labels)]
    known = [value for value in values if not is_missing(value)]
    if not known:
        raise ValueError(f"{argument}: expected labels; got {len(values)} rows, all without one")
    known = _of_one_kind(values, known, argument)
    different = _different(values, known, argument)
    named = dict(zip(map(_name, different), different, strict=True))
    _check_names(different, named, argument)
    if order is None:
        ordered = in_category_order(labels, np.array([str(value) for value in different]))
        if ordered is None or set(ordered) != set(named):
            _check_classes(known, different, argument, labels)
            ordered = tuple(_name(value) for value in sorted(different, key=_sort_key))
    else:
        ordered = tuple(_name(_plain(name)) for name in order)
        if twice := [name for name in ordered if ordered.count(name) > 1]:
            raise ValueError(f"labels: expected different ones; {twice[0]!r} stands {len(twice)} times")
        if unknown := [name for name in named if name not in ordered]:
            raise ValueError(
                f"labels: expected all labels of {argument} among {', '.join(ordered[:10])}; "
                f"{unknown[0]!r} is not"
            )
    if len(ordered) < 2:
        raise ValueError(f"{argument}: expected at least two classes; all labels are {ordered[0]!r}")
    place = {named[name]: i for i, name in enumerate(ordered) if name in named}
    indices = np.array([UNLABELLED if is_missing(v) else place[_whole(v)] for v in values], np.int64)
    return indices, ordered, tuple(named.get(name, name) for name in ordered)


def _listed(labels: Any) -> list[Any]:
    for method in ("to_pylist", "tolist", "to_list"):  # pyarrow; NumPy, pandas and torch; polars
        if hasattr(labels, method):
            return list(getattr(labels, method)())
    return list(labels)


def _plain(value: Any) -> Any:
    value = value.item() if isinstance(value, np.generic) else value
    return value.decode() if isinstance(value, bytes) else value


def _whole(value: Any) -> Any:
    """A float that is a whole number as an integer."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _name(value: Any) -> str:
    return str(_whole(value))


def _sort_key(value: Any) -> Any:
    return value if isinstance(value, (bool, int, float)) else str(value)


def _of_one_kind(values: list[Any], known: list[Any], argument: str) -> list[Any]:
    """The known labels, whole floats as integers; raise where numbers, booleans and others are mixed."""

    def kind(value: Any) -> str:
        if isinstance(value, bool):
            return "booleans"
        return "numbers" if isinstance(value, (int, float)) else type(value).__name__

    first = next(i for i, value in enumerate(values) if not is_missing(value))
    for row, value in enumerate(values):
        if not is_missing(value) and kind(value) != kind(values[first]):
            raise BadRows(
                f"{argument}: expected labels of one kind; row {first} has {values[first]!r}, row {row} "
                f"{value!r}. Make strings of them all",
                np.array([row]),
            )
    return [_whole(value) for value in known]


def _different(values: list[Any], known: list[Any], argument: str) -> list[Any]:
    try:
        return list(dict.fromkeys(known))
    except TypeError:  # a list, a dict
        row, value = next((i, v) for i, v in enumerate(values) if getattr(type(v), "__hash__", None) is None)
        raise BadRows(
            f"{argument}: expected one label in each row; row {row} has {value!r}, a {type(value).__name__}. "
            "Several labels for a row are no classes: choose one, or join them to a string",
            np.array([row]),
        ) from None


def _check_names(different: list[Any], named: dict[str, Any], argument: str) -> None:
    if "" in named:
        raise ValueError(f"{argument}: expected a name for each class; got an empty string")
    for value in different:
        if type(value).__str__ is object.__str__ and type(value).__repr__ is object.__repr__:
            raise ValueError(
                f"{argument}: expected labels with a name; {type(value).__name__} has no __str__"
            )
    if len(named) < len(different):
        twice = next(value for value in different if named[_name(value)] is not value)
        raise ValueError(f"{argument}: expected labels with different names; two are named {_name(twice)!r}")


def _check_classes(known: list[Any], different: list[Any], argument: str, labels: Any) -> None:
    """Refuse numbers that are quantities rather than names."""
    numbers = isinstance(different[0], (int, float)) and not isinstance(different[0], bool)
    if not numbers or hasattr(labels, "cat"):
        return
    remedy = (
        "Only classes can be learned by the task classification: state regression as the task (--task "
        "regression), or make classes of the numbers (low, middle, high)"
    )
    if len(different) <= MOST_LISTED:
        some = ", ".join(str(value) for value in sorted(different)[:2])
        remedy += (
            f". If each number is a class of its own, list them all: --data.labels '[{some}, ...]' on the "
            f"command line, labels: [{some}, ...] in YAML, labels=[...] in Python; or make strings of them"
        )
    fraction = next((value for value in different if isinstance(value, float)), None)
    if fraction is not None:
        raise ValueError(
            f"{argument}: expected classes; got what looks like a regression's target, {fraction} among "
            f"{len(different)} different numbers. "
            f"{remedy}"
        )
    if len(different) > MOST_NUMBERS and len(known) < ROWS_EACH * len(different):
        raise ValueError(
            f"{argument}: expected classes; got what looks like a regression's target, {len(different)} "
            f"different numbers in {len(known)} rows. {remedy}"
        )
    if max(map(abs, different)) > LARGEST:
        raise ValueError(f"{argument}: expected whole numbers up to 2**53; got {max(different)}")
