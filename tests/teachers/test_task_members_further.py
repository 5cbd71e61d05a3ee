"""Further members of several labels and of numbers: quantiles, objectives of one's own, lists in ONNX files."""

import warnings

import numpy as np
import pytest
from scipy.special import expit
from sklearn import ensemble, linear_model, multioutput

from ensdistill.teachers.members import BoostedMember, OnnxMember, SklearnMember, as_member, load_member

X = np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32)
LABELS = (X[:, :3] + np.random.default_rng(1).normal(size=(60, 3)) > 0).astype(int)
NUMBERS = X[:, 0] * 30 + np.random.default_rng(2).normal(size=60) + 100


def test_quantile_regressors_answer_as_xgboost(tmp_path):
    xgboost = pytest.importorskip("xgboost")
    settings = {"n_estimators": 3, "n_jobs": 1, "objective": "reg:quantileerror"}
    model = xgboost.XGBRegressor(**settings, quantile_alpha=0.9).fit(X, NUMBERS)
    member = as_member(model)
    np.testing.assert_array_equal(member.predict_moments(X).mean[:, 0], model.predict(X))
    member.save(tmp_path)
    np.testing.assert_array_equal(load_member(tmp_path).predict_moments(X).mean[:, 0], model.predict(X))
    several = xgboost.XGBRegressor(**settings, quantile_alpha=[0.1, 0.9]).fit(X, NUMBERS)
    with pytest.raises(ValueError, match=r"2 quantiles of a number: fit one .*quantile_alpha=0.5"):
        as_member(several)  # its columns would be two numbers


def squared_error(labels, scores):
    return scores - labels, np.ones_like(scores)


def test_regressors_by_an_objective_of_one_s_own_answer_as_lightgbm(tmp_path):
    lightgbm = pytest.importorskip("lightgbm")
    settings = {"n_estimators": 3, "n_jobs": 1, "verbose": -1, "objective": squared_error}
    model = lightgbm.LGBMRegressor(**settings).fit(X, NUMBERS)
    for found in (as_member(model), as_member(model.booster_, task="regression")):
        np.testing.assert_array_equal(found.predict_moments(X).mean[:, 0], model.predict(X))
    found.save(tmp_path)
    np.testing.assert_array_equal(load_member(tmp_path).predict_moments(X).mean[:, 0], model.predict(X))
    with pytest.raises(ValueError, match=r"by an objective of its own.* state task='regression'"):
        BoostedMember(model.booster_)  # raw scores, which could be a classifier's


def onnx_file(estimator, labels, path):
    skl2onnx = pytest.importorskip("skl2onnx")
    pytest.importorskip("onnxruntime")
    estimator.fit(X, labels)
    options = {"zipmap": False}
    model = skl2onnx.to_onnx(estimator, X[:1], options=options)
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.parametrize(
    "estimator",
    [
        multioutput.MultiOutputClassifier(linear_model.LogisticRegression()),
        ensemble.RandomForestClassifier(5, random_state=0),
    ],
    ids=["sequence", "stacked"],
)
def test_onnx_files_that_list_labels_answer_as_scikit_learn(estimator, tmp_path):
    member = OnnxMember(onnx_file(estimator, LABELS, tmp_path / "m.onnx"), task="multilabel", batch_size=7)
    found = member.predict_logits(X)
    expected = np.stack([p[:, 1] for p in estimator.predict_proba(X)], axis=1)
    np.testing.assert_allclose(expit(found.astype(float)), expected, atol=3e-6)


def test_onnx_files_that_contradict_themselves_are_refused(tmp_path):
    labels = LABELS.copy()
    labels[:, 1] = 1  # of which skl2onnx writes the only column as that of 0
    path = onnx_file(ensemble.RandomForestClassifier(3, random_state=0), labels, tmp_path / "m.onnx")
    with pytest.raises(
        ValueError, match=r"'label' contradicts its probabilities of label 1.*estimator itself"
    ):
        OnnxMember(path, task="multilabel").predict_logits(X)


def test_estimators_without_several_labels_are_refused_with_a_remedy():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a column for a single label
        single = ensemble.RandomForestClassifier(2).fit(
            X, LABELS[:, :1]
        )  # scikit-learn takes it for one class
    with pytest.raises(ValueError, match=r"MultiOutputClassifier\(estimator\) keeps a single label"):
        SklearnMember(single, task="multilabel").predict_logits(X)
    with pytest.raises(ValueError, match=r"^task: ridge is a regressor; expected a classifier of several"):
        SklearnMember(linear_model.Ridge().fit(X, LABELS), task="multilabel")
    margins = multioutput.MultiOutputClassifier(linear_model.RidgeClassifier()).fit(X, LABELS)
    with pytest.raises(ValueError, match=r"has no predict_proba.*CalibratedClassifierCV adds predict_proba"):
        SklearnMember(margins, task="multilabel")
