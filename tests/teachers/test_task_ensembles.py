"""Ensembles of multi-label classifiers, and errors and folders of both kinds of ensembles."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit
from sklearn import ensemble as forests
from sklearn.linear_model import BayesianRidge, LinearRegression, LogisticRegression
from sklearn.multiclass import OneVsRestClassifier
from torch import nn

from ensdistill.data import Rows
from ensdistill.teachers import Ensemble, RegressionEnsemble
from ensdistill.teachers.fitting.calibration import negative_log_likelihood
from ensdistill.teachers.fitting.multilabel import fitted_rows
from ensdistill.teachers.members import ArrayMember, CallableMember

FEW = settings(max_examples=6, deadline=None)
seeds = st.integers(0, 2**32 - 1)


def multilabel(logits, **more):
    members = [ArrayMember(name=f"m{k}", logits=z, task="multilabel") for k, z in enumerate(logits)]
    return Ensemble.from_members(members, **more)


def regression(mean, variance=None, **more):
    spread = [None] * len(mean) if variance is None else variance
    members = [
        ArrayMember(name=f"m{k}", means=m, variances=v)
        for k, (m, v) in enumerate(zip(mean, spread, strict=True))
    ]
    return Ensemble.from_members(members, task="regression", **more)


def draw(seed, rows=40, members=3, width=4):
    generator = np.random.default_rng(seed)
    logits = generator.normal(0, 2, (members, rows, width))
    labels = (generator.random((rows, width)) < expit(logits.mean(0))).astype(np.int8)
    labels[generator.random((rows, width)) < 0.2] = -1
    labels[0] = 1
    return logits.astype(np.float32), labels, generator.dirichlet(np.ones(members))


def bce(p, labels):
    known = labels >= 0
    return -np.log(np.where(labels == 1, p, 1 - p))[known].mean()


@FEW
@given(seeds)
def test_combiners_are_means_of_probabilities_or_of_logits(seed):
    logits, _, weights = draw(seed)
    x = np.zeros((40, 1))
    z = logits.astype(np.float64)
    mean = multilabel(logits, weights=weights).predict_proba(x)
    np.testing.assert_allclose(mean, np.einsum("k,knc->nc", weights, expit(z)), rtol=1e-6)
    for combiner in ("logit", "log_prob"):
        mean = multilabel(logits, weights=weights, combiner=combiner).predict_proba(x)
        np.testing.assert_allclose(mean, expit(np.einsum("k,knc->nc", weights, z)), rtol=1e-5)
    hot = multilabel(logits, weights=weights).predict_proba(x, temperature=3.0)
    np.testing.assert_allclose(hot, np.einsum("k,knc->nc", weights, expit(z / 3)), rtol=1e-5)


@settings(max_examples=2, deadline=None)
@given(seeds)
def test_labels_and_members_may_be_permuted(seed):
    logits, labels, weights = draw(seed)
    generator = np.random.default_rng(seed)
    columns, members = generator.permutation(4), generator.permutation(3)
    x = np.zeros((40, 1))
    one = multilabel(logits, weights=weights).calibrate(logits, labels, method="per_class")
    moved = logits[members][:, :, columns]
    other = multilabel(moved, weights=weights[members]).calibrate(
        moved, labels[:, columns], method="per_class"
    )
    np.testing.assert_allclose(other.predict_proba(x), one.predict_proba(x)[:, columns], rtol=1e-5)
    one.weigh(logits, labels)
    other.weigh(moved, labels[:, columns])
    np.testing.assert_allclose(other.weights, one.weights[members], atol=1e-4)
    np.testing.assert_allclose(other.uncertainty(x).total, one.uncertainty(x).total, rtol=1e-3)


@FEW
@given(seeds)
def test_equal_members_are_one(seed):
    logits, _, weights = draw(seed)
    x = np.zeros((40, 1))
    alone = multilabel(logits[:1])
    for combiner in ("prob", "logit"):
        same = multilabel(np.repeat(logits[:1], 3, 0), weights=weights, combiner=combiner)
        np.testing.assert_allclose(same.predict_proba(x), alone.predict_proba(x), rtol=1e-9)
    found = same.uncertainty(x)
    np.testing.assert_allclose(found.epistemic, 0, atol=1e-9)
    p = alone.predict_proba(x)
    np.testing.assert_allclose(found.total, -(p * np.log(p) + (1 - p) * np.log(1 - p)).sum(1), rtol=1e-6)


def test_unknown_labels_are_as_if_absent():
    logits, labels, _ = draw(0)
    rows = fitted_rows("multilabel", logits, labels)
    known = labels >= 0
    assert len(rows.labels) == known.sum()
    loss = negative_log_likelihood(
        np.log(expit(np.stack([-2 * rows.logits[0][:, 1], 2 * rows.logits[0][:, 1]], 1))), rows.labels
    )
    np.testing.assert_allclose(loss, bce(expit(logits[0].astype(float)), labels), rtol=1e-6)
    one = multilabel(logits).calibrate(logits, labels, method="pooled")
    other = multilabel(logits).calibrate(logits, np.where(known, labels, np.nan), method="pooled")
    assert one.temperature == other.temperature
    more = (
        np.concatenate([logits, 9 * np.ones((3, 5, 4), np.float32)], 1),
        np.concatenate([labels, -np.ones((5, 4))]),
    )
    assert multilabel(logits).calibrate(*more, method="pooled").temperature == pytest.approx(one.temperature)


@pytest.mark.parametrize("method", ["temperature", "per_class", "pooled"])
def test_calibration_finds_the_temperatures(method):
    generator = np.random.default_rng(0)
    scale = np.array([1.0, 3.0, 6.0]) if method == "per_class" else np.full(3, 3.0)
    true = generator.normal(0, 1.5, (2, 6000, 3))
    logits = true * scale
    labels = (generator.random((6000, 3)) < expit(true.mean(0) if method == "pooled" else true[0])).astype(
        int
    )
    fitted = multilabel(logits, weights=[1, 0]).calibrate(logits, labels, method=method)
    before = multilabel(logits, weights=[1, 0])
    x = np.zeros((6000, 1))
    if method == "temperature":
        assert fitted.temperatures[0] == pytest.approx(3, rel=0.05)
    elif method == "per_class":
        np.testing.assert_allclose(1 / fitted.vectors[0, 0], scale, rtol=0.1)
        assert (fitted.vectors[1] == 0).all()
    assert bce(fitted.predict_proba(x), labels) < bce(before.predict_proba(x), labels)


def test_weights_and_selection_prefer_the_better_member():
    generator = np.random.default_rng(0)
    good = generator.normal(0, 2, (2000, 3))
    labels = (generator.random((2000, 3)) < expit(good)).astype(int)
    logits = np.stack([generator.normal(0, 2, (2000, 3)), good]).astype(np.float32)
    ensemble = multilabel(logits)
    assert ensemble.select(logits, labels).names == ("m1",)
    assert ensemble.weigh(logits, labels).weights[1] > 0.95
    few = multilabel(logits[:, :6]).weigh(logits[:, :6], labels[:6])
    assert 0.5 < few.weights[1] < 0.8  # six rows are weak evidence
    weighted = np.repeat([1.0, 0.0], 1000)
    same = multilabel(logits).weigh(logits, labels, sample_weight=weighted)
    half = multilabel(logits[:, :1000]).weigh(logits[:, :1000], labels[:1000])
    np.testing.assert_allclose(same.weights, half.weights)


def test_few_rows_of_labels_do_little_harm():
    generator = np.random.default_rng(0)
    worse = []
    for _ in range(3):
        logits = generator.normal(0, 2, (3, 1010, 5)) + generator.normal(0, 2, (1, 1010, 5))
        labels = (generator.random((1010, 5)) < expit(logits.mean(0))).astype(int)
        ensemble = multilabel(logits)
        x = np.zeros((1010, 1))
        before = bce(ensemble.predict_proba(x)[10:], labels[10:])
        fitted = multilabel(logits)
        fitted.calibrate(logits[:, :10], labels[:10], method="per_class").weigh(logits[:, :10], labels[:10])
        worse.append(bce(fitted.predict_proba(x)[10:], labels[10:]) - before)
    assert np.mean(worse) < 0.02
    assert np.max(worse) < 0.04


def test_wrong_labels_and_methods_are_refused():
    logits, labels, _ = draw(0)
    ensemble = multilabel(logits)
    for call, message in (
        (
            lambda: ensemble.calibrate(logits, labels, method="vector"),
            "^method: expected temperature, per_class or pooled; got 'vector'",
        ),
        (lambda: ensemble.calibrate(logits, labels[:, :2]), r"^labels: expected \[40, 4\]; got \[40, 2\]"),
        (lambda: ensemble.calibrate(logits, labels[:, 0]), r"^labels: expected \[N, C\]"),
        (lambda: ensemble.calibrate(logits, -np.ones((40, 4))), "^labels: expected known labels"),
        (
            lambda: multilabel(logits - np.inf).predict_proba(np.zeros((40, 1))),
            "m0: the logits of row 0 hold -inf",
        ),
        (
            lambda: Ensemble.from_members([np.eye(3)]).calibrate(
                np.eye(3)[None], [0, 1, 2], method="per_class"
            ),
            "^method: ",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_modules_predict_together_and_with_gradients():
    import torch

    torch.manual_seed(0)
    modules = [nn.Linear(4, 3), nn.Linear(4, 3), nn.Sequential(nn.Linear(4, 3), nn.Sigmoid())]
    ensemble = Ensemble.from_members(modules, task="multilabel")
    x = np.random.default_rng(0).normal(size=(9, 4)).astype(np.float32)
    alone = ensemble.predict_logits(x)
    np.testing.assert_allclose(ensemble.predict_logits(x, way="stacked"), alone, atol=1e-5)
    for k, function in enumerate(ensemble.differentiable()):
        inputs = torch.from_numpy(x).requires_grad_()
        found = function(inputs)
        np.testing.assert_allclose(found.detach(), alone[k], atol=1e-4)
        assert torch.autograd.grad(found.sum(), inputs)[0].abs().sum() > 0


X = np.random.default_rng(0).normal(size=(80, 4))
Y = X[:, 0] + np.random.default_rng(1).normal(size=80)
LABELS = (X[:, :2] > 0).astype(int)


def test_members_of_several_tasks_are_refused_by_name():
    classifier = forests.RandomForestClassifier(2).fit(X, Y > 0)
    regressor = forests.RandomForestRegressor(2).fit(X, Y)
    several = OneVsRestClassifier(LogisticRegression()).fit(X, LABELS)
    for one, other, tasks in (
        (classifier, regressor, ("classification", "regression")),
        (several, classifier, ("multilabel", "classification")),
    ):
        names = type(one).__name__.lower(), type(other).__name__.lower()
        message = (
            rf"^members: expected one task; {names[0]} is of the task {tasks[0]}, {names[1]} of {tasks[1]}"
        )
        with pytest.raises(ValueError, match=message):
            Ensemble.from_members([one, other])
    member = CallableMember(lambda x: x, name="f", task="regression")
    with pytest.raises(ValueError, match=r"^task: f is a member of the task regression; got multilabel"):
        Ensemble.from_members([member], task="multilabel")
    with pytest.raises(
        ValueError, match=r"^combiner: expected prob, the only one of regressors; got 'logit'"
    ):
        Ensemble.from_members([member], combiner="logit")
    lacking = [
        ArrayMember(name=n, logits=np.eye(2), task="multilabel", classes=c)
        for n, c in (("m", "ab"), ("l", "ac"))
    ]
    with pytest.raises(ValueError, match=r"^members: l has the classes \['a', 'c'\]"):
        Ensemble.from_members(lacking)
    with pytest.raises(ValueError, match=r"^members: m lacks \['c'\]; expected all of"):
        Ensemble.from_members(lacking[:1], classes="abc")


def test_named_labels_and_numbers_are_put_in_order():
    z = np.random.default_rng(0).normal(size=(6, 2))
    members = [
        ArrayMember(name=n, logits=z, task="multilabel", classes=c) for n, c in (("m", "ab"), ("l", "ba"))
    ]
    found = Ensemble.from_members(members).predict_logits(np.zeros((6, 1))).numpy()
    np.testing.assert_array_equal(found[1], found[0][:, ::-1])
    members = [ArrayMember(name=n, means=z, variances=z**2, classes=c) for n, c in (("m", "ab"), ("l", "ba"))]
    mean, variance = Ensemble.from_members(members, task="regression").predict_moments(np.zeros((6, 1)))
    np.testing.assert_array_equal(mean[1], mean[0][:, ::-1])
    np.testing.assert_array_equal(variance[1], variance[0][:, ::-1])


def test_multilabel_ensembles_are_saved(tmp_path):
    models = [
        OneVsRestClassifier(LogisticRegression()).fit(X, LABELS),
        forests.RandomForestClassifier(3, random_state=0).fit(X, LABELS),
    ]
    ensemble = Ensemble.from_members(models, classes=["u", "v"])
    assert ensemble.task == "multilabel"
    raw = ensemble.raw_logits(X)
    ensemble.calibrate(raw, LABELS, method="per_class").weigh(raw, LABELS)
    ensemble.save(tmp_path / "e")
    loaded = Ensemble.load(tmp_path / "e")
    assert loaded.fingerprint() == ensemble.fingerprint()
    np.testing.assert_array_equal(loaded.predict_proba(X), ensemble.predict_proba(X))
    assert loaded.only("randomforestclassifier").task == "multilabel"
    assert "task" not in Ensemble.from_members([np.eye(3)]).fingerprint()


def test_regression_ensembles_are_saved(tmp_path):
    models = [
        BayesianRidge().fit(X, Y),
        LinearRegression().fit(X, Y),
        forests.RandomForestRegressor(3, random_state=0).fit(X, Y),
    ]
    ensemble = Ensemble.from_members(models[:1] + models[2:] + [models[1]], classes=["y"])
    assert isinstance(ensemble, RegressionEnsemble)
    moments = ensemble.predict_moments(X)
    ensemble.weigh(moments, Y, metric="nll").fit_interval(moments, Y, 0.8)
    ensemble.save(tmp_path / "e")
    for kind in (Ensemble, RegressionEnsemble):
        loaded = kind.load(tmp_path / "e")
        assert loaded.fingerprint() == ensemble.fingerprint()
        np.testing.assert_array_equal(loaded.predict_interval(X)[0], ensemble.predict_interval(X)[0])
        np.testing.assert_array_equal(loaded.predict(X), ensemble.predict(X))
    assert repr(loaded).startswith("RegressionEnsemble: variance times")
    assert loaded.only("bayesianridge").predict(X).shape == (80, 1)
    text = (tmp_path / "e" / "ensemble.json").read_text()
    for old, new, message in (
        ('"task": "regression"', '"task": "votes"', "ensemble.json: task: expected one of classification"),
        ('"variance_factor": ', '"variance_factor": -', "variance_factor: expected a positive number"),
    ):
        (tmp_path / "e" / "ensemble.json").write_text(text.replace(old, new))
        with pytest.raises(ValueError, match=message):
            Ensemble.load(tmp_path / "e")
    classifiers = Ensemble.from_members([np.eye(3)])
    classifiers.save(tmp_path / "c")
    with pytest.raises(
        ValueError, match="task: ndarray is a member of the task classification; got regression"
    ):
        RegressionEnsemble.from_members(Ensemble.load(tmp_path / "c").members)


def test_a_cache_has_the_task_of_its_ensemble(tmp_path):
    from ensdistill.cache import cache_targets

    rows = Rows(X, np.arange(80), np.full(80, -100))
    for ensemble in (multilabel(np.zeros((1, 80, 3))), regression(np.zeros((1, 80, 3)))):
        assert cache_targets(ensemble, rows, tmp_path / ensemble.task).task == ensemble.task
