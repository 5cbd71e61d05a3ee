"""Inputs and labels of every kind, and those that are refused."""

import warnings

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from sklearn.exceptions import NotFittedError
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.tree import DecisionTreeClassifier
from sklearn_helpers import STUDENT, numbers, small, table, takes_gaps

from ensdistill import Ensemble, Optimization
from ensdistill.models import BagOfNgrams
from ensdistill.sklearn import DistilledClassifier
from ensdistill.sklearn.inputs import check_fit, split_of

FRAME, SEX = table()
X, Y = numbers()
FRAMES = {
    "pandas": lambda frame: frame,
    "categories": lambda frame: frame.assign(city=frame["city"].astype("category")),
    "polars": pl.from_pandas,
    "pyarrow": lambda frame: pa.Table.from_pandas(frame, preserve_index=False),
}


@pytest.mark.parametrize("library", FRAMES)
def test_frames_with_categories_and_gaps(library):
    frame = FRAMES[library](FRAME)
    model = takes_gaps().fit(frame, SEX)
    assert model.score(frame, SEX) > 0.8
    assert model.feature_names_in_.tolist() == ["city", "age", "count"]
    assert model.n_features_in_ == 3
    probabilities = model.predict_proba(frame)
    assert probabilities.dtype == np.float32
    np.testing.assert_allclose(model.student_.predict_proba(frame), probabilities, atol=1e-6)
    assert set(model.predict(frame)) == {"no", "yes"}


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int32, np.float16, bool])
def test_arrays_stay_in_their_dtype(dtype):
    x = (X / [0.25, 125.0]).clip(-9, 9)
    x = x > 0.5 if dtype is bool else x.astype(dtype)
    model = small().fit(x, Y)
    assert model.student_.samples["dtype"] == np.dtype(dtype).name
    if dtype is not bool:  # four different rows
        assert model.score(x.astype(np.float64), Y) > 0.7


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (np.array([3, -7]), [-7, 3]),
        (np.array([True, False]), [False, True]),
        (np.array([2.0, 1.0]), [1.0, 2.0]),
        (np.array(["b", "a"], object), ["a", "b"]),
        (np.array(["10", "9"]), ["10", "9"]),
        (pd.Categorical(["low", "high"], ["low", "high"], ordered=True), ["high", "low"]),
    ],
)
def test_labels_of_any_kind_come_back(labels, classes):
    y = labels[(Y == "yes").astype(int)]
    model = small().fit(X, y)
    assert model.classes_.tolist() == classes
    assert model.classes_.dtype == np.asarray(y).dtype
    predicted = model.predict(X)
    assert predicted.dtype == model.classes_.dtype
    assert (predicted == np.asarray(y)).mean() > 0.75


def test_gaps_in_arrays_need_teachers_that_take_them():
    x = X.copy()
    x[::7, 0] = np.nan
    assert takes_gaps().fit(x, Y).score(x, Y) > 0.7
    without = takes_gaps().fit(X, Y)
    assert np.isfinite(without.predict_proba(x)).all()
    with pytest.raises(ValueError, match=r"Input X contains NaN\.\nDistilledClassifier does not accept"):
        small().fit(x, Y)
    with pytest.raises(ValueError, match="Input X contains infinity"):
        takes_gaps().fit(np.where(np.isnan(x), np.inf, x), Y)


def test_images_as_arrays_of_more_axes():
    generator = np.random.default_rng(0)
    x = generator.normal(size=(120, 1, 8, 8)).astype(np.float32)
    y = (x[:, 0, :4].mean((1, 2)) > 0).astype(int)
    model = small([LogisticRegression()]).fit(x, y)
    assert model.score(x, y) > 0.8
    with pytest.raises(ValueError, match=r"X: expected samples of shape \[1, 8, 8\]; got \[1, 4, 4\]"):
        model.predict(x[:, :, :4, :4])


def test_texts():
    words = [f"a {'fine' if y == 'yes' else 'poor'} film, number {i}" for i, y in enumerate(Y)]
    teachers = [make_pipeline(TfidfVectorizer(), LogisticRegression())]
    steps = Optimization(steps=60, batch_size=32, learning_rate=0.02)
    model = DistilledClassifier(
        teachers, BagOfNgrams, validation_fraction=None, optimization=steps, random_state=0
    ).fit(words, Y)
    assert model.predict(["a poor film", "a fine film"]).tolist() == ["no", "yes"]
    assert model.predict(pd.Series(["a fine film"])).tolist() == ["yes"]
    assert not hasattr(model, "n_features_in_")
    with pytest.raises(TypeError, match="X: expected a list of strings, as at the fit; got ndarray"):
        model.predict(X)


def test_an_array_after_a_frame_and_the_reverse_warn_as_in_scikit_learn():
    frame = pd.DataFrame(X, columns=["a", "b"])
    model = small().fit(frame, Y)
    with pytest.warns(UserWarning, match="X does not have valid feature names, but DistilledClassifier was"):
        predicted = model.predict(X)
    assert (predicted == model.predict(frame)).all()
    plain = small().fit(X, Y)
    with pytest.warns(UserWarning, match="X has feature names, but DistilledClassifier was fitted without"):
        plain.predict(frame)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(TypeError, match="expected a frame, as at the fit, whose column 'city' holds no"):
            takes_gaps().fit(FRAME, SEX).predict(np.zeros((2, 3)))


def test_unlabelled_rows_teach_the_student_alone():
    model = small(student=STUDENT, validation_fraction=0.25)
    model.fit(X[:120], Y[:120], X_unlabeled=X[120:])
    assert model.report_.figures["dataset"]["pool"] == 120
    assert model.report_.figures["dataset"]["transfer"] == 90 + 120


def test_rows_of_the_judgement_are_no_rows_of_the_student():
    """A copy of a held-out row among the unlabelled ones would be learned."""
    data, _ = check_fit(small(), X, Y, X[:200], None, False)
    split, reason = split_of(data, 0.25, seed=0)
    assert reason == ""
    test = {tuple(row) for row in split.test.inputs}
    assert not test & {tuple(row) for row in np.concatenate([split.labelled.inputs, split.pool.inputs])}
    assert split.left_out > 0


def test_unlabelled_integers_beside_floats():
    more = FRAME.assign(count=FRAME["count"] + 0.5, age=40)
    assert takes_gaps().fit(FRAME, SEX, X_unlabeled=more).score(FRAME, SEX) > 0.7
    single = small().fit(X.astype(np.float32), Y, X_unlabeled=X)
    assert single.student_.samples["dtype"] == "float64"


@pytest.mark.parametrize(
    ("unlabelled", "error", "message"),
    [
        (
            FRAME[["city", "age"]],
            ValueError,
            "X_unlabeled: The feature names should match(?s:.*)now missing:\n- count",
        ),
        (
            FRAME.rename(columns={"age": "years"}),
            ValueError,
            "X_unlabeled: (?s:.*)unseen at fit time:\n- years",
        ),
        (FRAME[["age", "city", "count"]], ValueError, "X_unlabeled: (?s:.*)must be in the same order"),
        (FRAME.assign(age="old"), ValueError, "X_unlabeled: column 'age': expected float, as in X; got text"),
        (
            FRAME.to_numpy(),
            TypeError,
            "X_unlabeled: expected a frame with the columns of X, .'city', 'age', 'count'.",
        ),
        (FRAME.iloc[:0], ValueError, "X_unlabeled: Found array with 0 sample"),
    ],
    ids=["missing", "renamed", "order", "type", "array", "empty"],
)
def test_unlabelled_rows_of_another_form_are_refused(unlabelled, error, message):
    with pytest.raises(error, match=message):
        takes_gaps().fit(FRAME, SEX, X_unlabeled=unlabelled)


def test_rows_of_weight_zero_are_as_good_as_absent():
    weights = np.ones(len(X))
    weights[200:] = 0
    one = small().fit(X, Y, sample_weight=weights)
    other = small().fit(X[:200], Y[:200], sample_weight=weights[:200])
    np.testing.assert_array_equal(one.predict_proba(X), other.predict_proba(X))


def test_weights_change_teachers_and_student():
    weights = np.where(Y == "yes", 9.0, 1.0)
    plain, weighted = small().fit(X, Y), small().fit(X, Y, sample_weight=weights)
    assert (weighted.predict(X) == "yes").mean() > (plain.predict(X) == "yes").mean() + 0.05


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"y": ["a"] * len(X)}, "y: expected rows of at least two classes; got 1 class, 'a', in 240 sample"),
        (
            {"y": [None, *["a", "b"] * 119, "a"]},
            "the label of row 0 is missing .1 such rows.; pass rows without a label",
        ),
        ({"y": np.linspace(0, 1, len(X))}, "Unknown label type: continuous"),
        ({"y": Y[:-1]}, "inconsistent numbers of samples"),
        (
            {"sample_weight": -np.ones(len(X))},
            "sample_weight: expected finite numbers of at least 0; row 0 has -1",
        ),
        ({"sample_weight": np.zeros(len(X))}, "sample_weight: expected a weight above 0; all are zero"),
        ({"X": X[:0], "y": Y[:0]}, "Found array with 0 sample"),
        ({"X": FRAME.iloc[:0], "y": Y[:0]}, "Found array with 0 sample"),
        ({"y": np.array([1, "1"] * 120, object)}, "classes of different names|Unknown label type"),
    ],
)
def test_rows_that_no_classifier_takes_are_refused(changed, message):
    with pytest.raises((ValueError, TypeError), match=message):
        small().fit(**{"X": X, "y": Y, **changed})


@pytest.mark.parametrize(
    ("parameters", "error", "message"),
    [
        ({"teachers": "best"}, ValueError, "teachers: expected 'auto', a list or an Ensemble; got 'best'"),
        ({"teachers": []}, ValueError, "teachers: expected at least one; got an empty list"),
        (
            {"teachers": LogisticRegression()},
            TypeError,
            "teachers: expected 'auto', a list(?s:.*)got LogisticRegression",
        ),
        (
            {"teachers": [lambda x: x]},
            TypeError,
            "teachers: expected estimators, module classes(?s:.*)got function",
        ),
        ({"teachers": [STUDENT()]}, ValueError, "teachers: mlp is fitted already: pass prefit=True"),
        ({"prefit": True}, ValueError, "decisiontreeclassifier is not fitted; call its fit first"),
        (
            {"prefit": True, "teachers": [STUDENT]},
            ValueError,
            "teachers: mlp is a class, of which nothing is trained",
        ),
        (
            {"student": "best"},
            ValueError,
            "student: expected 'auto', a module class or an estimator; got 'best'",
        ),
        ({"student": lambda: STUDENT()}, TypeError, "student: expected 'auto', a module class"),
        ({"student": STUDENT()}, TypeError, "student: expected 'auto', a module class"),
        (
            {"student": KNeighborsClassifier(), "optimization": None},
            ValueError,
            "KNeighborsClassifier takes no sample_weight",
        ),
        (
            {"validation_fraction": 1.0},
            ValueError,
            r"validation_fraction: expected a share in \(0, 1\), or None",
        ),
        (
            {"synthetic": "munge"},
            TypeError,
            "synthetic: expected 'auto', None or a list of sources; got 'munge'",
        ),
        ({"temperature": -1.0}, ValueError, "temperature: expected a number from"),
        ({"alpha": 2.0}, ValueError, "alpha: expected a number from 0 to 1"),
        ({"loss": 3}, TypeError, "loss: expected LossSettings; got int"),
        ({"n_jobs": "two"}, TypeError, "n_jobs: expected a whole number, or None; got 'two'"),
        ({"n_jobs": 1.5}, TypeError, "n_jobs: expected a whole number, or None; got 1.5"),
        ({"n_jobs": 0}, ValueError, "n_jobs: expected at least 1, or -1 for all cores; got 0"),
        ({"verbose": "yes"}, TypeError, "verbose: expected 0, 1 or 2; got 'yes'"),
    ],
)
def test_parameters_that_mean_nothing_are_refused(parameters, error, message):
    with pytest.raises(error, match=message):
        small(**parameters).fit(X, Y)


@pytest.mark.parametrize(
    ("x", "y", "parameters"),
    [(X[:, :1], Y, {"temperature": -1.0}), (X[:, :1], ["a"] * len(X), {}), (FRAME, Y, {"n_jobs": 0})],
    ids=["parameter", "labels", "frame"],
)
def test_a_refit_that_fails_leaves_the_earlier_fit(x, y, parameters):
    model = small(student=DecisionTreeClassifier()).fit(X, Y)
    before = model.predict_proba(X)
    with pytest.raises(ValueError):  # noqa: PT011
        model.set_params(**parameters).fit(x, y)
    assert model.n_features_in_ == 2
    assert not hasattr(model, "feature_names_in_")
    np.testing.assert_array_equal(model.predict_proba(X), before)


def test_unlike_classes_are_refused_with_fitted_teachers():
    fitted = [LogisticRegression().fit(X, np.where(Y == "yes", "a", "b"))]
    with pytest.raises(ValueError, match="classes"):
        small(fitted, prefit=True).fit(X, Y)
    with pytest.raises(
        ValueError, match=r"teachers: expected an Ensemble of the classes \['no', 'yes'\]; got"
    ):
        small(Ensemble.from_members(fitted)).fit(X, Y)


@pytest.mark.parametrize("method", ["predict", "predict_proba", "predict_log_proba", "score", "save"])
def test_a_classifier_that_is_not_fitted_says_so(method, tmp_path):
    arguments = {"score": (X, Y), "save": (tmp_path,)}.get(method, (X,))
    with pytest.raises(NotFittedError, match="This DistilledClassifier instance is not fitted yet"):
        getattr(small(), method)(*arguments)
