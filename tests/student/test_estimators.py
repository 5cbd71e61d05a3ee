"""Estimators as students, fitted to the ensemble's probabilities."""

import numpy as np
import pandas as pd
import pytest
from catboost import CatBoostClassifier
from lightgbm import LGBMClassifier
from sklearn.compose import make_column_transformer
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from sklearn.svm import LinearSVC
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor
from xgboost import XGBClassifier

from ensdistill.student.estimators import expanded, fit_to_probabilities

X = np.repeat(np.arange(4.0), 50)[:, None]
P = np.array([[0.9, 0.1, 0.0], [0.2, 0.5, 0.3], [0.0, 0.25, 0.75], [1.0, 0.0, 0.0]])
NAMES = ("a", "b", "c")


def probabilities(member, samples):
    logits = member.predict_logits(samples).astype(np.float64)
    e = np.exp(logits - logits.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def test_a_tree_returns_the_probabilities_that_it_was_given():
    member = fit_to_probabilities(DecisionTreeClassifier(), X, P.repeat(50, 0), classes=NAMES)
    np.testing.assert_allclose(probabilities(member, np.arange(4.0)[:, None]), P, atol=1e-5)
    assert member.classes == NAMES


def test_of_many_classes_those_that_make_up_a_hundredth_are_left_out():
    flat = expanded(np.full((2, 1200), 1 / 1200))
    assert len(flat[0]) >= 2 * 0.98 * 1200
    np.testing.assert_allclose(np.bincount(flat[0], flat[2]), [1, 1])
    p = np.full((1, 400), 0.4 / 399)
    p[0, 3] = 0.6
    _, labels, weights = expanded(p)
    np.testing.assert_allclose(weights[labels == 3], 0.6, atol=0.01)
    few = np.array([[0.9985, 0.0009, 0.0006], [0.5, 0.4991, 0.0009]])
    assert expanded(few)[1].tolist() == [0, 0, 1]


def test_one_class_alone_is_refused():
    with pytest.raises(ValueError, match=r"^probabilities: student: expected a second class .* of 'b'"):
        fit_to_probabilities(DecisionTreeClassifier(), X, np.eye(3)[np.ones(200, int)], classes=NAMES)


def test_weights_of_rows_multiply_the_probabilities():
    x = np.zeros((2, 1))
    member = fit_to_probabilities(
        DecisionTreeClassifier(),
        x,
        np.array([[1.0, 0.0], [0.5, 0.5]]),
        classes="ab",
        weights=np.array([1.0, 3.0]),
    )
    np.testing.assert_allclose(probabilities(member, x[:1]), [[2.5 / 4, 1.5 / 4]], atol=1e-5)


def test_a_linear_model_has_the_weights_of_the_limit_of_many_drawn_labels():
    generator = np.random.default_rng(0)
    x = generator.normal(size=(400, 2))
    p = 1 / (1 + np.exp(-(x @ [1.5, -2.0] + 0.3)))
    exact = fit_to_probabilities(LogisticRegression(C=1e6), x, np.stack([1 - p, p], 1), classes=("no", "yes"))
    np.testing.assert_allclose(exact.estimator.coef_[0], [1.5, -2.0], atol=0.02)
    np.testing.assert_allclose(exact.estimator.intercept_, [0.3], atol=0.02)


@pytest.mark.parametrize(
    "estimator",
    [
        LGBMClassifier(n_estimators=60, min_child_samples=1, verbose=-1, min_sum_hessian_in_leaf=1e-9),
        XGBClassifier(n_estimators=60, min_child_weight=0),
        CatBoostClassifier(100, verbose=False, allow_writing_files=False, random_seed=0),
        RandomForestClassifier(30, random_state=0),
        make_pipeline(StandardScaler(), DecisionTreeClassifier()),
    ],
    ids=lambda e: type(e).__name__,
)
def test_every_library_takes_the_weights(estimator):
    member = fit_to_probabilities(estimator, X, P.repeat(50, 0), classes=NAMES)
    np.testing.assert_allclose(probabilities(member, np.arange(4.0)[:, None]), P, atol=0.06)


def test_raw_frames_are_taken_by_a_pipeline_and_by_boosters():
    frame = pd.DataFrame({"city": pd.Categorical(np.repeat(["x", "y", None, "z"], 50)), "n": X[:, 0]})
    first = frame.iloc[::50]
    columns = make_column_transformer((OneHotEncoder(), ["city"]), remainder="passthrough")
    booster = LGBMClassifier(n_estimators=60, min_child_samples=1, verbose=-1, min_sum_hessian_in_leaf=1e-9)
    for estimator in (make_pipeline(columns, DecisionTreeClassifier()), booster):
        member = fit_to_probabilities(estimator, frame, P.repeat(50, 0), classes=NAMES)
        np.testing.assert_allclose(probabilities(member, first), P, atol=0.06)


def test_labels_alone_need_no_weights():
    member = fit_to_probabilities(
        KNeighborsClassifier(1), X, np.eye(3)[[0, 1, 2, 0]].repeat(50, 0), classes=NAMES
    )
    assert probabilities(member, np.array([[2.0]])).argmax() == 2


@pytest.mark.parametrize(
    ("estimator", "message"),
    [
        (KNeighborsClassifier(), "the fit of KNeighborsClassifier takes no sample_weight"),
        (
            make_pipeline(StandardScaler(), KNeighborsClassifier()),
            "the fit of Pipeline takes no sample_weight",
        ),
        (DecisionTreeRegressor(), "expected a classifier; got DecisionTreeRegressor"),
        (LinearSVC(), "expected a classifier with predict_proba; got LinearSVC"),
    ],
    ids=["knn", "pipeline", "regressor", "no probabilities"],
)
def test_estimators_that_cannot_learn_probabilities_are_refused(estimator, message):
    with pytest.raises(ValueError, match=message):
        fit_to_probabilities(estimator, X, P.repeat(50, 0), classes=NAMES)


def test_the_estimator_itself_stays_unfitted():
    tree = DecisionTreeClassifier()
    fit_to_probabilities(tree, X, P.repeat(50, 0), classes=NAMES)
    assert not hasattr(tree, "tree_")
