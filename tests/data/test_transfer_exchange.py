"""Exchange with one of the nearest neighbours, and noise: against brute force, and kinds of columns."""

import warnings

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ensdistill.data import batches as b
from ensdistill.data.transfer import Exchange
from ensdistill.data.transfer.neighbours import nearest_several


def generator(seed=0):
    return np.random.default_rng(seed)


def numbers(rows=60, columns=4, seed=0):
    return generator(seed).normal(size=(rows, columns)) * np.array([1.0, 10.0, 0.1, 1.0])[:columns]


def mixed_frame(rows=200):
    g = generator(1)
    age = g.normal(40, 9, rows)
    age[::7] = np.nan
    city = pd.Categorical(g.choice(["Rom", "Oslo", "Bern"], rows))
    hot = np.eye(3, dtype=int)[g.integers(3, size=rows)]
    return pd.DataFrame(
        {
            "age": age,
            "city": city,
            "name": g.choice(["x", None, "z"], rows),
            "rooms": g.integers(1, 6, rows),
            "steps": g.integers(0, 9000, rows),
            "is_red": hot[:, 0],
            "is_green": hot[:, 1],
            "is_blue": hot[:, 2],
            "sparse": np.where(g.random(rows) < 0.7, 0.0, g.gamma(2.0, size=rows)),
            "when": pd.Timestamp("2024-01-01") + pd.to_timedelta(g.integers(0, 50, rows), unit="D"),
        }
    )


@settings(max_examples=25, deadline=None)
@given(rows=st.integers(3, 30), count=st.integers(1, 12), copies=st.integers(0, 4), seed=st.integers(0, 99))
def test_the_neighbours_are_the_nearest_different_rows(rows, count, copies, seed):
    points = generator(seed).normal(size=(rows, 3))
    points = np.concatenate([points, points[:copies]])
    found = nearest_several(points, count)
    assert found.shape == (len(points), min(count, rows - 1))
    distances = ((points[:, None] - points[None, :rows]) ** 2).sum(-1)
    distances[np.arange(rows), np.arange(rows)] = np.inf
    for place in range(rows, len(points)):
        distances[place, place - rows] = np.inf
    assert np.array_equal(found, np.argsort(distances, axis=1)[:, : found.shape[1]])


def test_values_come_from_one_of_the_k_nearest_rows_or_from_the_row_itself():
    base, k = numbers(), 3
    made = Exchange(rows=600, neighbours=k, probability=0.4).make(base, generator())
    scaled = (base - base.mean(0)) / base.std(0)
    distances = ((scaled[:, None] - scaled[None]) ** 2).sum(-1)  # by brute force
    np.fill_diagonal(distances, np.inf)
    nearest = np.argsort(distances, axis=1)[:, :k]
    origin = np.stack([np.argmax(base[:, d] == made[:, [d]], axis=1) for d in range(4)], 1)
    assert (np.take_along_axis(base, origin, 0) == made).all()
    donors = set()
    for row in origin:
        # All of a row's values are of one row, and of one of its k neighbours.
        parents = [
            (row_own, other)
            for row_own in set(row)
            for other in set(row) or {row_own}
            if set(row) <= {row_own, other} and (other == row_own or other in nearest[row_own])
        ]
        assert parents
        if len(set(row)) == 2:
            donors |= {pair for pair in parents if pair[0] != pair[1]}
    assert len(donors) > len(base)  # more than one neighbour of each row
    taken = np.mean([len(set(row)) == 2 for row in origin])
    assert abs(taken - (1 - 0.4**4 - 0.6**4)) < 0.07


def test_probability_0_keeps_each_row_and_1_takes_all_of_a_neighbour():
    base = numbers(columns=1)
    kept = Exchange(rows=60, probability=0.0, noise=1e-12).make(base, generator())
    assert np.allclose(np.sort(kept[:, 0]), np.sort(base[:, 0]), atol=1e-9)  # every row once
    base = numbers()
    taken = Exchange(rows=600, neighbours=2, probability=1.0).make(base, generator())
    rows = {tuple(row) for row in base.tolist()}
    assert {tuple(row) for row in taken.tolist()} <= rows


def test_rows_are_drawn_evenly_from_the_base_and_anew_for_another_generator():
    base = np.arange(50.0)[:, None] * np.ones(3)
    source = Exchange(rows=120, probability=0.0, noise=1e-9)
    counts = np.bincount(np.rint(source.make(base, generator())[:, 0]).astype(int), minlength=50)
    assert set(counts) == {2, 3}
    few = Exchange(rows=10, probability=0.3)
    one, again, other = (few.make(base, generator(seed)) for seed in (0, 0, 1))
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)


def test_a_fitted_exchange_makes_the_same_rows():
    base, source = mixed_frame(), Exchange(rows=300, noise=0.3, resample=0.1)
    fitted, g = source.fit(base), generator(5)
    pd.testing.assert_frame_equal(fitted.make(generator(5)), source.make(base, g))
    assert not fitted.make(generator(6)).equals(fitted.make(generator(5)))


def test_noise_has_the_columns_own_scale_whatever_outliers_there_are():
    base = generator().normal(size=(4000, 2)) * np.array([1.0, 50.0])
    base[0] = 1e6
    source = Exchange(rows=4000, probability=0.0, noise=0.3)
    made = source.make(base, generator(3))
    order = generator(3).permutation(len(base))
    moved = (made - base[order])[order > 0]
    inside = (np.abs(base[order]) < np.array([2.0, 100.0])).all(1)[order > 0]
    assert np.allclose(moved[inside].std(0), [0.3, 15.0], rtol=0.1)


@pytest.mark.parametrize("noise", [0.0, 0.5])
@pytest.mark.parametrize("library", [pd, pl])
def test_kinds_of_columns_are_respected(library, noise):
    base = mixed_frame() if library is pd else pl.from_pandas(mixed_frame())
    made = Exchange(rows=700, probability=0.5, noise=noise, resample=0.2).make(base, generator())
    assert b.describe(made) == b.describe(base)
    made, base = (one if library is pd else one.to_pandas() for one in (made, base))
    assert len(made) == 700
    for name in ("city", "name", "when", "rooms"):
        assert set(made[name].dropna()) <= set(base[name].dropna())
    assert (made[["is_red", "is_green", "is_blue"]].sum(axis=1) == 1).all()
    assert made["steps"].dtype == base["steps"].dtype
    for name in ("age", "steps", "sparse"):
        assert base[name].min() <= made[name].min() <= made[name].max() <= base[name].max()
    assert made["age"].isna().any()
    assert made["name"].isna().any()
    # Zeros of a sparse column get no noise, so that it stays sparse.
    assert abs((made["sparse"] == 0).mean() - (base["sparse"] == 0).mean()) < 0.1
    new = ~made["age"].dropna().isin(base["age"]).to_numpy()
    assert new.mean() > 0.9 if noise else not new.any()


def test_few_whole_numbers_move_to_values_of_the_column_and_codes_do_not_move():
    base = np.stack([generator().choice([0.0, 5.0, 7.0, 100.0], 400), generator(1).integers(0, 2, 400)], 1)
    settings_ = {"rows": 4000, "probability": 0.0, "noise": 3.0}
    made = Exchange(**settings_).make(base, generator(2))
    order = np.tile(generator(2).permutation(400), 10)
    assert set(made[:, 0]) == {0.0, 5.0, 7.0, 100.0}
    assert (made[:, 0] != base[order, 0]).mean() > 0.2
    assert (made[:, 1] == base[order, 1]).all()
    kept = Exchange(**settings_, categorical=[0]).make(base, generator(2))
    assert (kept == base[order]).all()


def test_values_without_an_order_are_resampled_with_their_own_probability():
    base = np.stack([generator().integers(0, 2, 1000), np.arange(1000)], 1).astype(float)
    made = Exchange(rows=1000, probability=0.0, resample=0.4).make(base, generator(2))
    order = generator(2).permutation(1000)
    assert abs((made[:, 0] != base[order, 0]).mean() - 0.2) < 0.05
    assert (made[:, 1] == base[order, 1]).all()


@pytest.mark.parametrize("as_container", [lambda x: x.astype(np.uint8), lambda x: torch.from_numpy(x).half()])
def test_images_and_tensors_stay_what_they_are(as_container):
    base = as_container(np.rint(generator().uniform(0, 200, size=(30, 1, 4, 4))))
    made = Exchange(rows=50, noise=0.3).make(base, generator())
    assert type(made) is type(base)
    assert (made.dtype, tuple(made.shape)) == (base.dtype, (50, 1, 4, 4))
    assert float(made.min()) >= 0


def test_a_constraint_holds():
    base = numbers()
    made = Exchange(rows=300, noise=0.5, constraint=lambda x: x[:, 0] > -1).make(
        base[base[:, 0] > -1], generator()
    )
    assert len(made) == 300
    assert (made[:, 0] > -1).all()


def test_many_rows_take_seconds():
    base = numbers(rows=2000)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = Exchange(rows=100_000, noise=0.2).make(base, generator())
    assert made.shape == (100_000, 4)
    assert np.isfinite(made).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rows": 0}, "exchange: rows: expected at least 1; got 0"),
        ({"rows": 5, "neighbours": 0}, "exchange: neighbours: expected at least 1; got 0"),
        ({"rows": 5, "probability": 1.5}, r"exchange: probability: expected a number in \[0, 1\]; got 1.5"),
        ({"rows": 5, "noise": -1.0}, "exchange: noise: expected a finite number of at least 0; got -1.0"),
        ({"rows": 5, "noise": float("nan")}, "exchange: noise: expected a finite"),
        ({"rows": 5, "resample": 2.0}, r"exchange: resample: expected a number in \[0, 1\]; got 2.0"),
        ({"rows": 5, "probability": 0.0}, "every row would be a copy"),
    ],
)
def test_settings_without_a_meaning_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Exchange(**arguments)


def test_a_base_without_neighbours_is_refused():
    with pytest.raises(
        ValueError, match="exchange: expected at least 2 rows to find neighbours among; got 1"
    ):
        Exchange(rows=5).make(np.zeros((1, 3)), generator())
    with pytest.raises(
        ValueError, match="exchange: expected at least 2 rows that differ; all 9 rows are equal"
    ):
        Exchange(rows=5).make(np.zeros((9, 3)), generator())
    with pytest.raises(TypeError, match="exchange: expected an array, a frame, or images; got text"):
        Exchange(rows=5).make(["a", "b"], generator())
