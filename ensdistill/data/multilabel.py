"""Labels of which any number apply to a row, as int8 [N, C]: from columns, or from one column of tags."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ensdistill.data.batches.arrays import is_tensor
from ensdistill.data.labels import is_missing
from ensdistill.data.rows import BadRows
from ensdistill.data.tasks import UNKNOWN

_WORDS = {"0": 0, "1": 1, "false": 0, "true": 1, "no": 0, "yes": 1, "-1": UNKNOWN, "": UNKNOWN}


def as_multilabels(labels: Any, *, argument: str = "labels") -> np.ndarray:
    """Labels of several columns, int8 [N, C]: 1 where one applies, 0 where not, -1 where it is unknown.

    Parameters
    ----------
    labels : array-like [N, C], or a frame
        0 and 1, booleans, or the words true, false, yes and no. NaN, None, NA and -1 are unknown labels.
    argument : str
        The argument that an error message names.

    Raises
    ------
    ValueError
        Another value; names the row and the column.

    Examples
    --------
    >>> as_multilabels([[1, 0], [0, None]]).tolist()
    [[1, 0], [0, -1]]
    """
    values = labels.detach().cpu().numpy() if is_tensor(labels) else labels
    values = np.asarray(values.to_numpy() if hasattr(values, "to_numpy") else values)
    if values.ndim != 2 or values.shape[1] == 0:
        raise ValueError(f"{argument}: expected [N, C], a column for each label; got {list(values.shape)}")
    if values.dtype.kind in "biuf":
        numbers = values.astype(np.float64)
        found = np.where(np.isnan(numbers), UNKNOWN, numbers)
        wrong = ~np.isin(found, (UNKNOWN, 0, 1))
    else:
        found = np.array([[_value(one) for one in row] for row in values.tolist()], np.float64)
        wrong = np.isnan(found)
    rows = np.flatnonzero(wrong.any(1))
    if len(rows):
        column = int(np.flatnonzero(wrong[rows[0]])[0])
        raise BadRows(
            f"{argument}: expected 0 or 1 for each label, or nothing (NaN, -1) for an unknown one; row "
            f"{rows[0]} has {values[rows[0]].tolist()[column]!r} in column {column} ({len(rows)} such rows)",
            rows,
        )
    return found.astype(np.int8)


def _value(value: Any) -> float:
    if is_missing(value):
        return UNKNOWN
    if isinstance(value, str):
        return _WORDS.get(value.strip().lower(), np.nan)
    return float(value) if value in (0, 1, UNKNOWN) else np.nan


def from_tags(
    column: Any, separator: str = ",", order: Sequence[str] | None = None, *, argument: str = "target"
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Labels, int8 [N, C], and their names, from one column of separated tags.

    Parameters
    ----------
    column : sequence of str, None or NaN [N]
        Such as ``"game::puzzle, role::program"``; blanks around a tag are taken off. An empty text is a row
        to which no label applies; None, NaN and NA are an unlabelled row. Lists of strings are taken too.
    separator : str
    order : sequence of str, optional
        The labels in order; other tags are left out. By default all tags, sorted.
    argument : str
        The argument that an error message names.

    Raises
    ------
    ValueError
        A value is no text, no tag is there at all, or none of ``order`` is.

    Examples
    --------
    >>> from_tags(["b, a", "b", "", None])
    (array([[ 1,  1],
           [ 0,  1],
           [ 0,  0],
           [-1, -1]], dtype=int8), ('a', 'b'))
    """
    if not separator:
        raise ValueError("separator: expected the characters between two tags; got an empty text")
    rows = [_tags(value, row, separator, argument) for row, value in enumerate(column)]
    present = {tag for tags in rows if tags is not None for tag in tags}
    names = tuple(sorted(present)) if order is None else tuple(order)
    if len(set(names)) < len(names):
        raise ValueError(f"labels: expected different names; got {list(names)[:10]}")
    if not present & set(names):
        wanted = "tags" if order is None else f"some of the tags {list(names)[:5]}"
        raise ValueError(f"{argument}: expected {wanted} in {len(rows)} rows; got none")
    place = {name: i for i, name in enumerate(names)}
    found = np.zeros((len(rows), len(names)), np.int8)
    for row, tags in enumerate(rows):
        if tags is None:
            found[row] = UNKNOWN
            continue
        found[row, [place[tag] for tag in tags if tag in place]] = 1
    return found, names


def _tags(value: Any, row: int, separator: str, argument: str) -> list[str] | None:
    if is_missing(value):
        return None
    tags = value.split(separator) if isinstance(value, str) else value
    if not isinstance(tags, (list, tuple, np.ndarray)) or not all(isinstance(tag, str) for tag in tags):
        raise BadRows(
            f"{argument}: expected tags, texts with {separator!r} between them; row {row} has {value!r}",
            np.array([row]),
        )
    return [tag.strip() for tag in tags if tag.strip()]
