"""Estimators of scikit-learn as students: weighted expansion, or regression on log-odds."""

import numpy as np
import pandas as pd
import pytest
from scipy.special import softmax
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.compose import make_column_transformer
from sklearn.ensemble import (
    ExtraTreesClassifier,
    HistGradientBoostingClassifier,
    RandomForestClassifier,
    VotingClassifier,
)
from sklearn.linear_model import LogisticRegression, Ridge, RidgeClassifier
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from sklearn.svm import LinearSVC
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor

from ensdistill import Ensemble, cache_targets
from ensdistill.data import Rows
from ensdistill.loss.settings import LossSettings
from ensdistill.student.trees import Objective, TreeStudent
from ensdistill.student.trees.ways import log_odds, regressor_of, ways_of
from ensdistill.teachers.members import load_member


class MLPish(ClassifierMixin, BaseEstimator):
    """A classifier of no library whose fit takes no weights."""

    def fit(self, x, y):
        return self

    def predict_proba(self, x):
        return np.full((len(x), 3), 1 / 3)


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    generator = np.random.default_rng(0)
    x = generator.normal(size=(200, 3))
    y = (x @ generator.normal(size=(3, 3)) + generator.gumbel(size=(200, 3)) / 2).argmax(1)
    member = LogisticRegression().fit(x[:80], y[:80])
    rows = Rows(x, np.arange(200), np.where(np.arange(200) < 80, y, -100))
    ensemble = Ensemble.from_members([member], classes=["a", "b", "c"])
    folder = tmp_path_factory.mktemp("ways") / "targets"
    return rows, ensemble, cache_targets(ensemble, rows, folder, codec="fp32")


@pytest.mark.parametrize(
    ("estimator", "expected"),
    [
        (RandomForestClassifier(7, max_depth=3, max_features=2), "RandomForestRegressor"),
        (LogisticRegression(C=4.0), "Ridge"),
        (RidgeClassifier(alpha=3.0), "Ridge"),
        (KNeighborsClassifier(3), "KNeighborsRegressor"),
        (HistGradientBoostingClassifier(max_iter=5), "MultiOutputRegressor"),
        (LinearSVC(C=0.5), "MultiOutputRegressor"),
        (make_pipeline(StandardScaler(), DecisionTreeClassifier(max_depth=2)), "Pipeline"),
        (DecisionTreeRegressor(max_depth=2), "DecisionTreeRegressor"),
        (GaussianNB(), "NoneType"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_the_regressor_is_of_the_same_kind_with_the_same_parameters(estimator, expected):
    found = regressor_of(estimator)
    assert type(found).__name__ == expected
    own, parameters = estimator.get_params(), {} if found is None else found.get_params()
    if expected == "Ridge":
        assert parameters["alpha"] == (1 / own["C"] if "C" in own else own["alpha"])
    for name in ("max_depth", "n_neighbors", "max_features", "n_estimators"):
        assert name not in parameters or name not in own or parameters[name] == own[name]
    if expected == "MultiOutputRegressor":
        shared = {"max_iter", "C"} & set(own)
        assert {name: parameters[f"estimator__{name}"] for name in shared} == {n: own[n] for n in shared}


def test_log_odds_are_logits_of_the_probabilities():
    p = softmax(np.random.default_rng(0).normal(size=(5, 4)), axis=1)
    np.testing.assert_allclose(softmax(log_odds(p), axis=1), p, atol=1e-12)
    np.testing.assert_allclose(log_odds(p).sum(1), 0, atol=1e-12)
    assert np.isfinite(log_odds(np.eye(3))).all()


@pytest.mark.parametrize(
    "estimator",
    [
        DecisionTreeClassifier(min_samples_leaf=3, random_state=0),
        ExtraTreesClassifier(12, random_state=0),
        LogisticRegression(C=100.0),
        make_pipeline(StandardScaler(), DecisionTreeClassifier(max_depth=4, random_state=0)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_the_better_way_on_the_held_out_rows_is_kept_and_named(taught, tmp_path, estimator):
    rows, ensemble, cache = taught
    own, other = rows.take(np.arange(150)), rows.take(np.arange(150, 200))
    p = np.asarray(ensemble.predict_proba(other.inputs), np.float64)
    names = {"expansion": "weighted expansion", "regression": "regression on log-odds"}
    found = {}
    for way, name in names.items():
        member = TreeStudent(estimator, way=way).fit(own, cache, validation=other).member
        q = softmax(member.predict_logits(other.inputs).astype(np.float64), axis=1)
        found[name] = (p * np.log(p / q)).sum(1).mean(), member
    fitted = TreeStudent(estimator).fit(own, cache, validation=other)
    best = min(found, key=lambda name: found[name][0])
    assert fitted.way == best
    for name, (_, divergence) in fitted.validation.items():
        np.testing.assert_allclose(divergence, found[name][0], atol=1e-5)
    logits = fitted.member.predict_logits(other.inputs)
    np.testing.assert_array_equal(logits, found[best][1].predict_logits(other.inputs))
    fitted.member.save(tmp_path)
    np.testing.assert_array_equal(load_member(tmp_path).predict_logits(other.inputs), logits)


def test_log_odds_of_many_classes_leave_the_likely_ones_as_they_are():
    p = np.full((1, 200), 0.1 / 199)
    p[0, 7] = 0.9
    q = softmax(log_odds(p), axis=1)
    np.testing.assert_allclose(q, p, atol=1e-12)
    assert softmax(log_odds(np.eye(200)), axis=1).max(1).min() > 0.99


@pytest.mark.parametrize("way", ["expansion", "regression"])
def test_a_frame_is_taken_raw_in_both_ways(way):
    generator = np.random.default_rng(0)
    city = pd.Categorical(generator.choice(["Rome", "Oslo"], 60))
    frame = pd.DataFrame({"city": city, "age": generator.random(60)})
    columns = make_column_transformer((OneHotEncoder(), ["city"]), remainder="passthrough")
    estimator = make_pipeline(columns, DecisionTreeClassifier(max_depth=1))
    p = np.where(np.asarray(city == "Oslo")[:, None], [[0.9, 0.1]], [[0.2, 0.8]])
    objective = Objective.of(LossSettings(), p, np.full(60, -100))
    member = TreeStudent(estimator, way=way).fit_to(frame, objective, ["no", "yes"]).member
    np.testing.assert_allclose(softmax(member.predict_logits(frame), axis=1), p, atol=1e-4)


def test_regression_by_a_linear_model_finds_the_linear_teacher(taught):
    rows, ensemble, cache = taught
    fitted = TreeStudent(Ridge(alpha=1e-6)).fit(rows, cache)
    q = softmax(fitted.member.predict_logits(rows.inputs), axis=1)
    near = np.asarray(ensemble.predict_proba(rows.inputs)).min(1) > 2e-3  # below, the log-odds are cut
    np.testing.assert_allclose(q[near], ensemble.predict_proba(rows.inputs)[near], atol=0.03)
    assert (fitted.way, fitted.validation) == ("regression on log-odds", {})


def test_estimators_and_settings_without_a_way_are_refused(taught):
    rows, _, cache = taught
    assert ways_of(KNeighborsClassifier()) == ["regression"]
    assert ways_of(GaussianNB()) == ["expansion"]
    voting = VotingClassifier([("nb", GaussianNB()), ("tree", DecisionTreeClassifier())], voting="soft")
    assert ways_of(voting) == ["expansion"]
    for estimator, name in (
        (DecisionTreeClassifier(class_weight="balanced"), "class_weight"),
        (make_pipeline(LogisticRegression(class_weight={0: 2})), "logisticregression__class_weight"),
    ):
        with pytest.raises(ValueError, match=f": {name}: expected none for a student"):
            TreeStudent(estimator)
    with pytest.raises(ValueError, match="MLPish takes no sample_weight"):
        TreeStudent(MLPish())
    with pytest.raises(ValueError, match=r"loss\.temperature: expected 1 for GaussianNB"):
        TreeStudent(GaussianNB(), LossSettings(temperature=2.0))
    with pytest.raises(
        ValueError, match="way: expected one of auto, expansion for GaussianNB; got 'regression'"
    ):
        TreeStudent(GaussianNB(), way="regression")
    with pytest.raises(
        ValueError, match="KNeighborsClassifier takes no sample_weight, which rows of different"
    ):
        TreeStudent(KNeighborsClassifier(), LossSettings(alpha=0.5)).fit(rows, cache)
