"""Tables to numbers: the transformer's own result, by column name, whichever library holds the frame."""

import numpy as np
import pandas as pd
import pytest
from sklearn.compose import make_column_transformer
from sklearn.exceptions import NotFittedError
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from ensdistill.data.preprocess import Transformer, default_transformer, load_preprocess

RNG = np.random.default_rng(0)
ROWS = 300


def frame():
    table = pd.DataFrame(
        {
            "age": RNG.integers(18, 90, ROWS),
            "income": RNG.lognormal(10, 1, ROWS),
            "debt": np.where(RNG.random(ROWS) < 0.3, np.nan, RNG.normal(size=ROWS)),
            "own": RNG.random(ROWS) < 0.5,
            "city": RNG.choice(["Rom", "Oslo", "Bern"], ROWS),
            "job": RNG.choice(["clerk", "nurse", None], ROWS),
        }
    )
    table.loc[:2, "city"] = "Ulm"  # too rare for a column of its own
    return table


FRAME = frame()


def test_the_default_has_a_column_for_each_thing():
    transform = default_transformer(FRAME, rare=10)
    names = transform.transformer.get_feature_names_out().tolist()
    result = pd.DataFrame(transform(FRAME), columns=names)
    assert names == [
        "age", "income", "debt", "missingindicator_debt", "own", "city_Bern", "city_Oslo", "city_Rom", "city_infrequent_sklearn",
        "job_(missing)", "job_clerk", "job_nurse",
    ]  # fmt: skip
    for name in ("age", "income", "debt"):
        filled = result[name][FRAME[name].notna()] if name != "debt" else result[name]
        assert abs(filled.mean()) < 1e-4
        assert abs(filled.std(ddof=0) - 1) < 1e-3
        order = np.argsort(FRAME[name].fillna(FRAME[name].median()).to_numpy(), kind="stable")
        assert (np.diff(result[name].to_numpy()[order]) >= 0).all()  # a power keeps the order
    np.testing.assert_array_equal(result["missingindicator_debt"], FRAME["debt"].isna())
    np.testing.assert_array_equal(result["own"], FRAME["own"])
    np.testing.assert_array_equal(result["city_infrequent_sklearn"], FRAME["city"] == "Ulm")
    np.testing.assert_array_equal(result["job_(missing)"], FRAME["job"].isna())


def test_columns_of_float16_are_scaled_by_the_powers_of_float32():
    frame = pd.DataFrame({"a": np.random.default_rng(0).lognormal(0, 2, 300)}).astype(np.float16)
    found = default_transformer(frame)(frame)
    np.testing.assert_array_equal(
        found, default_transformer(frame.astype(np.float32))(frame.astype(np.float32))
    )
    assert abs(found.std() - 1) < 1e-3


def test_a_value_that_was_never_seen_is_one_of_the_others():
    transform = default_transformer(FRAME, rare=10)
    row = FRAME.iloc[:1].assign(city="Paris", debt=np.nan)
    result = dict(zip(transform.transformer.get_feature_names_out(), transform(row)[0].tolist(), strict=True))
    assert result["city_infrequent_sklearn"] == 1
    assert result["missingindicator_debt"] == 1


def test_gaps_in_columns_that_had_none_get_the_median():
    transform = default_transformer(FRAME, numbers="standard")
    row = FRAME.iloc[:1].astype({"own": object})
    result = transform(row.assign(age=np.nan, income=np.nan, own=None))
    filled = transform(row.assign(age=FRAME["age"].median(), income=FRAME["income"].median()))
    np.testing.assert_array_equal(result[0, [0, 1, 4]], [*filled[0, :2], -1])
    np.testing.assert_array_equal(np.delete(result, 4, 1), np.delete(filled, 4, 1))


@pytest.mark.parametrize("numbers", ["quantile", "power", "standard"])
def test_every_scaling_is_saved_and_loaded(numbers, tmp_path):
    transform = default_transformer(FRAME, numbers=numbers)
    transform.save(tmp_path)
    loaded = load_preprocess(tmp_path)
    np.testing.assert_array_equal(loaded(FRAME), transform(FRAME))
    assert (
        loaded.fingerprint()
        == transform.fingerprint()
        == default_transformer(FRAME, numbers=numbers).fingerprint()
    )
    assert transform.fingerprint() != default_transformer(FRAME.iloc[5:], numbers=numbers).fingerprint()


def test_frames_of_other_libraries_give_the_same_numbers():
    polars, pyarrow = pytest.importorskip("polars"), pytest.importorskip("pyarrow")
    transform = default_transformer(FRAME)
    expected = transform(FRAME)
    shuffled = FRAME[FRAME.columns[::-1]]
    arrow = pyarrow.Table.from_pandas(shuffled)
    for other in (shuffled, arrow, polars.from_arrow(arrow)):
        np.testing.assert_array_equal(transform(other), expected)
    np.testing.assert_array_equal(
        default_transformer(polars.from_arrow(arrow).select(FRAME.columns))(FRAME), expected
    )


def test_a_transformer_of_the_user_gives_its_own_numbers():
    own = make_column_transformer((OneHotEncoder(), ["city"]), (StandardScaler(), ["age"])).fit(FRAME)
    expected = own.transform(FRAME)
    np.testing.assert_array_equal(Transformer(own)(FRAME), np.asarray(expected, np.float32))
    scaler = StandardScaler().fit(np.arange(6.0).reshape(3, 2))
    np.testing.assert_array_equal(
        Transformer(scaler)(np.ones((1, 2))), scaler.transform(np.ones((1, 2))).astype(np.float32)
    )


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (
            lambda f: f.assign(day=pd.Timestamp("2026-01-01")),
            TypeError,
            "column 'day': expected numbers or categories; got a time",
        ),
        (
            lambda f: f.assign(gone=np.nan),
            ValueError,
            "column 'gone': expected at least one value; all 300 are missing",
        ),
        (lambda f: f.assign(odd=[[1]] * ROWS), TypeError, "column 'odd': .*list"),
    ],
)
def test_columns_that_are_no_numbers_are_refused_by_name(change, error, words):
    with pytest.raises(error, match=words):
        default_transformer(change(FRAME))


def test_nullable_types_give_the_same_numbers():
    pyarrow = pytest.importorskip("pyarrow")
    plain = FRAME.assign(age=FRAME["age"].astype(float), own=FRAME["own"].astype(object))
    plain.loc[3, ["age", "own", "city"]] = [np.nan, np.nan, np.nan]
    transform = default_transformer(FRAME)
    expected = transform(plain)
    nullable = plain.convert_dtypes()
    assert nullable["age"].iloc[3] is pd.NA
    arrow = pyarrow.Table.from_pandas(nullable)
    for other in (nullable, arrow, arrow.to_pandas(types_mapper=pd.ArrowDtype)):
        np.testing.assert_array_equal(transform(other), expected)
        np.testing.assert_array_equal(default_transformer(other)(plain), default_transformer(plain)(plain))


def test_none_in_a_column_of_objects_is_a_gap():
    transform = default_transformer(FRAME)
    row = FRAME.iloc[:1]
    expected = transform(row.assign(job=np.nan, city=np.nan))
    objects = row.assign(job=pd.Series([None], dtype=object), city=pd.Series([None], dtype=object))
    assert objects["job"].iloc[0] is None
    np.testing.assert_array_equal(transform(objects), expected)
    names = transform.transformer.get_feature_names_out().tolist()
    assert expected[0, names.index("job_(missing)")] == 1
    # A fit to such a column has None as a category of its own.
    own = default_transformer(
        FRAME.astype({"job": object}).assign(job=lambda f: f["job"].where(f["job"].notna(), None))
    )
    assert own(objects)[0, own.transformer.get_feature_names_out().tolist().index("job_None")] == 1


def test_missing_columns_are_named_with_the_nearest():
    transform = default_transformer(FRAME)
    with pytest.raises(ValueError, match=r"missing: 'income' \(nearest: 'incomes'\)"):
        transform(FRAME.rename(columns={"income": "incomes"}))


def test_what_is_no_fitted_transformer_is_refused():
    with pytest.raises(NotFittedError):
        Transformer(StandardScaler())
    with pytest.raises(TypeError, match="a fitted scikit-learn transformer; got dict"):
        Transformer({})
    with pytest.raises(ValueError, match=r"row 1 has nan in column 0 of the result \(1 such rows\)"):
        Transformer(StandardScaler().fit([[1.0], [2.0]]))(np.array([[1.0], [np.nan]]))
