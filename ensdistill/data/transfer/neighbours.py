"""The nearest other row of each row of a table: exact for small tables, by clusters for large ones.

Up to ``EXACT_ROWS`` rows, scikit-learn compares all pairs. Beyond, scikit-learn's k-means cuts the rows into
about 2 * sqrt(N) clusters, and a row is compared with the rows of the clusters whose centres are nearest to
it. A sample of the rows, whose nearest rows are found among all, decides the number of clusters that are
searched.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import numpy as np
import xxhash

from ensdistill.common.random import random_generator
from ensdistill.data import batches as b

EXACT_ROWS = 50_000
RECALL = 0.9  # the share of rows whose found neighbour has to be their nearest row
_AIM = 0.93  # the share in the sample: more than RECALL, because other rows than the sample's are searched
_SAMPLE = 512
# Pairs of rows that are compared at most: about 75 s of one core with 50 columns. Data whose nearest rows
# are spread over many clusters would need all pairs.
_MOST_PAIRS = 1e10
_BLOCK = 250_000  # rows searched at once; bounds the memory that their clusters' numbers take


_found: ContextVar[dict[Any, np.ndarray] | None] = ContextVar("found neighbours", default=None)


@contextmanager
def shared_searches() -> Iterator[None]:
    """Within, equal points with equal seeds are searched once by :func:`nearest_different`.

    >>> with shared_searches():
    ...     first, again = (nearest_different(np.array([[0.0], [1.0], [5.0]])) for _ in range(2))
    >>> first is again
    True
    """
    token = _found.set({})
    try:
        yield
    finally:
        _found.reset(token)


def nearest_different(points: np.ndarray, seed: int = 0) -> np.ndarray:
    """For each row the position of the nearest row that differs from it.

    Parameters
    ----------
    points : ndarray [N, E]
        Finite numbers. Copies of a row share one neighbour, so copies do not hide it.
    seed : int
        Of the clusters and the sample. The same seed finds the same rows.

    Returns
    -------
    ndarray [N], int64

    Raises
    ------
    ValueError
        All rows are equal.

    Examples
    --------
    >>> nearest_different(np.array([[0.0], [0.0], [1.0], [5.0]])).tolist()
    [2, 2, 0, 2]
    """
    known = _found.get()
    if known is None:
        return _searched(points, seed)
    # Sources encode the base by their own columns, so the content of the points decides.
    key = (seed, str(points.dtype), points.shape, xxhash.xxh3_128_digest(np.ascontiguousarray(points).data))
    if key not in known:
        known[key] = _searched(points, seed)
        known[key].flags.writeable = False
    return known[key]


def nearest_several(points: np.ndarray, count: int) -> np.ndarray:
    """For each row the positions of the ``count`` nearest rows that differ from it and from each other.

    All pairs are compared, so more than ``EXACT_ROWS`` rows take long.

    Parameters
    ----------
    points : ndarray [N, E]
        Finite numbers. Copies of a row have the same neighbours, and count once as a neighbour.
    count : int
        All other rows where there are fewer.

    Returns
    -------
    ndarray [N, count], int64

    Raises
    ------
    ValueError
        All rows are equal.

    Examples
    --------
    >>> nearest_several(np.array([[0.0], [0.0], [1.0], [5.0]]), 2).tolist()
    [[2, 3], [2, 3], [0, 3], [2, 0]]
    """
    return _among_different(points, lambda different: _nearest_several(different, count))


def _nearest_several(points: np.ndarray, count: int) -> np.ndarray:
    from sklearn.neighbors import NearestNeighbors

    count = min(count, len(points) - 1)
    found = NearestNeighbors(n_neighbors=count + 1).fit(points).kneighbors(points, return_distance=False)
    # The nearest row is the row itself, unless distances that are rounded to 0 bring another one before it.
    own = found == np.arange(len(points))[:, None]
    own[~own.any(1), -1] = True
    return found[~own].reshape(len(points), count)


def _searched(points: np.ndarray, seed: int) -> np.ndarray:
    return _among_different(points, lambda different: _nearest(different, seed))


def _among_different(points: np.ndarray, search: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """The neighbours, int64 [N, ...], that ``search`` finds among the rows without their copies."""
    hashes = b.hashes(points + points.dtype.type(0))  # -0.0 + 0 is 0.0
    _, first, group = np.unique(hashes, return_index=True, return_inverse=True)
    if len(first) < 2:
        raise ValueError(f"expected at least 2 rows that differ; all {len(points)} rows are equal")
    if len(first) == len(points):
        return search(points)
    order = np.argsort(first, kind="stable")
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    kept = first[order]
    found: np.ndarray = kept[search(points[kept])][place[group]]
    return found


def _nearest(points: np.ndarray, seed: int) -> np.ndarray:
    """The nearest other row of each of the rows, which all differ."""
    if len(points) > EXACT_ROWS:
        return clustered(points, seed)
    from sklearn.neighbors import NearestNeighbors

    # The nearest row is the row itself.
    found: np.ndarray = NearestNeighbors(n_neighbors=2).fit(points).kneighbors(points, return_distance=False)
    return found[:, 1]


def clustered(points: np.ndarray, seed: int) -> np.ndarray:
    """The nearest other row of each row, among the rows of a few clusters: int64 [N].

    Warns where the sample shows that fewer than ``RECALL`` of the rows get their nearest row.
    """
    from sklearn.cluster import MiniBatchKMeans
    from sklearn.metrics import euclidean_distances
    from sklearn.neighbors import NearestNeighbors

    count, generator = len(points), random_generator("neighbours", seed)
    clusters = min(int(2 * np.sqrt(count)), count // 2)
    chosen = generator.choice(count, min(count, 40 * clusters), replace=False)
    means = MiniBatchKMeans(
        clusters,
        init="random",
        n_init=1,
        batch_size=8192,
        max_iter=3,
        compute_labels=False,
        random_state=int(generator.integers(2**31)),
    ).fit(points[np.sort(chosen)])
    centres = means.cluster_centers_
    near_centres = NearestNeighbors(algorithm="brute").fit(centres)
    own = near_centres.kneighbors(points, 1, return_distance=False)[:, 0]
    sample = np.sort(generator.choice(count, min(_SAMPLE, count), replace=False))
    truth = _others(NearestNeighbors(algorithm="brute").fit(points), points[sample], sample)[1]
    # A row's nearest row is found where fewer centres than are searched are nearer than that of its cluster.
    distance = euclidean_distances(points[sample], centres)
    rank = (distance < np.take_along_axis(distance, own[truth][:, None], 1)).sum(1)
    needed = int(np.quantile(rank, _AIM, method="higher")) + 1
    searched = max(1, min(needed, clusters, int(_MOST_PAIRS * clusters / count**2)))
    members = np.split(np.argsort(own, kind="stable"), np.cumsum(np.bincount(own, minlength=clusters))[:-1])
    best, found = np.full(count, np.inf), np.zeros(count, np.int64)
    for start in range(0, count, _BLOCK):
        rows = np.arange(start, min(start + _BLOCK, count))
        visits = near_centres.kneighbors(points[rows], searched, return_distance=False).ravel()
        order, ends = np.argsort(visits, kind="stable"), np.cumsum(np.bincount(visits, minlength=clusters))
        for cluster, visitors in enumerate(np.split(order, ends[:-1])):
            if len(visitors) and len(inside := members[cluster]):
                asking = rows[visitors // searched]
                search = NearestNeighbors(algorithm="brute").fit(points[inside])
                away, other = _others(search, points[asking], asking, inside)
                nearer = away < best[asking]
                best[asking[nearer]], found[asking[nearer]] = away[nearer], other[nearer]
    alone = np.flatnonzero(np.isinf(best))  # the only row of its clusters
    if len(alone):
        found[alone] = _others(NearestNeighbors(algorithm="brute").fit(points), points[alone], alone)[1]
    recall = float((found[sample] == truth).mean())
    if recall < RECALL:
        warnings.warn(
            f"neighbours: {recall:.0%} of the rows get their nearest row, and the others a row that is "
            f"nearly as near: all {count} rows are about equally far from each other. Fewer rows, or fewer "
            "columns, are compared more exactly",
            stacklevel=5,
        )
    return found


def _others(
    search: object, points: np.ndarray, own: np.ndarray, inside: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Distance and position of each row's nearest row but itself; infinity where there is no other.

    ``own`` holds the positions of the rows, and ``inside`` those of the rows that are searched.
    """
    size = search.n_samples_fit_  # type: ignore[attr-defined]
    away, other = search.kneighbors(points, min(2, size))  # type: ignore[attr-defined]
    other = other if inside is None else inside[other]
    away = np.where(other == own[:, None], np.inf, away)
    column = away.argmin(1)[:, None]
    return np.take_along_axis(away, column, 1)[:, 0], np.take_along_axis(other, column, 1)[:, 0]
