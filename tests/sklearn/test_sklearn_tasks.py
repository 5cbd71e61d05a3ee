"""The estimators for several labels and for numbers."""

from functools import partial
from unittest import mock

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.ensemble import ExtraTreesClassifier, ExtraTreesRegressor
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.multioutput import MultiOutputClassifier
from sklearn.tree import DecisionTreeRegressor
from sklearn.utils.estimator_checks import parametrize_with_checks
from sklearn_helpers import FAST, STUDENT
from test_sklearn_checks import expected_failures

from ensdistill import Optimization
from ensdistill.models import MLP
from ensdistill.sklearn import DistilledClassifier, DistilledRegressor
from ensdistill.student.search.latency import Latency
from ensdistill.teachers import Ensemble
from ensdistill.teachers.auto.portfolio import PORTFOLIO

GENERATOR = np.random.default_rng(0)
X = GENERATOR.normal(size=(120, 3))
Y = (2 * X + GENERATOR.logistic(size=X.shape) > 0).astype(int)
PRICE = 5000 + 900 * X[:, 0] + 100 * GENERATOR.normal(size=120)
FEW = Optimization(steps=64, batch_size=32, learning_rate=0.03)


def regressor(teachers=None, student=STUDENT, **more):
    given = [DecisionTreeRegressor(max_depth=5), Ridge()] if teachers is None else teachers
    settings = {"validation_fraction": None, "synthetic": None, "random_state": 0}
    if student is STUDENT:
        settings["optimization"] = FAST
    return DistilledRegressor(given, student, **{**settings, **more})


def classifier(**more):
    teachers = [ExtraTreesClassifier(20), MultiOutputClassifier(LogisticRegression())]
    settings = {"synthetic": None, "random_state": 0, "optimization": FEW, "validation_fraction": None}
    return DistilledClassifier(teachers, partial(MLP, hidden=[8]), **{**settings, **more})


@pytest.mark.slow
@parametrize_with_checks([regressor()], expected_failed_checks=expected_failures)
def test_a_regressor_passes_the_checks_of_scikit_learn(estimator, check):
    check(estimator)


def test_labels_of_several_columns_are_learned_saved_and_loaded(tmp_path):
    frame = pd.DataFrame(Y, columns=["red", "green", "blue"])
    model = classifier().fit(X, frame)
    assert model.classes_.tolist() == ["red", "green", "blue"]
    assert model.predict(X).shape == Y.shape
    assert (model.predict(X) == Y).mean() > 0.75
    np.testing.assert_array_equal(model.predict(X), model.predict_proba(X) > 0.5)
    np.testing.assert_allclose(np.exp(model.predict_log_proba(X)), model.predict_proba(X), atol=1e-6)
    model.save(tmp_path / "model")
    again = DistilledClassifier.load(tmp_path / "model")
    np.testing.assert_array_equal(again.predict_proba(X), model.predict_proba(X))
    with pytest.raises(ValueError, match="expected a saved DistilledRegressor"):
        DistilledRegressor.load(tmp_path / "model")


def test_unknown_labels_and_rows_without_labels_are_taken():
    gaps = Y.astype(float)
    gaps[::4, 1] = np.nan
    each = DistilledClassifier(
        [MultiOutputClassifier(LogisticRegression())],
        partial(MLP, hidden=[8]),
        synthetic=None,
        random_state=0,
        optimization=FEW,
        validation_fraction=None,
    )
    model = each.fit(X, gaps, X_unlabeled=X[:30] + 0.1)
    assert ((model.predict_proba(X) > 0.5) == (Y == 1)).mean() > 0.75
    gaps[3] = np.nan
    with pytest.raises(ValueError, match="y: expected a label in each row; row 3 has none"):
        each.fit(X, gaps)


def test_a_fit_of_several_labels_has_a_report():
    model = classifier(validation_fraction=0.3).fit(X, Y)
    assert {"map", "bce"} <= set(model.retained_gain_)
    assert "mAP" in str(model.report_)
    assert "mAP" in model.report_._repr_html_()


def test_numbers_are_predicted_in_their_units(tmp_path):
    model = regressor().fit(X, PRICE)
    assert model.predict(X).shape == (120,)
    assert model.score(X, PRICE) > 0.8
    assert model.ensemble_.task == "regression"
    both = np.stack([PRICE, 1e-3 * X[:, 1]], axis=1)
    several = regressor([ExtraTreesRegressor(20), Ridge()], optimization=FEW).fit(X, both)
    assert several.predict(X).shape == (120, 2)
    assert several.score(X, both) > 0.5
    several.save(tmp_path / "model")
    again = DistilledRegressor.load(tmp_path / "model")
    np.testing.assert_array_equal(again.predict(X), several.predict(X))
    assert clone(again).fit(X, both).predict(X).shape == (120, 2)


def test_a_regressor_has_a_report_and_an_estimator_as_its_student():
    model = regressor(student=DecisionTreeRegressor(max_depth=4), validation_fraction=0.3).fit(X, PRICE)
    assert "rmse" in model.retained_gain_
    assert "RMSE" in str(model.report_)
    assert model.score(X, PRICE) > 0.6


@pytest.mark.slow
def test_a_regressor_finds_its_members_and_its_student():
    x = np.random.default_rng(1).normal(size=(1100, 3))
    y = 5000 + 900 * (np.abs(x[:, 0]) + x[:, 1]) + 300 * np.random.default_rng(2).normal(size=1100)
    goal = {"keep": 0.5, "max_parameters": 2000, "families": ["mlp"], "trials": 1, "teacher_minutes": 0.02}
    search = "ensdistill.student.search"
    with (
        mock.patch(f"{search}.ordinary.ordinary_steps", return_value=96),
        mock.patch(f"{search}.ladders.latency_of", return_value=Latency(2e-5, "none")),
    ):
        model = regressor("auto", "auto", optimization=None, **goal).fit(x, y)
    assert model.search_.task == "regression"
    assert list(model.search_.gain) == ["nll", "rmse"]
    assert model.student_.member.parameters <= 2000
    assert model.score(x, y) > 0.7
    assert set(model.ensemble_.names) <= {entry.name for entry in PORTFOLIO}


def test_settings_of_another_task_are_refused():
    ensemble = Ensemble.train(Ridge(), (X, PRICE), members=1, task="regression")
    cases = (
        (
            regressor(keep=0.9, student="auto", optimization=None),
            "keep: a search needs 203 rows that judge",
        ),
        (regressor(temperature=2.0), "temperature: is of probabilities"),
        (
            regressor([LogisticRegression()]),
            "estimator: .*expected a regressor for labels of the task regression",
        ),
    )
    for model, message in cases:
        with pytest.raises(ValueError, match=message):
            model.fit(X, PRICE)
    with pytest.raises(ValueError, match=r"^y: expected numbers; .*DistilledClassifier takes classes"):
        regressor().fit(X, ["dear"] * len(X))
    with pytest.raises(ValueError, match="teachers: expected an ensemble of the task multilabel"):
        DistilledClassifier(ensemble, STUDENT, optimization=FEW, validation_fraction=None).fit(X, Y)
    model = DistilledRegressor(ensemble, STUDENT, optimization=FAST, validation_fraction=None, synthetic=None)
    assert model.fit(X, PRICE).score(X, PRICE) > 0.7
