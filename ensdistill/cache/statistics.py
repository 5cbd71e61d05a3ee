"""The cost of storing: every row's KL or error, summed up so that parts of shards and writers merge
exactly."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

# Sixteen bins to an octave (4.4 % wide) from 2^-60 (nats): mergeable, unlike a quantile.
_BINS, _LOWEST = 16, 2.0**-60

Part = dict[str, Any]
"""``{rows, sum, max, bins}`` of some rows; ``bins`` are pairs (bin, rows in it).

``floored`` counts the rows that had logits below the floor, if any.
"""


class Cost(NamedTuple):
    """The cost of storing each of some rows.

    Parameters
    ----------
    kl : ndarray [N], float64
        Nats, or of regression an error in units of the predictions' spread; not negative.
    floored : int
        The number of rows that had logits below the floor (``floors.py``).
    """

    kl: np.ndarray
    floored: int = 0


def part(cost: Cost) -> Part:
    """The part of these rows."""
    kl = cost.kl
    found = np.unique(np.floor(np.log2(np.maximum(kl, _LOWEST)) * _BINS).astype(int), return_counts=True)
    bins = np.stack(found, 1).tolist()
    whole = {"rows": kl.size, "sum": math.fsum(kl.tolist()), "max": float(kl.max()), "bins": bins}
    return {**whole, "floored": cost.floored} if cost.floored else whole


def merge(parts: Iterable[Part]) -> Part:
    """One part for the rows of all."""
    parts, counts = list(parts), Counter[int]()
    for one in parts:
        counts.update(dict(one["bins"]))
    floored = sum(one.get("floored", 0) for one in parts)
    return {
        "rows": sum(one["rows"] for one in parts),
        "sum": math.fsum(one["sum"] for one in parts),
        "max": max(one["max"] for one in parts),
        "bins": [list(pair) for pair in sorted(counts.items())],
        **({"floored": floored} if floored else {}),
    }


def summary(members: dict[str, Part], measure: str = "kl") -> dict[str, Any]:
    """``manifest["statistics"]``: over everything, and the part of each member. ``measure`` names the cost.

    Examples
    --------
    >>> summary({"a": part(Cost(np.array([0.5, 1.5]))), "b": part(Cost(np.array([1.0, 1.0])))})["kl"]
    {'rows': 4, 'mean': 1.0, 'p99': 1.5, 'max': 1.5}
    """
    whole = merge(members.values())
    below, p99 = 0, 0.0
    for bin_, count in whole["bins"]:
        below += count
        if below >= 0.99 * whole["rows"]:
            p99 = 2.0 ** ((bin_ + 1) / _BINS)
            break
    cost = {
        "rows": whole["rows"],
        "mean": whole["sum"] / whole["rows"],
        "p99": min(p99, whole["max"]),
        "max": whole["max"],
    }
    return {measure: cost, "members": members}


def is_part(value: Any) -> bool:
    """Whether a manifest's JSON is a part."""

    def number(x: Any) -> bool:
        return type(x) in (int, float) and math.isfinite(x) and x >= 0

    def pair(x: Any) -> bool:
        sound = (
            isinstance(x, list) and len(x) == 2 and all(type(i) is int and -(2**15) < i < 2**62 for i in x)
        )
        return sound and x[1] > 0

    sound = isinstance(value, dict) and value.keys() - {"floored"} == {"rows", "sum", "max", "bins"}
    sound = sound and all(
        type(value[count]) is int and value[count] > 0 for count in ("rows", "floored") if count in value
    )
    sound = sound and number(value["sum"]) and number(value["max"])
    return sound and isinstance(value["bins"], list) and all(map(pair, value["bins"]))
