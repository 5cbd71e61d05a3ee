"""Members on raw frames, texts and arrays of objects: equal to their own libraries, in frames of every library."""

import warnings

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from catboost import CatBoostClassifier, CatBoostError
from hypothesis import given, settings
from hypothesis import strategies as st
from lightgbm import LGBMClassifier
from sklearn.compose import make_column_transformer
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from xgboost import XGBClassifier

from ensdistill.data import Rows
from ensdistill.data.preprocess import Transformer
from ensdistill.models import MLP
from ensdistill.teachers import Ensemble, train_ensemble
from ensdistill.teachers.members import as_member, load_member
from ensdistill.teachers.recipes import SklearnMembers

CITIES = ["Rome", "Oslo", "Bonn", "Lima"]


def table(rows=160, seed=0, gaps=0.1):
    """Texts, numbers with gaps, integers and booleans; three classes that depend on them."""
    generator = np.random.default_rng(seed)
    city, age = generator.choice(CITIES, rows), generator.normal(40, 9, rows)
    count, member = generator.integers(0, 9, rows), generator.integers(0, 2, rows).astype(bool)
    labels = ((city == "Rome") ^ (age > 40)).astype(int) + (count > 5)
    age[generator.random(rows) < gaps] = np.nan
    frame = pd.DataFrame({"city": city, "age": age, "count": count, "member": member})
    return frame, labels


def with_categories(frame):
    return frame.assign(city=pd.Categorical(frame["city"], sorted(CITIES)))


def converted(frame, library):
    if library == "pandas":
        return frame
    return pl.from_pandas(frame) if library == "polars" else pa.Table.from_pandas(frame, preserve_index=False)


def pipeline():
    columns = make_column_transformer(
        (OneHotEncoder(handle_unknown="ignore"), ["city"]),
        (make_pipeline(SimpleImputer(), StandardScaler()), ["age", "count"]),
    )
    return make_pipeline(columns, LogisticRegression())


BOOSTED = {
    "xgboost": lambda: XGBClassifier(n_estimators=6, max_depth=3, n_jobs=1, enable_categorical=True),
    "lightgbm": lambda: LGBMClassifier(n_estimators=6, min_child_samples=5, n_jobs=1, verbose=-1),
    "catboost": lambda: CatBoostClassifier(
        iterations=6, depth=3, cat_features=["city"], verbose=0, thread_count=1, allow_writing_files=False
    ),
    "histogram": lambda: HistGradientBoostingClassifier(max_iter=6, categorical_features="from_dtype"),
}


@pytest.fixture(scope="module")
def models():
    frame, labels = table()
    frame = with_categories(frame)
    return {name: make().fit(frame, labels) for name, make in BOOSTED.items()}


def assert_equal_to(model, batch, expected_of, atol=2e-6):
    found = Ensemble.from_members([model]).predict_proba(batch)
    np.testing.assert_allclose(found, model.predict_proba(expected_of), rtol=0, atol=atol)


@pytest.mark.parametrize("library", ["pandas", "polars", "pyarrow"])
@pytest.mark.parametrize("name", BOOSTED)
def test_boosters_predict_frames_of_any_library_as_they_do_themselves(name, library, models):
    frame, _ = table(rows=90, seed=1)
    shuffled = with_categories(frame)[["member", "count", "city", "age"]].assign(extra=1.0)
    assert_equal_to(models[name], converted(shuffled, library), with_categories(frame))


@settings(max_examples=12, deadline=None, derandomize=True, database=None)
@given(
    rows=st.integers(1, 40),
    seed=st.integers(0, 99),
    gaps=st.sampled_from([0.0, 0.5, 1.0]),
    library=st.sampled_from(["pandas", "polars", "pyarrow"]),
)
def test_texts_stand_for_the_categories_of_the_fit(models, rows, seed, gaps, library):
    frame, _ = table(rows, seed, gaps)
    for name in ("xgboost", "lightgbm", "catboost"):
        # A batch in which some categories are missing has other codes of its own.
        assert_equal_to(models[name], converted(frame, library), with_categories(frame))


@pytest.mark.parametrize("name", ["xgboost", "lightgbm", "catboost", "histogram"])
def test_saved_ones_predict_frames_as_before(name, models, tmp_path):
    frame = with_categories(table(rows=50, seed=2)[0])
    member = as_member(models[name])
    member.save(tmp_path / name)
    loaded = load_member(tmp_path / name)
    np.testing.assert_array_equal(loaded.predict_logits(frame), member.predict_logits(frame))
    if name != "histogram":
        text = frame.astype({"city": str})[["count", "city", "member", "age"]]
        np.testing.assert_array_equal(loaded.predict_logits(text), member.predict_logits(frame))


@pytest.mark.parametrize("name", ["xgboost", "lightgbm", "catboost"])
def test_a_new_category_has_the_librarys_own_probabilities_or_error(name, models):
    frame = with_categories(table(rows=20, seed=3)[0])
    new = frame.assign(city=pd.Categorical(["Paris"] * 20))
    try:
        expected = models[name].predict_proba(new)
    except Exception:
        with pytest.raises(ValueError, match=r"can't predict a table with the columns city: category, age"):
            Ensemble.from_members([models[name]]).predict_proba(new)
    else:
        assert_equal_to(models[name], new, new)
        assert len(np.unique(expected, axis=0)) > 1


@pytest.mark.parametrize("name", BOOSTED)
def test_a_missing_column_is_named_with_the_member(name, models):
    frame = with_categories(table(rows=5)[0])
    ensemble = Ensemble.from_members([models[name]])
    with pytest.raises(
        ValueError, match=rf"{ensemble.names[0]} expects the columns .*missing: 'city' \(nearest"
    ):
        ensemble.predict_proba(frame.rename(columns={"city": "City"}))


@pytest.mark.parametrize("name", ["xgboost", "lightgbm", "catboost"])
def test_texts_where_numbers_were_are_named_with_the_column(name, models):
    frame = with_categories(table(rows=5)[0])
    ensemble = Ensemble.from_members([models[name]])
    with pytest.raises(
        ValueError, match=rf"{ensemble.names[0]}: column 'age': expected numbers, .* got text"
    ):
        ensemble.predict_proba(frame.assign(age="old"))


def test_names_with_spaces_are_found():
    frame, labels = table()
    spaced = with_categories(frame).rename(columns={"city": "the city"})
    model = BOOSTED["lightgbm"]().fit(spaced, labels)
    assert_equal_to(model, spaced[["age", "the city", "member", "count"]], spaced)


@settings(max_examples=10, deadline=None, derandomize=True, database=None)
@given(rows=st.integers(1, 30), seed=st.integers(0, 99), unknown=st.booleans())
def test_a_pipeline_over_columns_is_equal_to_itself(rows, seed, unknown):
    frame, labels = table()
    model = pipeline().fit(frame, labels)
    asked, _ = table(rows, seed, gaps=0.3)
    if unknown:
        asked["city"] = "Paris"
    for library in ("pandas", "polars"):
        given_frame = converted(asked, library)
        assert_equal_to(model, given_frame, given_frame)
    assert_equal_to(model, converted(asked, "pyarrow"), asked)


def with_gaps(frame, gap, dtype=object, rows=40):
    """The frame with gaps in its cities, which are of type ``dtype``."""
    cities = frame["city"].astype(object)
    cities[:rows] = gap
    return frame.assign(city=cities.astype(dtype), age=frame["age"].fillna(40.0))


def encoded(*steps):
    columns = make_column_transformer(
        (make_pipeline(*steps, OneHotEncoder(handle_unknown="ignore")), ["city"]), remainder="passthrough"
    )
    return make_pipeline(columns, LogisticRegression())


@pytest.mark.parametrize("library", ["polars", "pyarrow"])
@pytest.mark.parametrize(("gap", "dtype"), [(np.nan, object), (np.nan, "str"), (None, object)])
def test_a_gap_in_texts_is_the_one_that_an_encoder_was_fitted_to(library, gap, dtype):
    frame, labels = table()
    frame = with_gaps(frame, gap, dtype)
    model = encoded().fit(frame, labels)
    assert_equal_to(model, converted(frame, library), frame)
    assert np.abs(np.diff(model.predict_proba(frame.assign(city=["none", "Rome"] * 80)), axis=0)).max() > 0.01


@pytest.mark.parametrize("library", ["polars", "pyarrow"])
def test_a_gap_that_could_be_none_or_nan_is_refused_where_they_differ(library):
    frame, labels = table()
    frame = with_gaps(frame, np.nan, "str")
    model = encoded(SimpleImputer(strategy="most_frequent")).fit(frame, labels)
    member = Ensemble.from_members([model])
    with pytest.raises(ValueError, match=r"inputs: pipeline: the frame has gaps .*frame\.to_pandas\(\)"):
        member.predict_proba(converted(frame, library))
    assert_equal_to(model, frame, frame)
    full = frame[40:]
    assert_equal_to(model, converted(full, library), full)
    # An encoder without a category for gaps returns zeros for both.
    plain = encoded().fit(full, labels[40:])
    assert_equal_to(plain, converted(frame, library), frame)


def test_an_estimator_that_was_fitted_to_polars_predicts_polars_as_its_library_does():
    frame, labels = table()
    frame = pl.from_pandas(with_gaps(frame, None, object))
    imputers = (
        (),
        (SimpleImputer(strategy="most_frequent"),),
        (SimpleImputer(missing_values=None, strategy="most_frequent"),),
    )
    for steps in imputers:
        model = encoded(*steps).fit(frame, labels)
        assert_equal_to(model, frame, frame)


def test_a_pipeline_needs_only_the_columns_that_it_reads():
    frame, labels = table()
    model = pipeline().fit(frame, labels)
    assert_equal_to(model, frame[["count", "age", "city"]].assign(new="x"), frame)
    with pytest.raises(ValueError, match=r"pipeline expects the columns .*missing: 'age'"):
        Ensemble.from_members([model]).predict_proba(frame[["count", "city"]])
    with pytest.raises(ValueError, match=r"pipeline can't predict a table with the columns .*age: text"):
        Ensemble.from_members([model]).predict_proba(frame.assign(age="old"))


def test_columns_in_another_order_are_found_by_name():
    frame, labels = table(gaps=0)
    numbers = frame[["age", "count"]]
    model = RandomForestClassifier(5, random_state=0).fit(numbers, labels)
    assert_equal_to(model, frame[["count", "member", "age"]], numbers, atol=4e-6)
    by_place = RandomForestClassifier(5, random_state=0).fit(numbers.to_numpy(), labels)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn's own, about names that it did not see
        assert_equal_to(by_place, numbers, numbers.to_numpy(), atol=4e-6)
        with pytest.raises(ValueError, match=r"was fitted to 2 features \(columns\); got 3"):
            Ensemble.from_members([by_place]).predict_proba(frame[["age", "count", "member"]])


def test_arrays_of_objects_reach_catboost():
    frame, labels = table(gaps=0)
    model = BOOSTED["catboost"]().fit(frame, labels)
    assert_equal_to(model, frame.to_numpy(object), frame)


def test_texts_reach_a_pipeline_with_a_vectorizer():
    texts = ["a red fox", "a blue car", "the red car", "no fox at all", "blue sky", "red sky"]
    labels = np.array([1, 0, 1, 0, 0, 1])
    model = make_pipeline(TfidfVectorizer(), LogisticRegression()).fit(texts, labels)
    assert_equal_to(model, texts, texts)
    for column in (pd.Series(texts), pl.Series(texts), pa.chunked_array([texts])):
        assert_equal_to(model, column, texts)
    linear = LogisticRegression().fit(np.eye(6), labels)
    with pytest.raises(TypeError, match=r"takes 6 features .*put a vectorizer \(TfidfVectorizer\)"):
        Ensemble.from_members([linear]).predict_proba(texts)
    with pytest.raises(TypeError, match=r"got a single column of Float64: pass frame\[\[name\]\]"):
        Ensemble.from_members([model]).predict_proba(pd.Series([1.0, 2.0]))


def test_members_of_unlike_inputs_stand_in_one_ensemble(tmp_path):
    frame, labels = table()
    text = frame.assign(city=frame["city"].astype(object))
    columns, boosted = pipeline().fit(text, labels), BOOSTED["catboost"]().fit(text, labels)
    scaler = make_column_transformer(
        (OneHotEncoder(sparse_output=False), ["city"]),
        (make_pipeline(SimpleImputer(), StandardScaler()), ["age", "count"]),
    ).fit(text)
    net = MLP(6, [8], 3)
    ensemble = Ensemble.from_members([columns, boosted, (net, scaler)])
    raw = np.exp(ensemble.raw_logits(text)[:2])
    raw = raw / raw.sum(2, keepdims=True)
    np.testing.assert_allclose(raw[0], columns.predict_proba(text), rtol=0, atol=4e-6)
    np.testing.assert_allclose(raw[1], boosted.predict_proba(text), rtol=0, atol=4e-6)
    inputs = scaler.transform(text).astype(np.float32)
    expected = Ensemble.from_members([net]).raw_logits(inputs)[0]
    np.testing.assert_array_equal(ensemble.raw_logits(text)[2], expected)
    arrow = ensemble.predict_proba(converted(text, "pyarrow"))
    np.testing.assert_allclose(arrow, ensemble.predict_proba(text), rtol=0, atol=1e-6)


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_a_frame_with_inf_is_refused_with_its_column_and_row(library):
    frame, labels = table(gaps=0)
    frame = frame[["age", "count"]].astype(float)
    infinite = frame.copy()
    infinite.loc[[3, 9], "count"] = np.inf
    given, words = converted(infinite, library), r"column 'count' holds inf in row 3 \(2 such rows\)"
    models = [LogisticRegression(), make_pipeline(StandardScaler(), LogisticRegression())]
    for model in models:
        member = Ensemble.from_members([model.fit(frame, labels)])
        with pytest.raises(ValueError, match=rf"inputs: {member.names[0]} can't predict .*{words}"):
            member.predict_proba(given)
    scaler = Transformer(StandardScaler().fit(frame))
    with pytest.raises(ValueError, match=rf"preprocess: mlp: .*{words}"):
        Ensemble.from_members([(MLP(2, [4], 3), scaler)]).predict_proba(given)
    rows = Rows(given, np.arange(len(frame)), labels)
    with pytest.raises(ValueError, match=rf"preprocess: logisticregression: .*{words}"):
        train_ensemble([SklearnMembers(LogisticRegression())], rows, ("a", "b", "c"), folds=2)
    with pytest.raises(ValueError, match="infinity") as caught:
        train_ensemble([SklearnMembers(models[1])], rows.take(np.arange(9)), ("a", "b", "c"), folds=2)
    assert "column 'count' holds inf" in str(caught.value) + str(caught.value.__notes__)


def test_catboost_gets_a_remedy_for_gaps_in_its_categories():
    frame, labels = table(gaps=0)
    model = BOOSTED["catboost"]().fit(frame, labels)
    gaps = with_gaps(frame, np.nan)
    words = r'fillna\("\(missing\)"\), or preprocess=Categories\(missing="\(missing\)"\)'
    with pytest.raises(ValueError, match=f"inputs: catboostclassifier .*{words}"):
        Ensemble.from_members([model]).predict_proba(gaps)
    with pytest.raises(CatBoostError, match="cat_features must be") as caught:
        Ensemble.from_members([model]).predict_proba(gaps.to_numpy(object))
    assert "fillna" in caught.value.__notes__[0]
    raw = SklearnMembers(BOOSTED["catboost"](), preprocess=None)
    with pytest.raises(CatBoostError, match="cat_features must be") as caught:
        train_ensemble([raw], Rows(gaps, np.arange(len(gaps)), labels), ("a", "b", "c"), folds=2)
    assert "fillna" in caught.value.__notes__[0]
    filled = gaps.fillna({"city": "(missing)"})
    assert_equal_to(model, filled, filled)
