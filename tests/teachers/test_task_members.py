"""Multi-label classifiers and regressors as members: each answers as its own library does, and is saved."""

import warnings
from functools import partial

import numpy as np
import pytest
import torch
from scipy.special import expit, logit
from sklearn import ensemble, linear_model, multioutput, neighbors, neural_network, tree
from sklearn.base import BaseEstimator
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF
from sklearn.model_selection import GridSearchCV
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from ensdistill.common.describe import class_path
from ensdistill.common.tasks import task_of
from ensdistill.data import Rows
from ensdistill.data.preprocess import Transformer
from ensdistill.models import MLP
from ensdistill.teachers import train_ensemble
from ensdistill.teachers.members import (
    ArrayMember,
    BoostedMember,
    CallableMember,
    OnnxMember,
    Preprocessed,
    SklearnMember,
    TorchMember,
    as_member,
    load_member,
)
from ensdistill.teachers.recipes import SklearnMembers

ROOT = {"random_state": 0}
X = np.random.default_rng(0).normal(size=(60, 4))
LABELS = (X[:, :3] + np.random.default_rng(1).normal(size=(60, 3)) > 0).astype(int)
NUMBERS = X[:, :2] * 30 + np.random.default_rng(2).normal(size=(60, 2)) + 100
LOGISTIC = linear_model.LogisticRegression()


def probabilities_of(estimator, x):
    """[N, C] as scikit-learn's own documentation reads them."""
    found = estimator.predict_proba(x)
    return np.stack([p[:, 1] for p in found], axis=1) if isinstance(found, list) else found


MULTILABEL = {
    "one against the rest": OneVsRestClassifier(LOGISTIC),
    "one model a label": multioutput.MultiOutputClassifier(LOGISTIC),
    "chain": multioutput.ClassifierChain(LOGISTIC, **ROOT),
    "forest": ensemble.RandomForestClassifier(5, **ROOT),
    "tree": tree.DecisionTreeClassifier(max_depth=3),
    "neighbours": neighbors.KNeighborsClassifier(3),
    "network": neural_network.MLPClassifier((4,), max_iter=5, **ROOT),
    "pipeline": make_pipeline(StandardScaler(), ensemble.ExtraTreesClassifier(3, **ROOT)),
}


@pytest.mark.parametrize("name", MULTILABEL)
def test_multilabel_estimators_answer_as_scikit_learn(name, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        estimator = MULTILABEL[name].fit(X, LABELS)
    member = SklearnMember(estimator, classes="abc", task="multilabel")
    found = member.predict_logits(X)
    assert (found.dtype, found.shape, member.classes) == (np.float32, (60, 3), ("a", "b", "c"))
    assert np.isfinite(found).all()
    np.testing.assert_allclose(expit(found.astype(float)), probabilities_of(estimator, X), atol=3e-6)
    assert task_of(as_member(estimator)) == "multilabel"
    member.save(tmp_path)
    loaded = load_member(tmp_path)
    assert (task_of(loaded), loaded.fingerprint()) == ("multilabel", member.fingerprint())
    np.testing.assert_array_equal(loaded.predict_logits(X), found)


def test_fitted_models_of_several_labels_declare_their_task():
    several = [
        neural_network.MLPClassifier((2,), max_iter=2),
        linear_model.RidgeClassifier(),
        make_pipeline(StandardScaler(), OneVsRestClassifier(linear_model.LogisticRegression())),
        GridSearchCV(tree.DecisionTreeClassifier(), {"max_depth": [2]}, cv=2),
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of two steps
        for estimator in several:
            assert task_of(as_member(estimator.fit(X, LABELS))) == "multilabel"
            assert task_of(as_member(estimator.fit(X, LABELS[:, 0]))) == "classification"


def test_margins_are_log_odds_where_there_are_no_probabilities():
    ridge = linear_model.RidgeClassifier().fit(X, LABELS)
    member = SklearnMember(ridge, task="multilabel")
    np.testing.assert_allclose(member.predict_logits(X), ridge.decision_function(X), rtol=1e-6)


def test_labels_without_both_values_have_a_probability_of_0_or_1():
    labels = LABELS.copy()
    labels[:, 0], labels[:, 2] = 0, 1
    found = SklearnMember(
        ensemble.RandomForestClassifier(2).fit(X, labels), task="multilabel"
    ).predict_logits(X)
    np.testing.assert_allclose(found[:, [0, 2]], np.tile(np.log([1e-6, 1e6]), (60, 1)), atol=1e-4)


def test_classifiers_that_are_not_multilabel_are_refused():
    one = ensemble.RandomForestClassifier(2).fit(X, LABELS[:, 0])
    with pytest.raises(ValueError, match=r"^estimator: .* was fitted to one class for each row"):
        SklearnMember(one, task="multilabel").predict_logits(X)
    many = ensemble.RandomForestClassifier(2).fit(X, LABELS + np.arange(60)[:, None] % 3)
    with pytest.raises(ValueError, match=r"^estimator: .*labels that are 0 or 1; label 0 has the values"):
        SklearnMember(many, task="multilabel").predict_logits(X)
    with pytest.raises(ValueError, match=r"several labels for each row .* or state task='multilabel'"):
        SklearnMember(ensemble.RandomForestClassifier(2).fit(X, LABELS)).predict_logits(X)
    with pytest.raises(ValueError, match=r"^columns: .*none for the task multilabel"):
        SklearnMember(one, columns=["a", "b"], task="multilabel")


REGRESSORS = {
    "forest": (ensemble.RandomForestRegressor(5, **ROOT), 1),
    "two numbers": (ensemble.RandomForestRegressor(5, **ROOT), 2),
    "ridge": (make_pipeline(StandardScaler(), linear_model.Ridge()), 2),
}


@pytest.mark.parametrize("name", REGRESSORS)
def test_regressors_answer_as_scikit_learn(name, tmp_path):
    estimator, numbers = REGRESSORS[name]
    y = NUMBERS[:, 0] if numbers == 1 else NUMBERS
    member = SklearnMember(estimator.fit(X, y), task="regression")
    mean, variance = member.predict_moments(X)
    assert (mean.dtype, mean.shape, variance) == (np.float64, (60, numbers), None)
    np.testing.assert_array_equal(mean, estimator.predict(X).reshape(60, numbers))
    if numbers == 1:
        assert task_of(as_member(estimator)) == "regression"
    member.save(tmp_path)
    loaded = load_member(tmp_path)
    np.testing.assert_array_equal(loaded.predict_moments(X).mean, mean)
    assert loaded.fingerprint() == member.fingerprint()
    with pytest.raises(TypeError, match=r"expected predict_moments, because its task is regression"):
        member.predict_logits(X)


@pytest.mark.parametrize(
    "estimator",
    [
        linear_model.BayesianRidge(),
        GaussianProcessRegressor(alpha=0.1),
        make_pipeline(linear_model.ARDRegression()),
    ],
)
def test_regressors_with_a_deviation_give_its_square(estimator, tmp_path):
    mean, deviation = estimator.fit(X, NUMBERS[:, 0]).predict(X[:9], return_std=True)
    member = SklearnMember(estimator, task="regression", batch_size=4)
    found = member.predict_moments(X[:9])
    np.testing.assert_allclose(found.mean[:, 0], mean, rtol=1e-9)
    np.testing.assert_allclose(found.variance[:, 0], deviation**2, rtol=1e-6)
    member.save(tmp_path)
    np.testing.assert_array_equal(load_member(tmp_path).predict_moments(X[:9]).variance, found.variance)


class Distribution:
    def __init__(self, x):
        self.x = x

    def mean(self):
        return self.x[:, 0]

    def std(self):
        return np.full(len(self.x), 3.0)


class NaturalBoosting(BaseEstimator):
    """Has no tags of a regressor, as NGBoost's NGBRegressor has none."""

    def fit(self, x, y):
        self.fitted_ = True
        return self

    def predict(self, x):
        return self.pred_dist(x).mean()

    def pred_dist(self, x):
        return Distribution(x)


def test_a_predicted_distribution_gives_both_moments():
    member = as_member(NaturalBoosting().fit(X, NUMBERS[:, 0]))
    mean, variance = member.predict_moments(X)
    np.testing.assert_array_equal(mean[:, 0], X[:, 0])
    assert (variance == 9).all()
    recipe = SklearnMembers(NaturalBoosting(), trusted=(class_path(NaturalBoosting),))
    rows = Rows(X, np.arange(60), NUMBERS[:, :1])
    _, held_out = train_ensemble([recipe], rows, ("y",), folds=2)
    assert (held_out.variance == 9).all()


def test_a_process_of_several_numbers_gives_all_deviations():
    process = GaussianProcessRegressor(RBF(2.0), alpha=0.1, optimizer=None).fit(X, NUMBERS)
    mean, deviation = process.predict(X[:9], return_std=True)
    found = SklearnMember(process, task="regression").predict_moments(X[:9])
    np.testing.assert_array_equal(found.mean, mean)
    np.testing.assert_allclose(found.variance, deviation**2, rtol=1e-12)


@pytest.mark.parametrize("strategy", ["one_output_per_tree", "multi_output_tree"])
def test_trees_of_several_outputs_answer_as_xgboost(strategy, tmp_path):
    xgboost = pytest.importorskip("xgboost")
    settings = {"n_estimators": 3, "multi_strategy": strategy, "tree_method": "hist", "n_jobs": 1}
    numbers = xgboost.XGBRegressor(**settings).fit(X, NUMBERS)
    member = as_member(numbers, task="regression")
    np.testing.assert_array_equal(member.predict_moments(X).mean, numbers.predict(X))
    member.save(tmp_path)
    np.testing.assert_array_equal(load_member(tmp_path).predict_moments(X).mean, numbers.predict(X))
    tags = xgboost.XGBClassifier(**settings).fit(X, LABELS)
    found = expit(as_member(tags, task="multilabel").predict_logits(X).astype(float))
    np.testing.assert_allclose(found, tags.predict_proba(X), atol=1e-6)


def test_a_classifier_is_no_regressor():
    with pytest.raises(ValueError, match=r"^task: tree is a classifier; expected a regressor"):
        SklearnMember(tree.DecisionTreeClassifier().fit(X, LABELS), name="tree", task="regression")
    with pytest.raises(ValueError, match=r"predicts one number a row.* or state task='regression'"):
        SklearnMember(linear_model.Ridge().fit(X, NUMBERS[:, 0])).predict_logits(X)
    with pytest.raises(TypeError, match=r"expected predict_logits, because its task is classification"):
        SklearnMember(tree.DecisionTreeClassifier().fit(X, LABELS[:, 0])).predict_moments(X)


def boosted(library, loss=None):
    made = {
        "xgboost": lambda m: m.XGBRegressor(n_estimators=3, n_jobs=1),
        "lightgbm": lambda m: m.LGBMRegressor(n_estimators=3, n_jobs=1, verbose=-1, min_child_samples=3),
        "catboost": lambda m: m.CatBoostRegressor(
            iterations=3,
            verbose=False,
            allow_writing_files=False,
            loss_function=loss or "RMSE",
            thread_count=1,
        ),
    }
    return made[library](pytest.importorskip(library))


@pytest.mark.parametrize(
    ("library", "loss"),
    [
        ("xgboost", None),
        ("lightgbm", None),
        ("catboost", None),
        ("catboost", "Poisson"),
        ("catboost", "MultiRMSE"),
        ("catboost", "RMSEWithUncertainty"),
    ],
)
def test_boosted_regressors_answer_as_their_library(library, loss, tmp_path):
    model = boosted(library, loss)
    model.fit(X, NUMBERS if loss == "MultiRMSE" else NUMBERS[:, 0])
    member = as_member(model, task="regression")
    assert isinstance(member, BoostedMember)
    own = np.asarray(model.predict(X), np.float64)
    if loss == "RMSEWithUncertainty":
        np.testing.assert_array_equal(member.predict_moments(X).variance[:, 0], own[:, 1])
        own = own[:, 0]
    np.testing.assert_array_equal(member.predict_moments(X).mean, own.reshape(60, -1))
    member.save(tmp_path)
    loaded = load_member(tmp_path)
    np.testing.assert_array_equal(loaded.predict_moments(X).mean, member.predict_moments(X).mean)
    assert loaded.fingerprint() == member.fingerprint()
    booster = getattr(model, "get_booster", lambda: getattr(model, "booster_", model))()
    plain = BoostedMember(booster, task="regression").predict_moments(X).mean
    np.testing.assert_allclose(plain, member.predict_moments(X).mean, rtol=1e-6)
    with pytest.raises(ValueError, match=r"^estimator: expected a .* classifier.* state task='regression'"):
        BoostedMember(model)


@pytest.mark.parametrize("library", ["xgboost", "catboost"])
def test_boosted_models_of_several_labels_answer_as_their_library(library, tmp_path):
    package = pytest.importorskip(library)
    model = (
        package.XGBClassifier(n_estimators=3, n_jobs=1)
        if library == "xgboost"
        else package.CatBoostClassifier(
            iterations=3,
            verbose=False,
            allow_writing_files=False,
            loss_function="MultiLogloss",
            thread_count=1,
        )
    ).fit(X, LABELS)
    member = as_member(model)  # the model itself declares the task
    assert member.task == "multilabel"
    found = member.predict_logits(X)
    np.testing.assert_allclose(expit(found.astype(float)), model.predict_proba(X), atol=1e-6)
    np.testing.assert_allclose(found, member._model.scores(X), rtol=1e-6)  # no rounding of probabilities
    member.save(tmp_path)
    np.testing.assert_array_equal(load_member(tmp_path).predict_logits(X), found)
    with pytest.raises(ValueError, match="task='multilabel'"):
        BoostedMember(model)


def test_lightgbm_has_no_models_of_several_labels():
    lightgbm = pytest.importorskip("lightgbm")
    model = lightgbm.LGBMClassifier(n_estimators=1, verbose=-1).fit(X, LABELS[:, 0])
    with pytest.raises(ValueError, match=r"^task: expected classification or regression of lightgbm"):
        BoostedMember(model, task="multilabel")


class Pair(nn.Module):
    def __init__(self, log=False, width=4):
        super().__init__()
        self.linear, self.log = nn.Linear(width, 2), log

    def forward(self, x):
        out = self.linear(x)
        return out, (out if self.log else out.square())


def test_torch_modules_of_other_tasks(tmp_path):
    torch.manual_seed(0)
    x = X.astype(np.float32)
    logits, sigmoids = MLP(4, [], 3), nn.Sequential(MLP(4, [], 3), nn.Sigmoid())
    plain = logits(torch.from_numpy(x)).detach().numpy()
    member = TorchMember(logits, task="multilabel")
    np.testing.assert_array_equal(member.predict_logits(x), plain)
    ended = TorchMember(sigmoids, task="multilabel")
    p = sigmoids(torch.from_numpy(x)).detach().numpy()
    np.testing.assert_allclose(ended.predict_logits(x), logit(p.astype(float)), atol=1e-3)
    assert member.fingerprint() != TorchMember(logits).fingerprint()
    with pytest.raises(
        ValueError, match=r"^output: module: expected log-odds, or a sigmoid.* ends in a softmax"
    ):
        TorchMember(nn.Sequential(logits, nn.Softmax(1)), task="multilabel").predict_logits(x)
    with pytest.raises(ValueError, match=r"are of the task multilabel: TorchMember\("):
        TorchMember(sigmoids).predict_logits(x)
    with pytest.raises(
        ValueError, match=r"^output: module: expected one of auto, logits, probabilities for the task"
    ):
        TorchMember(logits, task="multilabel", output="margin")

    mean, variance = TorchMember(logits, task="regression").predict_moments(x)
    np.testing.assert_array_equal(mean, plain.astype(np.float64))
    assert variance is None
    for log in (False, True):
        pair = Pair(log)
        kind = "mean_and_log_variance" if log else "mean_and_variance"
        found = TorchMember(pair, task="regression", output=kind).predict_moments(x)
        own = pair.linear(torch.from_numpy(x)).detach().double().numpy()
        np.testing.assert_allclose(found.mean, own)
        np.testing.assert_allclose(found.variance, np.exp(own) if log else own**2, rtol=1e-6)
    with pytest.raises(ValueError, match=r"^output: module: it returns two parts; state"):
        TorchMember(Pair(), task="regression").predict_moments(x)
    four = TorchMember(MLP(4, [], 4), task="regression", output="mean_and_log_variance").predict_moments(x)
    assert four.mean.shape == four.variance.shape == (60, 2)
    saved = TorchMember(
        MLP(inputs=4, hidden=[], outputs=4),
        task="regression",
        output="mean_and_log_variance",
        factory=partial(MLP, inputs=4, hidden=[], outputs=4),
    )
    saved.save(tmp_path)
    loaded = load_member(tmp_path)
    assert loaded.fingerprint() == saved.fingerprint()
    np.testing.assert_array_equal(loaded.predict_moments(x).variance, saved.predict_moments(x).variance)


def test_hugging_face_models_declare_their_task():
    transformers = pytest.importorskip("transformers")
    tokens = np.random.default_rng(0).integers(1, 30, (5, 6))
    small = {"vocab_size": 30, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    for problem, task in (("multi_label_classification", "multilabel"), ("regression", "regression")):
        config = transformers.BertConfig(**small, intermediate_size=8, num_labels=3, problem_type=problem)
        torch.manual_seed(0)
        model = transformers.BertForSequenceClassification(config).eval()
        member = as_member(model)
        assert task_of(member) == task
        own = model(torch.from_numpy(tokens), attention_mask=torch.ones(5, 6).long()).logits.detach().numpy()
        found = member.predict_logits(tokens) if task == "multilabel" else member.predict_moments(tokens).mean
        np.testing.assert_allclose(found, own, atol=1e-6)
        with pytest.raises(ValueError, match=rf"^task: .*problem_type='{problem}'; got the task"):
            TorchMember(model, task="regression" if task == "multilabel" else "multilabel")


def test_onnx_files_of_other_tasks(tmp_path):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    x = X.astype(np.float32)
    net = MLP(4, [], 4).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            net,
            (torch.zeros(2, 4),),
            tmp_path / "net.onnx",
            output_names=["values"],
            dynamo=False,
            input_names=["x"],
            dynamic_axes={"x": {0: "n"}, "values": {0: "n"}},
        )
    own = net(torch.from_numpy(x)).detach().numpy()
    member = OnnxMember(tmp_path / "net.onnx", task="multilabel", output="logits")
    np.testing.assert_allclose(member.predict_logits(x), own, atol=1e-6)
    member = OnnxMember(tmp_path / "net.onnx", task="regression", output="mean_and_log_variance")
    np.testing.assert_allclose(member.predict_moments(x).variance, np.exp(own[:, 2:]), rtol=1e-5)
    member.save(tmp_path / "saved")
    loaded = load_member(tmp_path / "saved")
    np.testing.assert_array_equal(loaded.predict_moments(x).mean, member.predict_moments(x).mean)
    assert loaded.fingerprint() == member.fingerprint()
    assert OnnxMember(tmp_path / "net.onnx", task="regression").predict_moments(x).mean.shape == (60, 4)


def test_functions_of_other_tasks():
    p = expit(X)
    member = CallableMember(lambda x: expit(x), name="f", version="1", task="multilabel")
    np.testing.assert_allclose(expit(member.predict_logits(X)), p, atol=1e-5)
    member = as_member(lambda x: x, task="multilabel")
    np.testing.assert_array_equal(member.predict_logits(X), X.astype(np.float32))
    with pytest.raises(
        ValueError, match=r"^output: f: its 4 outputs, all in 0\.\.1, could be probabilities or"
    ):
        CallableMember(lambda x: expit(x), name="f", task="multilabel").predict_logits(X[:1])
    mean, variance = as_member(
        lambda x: (x, x**2), output="mean_and_variance", task="regression"
    ).predict_moments(X)
    np.testing.assert_array_equal(variance, mean**2)
    with pytest.raises(ValueError, match=r"it returns two parts; state output='mean_and_variance'"):
        as_member(lambda x: (x, x), task="regression").predict_moments(X)
    with pytest.raises(ValueError, match=r"the variances of row 0 hold -1\.0 \(60 such rows\)"):
        as_member(lambda x: (x, 0 * x - 1), output="mean_and_variance", task="regression").predict_moments(X)
    with pytest.raises(ValueError, match=r"^probabilities: expected numbers in 0\.\.1.* row 0"):
        as_member(lambda x: 2 + x**2, output="probabilities", task="multilabel").predict_logits(X)


@pytest.mark.parametrize("found_by", ["place", "uids", "inputs"])
def test_stored_arrays_of_other_tasks(found_by, tmp_path):
    uids = np.arange(60)[::-1].copy()
    where = {"place": {}, "uids": {"uids": uids}, "inputs": {"inputs": X}}[found_by]
    cases = {
        "multilabel": {"probabilities": expit(X), "task": "multilabel"},
        "regression": {"means": NUMBERS, "variances": NUMBERS**2},
        "means": {"means": NUMBERS[:, 0]},
    }
    for name, arrays in cases.items():
        member = ArrayMember(name=name, **arrays, **where)
        asked = member.for_uids(uids, np.sort(uids)) if found_by == "uids" else member
        if name == "multilabel":
            np.testing.assert_allclose(expit(asked.predict_logits(X)), expit(X), atol=1e-5)
        else:
            mean, variance = asked.predict_moments(X)
            np.testing.assert_array_equal(mean, arrays["means"].reshape(60, -1))
            assert (variance is None) == (name == "means")
        member.save(tmp_path / name)
        loaded = load_member(tmp_path / name)
        assert (task_of(loaded), loaded.fingerprint()) == (task_of(member), member.fingerprint())
    with pytest.raises(ValueError, match=r"^task: m: expected regression for means"):
        ArrayMember(name="m", means=NUMBERS, task="multilabel")
    with pytest.raises(ValueError, match=r"^variances: m: expected means beside them"):
        ArrayMember(name="m", logits=X, variances=X)
    with pytest.raises(ValueError, match=r"^m: the means of row 3 hold nan"):
        ArrayMember(name="m", means=np.where(np.arange(60) == 3, np.nan, 0.0))


def test_a_preprocess_keeps_the_task(tmp_path):
    scaler = StandardScaler().fit(X)
    model = linear_model.BayesianRidge().fit(scaler.transform(X), NUMBERS[:, 0])
    member = Preprocessed(SklearnMember(model, task="regression"), Transformer(scaler))
    mean, deviation = model.predict(scaler.transform(X), return_std=True)
    np.testing.assert_allclose(member.predict_moments(X).variance[:, 0], deviation**2)
    np.testing.assert_allclose(member.predict_moments(X).mean[:, 0], mean)
    member.save(tmp_path)
    assert task_of(load_member(tmp_path)) == task_of(as_member((model, Transformer(scaler)))) == "regression"
