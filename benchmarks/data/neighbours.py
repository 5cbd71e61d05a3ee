"""Neighbours for MUNGE: seconds, memory and recall. ``python -m benchmarks.data.neighbours [ROWS] [COLUMNS]``

Two tables of standardised numbers: ``table`` has correlated columns, functions of ten hidden numbers and noise,
as tables have; ``noise`` has independent normal columns, whose rows are all about equally far from each other,
so no method finds nearest rows without comparing nearly all pairs. Recall is the share of 1000 rows, other than
those that the search itself samples, whose nearest row is found.
"""

from __future__ import annotations

import resource
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from sklearn.neighbors import NearestNeighbors

from ensdistill.data.transfer import Munge
from ensdistill.data.transfer.neighbours import nearest_different


def table(rows: int, columns: int, generator: np.random.Generator) -> np.ndarray:
    """Correlated columns, float32 [rows, columns]."""
    hidden = generator.standard_normal((rows, 10), np.float32)
    mixed = np.tanh(hidden @ generator.standard_normal((10, columns), np.float32) / 2)
    mixed += 0.3 * generator.standard_normal((rows, columns), np.float32)
    return (mixed - mixed.mean(0)) / mixed.std(0)


def noise(rows: int, columns: int, generator: np.random.Generator) -> np.ndarray:
    """Independent columns, float32 [rows, columns]."""
    return generator.standard_normal((rows, columns), np.float32)


def recall(points: np.ndarray, found: np.ndarray, generator: np.random.Generator) -> float:
    """The share of 1000 rows whose nearest other row was found."""
    rows = generator.choice(len(points), min(1000, len(points)), replace=False)
    search = NearestNeighbors(algorithm="brute").fit(points)
    near = search.kneighbors(points[rows], 2, return_distance=False)
    own = near[:, 0] == rows
    return float((found[rows] == np.where(own, near[:, 1], near[:, 0])).mean())


def main(rows: int = 1_000_000, columns: int = 50) -> None:
    for make in (table, noise):
        generator = np.random.default_rng(0)
        points = make(rows, columns, generator)
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            found, spent = _timed(nearest_different, points)
        print(f"{make.__name__}, {rows} x {columns}, {points.nbytes / 2**30:.2f} GiB: neighbours in {spent},")
        print(f"  peak of {_peak():.2f} GiB; recall {recall(points, found, generator):.3f}", flush=True)
        for warning in warned:
            print(f"  warning: {warning.message}")
        if make is table:
            _, spent = _timed(Munge(rows=rows).make, points, generator)
            print(f"  Munge(rows={rows}): {spent}, peak of {_peak():.2f} GiB", flush=True)


def _timed(work: Callable[..., Any], *arguments: Any) -> tuple[Any, str]:
    """The result, and the seconds: of the clock, and of all cores together, which other processes on the
    machine change little."""
    wall, busy = time.perf_counter(), time.process_time()
    result = work(*arguments)
    return result, f"{time.perf_counter() - wall:.1f} s ({time.process_time() - busy:.1f} s of processors)"


def _peak() -> float:
    """The largest resident memory of this process so far, GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


if __name__ == "__main__":
    main(*(int(argument) for argument in sys.argv[1:]))
