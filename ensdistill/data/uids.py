"""Stable ids of samples: given ones are checked, others are made of the samples' content."""

from __future__ import annotations

from typing import Any

import numpy as np


def content_uids(hashes: np.ndarray) -> np.ndarray:
    """Ids that depend on a sample's content, and on how many equal samples stand before it.

    Parameters
    ----------
    hashes : ndarray [N], uint64
        Of the samples; see :func:`ensdistill.data.samples.sample_hashes`.

    Returns
    -------
    ndarray [N], int64
        Unique. A sample keeps its id when others are added, removed or moved, unless these are equal to it.

    Examples
    --------
    >>> first = content_uids(np.array([7, 9, 7], np.uint64))
    >>> len(set(first.tolist())), content_uids(np.array([9, 7], np.uint64))[0] == first[1]
    (3, np.True_)
    """
    values = np.ascontiguousarray(hashes, np.uint64)
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    first = np.r_[True, ordered[1:] != ordered[:-1]] if len(values) else np.zeros(0, bool)
    starts = np.flatnonzero(first)
    occurrence = np.empty(len(values), np.uint64)
    occurrence[order] = np.arange(len(values)) - np.repeat(starts, np.diff(np.r_[starts, len(values)]))
    # Weyl's sequence moves equal hashes apart; SplitMix64's finaliser, a bijection, leaves no two occurrences
    # of one hash equal.
    with np.errstate(over="ignore"):
        mixed = values + occurrence * np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        mixed ^= mixed >> np.uint64(31)
    uids = mixed.view(np.int64)
    if len(np.unique(uids)) != len(uids):  # two contents with one id: about N²/2^65 of all data sets
        raise ValueError(
            f"uids: two of {len(uids)} samples have the same 64-bit id by their content; pass uids= of your "
            "own"
        )
    return uids


def given_uids(uids: Any, count: int, argument: str = "uids") -> np.ndarray:
    """Ids that the user gives: integers as they are; strings by their hash.

    Parameters
    ----------
    uids : array-like [N]
        All different: integers within int64, or strings.
    count : int
        N.

    Returns
    -------
    ndarray [N], int64

    Raises
    ------
    ValueError, TypeError
        Another number of ids, one that is missing or stands twice, or another type; names the argument and
        the first such row.
    """
    import xxhash

    from ensdistill.data.batches.tables import is_gap

    values = np.asarray(uids)
    if values.shape != (count,):
        raise ValueError(f"{argument}: expected {count} ids, one for each sample; got {list(values.shape)}")
    missing = (
        [row for row, value in enumerate(values.tolist()) if is_gap(value)]
        if values.dtype.kind in "fOT"
        else []
    )
    if missing:
        row = missing[0]
        raise ValueError(f"{argument}: expected an id for each sample; that of row {row} is missing")
    if values.dtype.kind in "iu":
        if values.dtype == np.uint64 and values.size and values.max() > np.iinfo(np.int64).max:
            raise ValueError(f"{argument}: expected integers below 2**63; got {values.max()}")
        found = values.astype(np.int64)
    elif values.dtype.kind in "UOT":
        items = values.tolist()
        for row, item in enumerate(items):
            if not isinstance(item, str):
                raise TypeError(f"{argument}: expected integers or strings; that of row {row} is {item!r}")
        found = np.array([xxhash.xxh3_64_intdigest(item.encode()) for item in items], np.uint64).view(
            np.int64
        )
    else:
        raise TypeError(f"{argument}: expected integers or strings; got {values.dtype}")
    unique, counts = np.unique(found, return_counts=True)
    if len(unique) < count:
        row = int(np.flatnonzero(found == unique[counts > 1][0])[1])
        (value,) = values[row : row + 1].tolist()
        raise ValueError(
            f"{argument}: expected ids that are all different; that of row {row}, {value!r}, stands "
            f"{counts.max()} times"
        )
    return found
