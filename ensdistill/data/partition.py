"""How a data set is divided into labelled rows, pool and test rows."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from ensdistill.data.copies import equal_inputs, merged
from ensdistill.data.draws import Draw
from ensdistill.data.rows import BadRows, Rows
from ensdistill.data.splits import Split

DRAWN, TRAIN, POOL, TEST = -1, 0, 1, 2
PARTS = {"train": TRAIN, "pool": POOL, "test": TEST}


@dataclass(frozen=True)
class Whole:
    """All rows of a data set before they are divided.

    Parameters
    ----------
    rows : Rows
        Labelled -100 (or as :mod:`ensdistill.data.tasks` lists) where the label isn't known.
    classes : tuple of str
    labels : tuple
        The labels by class index as the data had them.
    times : ndarray [N], optional
        Numbers, times or strings that put the rows in order.
    given : ndarray [N], int8, optional
        The part of each row: ``TRAIN``, ``POOL`` or ``TEST``, or ``DRAWN`` where the settings decide.
    """

    rows: Rows
    classes: tuple[str, ...]
    labels: tuple[Any, ...]
    times: np.ndarray | None = None
    given: np.ndarray | None = None

    @cached_property
    def units(self) -> np.ndarray:
        """int64 [N]: one number for all rows that stay together, because they are equal or of one group."""
        return merged(equal_inputs(self.rows.inputs)[0], self.rows.groups)


@dataclass(frozen=True)
class Partition:
    """How a data set is divided: sizes, and what stays together.

    Equal rows always stay in one part, also where their labels differ: a test row with a copy among the
    training rows would measure memory. Rows without a label go to the pool, unless they equal a test row (or
    are of its group); these are left out, and counted by :attr:`ensdistill.data.Split.left_out`.

    Parameters
    ----------
    labelled : int or float, optional
        Rows whose labels may be used: a number of rows (200), or a share of the labelled ones (0.5). By
        default all that are in no other part.
    pool : int or float
        Labelled rows that are used without their labels, on top of those that have none.
    test : int or float, optional
        Rows for the report alone; a quarter by default.
    stratified : bool
        Whether the parts hold the classes, or the labels of a row, in the proportions of the whole. Rows of a
        regression are drawn at random in any case.
    group : str, optional
        The column whose values stay together, such as the patient's number.
    time : str, optional
        The column that orders the rows: the latest are test rows, the earliest are labelled ones, with the
        pool between. Rows of one time stay together, so the number of test rows is near to the size.
        Later copies of earlier rows, and later rows without a label, are left out.
    column : str, optional
        The column that holds ``train``, ``pool`` or ``test`` for each row. An empty field leaves the row to
        the settings above.
    folds : int, optional
        Cross-validation: of this many parts, seed ``s`` has part ``s mod folds`` as its test rows.
    test_seed : int, optional
        Of the test rows' draw, or of the folds. By default the test rows differ from seed to seed; with a
        ``test_seed`` they are the same for all seeds.

    Raises
    ------
    ValueError
        A size out of range, or settings that contradict each other.

    Examples
    --------
    >>> rows = Rows(np.arange(40.0)[:, None], np.arange(40), np.arange(40) % 2)
    >>> split = Partition(test=0.5, pool=10).split(Whole(rows, ("a", "b"), (0, 1)), seed=0)
    >>> len(split.labelled), len(split.pool), len(split.test)
    (10, 10, 20)
    """

    labelled: int | float | None = None
    pool: int | float = 0
    test: int | float | None = None
    stratified: bool = True
    group: str | None = None
    time: str | None = None
    column: str | None = None
    folds: int | None = None
    test_seed: int | None = None

    def __post_init__(self) -> None:
        for name in ("labelled", "pool", "test"):
            size, least = getattr(self, name), 0 if name == "pool" else 1
            if isinstance(size, float) and not (0 <= size < 1 and (size > 0 or least == 0)):
                raise ValueError(f"{name}: expected a share below 1, or a whole number of rows; got {size}")
            if isinstance(size, int) and size < least:
                raise ValueError(f"{name}: expected at least {least} rows; got {size}")
        if self.folds is not None and self.folds < 2:
            raise ValueError(f"folds: expected at least 2; got {self.folds}")
        for one, others in (
            ("folds", ("test", "time", "column")),
            ("time", ("group", "test_seed")),
        ):
            for other in others:
                if getattr(self, one) is not None and getattr(self, other) is not None:
                    raise ValueError(f"{one}: expected without {other}, because both decide on the test rows")

    def split(self, whole: Whole, seed: int) -> Split:
        """Divide the rows.

        Parameters
        ----------
        whole : Whole
        seed : int

        Raises
        ------
        ValueError
            The sizes add up to more rows than there are, a class has too few different rows to stand in every
            part, or so many rows are equal, or of one group, that a part would be far smaller than asked.
        """
        rows, units = whole.rows, whole.units
        known = rows.known
        given = np.full(len(rows), DRAWN, np.int8) if whole.given is None else whole.given
        draw = Draw(self, whole, np.flatnonzero(known & (given == DRAWN)))
        test_given, train_given, pool_given = (np.flatnonzero(given == part) for part in (TEST, TRAIN, POOL))
        _check_given(whole, test_given, "test", known)
        _check_given(whole, train_given, "train", known)
        if len(test_given):
            for name in ("test", "folds", "time"):
                if getattr(self, name) is not None:
                    raise ValueError(f"{name}: expected without test rows of their own, which the data has")
        elif not len(draw.index):
            raise ValueError(f"{self.column}: expected rows with 'test' among them; got none")
        test, begin = (test_given, None) if len(test_given) else draw.test(seed)
        labelled, pool = draw.rest(test, seed)
        labelled = np.concatenate([train_given, labelled])
        unlabelled = np.concatenate([np.flatnonzero(~known & (given == DRAWN)), pool_given])
        if begin is not None:
            assert whole.times is not None
            later = whole.times[unlabelled] >= begin
            # A later copy of an earlier row has been trained on, so it is left out of the later part.
            kept = unlabelled[~later & ~np.isin(units[unlabelled], units[test])]
            pool, spare = _apart(pool, units, labelled)
            test, same = _apart(test, units, labelled, pool)
            left_out = len(unlabelled) - len(kept) + spare + same
            if not len(test):
                raise ValueError(f"{self.time}: every test row equals an earlier row; got {same} such rows")
        else:
            kept, left_out = _apart(unlabelled, units, test)
        _check_classes(whole, labelled, test)
        parts = [rows.take(np.sort(part)) for part in (labelled, np.concatenate([pool, kept]), test)]
        return Split(
            parts[0],
            parts[1].without_labels(),
            parts[2],
            whole.classes,
            left_out=left_out,
            labels=whole.labels,
        )


def _apart(part: np.ndarray, units: np.ndarray, *others: np.ndarray) -> tuple[np.ndarray, int]:
    """The rows of ``part`` that equal none of the other parts', and the number of those that do."""
    kept = part[~np.isin(units[part], units[np.concatenate(others)])]
    return kept, len(part) - len(kept)


def _check_given(whole: Whole, part: np.ndarray, name: str, known: np.ndarray) -> None:
    if len(bad := part[~known[part]]):
        raise BadRows(
            f"{name}: expected a label for each of its {len(part)} rows; row {np.argmin(known[part])} of "
            f"these ({bad[0]} of all) has none ({len(bad)} such rows): move them to the pool",
            bad,
        )


def _check_classes(whole: Whole, labelled: np.ndarray, test: np.ndarray) -> None:
    labels = whole.rows.labels
    if labels.ndim > 1:
        return
    if len(unseen := np.setdiff1d(labels[test], labels[labelled])):
        raise ValueError(
            f"labelled: no row of class {whole.classes[unseen[0]]!r} among the {len(labelled)}, but test "
            "rows of it; ask for more labelled rows, or leave the class out"
        )
