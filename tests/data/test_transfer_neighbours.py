"""Nearest rows that differ: exact, and by clusters."""

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ensdistill.data.transfer import columns as kinds
from ensdistill.data.transfer import neighbours
from ensdistill.data.transfer.encoding import encoded
from ensdistill.data.transfer.munge import Munge
from ensdistill.data.transfer.tables import as_table


def distances(points):
    """Squared distances of all pairs of rows; infinity where two are equal."""
    away = ((points[:, None] - points[None]) ** 2).sum(-1)
    equal = (points[:, None] == points[None]).all(-1)
    return np.where(equal, np.inf, away)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(seed=st.integers(0, 99), rows=st.integers(2, 40), values=st.sampled_from([2, 5, 1000]))
def test_the_nearest_row_that_differs(seed, rows, values):
    points = np.random.default_rng(seed).integers(0, values, (rows, 2)).astype(np.float64)
    if len(np.unique(points, axis=0)) < 2:
        with pytest.raises(ValueError, match="at least 2 rows that differ"):
            neighbours.nearest_different(points)
        return
    found, away = neighbours.nearest_different(points), distances(points)
    np.testing.assert_array_equal(away[np.arange(rows), found], away.min(1))


def clumps(rows=3000, seed=0):
    rng = np.random.default_rng(seed)
    hidden = rng.normal(size=(rows, 3))
    return (np.tanh(hidden @ rng.normal(size=(3, 12))) + 0.05 * rng.normal(size=(rows, 12))).astype(
        np.float32
    )


def test_clusters_find_the_nearest_rows(monkeypatch):
    points = clumps()
    exact = neighbours.nearest_different(points)
    monkeypatch.setattr(neighbours, "EXACT_ROWS", 1000)
    monkeypatch.setattr(neighbours, "_BLOCK", 700)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = neighbours.nearest_different(points)
    assert (found == exact).mean() > 0.9
    assert (found != np.arange(len(points))).all()
    # Where the nearest row is missed, another near one is found.
    away, best = (((points - points[rows]) ** 2).sum(1) for rows in (found, exact))
    assert (away < 3 * best + 1e-3).mean() > 0.99
    np.testing.assert_array_equal(neighbours.nearest_different(points), found)
    monkeypatch.setattr(neighbours, "_BLOCK", 10**9)
    np.testing.assert_array_equal(neighbours.nearest_different(points), found)
    copies = np.concatenate([points[:1], points])
    np.testing.assert_array_equal(neighbours.nearest_different(copies)[1:] >= 0, True)
    assert neighbours.nearest_different(copies)[0] == neighbours.nearest_different(copies)[1]


def test_rows_without_near_rows_are_named(monkeypatch):
    monkeypatch.setattr(neighbours, "EXACT_ROWS", 1000)
    monkeypatch.setattr(neighbours, "_MOST_PAIRS", 3e5)
    points = np.random.default_rng(0).normal(size=(3000, 40)).astype(np.float32)
    with pytest.warns(UserWarning, match=r"neighbours: \d+% of the rows get their nearest row"):
        found = neighbours.nearest_different(points)
    assert (found != np.arange(3000)).all()


@pytest.mark.slow
def test_many_rows():
    points = clumps(120_000)
    found = neighbours.nearest_different(points)
    rows = np.random.default_rng(1).choice(len(points), 300, replace=False)
    away = ((points[rows][:, None] - points[None]) ** 2).sum(-1)
    away[np.arange(300), rows] = np.inf
    assert (away.argmin(1) == found[rows]).mean() > 0.88


def test_points_of_a_table():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(
        {
            "a": [1.0, 3.0, None, 5.0],
            "b": ["x", "y", "x", None],
            "c": [True, False, True, True],
            "many": [f"v{i}" for i in range(4)],
        }
    )
    table = as_table("test", frame)
    columns = kinds.find_columns("test", table, Munge(rows=1))
    points = encoded(table, columns)
    scale = np.std([1, 3, 5])
    np.testing.assert_allclose(points[:, 0], [-2 / scale, 0, 0, 2 / scale], rtol=1e-6)
    np.testing.assert_array_equal(points[:, 1], [0, 0, 1, 0])  # missing
    nominal = points[:, 2:5]
    apart = ((nominal[:, None] - nominal[None]) ** 2).sum(-1)
    np.testing.assert_array_equal(
        apart, 2 * np.array([[0, 1, 0, 1], [1, 0, 1, 1], [0, 1, 0, 1], [1, 1, 1, 0]])
    )
    wide = pandas.DataFrame({"v": [f"v{i}" for i in range(300)]})
    table = as_table("test", wide)
    points = encoded(table, kinds.find_columns("test", table, Munge(rows=1)))
    assert points.shape == (300, 8)
    np.testing.assert_allclose((points**2).sum(1), 1, rtol=1e-5)
    plain = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
    table = as_table("test", plain)
    columns = kinds.find_columns("test", table, Munge(rows=1))
    assert encoded(table, columns) is table.flat
    np.testing.assert_allclose(encoded(table, columns, True).std(0), 1, rtol=1e-5)
