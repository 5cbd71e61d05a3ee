"""Shapley values: the share of a whole's worth that each of its parts has."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

EXACT = 10  # parts of which all subsets are tried
ORDERS = 128  # random orders of more parts


@dataclass(frozen=True)
class Shapley:
    """The result of :func:`shapley`.

    Parameters
    ----------
    values : ndarray [K, M], float64
        Of each part in each measure. They sum to the worth of all parts less that of none.
    errors : ndarray [K, M], float64
        Standard errors of the sampling; 0 where all subsets were tried.
    orders : int
        The random orders that were drawn; 0 where all subsets were tried.
    """

    values: np.ndarray
    errors: np.ndarray
    orders: int


def shapley(
    worth: Callable[[np.ndarray], np.ndarray], parts: int, *, orders: int = ORDERS, seed: int = 0
) -> Shapley:
    """The mean gain of a part over the parts before it, over all orders of the parts.

    Up to ten parts it is exact, with the worth of all 2^K subsets. Beyond, it is the mean over random orders,
    each followed by its reverse, and the error is that of the mean of pairs.

    Parameters
    ----------
    worth : callable
        From a subset, bool [K], to its worth in M measures, float64 [M]. Each subset is asked for once.
    parts : int
        K, at least 1.
    orders : int
        An even number, at least 4.
    seed : int

    Raises
    ------
    ValueError
        ``parts`` or ``orders`` is too small, or ``orders`` is odd.

    References
    ----------
    Shapley (1953), "A Value for n-Person Games"; Castro et al. (2009), "Polynomial calculation of the Shapley
    value based on sampling".

    Examples
    --------
    >>> gloves = lambda owned: np.array([float(owned[0] and (owned[1] or owned[2]))])
    >>> shapley(gloves, 3).values[:, 0].round(4).tolist()
    [0.6667, 0.1667, 0.1667]
    """
    if parts < 1:
        raise ValueError(f"parts: expected at least 1; got {parts}")
    if orders < 4 or orders % 2:
        raise ValueError(f"orders: expected an even number of at least 4; got {orders}")
    known: dict[bytes, np.ndarray] = {}

    def once(subset: np.ndarray) -> np.ndarray:
        key = subset.tobytes()
        if key not in known:
            known[key] = np.asarray(worth(subset), np.float64)
        return known[key]

    return _exact(once, parts) if parts <= EXACT else _sampled(once, parts, orders, seed)


def _exact(worth: Callable[[np.ndarray], np.ndarray], parts: int) -> Shapley:
    values: np.ndarray | float = 0.0
    for code in range(2**parts):
        subset = (code >> np.arange(parts)) & 1 > 0
        size, found = int(subset.sum()), worth(subset)
        # A subset's worth counts for its own parts, and against the others.
        inside = 1 / (parts * math.comb(parts - 1, size - 1)) if size else 0.0
        outside = 1 / (parts * math.comb(parts - 1, size)) if size < parts else 0.0
        values = values + np.where(subset, inside, -outside)[:, None] * found
    assert isinstance(values, np.ndarray)
    return Shapley(values, np.zeros_like(values), 0)


def _sampled(worth: Callable[[np.ndarray], np.ndarray], parts: int, orders: int, seed: int) -> Shapley:
    rng, pairs = np.random.default_rng(seed), []
    for _ in range(orders // 2):
        order = rng.permutation(parts)
        pairs.append((_gains(worth, order) + _gains(worth, order[::-1])) / 2)
    each = np.stack(pairs)
    return Shapley(each.mean(0), each.std(0, ddof=1) / math.sqrt(len(each)), orders)


def _gains(worth: Callable[[np.ndarray], np.ndarray], order: np.ndarray) -> np.ndarray:
    """The gain [K, M] of each part over those before it in an order."""
    subset = np.zeros(len(order), bool)
    before = worth(subset)
    gains = np.empty((len(order), len(before)))
    for part in order:
        subset[part] = True
        now = worth(subset.copy())
        gains[part], before = now - before, now
    return gains
