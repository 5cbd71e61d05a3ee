"""Students that are no networks, of several labels and of numbers, from caches on disk."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from catboost import CatBoostClassifier, CatBoostRegressor
from lightgbm import LGBMClassifier, LGBMRegressor
from scipy.special import expit
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestRegressor
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.svm import LinearSVR
from xgboost import XGBClassifier, XGBRegressor

from ensdistill import Ensemble, Rows, cache_targets
from ensdistill.loss.regression import RegressionSettings
from ensdistill.loss.settings import LossSettings
from ensdistill.student import TreeStudent, Validation
from ensdistill.student.trees import Objective
from ensdistill.student.trees.targets import Numbers
from ensdistill.teachers.members import ArrayMember, load_member
from tests.student.task_sources import LABELS, TAGGED, UIDS, X, Y, labels_source, numbers_source

TAGS, SIZES = [f"tag {i}" for i in range(LABELS)], ["price", "weight"]
WEIGHTS = [0.5, 0.3, 0.2]
Z = labels_source(weights=np.array(WEIGHTS)).values
MEANS = numbers_source().values
ROWS = {"multilabel": TAGGED, "regression": Rows(X, UIDS, Y)}


@pytest.fixture(scope="module")
def caches(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trees")
    order = np.argsort(UIDS)
    made = {}
    for task, values in (("multilabel", Z.astype(np.float32)), ("regression", MEANS)):
        key = "logits" if task == "multilabel" else "means"
        more = {"task": task} if task == "multilabel" else {}
        members = [
            ArrayMember(**{key: one[order]}, name=f"member {k}", uids=UIDS[order], **more)
            for k, one in enumerate(values)
        ]
        names = TAGS if task == "multilabel" else SIZES
        ensemble = Ensemble.from_members(members, weights=WEIGHTS, classes=names, task=task)
        made[task] = cache_targets(ensemble, ROWS[task], folder / task, codec="fp32")
    return made


CLASSIFIERS = {
    "lightgbm": LGBMClassifier(n_estimators=20, num_leaves=4, min_child_samples=5),
    "xgboost": XGBClassifier(n_estimators=20, max_depth=3),
    "catboost": CatBoostClassifier(iterations=20, depth=3, learning_rate=0.3),
    "histogram": HistGradientBoostingClassifier(max_iter=20, min_samples_leaf=5),
    "linear": LogisticRegression(C=100.0),
}
REGRESSORS = {
    "lightgbm": LGBMRegressor(n_estimators=20, num_leaves=4, min_child_samples=5),
    "xgboost": XGBRegressor(n_estimators=20, max_depth=3),
    "catboost": CatBoostRegressor(iterations=20, depth=3, learning_rate=0.3),
    "forest": RandomForestRegressor(10, random_state=0),
    "linear": LinearRegression(),
}


def some(names, quick):
    return [pytest.param(name, marks=() if name in quick else pytest.mark.slow) for name in names]


@pytest.mark.parametrize("name", some(CLASSIFIERS, ["xgboost", "linear"]))
def test_labels_are_learned_one_by_one(caches, name, tmp_path):
    student = TreeStudent(CLASSIFIERS[name], task="multilabel")
    found = student.fit(ROWS["multilabel"], caches["multilabel"], seed=0)
    member = found.member
    assert (member.task, member.classes) == ("multilabel", tuple(TAGS))
    target = np.einsum("k,knc->nc", WEIGHTS, expit(Z))
    p = expit(member.predict_logits(X).astype(float))
    assert np.abs(p - target).mean() < 0.6 * np.abs(target - target.mean(0)).mean()
    member.save(tmp_path)
    np.testing.assert_array_equal(load_member(tmp_path).predict_logits(X), member.predict_logits(X))
    assert found.way.startswith("4 models, one a label (")
    if name != "linear" or found.validation:
        ((agreement, divergence),) = found.validation.values()
        assert 0 < agreement <= 1
        assert divergence > 0


@pytest.mark.parametrize("name", some(REGRESSORS, ["xgboost", "forest"]))
def test_numbers_are_learned_in_the_datas_units(caches, name, tmp_path):
    found = TreeStudent(REGRESSORS[name], task="regression").fit(
        ROWS["regression"], caches["regression"], seed=0
    )
    member = found.member
    assert (member.task, member.classes) == ("regression", tuple(SIZES))
    target = np.einsum("k,knd->nd", WEIGHTS, MEANS)
    mean, variance = member.predict_moments(X)
    assert variance is None
    assert (np.square(mean - target).mean(0) < 0.5 * target.var(0)).all()
    member.save(tmp_path)
    np.testing.assert_array_equal(load_member(tmp_path).predict_moments(X).mean, mean)
    assert found.way.startswith("squared error")
    if name in ("lightgbm", "xgboost", "catboost"):
        ((distance, _),) = found.validation.values()
        assert 0 < distance < 1


def huber(estimator, delta):
    """The library's own regressor with Huber's error."""
    kind = type(estimator).__name__
    if kind == "LGBMRegressor":
        return estimator.set_params(objective="huber", alpha=delta)
    return estimator.set_params(objective="reg:pseudohubererror", huber_slope=delta)


@pytest.mark.parametrize("name", ["lightgbm", "xgboost"])
def test_hubers_error_is_the_librarys_own(caches, name):
    estimator, cache = REGRESSORS[name], caches["regression"]
    settings = RegressionSettings("huber", delta=0.5)
    found = TreeStudent(estimator, settings, task="regression").fit(
        ROWS["regression"], cache, validation=None, seed=0
    )
    target = np.einsum("k,knd->nd", WEIGHTS, MEANS.astype(np.float32))
    given = {key: value for key, value in estimator.get_params().items() if value is not None}
    given["random_state"] = 0
    if name == "lightgbm":
        given |= {"deterministic": True, "force_row_wise": True, "verbosity": -1}
    own = huber(type(estimator)(**given), 0.5 * cache.scale[0])
    if name == "xgboost":
        own.set_params(base_score=target[:, 0].mean())
    mean = found.member.predict_moments(X).mean[:, 0]
    np.testing.assert_allclose(own.fit(X, target[:, 0]).predict(X), mean, rtol=1e-3)
    assert found.way.startswith("Huber's error, 20 of 20 rounds")
    squared = TreeStudent(estimator, task="regression").fit(
        ROWS["regression"], cache, validation=None, seed=0
    )
    assert not np.allclose(squared.member.predict_moments(X).mean[:, 0], mean, rtol=1e-3)


def test_hubers_error_is_in_the_datas_units_with_catboost(caches, tmp_path):
    settings = RegressionSettings("huber", delta=1.0)
    estimator = CatBoostRegressor(iterations=60, depth=3, learning_rate=0.3)
    student = TreeStudent(estimator, settings, task="regression")
    member = student.fit(ROWS["regression"], caches["regression"], seed=0).member
    target = np.einsum("k,knd->nd", WEIGHTS, MEANS)
    mean = member.predict_moments(X).mean
    assert (np.square(mean - target).mean(0) < 0.5 * target.var(0)).all()
    member.save(tmp_path)
    np.testing.assert_array_equal(load_member(tmp_path).predict_moments(X).mean, mean)


@pytest.mark.parametrize(
    ("estimator", "settings", "task", "message"),
    [
        (LinearRegression(), RegressionSettings("huber"), "regression", r"^loss: expected 'mse' for LinearR"),
        (XGBRegressor(), RegressionSettings("huber", alpha=0.5), "regression", r"^loss: alpha=0.5 mixes"),
        (XGBClassifier(), RegressionSettings(), "multilabel", r"^loss: RegressionSettings are of the task"),
    ],
)
def test_errors_that_do_not_fit_are_refused(estimator, settings, task, message):
    with pytest.raises(ValueError, match=message):
        TreeStudent(estimator, settings, task=task)


def test_a_label_of_a_booster_is_that_of_its_two_classes_alone(caches):
    """The binary model of one label is the classifier's on that label's two classes."""
    estimator, rows = CLASSIFIERS["lightgbm"], ROWS["multilabel"]
    settings = LossSettings(temperature=2.0, alpha=0.5)
    found = TreeStudent(estimator, settings, task="multilabel").fit(
        rows, caches["multilabel"], validation=None
    )
    p = np.einsum("k,kn->n", WEIGHTS, expit(Z[:, :, 1].astype(np.float32).astype(float) / 2))
    hard = np.where(rows.labels[:, 1] < 0, -100, rows.labels[:, 1]).astype(np.int64)
    objective = Objective.of(settings, np.stack([1 - p, p], 1), hard)
    alone = TreeStudent(estimator, settings).fit_to(X, objective, ("no", "yes"))
    logits = alone.member.predict_logits(X)
    np.testing.assert_allclose(found.member.predict_logits(X)[:, 1], logits[:, 1] - logits[:, 0], atol=1e-4)


def test_a_linear_regressor_learns_the_mean_of_targets_and_labels(caches):
    rows = ROWS["regression"]
    labels = rows.labels.copy()
    labels[::3] = np.nan
    target = np.einsum("k,knd->nd", WEIGHTS, MEANS)
    found = TreeStudent(LinearRegression(), LossSettings(alpha=0.75), task="regression").fit(
        replace(rows, labels=labels), caches["regression"], validation=None
    )
    known = ~np.isnan(labels).any(1)
    # The gradient of the weighted squares is 0 at the fit.
    x = np.concatenate([X.astype(float), np.ones((len(X), 1))], axis=1)
    mean = found.member.predict_moments(X).mean
    slope = 0.75 * x.T @ (mean - target) / len(X)
    slope += 0.25 * x[known].T @ (mean - labels)[known] / known.sum()
    assert np.abs(slope).max() < 1e-6 * np.abs(target).max()


def test_rows_of_weight_0_are_as_absent():
    whole = Numbers.of(0.6, np.arange(8.0).reshape(4, 2), np.full((4, 2), np.nan), np.array([1, 0, 1, 1.0]))
    assert whole.weights.tolist() == pytest.approx([0.6, 0.0, 0.6, 0.6])


def test_a_label_that_never_applies_is_a_constant(tmp_path):
    z = np.full((1, len(X), 2), -12.0, np.float32)
    z[0, :, 1] = X[:, 0]
    order = np.argsort(UIDS)
    member = ArrayMember(logits=z[0][order], name="m", uids=UIDS[order], task="multilabel")
    ensemble = Ensemble.from_members([member], classes=["never", "some"], task="multilabel")
    rows = Rows(X, UIDS, np.full((len(X), 2), -1, np.int8))
    cache = cache_targets(ensemble, rows, tmp_path / "cache", codec="fp32")
    found = TreeStudent(CLASSIFIERS["histogram"], task="multilabel").fit(rows, cache)
    logits = found.member.predict_logits(X)
    np.testing.assert_allclose(logits[:, 0], -12, atol=0.2)
    assert np.ptp(logits[:, 1]) > 0.5


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: TreeStudent(LogisticRegression(), task="regression"),
            r"estimator: expected a regressor for",
        ),
        (lambda: TreeStudent(LGBMClassifier(), task="regression"), r"estimator: expected a regressor for"),
        (
            lambda: TreeStudent(LGBMRegressor(objective="quantile"), task="regression"),
            r"estimator: LGBMRegressor: objective: expected 'regression'.*got 'quantile'",
        ),
        (
            lambda: TreeStudent(LinearRegression(), LossSettings(temperature=2.0), task="regression"),
            r"temperature: is of probabilities",
        ),
        (
            lambda: TreeStudent(LinearSVR(), way="expansion", task="regression"),
            r"way: expected auto for the task regression",
        ),
        (lambda: TreeStudent(LGBMRegressor(), task="multilabel"), r"estimator: expected a classifier"),
    ],
)
def test_estimators_of_another_task(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_caches_and_metrics_of_another_task(caches):
    with pytest.raises(
        ValueError, match=r"cache: expected one of the task classification.*is of the task multil"
    ):
        TreeStudent(CLASSIFIERS["lightgbm"]).fit(ROWS["multilabel"], caches["multilabel"])
    with pytest.raises(ValueError, match=r"validation.metric: expected one of distance for an estimator"):
        TreeStudent(REGRESSORS["lightgbm"], task="regression").fit(
            ROWS["regression"], caches["regression"], validation=Validation(rows=0.2, metric="accuracy")
        )
