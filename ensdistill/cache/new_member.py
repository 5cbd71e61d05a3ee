"""The predictions of a member that is added to a cache, in the cache's order and units."""

from __future__ import annotations

from typing import Any

import numpy as np

from ensdistill.cache.reader import TargetCache
from ensdistill.cache.standard import Standard
from ensdistill.cache.uids import Places


def rows_of_new_member(source: TargetCache, logits: Any, moments: Any, uids: Any) -> np.ndarray:
    """The member's rows [views, records, C], float32, as an encoder takes them.

    Arguments as for :func:`ensdistill.cache.add_member`.

    Raises
    ------
    TypeError, ValueError
        Predictions of another task, of another dtype or shape, or for other uids.
    """
    parts = [logits] if source.task != "regression" else _parts(moments)
    name, other = ("logits", moments) if source.task != "regression" else ("moments", logits)
    if other is not None or parts[0] is None:
        got = "none" if other is None else "logits" if name == "moments" else "moments"
        raise TypeError(
            f"{name}: expected the new member's, because the cache {source.path} is of {source.task}; got "
            f"{got}"
        )
    counts = [records_of(source, view) for view in range(source.views)]
    one = (counts[0], len(source.classes))
    wanted = one if source.views == 1 else (source.views, *one)
    ordered = []
    for part in parts:
        array = np.asarray(part)
        if array.dtype != np.float32 and (name == "logits" or array.dtype.kind != "f"):
            expected = "float32" if name == "logits" else "floats"
            raise TypeError(f"{name}: expected {expected}; got {array.dtype}")
        if array.shape != wanted:
            raise ValueError(
                f"{name}: expected {list(wanted)}, one row for each record; got {list(array.shape)}"
            )
        ordered.append(_in_row_order(source, array.reshape(source.views, counts[0], -1), uids))
    return ordered[0] if name == "logits" else _standardised(source, *ordered)


def records_of(cache: TargetCache, view: int) -> int:
    return int(cache.lengths(cache.uids, view).sum())


def _parts(moments: Any) -> list[Any]:
    """The means, and the variances where there are some."""
    if not isinstance(moments, tuple):
        return [moments]
    mean, variance = moments
    return [mean] if variance is None else [mean, variance]


def _standardised(source: TargetCache, mean: np.ndarray, variance: np.ndarray | None = None) -> np.ndarray:
    """Moments [views, records, D] in the cache's numbers."""
    standard = Standard.of(source.manifest)
    assert standard is not None
    if variance is not None and not standard.variance:
        raise ValueError(
            f"moments: expected means alone, because the cache {source.path} has no variances; got variances "
            "too: build the cache again with this member in the ensemble"
        )
    if not np.isfinite(mean).all():
        raise ValueError("moments: expected finite means; got others")
    if variance is None and standard.variance:
        others = [source.gather_moments(source.uids, view)[1] for view in range(source.views)]
        variance = np.stack([own.mean(0) for own in others if own is not None])
    if variance is not None and not (np.isfinite(variance).all() and (variance >= 0).all()):
        raise ValueError("moments: expected finite variances of at least 0; got others")
    return standard(mean, variance)


def _in_row_order(source: TargetCache, values: np.ndarray, uids: Any) -> np.ndarray:
    """``values`` [views, records, C], whose samples are in the order of ``uids``, in the cache's order."""
    given, everything = np.asarray(uids), source.uids
    sound = given.dtype.kind in "iu" and given.shape == everything.shape
    if not sound or not np.array_equal(np.sort(given), np.sort(everything)):
        span = "" if given.size == 0 else f" from {given.min()} to {given.max()}"
        raise ValueError(
            f"uids: expected each of the cache's ({everything.min()} to {everything.max()}) once, for the "
            f"sample that each row of logits is of; got {given.dtype} {list(given.shape)}{span}"
        )
    if np.array_equal(given, everything):
        return values
    places, _ = Places(everything).of(given.astype(np.int64))
    ordered = np.empty_like(values)
    for view, rows in enumerate(values):
        lengths = source.lengths(everything, view)
        begins = np.empty_like(lengths)  # of each sample's records among ``rows``
        begins[places] = np.cumsum(lengths[places]) - lengths[places]
        shifts = begins - (np.cumsum(lengths) - lengths)
        ordered[view] = rows[np.repeat(shifts, lengths) + np.arange(len(rows))]
    return ordered
