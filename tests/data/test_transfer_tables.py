"""MUNGE and mixup on tables: kinds of columns, missing values, one-hot codes, constraints, frames."""

import datetime
import warnings

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ensdistill.data.transfer import Mixup, Munge

SOURCES = [Munge(rows=150, probability=0.5), Mixup(rows=150)]


def seeded(seed=0):
    return np.random.default_rng(seed)


def array(rows=120, seed=0):
    """A code of 4 values, a one-hot code of 3 columns, whole numbers 0..199, and two continuous columns."""
    rng = seeded(seed)
    code, one_hot = rng.integers(0, 4, rows), np.eye(3)[rng.integers(0, 3, rows)]
    return np.c_[code, one_hot, rng.integers(0, 200, rows), rng.normal(size=(rows, 2))].astype(np.float32)


def table(rows=120, seed=0):
    rng = seeded(seed)
    group = rng.integers(0, 3, rows)
    day = [datetime.datetime(2021, 1, 1) + datetime.timedelta(days=int(i)) for i in rng.integers(0, 99, rows)]
    return {
        "weight": np.where(rng.random(rows) < 0.2, np.nan, rng.normal(size=rows)),
        "age": rng.integers(0, 90, rows),
        "visits": rng.integers(0, 5, rows),
        "member": rng.random(rows) < 0.5,
        "town": np.array(["Aa", "Bb", "Cc", None], object)[rng.integers(0, 4, rows)],
        "day": day,
        "is_a": (group == 0).astype(np.int64),
        "is_b": (group == 1).astype(np.int64),
        "is_c": (group == 2).astype(np.int64),
    }


def pandas_frame(rows=120):
    frame = pd.DataFrame(table(rows))
    frame["kind"] = pd.Categorical(frame["town"], categories=["Cc", "Aa", "Bb", "unused"], ordered=True)
    frame["small"] = frame["age"].astype("uint8")
    frame["gaps"] = frame["age"].astype("Int32").mask(frame["visits"] == 0)
    frame["single"] = frame["weight"].astype("float32")
    frame["maybe"] = frame["member"].astype("boolean").mask(frame["visits"] == 1)
    frame["number"] = 2**60 + frame["age"]
    frame["since"] = frame["day"] - pd.Timestamp("2021-01-01")
    frame.index = range(7, 7 + rows)
    return frame


def polars_frame(rows=120):
    frame = pl.DataFrame(table(rows))
    return frame.with_columns(
        pl.col("town").cast(pl.Categorical).alias("kind"),
        pl.col("age").cast(pl.Int8).alias("small"),
        pl.when(pl.col("visits") > 0).then(pl.col("age")).alias("gaps"),
        pl.col("age").cast(pl.Decimal(12, 3)).alias("money"),
        pl.col("day").dt.date().alias("date"),
    )


def arrow_frame(rows=120):
    frame = pa.table(table(rows))
    frame = frame.append_column("kind", frame["town"].dictionary_encode())
    return frame.append_column("single", frame["weight"].cast(pa.float32()))


FRAMES = {"pandas": pandas_frame, "polars": polars_frame, "pyarrow": arrow_frame}


def schema(frame):
    if isinstance(frame, pd.DataFrame):
        return list(frame.columns), list(frame.dtypes)
    return frame.schema


def values(frame, name):
    column = frame[name]
    found = column.to_pylist() if isinstance(column, pa.ChunkedArray) else column.to_list()
    return [None if pd.isna(value) else value for value in found]


@pytest.mark.parametrize("source", SOURCES, ids=["munge", "mixup"])
@pytest.mark.parametrize("library", FRAMES)
def test_frames_keep_their_columns_and_values(library, source):
    base = FRAMES[library]()
    made = source.make(base, seeded())
    assert type(made) is type(base)
    assert schema(made) == schema(base)
    names = list(base.columns) if library != "pyarrow" else base.column_names
    for name in names:
        old, new = values(base, name), values(made, name)
        if name in ("weight", "single"):  # continuous: values between those of two rows
            assert set(new) - set(old)
            present = [value for value in old if value is not None]
            assert all(value is None or min(present) <= value <= max(present) for value in new)
        elif name in ("age", "small", "gaps"):  # whole numbers within the range
            assert all(value is None or (value == int(value) and 0 <= value < 90) for value in new)
        else:
            assert set(new) <= set(old), name
        if None in old:
            assert None in new, name
            assert sum(value is None for value in new) < len(new)
    total = np.sum([values(made, name) for name in ("is_a", "is_b", "is_c")], axis=0)
    assert (total == 1).all()


@pytest.mark.parametrize("source", SOURCES, ids=["munge", "mixup"])
@pytest.mark.parametrize("library", FRAMES)
def test_the_order_of_a_frames_columns_decides_nothing(library, source):
    base = FRAMES[library]()
    names = list(base.columns) if library != "pyarrow" else base.column_names
    other = names[:3][::-1] + names[9:][::-1] + names[3:9]
    turned = base.select(other) if library != "pandas" else base[other]
    one, two = source.make(base, seeded()), source.make(turned, seeded())
    for name in names:
        assert values(one, name) == values(two, name), name


@settings(max_examples=25, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32 - 1), rows=st.integers(20, 60), which=st.sampled_from([Munge, Mixup]))
def test_laws_of_columns(seed, rows, which):
    base = array(rows, seed)
    source = which(rows=80, categorical=np.array([0]), one_hot=[[1, 2, 3]], integers=[4])
    made = source.make(base, seeded(seed))
    np.testing.assert_array_equal(made, source.make(base, seeded(seed)))
    assert made.dtype == base.dtype
    for place in range(4):
        assert np.isin(made[:, place], base[:, place]).all()
    np.testing.assert_array_equal(made[:, 1:4].sum(1), 1)
    np.testing.assert_array_equal(made[:, 4], np.rint(made[:, 4]))
    rounding = 1e-6 if which is Mixup else 0  # share * a + (1 - share) * a may be the next number to a
    assert (made >= base.min(0) - rounding).all()
    assert (made <= base.max(0) + rounding).all()


@pytest.mark.parametrize("which", [Munge, Mixup])
def test_kinds_are_found_in_arrays(which):
    base = array()
    with pytest.warns(
        UserWarning, match=r"columns 4 hold whole numbers.*categorical=.*integers=.*detect=False"
    ):
        made = which(rows=200).make(base, seeded())
    assert np.isin(made[:, 0], base[:, 0]).all()
    np.testing.assert_array_equal(made[:, 1:4].sum(1), 1)
    assert np.isin(made[:, 1:4], (0, 1)).all()
    np.testing.assert_array_equal(made[:, 4], np.rint(made[:, 4]))
    assert (~np.isin(made[:, 5:], base[:, 5:])).any(0).all()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        which(rows=200, integers=[4]).make(base, seeded())
        plain = which(rows=200, detect=False).make(base, seeded())
    for place in (0, 1, 4):
        assert (plain[:, place] != np.rint(plain[:, place])).any()


@pytest.mark.parametrize("which", [Munge, Mixup])
def test_continuous_columns_are_the_same_beside_others(which):
    # The draws of a column do not depend on the kinds of the others.
    base = np.c_[seeded().normal(size=(60, 3)), seeded(1).integers(0, 3, 60)].astype(np.float32)
    settings_ = {"standardise": False} if which is Munge else {}
    plain = which(rows=100, detect=False, **settings_).make(base, seeded())
    made = which(rows=100, **settings_).make(base, seeded())
    np.testing.assert_array_equal(made[:, :3], plain[:, :3])
    assert np.isin(made[:, 3], base[:, 3]).all()


@pytest.mark.parametrize("dtype", [np.int64, np.uint8, np.int16, bool])
@pytest.mark.parametrize("which", [Munge, Mixup])
def test_integer_and_boolean_arrays(which, dtype):
    base = seeded().integers(0, 2 if dtype is bool else 120, (80, 3)).astype(dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = which(rows=300).make(base, seeded())
    assert made.dtype == dtype
    assert (made >= base.min(0)).all()
    assert (made <= base.max(0)).all()
    assert len(np.unique(made, axis=0)) > 5
    if dtype is not bool:
        assert not np.isin(made, base).all() or (made != base[np.arange(300) % 80]).any()


def test_large_integers_and_strings_are_exchanged():
    base = 2**60 + seeded().integers(0, 2**40, (40, 2))
    for source in SOURCES:
        made = source.make(base, seeded())
        assert made.dtype == np.int64
        assert all(np.isin(made[:, c], base[:, c]).all() for c in range(2))
        words = np.array(["a", "bb", "ccc"])[seeded().integers(0, 3, (40, 4))]
        made = source.make(words, seeded())
        assert made.dtype == words.dtype
        assert set(made.ravel()) <= {"a", "bb", "ccc"}


def test_munge_exchanges_a_missing_number():
    # Pairs of near rows; one of each pair lacks the second number.
    base = np.repeat(np.arange(20), 2)[:, None] * [9.0, 0.0, 9.0] + seeded().random((40, 3))
    base[1::2, 1] = np.nan
    made = Munge(rows=400, probability=0.5).make(base, seeded())
    was, now = np.isnan(base[np.arange(400) % 40, 1]), np.isnan(made[:, 1])
    assert 60 < (was & ~now).sum() < 140
    assert 60 < (now & ~was).sum() < 140
    given = np.isin(made[:, 1], base[:, 1])  # such numbers are exchanged: none lies between
    assert (given | now).all()
    assert not np.isnan(made[:, [0, 2]]).any()
    mixed = Mixup(rows=400).make(base, seeded())[:, 1]
    assert 100 < np.isnan(mixed).sum() < 300


def test_a_stated_category_has_no_order():
    # Codes 0 and 9 are as near to each other as 0 and 1, so the number decides which row is nearest.
    base = np.array([[0, 0.0], [1, 2.0], [9, 0.5], [1, 2.2]] * 6, np.float64)
    base[:, 1] += np.repeat(np.arange(6) * 100, 4)
    made = Munge(rows=24, probability=1.0, variance=1e12, categorical=[0], standardise=False).make(
        base, seeded()
    )
    assert made[0, 0] == 9
    made = Munge(rows=24, probability=1.0, variance=1e12, detect=False).make(base, seeded())
    assert made[0].round(3).tolist() == [1.0, 2.0]


def test_copies_of_a_row_do_not_hide_its_neighbour():
    base = np.array([[0.0, 0.0], [0.0, 0.0], [1.0, 3.0], [9.0, 9.0]])
    made = Munge(rows=4, probability=1.0, variance=1e12).make(base, seeded())
    np.testing.assert_allclose(made, [[1, 3], [1, 3], [0, 0], [1, 3]], atol=1e-6)
    with pytest.raises(ValueError, match="munge: expected at least 2 rows that differ; all 5 rows are equal"):
        Munge(rows=3).make(np.ones((5, 2)), seeded())


def ordered(batch):
    return batch["low"] <= batch["high"]


def swapped(batch):
    made = batch.copy()
    made["low"], made["high"] = batch.min(axis=1), batch.max(axis=1)
    return made


@pytest.mark.parametrize("which", [Munge, Mixup])
@pytest.mark.parametrize("library", [pd.DataFrame, pl.DataFrame])
def test_a_constraint_is_kept(which, library):
    low = seeded().normal(size=200)
    base = library({"low": low, "high": low + seeded(1).exponential(0.05, 200)})
    chance = {"variance": 0.5} if which is Munge else {}
    free = which(rows=400, **chance).make(base, seeded())
    made = which(rows=400, constraint=ordered, **chance).make(base, seeded())
    assert ordered(made).all()
    assert len(made) == 400
    if which is Munge:
        right = np.asarray(ordered(free))
        assert not right.all()
        np.testing.assert_array_equal(np.asarray(made["low"])[right], np.asarray(free["low"])[right])
    path = which(rows=400, constraint=f"{__name__}.ordered", **chance).make(base, seeded())
    np.testing.assert_array_equal(np.asarray(path["low"]), np.asarray(made["low"]))


def test_a_constraint_may_repair_rows():
    base = pd.DataFrame({"low": seeded().normal(size=50), "high": 5 + seeded().normal(size=50)})
    made = Munge(rows=90, variance=0.1, constraint=swapped).make(base, seeded())
    assert (made["low"] <= made["high"]).all()


@pytest.mark.parametrize(
    ("constraint", "error", "words"),
    [
        (
            lambda batch: np.zeros(len(batch), bool),
            ValueError,
            "constraint: 9 of 9 rows still violate it after 100",
        ),
        (
            lambda batch: np.ones(3, bool),
            TypeError,
            r"constraint: expected bool \[9\].*got ndarray of bool \[3\]",
        ),
        (lambda batch: None, TypeError, "constraint: expected bool"),
        (lambda batch: batch[:, :1], ValueError, "constraint: expected the 9 rows with the same columns"),
    ],
)
def test_constraints_that_fail(constraint, error, words):
    with pytest.raises(error, match=words):
        Munge(rows=9, constraint=constraint).make(seeded().normal(size=(30, 2)), seeded())


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"categorical": [9]}, ValueError, r"categorical: expected columns of the inputs \(0..6\); got 9"),
        ({"categorical": "a"}, TypeError, "categorical: expected a list of columns"),
        (
            {"categorical": [0], "integers": [0]},
            ValueError,
            "expected each column once; column 0 stands twice",
        ),
        ({"integers": [5]}, ValueError, "integers: expected columns of whole numbers; column 5 holds others"),
        (
            {"one_hot": [[0, 1]]},
            ValueError,
            r"one_hot: expected at least two columns of 0 and 1.*\[0, 1\] row",
        ),
        ({"one_hot": [[1]]}, ValueError, "one_hot: .* 1 columns"),
        ({"constraint": "nowhere.at_all"}, ValueError, "constraint: expected the import path of a function"),
        ({"constraint": "math.pi"}, ValueError, "constraint: math.pi: expected a function; got float"),
    ],
)
@pytest.mark.parametrize("which", [Munge, Mixup])
def test_settings_that_do_not_fit(which, arguments, error, words):
    with pytest.raises(error, match=words):
        which(rows=5, **arguments).make(array(), seeded())


def test_kinds_of_columns_need_a_table():
    with pytest.raises(ValueError, match="categorical: expected none, because the inputs are no table"):
        Munge(rows=5, categorical=[0]).make(seeded().normal(size=(30, 1, 4, 4)), seeded())
    with pytest.raises(TypeError, match="munge: expected an array, a frame, or images; got text"):
        Munge(rows=5).make(["a", "b"], seeded())
