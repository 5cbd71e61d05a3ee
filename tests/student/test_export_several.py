"""Estimators of several labels and of several numbers in ONNX: their own predictions for new rows."""

import numpy as np
import pytest
from sklearn.dummy import DummyClassifier
from sklearn.ensemble import ExtraTreesRegressor, RandomForestClassifier
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.linear_model import LogisticRegression, Ridge, RidgeClassifier
from sklearn.multiclass import OneVsRestClassifier
from sklearn.multioutput import ClassifierChain, MultiOutputClassifier, MultiOutputRegressor
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor

from ensdistill.data.samples import form
from ensdistill.student.export import run_onnx, to_onnx
from ensdistill.student.serving import Student
from ensdistill.teachers.members import ColumnsMember, SklearnMember, as_member

X = np.random.default_rng(0).normal(size=(120, 4)).astype(np.float32).astype(np.float64)
LABELS = (X[:, :3] + np.random.default_rng(1).normal(size=(120, 3)) > 0).astype(int)
NUMBERS = X[:, :2] ** 2 * 300 + 5000
TAGS, SIZES = ("a", "b", "c"), ("price", "weight")
CONSTANT = LABELS.copy()
CONSTANT[:, 1] = 1

SEVERAL = {
    "one model a label": MultiOutputClassifier(LogisticRegression()),
    "trees of each label": MultiOutputClassifier(DecisionTreeClassifier(max_depth=3, random_state=0)),
    "one against the rest": OneVsRestClassifier(LogisticRegression()),
    "forest": RandomForestClassifier(5, max_depth=4, random_state=0),
    "margins": RidgeClassifier(),
    "network": MLPClassifier((4,), max_iter=5, random_state=0),
    "pipeline": make_pipeline(StandardScaler(), MultiOutputClassifier(LogisticRegression())),
}


def exported(member, names, **settings):
    student = Student(member, names, names, form(X), **settings)
    made = to_onnx(student, X)
    assert made.largest_difference < 3e-6
    return student, made.model.SerializeToString()


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("name", SEVERAL)
def test_estimators_of_several_labels_give_their_own_probabilities(name):
    thresholds = [0.2, 0.5, 0.7]
    member = SklearnMember(SEVERAL[name].fit(X, LABELS), classes=TAGS, task="multilabel")
    student, model = exported(member, TAGS, thresholds=thresholds, temperature=1.3)
    rows = X[::-1] + 0.01
    labels, probabilities = run_onnx(model, rows)
    np.testing.assert_allclose(probabilities, student.predict_proba(rows), rtol=0, atol=2e-6)
    np.testing.assert_array_equal(labels, probabilities >= np.float32(thresholds))


@pytest.mark.parametrize("make", [OneVsRestClassifier, MultiOutputClassifier, RandomForestClassifier])
def test_a_label_that_is_alike_in_all_rows_is_a_constant(make):
    if make is RandomForestClassifier:
        fitted = make(3, max_depth=3, random_state=0).fit(X, CONSTANT)
    elif make is MultiOutputClassifier:
        fitted = make(LogisticRegression()).fit(X, LABELS)
        fitted.estimators_[1] = DummyClassifier().fit(X, CONSTANT[:, 1])
        fitted.classes_ = [one.classes_ for one in fitted.estimators_]
    else:
        with pytest.warns(UserWarning, match="present in all training examples"):
            fitted = make(LogisticRegression()).fit(X, CONSTANT)
    _, model = exported(SklearnMember(fitted, classes=TAGS, task="multilabel"), TAGS)
    np.testing.assert_allclose(run_onnx(model, X)[1][:, 1], 1, atol=2e-6)


def test_a_member_for_each_label_is_one_graph():
    each = [LogisticRegression().fit(X, 1 - LABELS[:, 0]), DecisionTreeClassifier(max_depth=3)]
    each[1].fit(X, LABELS[:, 1])
    each.append(DummyClassifier(strategy="prior").fit(X, LABELS[:, 2]))
    members = [
        SklearnMember(one, name=tag, columns=["no", "yes"], classes=["no", "yes"])
        for tag, one in zip(TAGS, each, strict=True)
    ]
    members[0] = SklearnMember(each[0], name="a", columns=["yes", "no"], classes=["no", "yes"])
    student, model = exported(ColumnsMember(members, name="each", classes=TAGS, task="multilabel"), TAGS)
    found = run_onnx(model, X)[1]
    np.testing.assert_allclose(found, student.predict_proba(X), rtol=0, atol=2e-6)
    np.testing.assert_allclose(found[:, 0], each[0].predict_proba(X)[:, 0], atol=2e-6)


@pytest.mark.parametrize(
    "estimator", [ExtraTreesRegressor(3, max_depth=4, random_state=0), MultiOutputRegressor(Ridge())]
)
def test_regressors_of_several_numbers_give_their_own_means(estimator):
    member = as_member(estimator.fit(X, NUMBERS), "all", task="regression")
    student, model = exported(SklearnMember(member.estimator, classes=SIZES, task="regression"), SIZES)
    np.testing.assert_allclose(run_onnx(model, X + 0.01)[0], student.predict(X + 0.01), rtol=1e-6)


def test_a_regressor_for_each_number_is_one_graph():
    each = [Ridge().fit(X, NUMBERS[:, 0]), DecisionTreeRegressor(max_depth=3).fit(X, NUMBERS[:, 1])]
    members = [SklearnMember(one, name=n, task="regression") for one, n in zip(each, SIZES, strict=True)]
    student, model = exported(ColumnsMember(members, name="each", classes=SIZES, task="regression"), SIZES)
    np.testing.assert_allclose(run_onnx(model, X)[0], student.predict(X), rtol=1e-6)


@pytest.mark.parametrize(
    ("estimator", "words"),
    [
        (ClassifierChain(LogisticRegression()), "ONNX can't express ClassifierChain"),
        (KNeighborsClassifier(3), "KNeighborsClassifier keeps its own format, because it holds the training"),
        (MultiOutputClassifier(KNeighborsClassifier(3)), "KNeighborsClassifier keeps its own format"),
        (GaussianProcessRegressor(), "ONNX can't express the deviations of GaussianProcessRegressor"),
    ],
)
def test_estimators_without_an_exact_form_are_refused(estimator, words):
    task = "regression" if isinstance(estimator, GaussianProcessRegressor) else "multilabel"
    names = SIZES if task == "regression" else TAGS
    member = SklearnMember(
        estimator.fit(X, NUMBERS if task == "regression" else LABELS), classes=names, task=task
    )
    with pytest.raises(ValueError, match=rf"^export: {words}.*--to safetensors"):
        to_onnx(Student(member, names, names, form(X)), X)


def test_boosters_of_each_label_keep_their_own_format():
    xgboost = pytest.importorskip("xgboost")
    each = [
        as_member(xgboost.XGBClassifier(n_estimators=2, n_jobs=1).fit(X, column), tag)
        for tag, column in zip(TAGS, LABELS.T, strict=True)
    ]
    member = ColumnsMember(each, name="each", classes=TAGS, task="multilabel")
    with pytest.raises(ValueError, match=r"^export: BoostedMember a keeps its own format.*--to safetensors"):
        to_onnx(Student(member, TAGS, TAGS, form(X)), X)
