"""Kinds of columns: which are mixed, which are rounded, and which are exchanged, alone or as a group."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from ensdistill.data.transfer.arrays import ArrayTable
from ensdistill.data.transfer.one_hot import check_group, one_hot_codes
from ensdistill.data.transfer.tables import Table

# A column of whole numbers with at most FEW different ones is exchanged: its values may be codes or counts.
FEW = 20
_FEWEST_ROWS = 20  # fewer rows show nothing about the values that a column can hold


class KindSettings(Protocol):
    """The settings of a source that state the kinds of columns; names in a frame, positions in an array."""

    @property
    def categorical(self) -> Sequence[int | str]: ...
    @property
    def integers(self) -> Sequence[int | str]: ...
    @property
    def one_hot(self) -> Sequence[Sequence[int | str]]: ...
    @property
    def detect(self) -> bool: ...


@dataclass(frozen=True)
class Columns:
    """Kinds of the columns of a table.

    Parameters
    ----------
    numeric : ndarray [D], bool
        Columns whose new values may lie between those of two rows. All others hold one of the two values.
    whole : ndarray [D], bool
        Numeric columns whose new values are rounded.
    nominal : ndarray [D], bool
        Columns whose values have no order: two values are equal or not.
    groups : list of ndarray, int64
        Positions of columns that hold the values of one row together, as the columns of a one-hot code do.
    """

    numeric: np.ndarray
    whole: np.ndarray
    nominal: np.ndarray
    groups: list[np.ndarray]

    @property
    def continuous(self) -> bool:
        """Whether every column is a number that is not rounded."""
        return bool(self.numeric.all()) and not self.whole.any() and not self.groups


def find_columns(name: str, table: Table, settings: KindSettings) -> Columns:
    """The kinds of the table's columns: stated, or found from types and values.

    Booleans, strings, categories and times are exchanged. Integer columns stay integers. In a table of at
    least 20 rows, a column of whole numbers is exchanged where it holds at most 20 different ones (and each
    four times on average), else rounded; neighbouring 0/1 columns of which each row sets exactly one are a
    one-hot code. ``detect=False`` leaves the search in values out. Pixels of images are numbers.

    Raises
    ------
    ValueError
        A stated column does not exist, stands twice, or does not hold what is stated; names it.
    """
    numeric = np.array([kind in ("float", "integer") for kind in table.types], bool)
    whole = np.array([kind == "integer" for kind in table.types], bool)
    nominal = np.array([kind == "value" for kind in table.types], bool)
    places = {column: place for place, column in enumerate(table.names)}
    categorical = _places(name, "categorical", settings.categorical, places, table)
    integers = _places(name, "integers", settings.integers, places, table)
    groups = [_places(name, "one_hot", group, places, table) for group in settings.one_hot]
    stated = np.concatenate([categorical, integers, *groups])
    if len(set(stated.tolist())) < len(stated):
        twice = next(p for p in stated.tolist() if (stated == p).sum() > 1)
        raise ValueError(
            f"{name}: categorical, integers, one_hot: expected each column once; column "
            f"{table.names[twice]!r} stands twice"
        )
    numeric[categorical], whole[categorical], nominal[categorical] = False, False, True
    for place in integers:
        values = table.column(place)
        if table.types[place] not in ("float", "integer") or not _all_whole(values):
            raise ValueError(
                f"{name}: integers: expected columns of whole numbers; column {table.names[place]!r} "
                "holds others"
            )
        whole[place] = True
    for group in groups:
        check_group(name, table, group)
    if settings.detect and table.tabular and len(table) >= _FEWEST_ROWS:
        groups += _search(name, table, numeric, whole, set(stated.tolist()), categorical)
    for group in groups:
        numeric[group] = whole[group] = nominal[group] = False
    return Columns(numeric, whole, nominal, groups)


def _search(
    name: str,
    table: Table,
    numeric: np.ndarray,
    whole: np.ndarray,
    stated: set[int],
    categorical: np.ndarray,
) -> list[np.ndarray]:
    """Mark the columns of whole numbers in place, and return the one-hot codes."""
    rounded, binary = [], np.zeros(len(table.names), bool)
    binary[categorical] = [set(table.column(place).tolist()) == {0.0, 1.0} for place in categorical]
    free = [p for p in range(len(table.names)) if p not in stated and table.types[p] not in ("value", "time")]
    for place in free:
        values = table.column(place)
        if not _all_whole(values[:1000]) or not _all_whole(values):
            continue
        present = values[~np.isnan(values)]
        many = len(np.unique(present[:1000])) > FEW
        different = np.unique(present) if not many else present[:0]
        if many or len(different) > min(FEW, len(present) // 4):
            rounded.append(place)
        else:
            numeric[place] = whole[place] = False
            binary[place] = len(present) == len(values) and set(different.tolist()) == {0.0, 1.0}
    rounded = [place for place in rounded if numeric[place]]
    whole[rounded] = True
    if rounded and isinstance(table, ArrayTable):
        shown = ", ".join(map(str, rounded[:8])) + ", ..." * (len(rounded) > 8)
        warnings.warn(
            f"{name}: columns {shown} hold whole numbers, more than {FEW} different ones in a column, so new "
            "values are rounded. State categorical=[...] where they are codes of categories, integers=[...] "
            "where they are counts, or detect=False where values between are right",
            stacklevel=4,
        )
    return one_hot_codes(table, binary)


def _places(
    name: str, argument: str, columns: Sequence[Any], places: dict[Any, int], table: Table
) -> np.ndarray:
    columns = columns.tolist() if isinstance(columns, np.ndarray) else columns
    if isinstance(columns, str) or not isinstance(columns, Sequence):
        raise TypeError(f"{name}: {argument}: expected a list of columns; got {columns!r}")
    if len(columns) and not table.tabular:
        raise ValueError(f"{name}: {argument}: expected none, because the inputs are no table [N, columns]")
    for column in columns:
        if column not in places or isinstance(column, bool):
            known = f"0..{len(places) - 1}" if isinstance(table, ArrayTable) else ", ".join(map(str, places))
            raise ValueError(f"{name}: {argument}: expected columns of the inputs ({known}); got {column!r}")
    return np.array([places[column] for column in columns], np.int64)


def _all_whole(values: np.ndarray) -> bool:
    present = values[~np.isnan(values)]
    return bool(len(present)) and bool((present == np.rint(present)).all())
