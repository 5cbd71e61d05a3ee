"""Estimators of scikit-learn in ONNX: their own probabilities for new rows, also at each threshold of a tree."""

import numpy as np
import pytest
from export_helpers import frame, student_of
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import make_column_transformer
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.ensemble import (
    ExtraTreesClassifier,
    GradientBoostingClassifier,
    HistGradientBoostingClassifier,
    RandomForestClassifier,
    VotingClassifier,
)
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression, RidgeClassifier, SGDClassifier
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, QuantileTransformer, StandardScaler
from sklearn.svm import SVC, LinearSVC
from sklearn.tree import DecisionTreeClassifier

from ensdistill.data.preprocess import Categories, Transformer, default_transformer
from ensdistill.student.export import run_onnx, to_onnx
from ensdistill.teachers.members import BoostedMember, Preprocessed, SklearnMember

RNG = np.random.default_rng(0)
X = RNG.normal(size=(150, 4))
Y = (X[:, 0] + X[:, 1] ** 2 + 0.3 * RNG.normal(size=150)).round().clip(0, 2).astype(int)

ESTIMATORS = {
    "logistic": LogisticRegression(),
    "linear margins": LinearSVC(),
    "ridge": RidgeClassifier(),
    "sgd": SGDClassifier(loss="log_loss", random_state=0),
    "sgd of margins": SGDClassifier(random_state=0),
    "discriminant": LinearDiscriminantAnalysis(),
    "forest": RandomForestClassifier(10, random_state=0),
    "extra trees": ExtraTreesClassifier(10, random_state=0),
    "boosting": GradientBoostingClassifier(n_estimators=10, random_state=0),
    "svm": SVC(),
    "bayes": GaussianNB(),
    "network": MLPClassifier((8,), max_iter=30, random_state=0),
    "calibrated": CalibratedClassifierCV(GaussianNB(), cv=2),
    "votes": VotingClassifier(
        [
            ("logistic", LogisticRegression()),
            ("tree", DecisionTreeClassifier(max_depth=4, random_state=0)),
            ("off", "drop"),
            ("inner", VotingClassifier([("bayes", GaussianNB())], voting="soft")),
        ],
        voting="soft",
        weights=[3, 1, 5, 2],
    ),
    "pipeline": make_pipeline(StandardScaler(), QuantileTransformer(n_quantiles=50), LogisticRegression()),
}


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("dtype", [np.float64, pytest.param(np.float32, marks=pytest.mark.slow)])
@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("name", ESTIMATORS)
def test_estimators_give_their_own_probabilities(name, classes, dtype):
    from sklearn.base import clone

    x, y = X.astype(dtype), np.minimum(Y, classes - 1)
    estimator = clone(ESTIMATORS[name]).fit(x, y)
    names = [str(label) for label in range(classes)]
    student = student_of(SklearnMember(estimator, classes=names), x, tuple(range(classes)))
    exported = to_onnx(student, x)
    new = RNG.normal(size=(1000, 4)).astype(dtype)
    trees = [t.tree_ for t in np.ravel(getattr(estimator, "estimators_", [])) if hasattr(t, "tree_")]
    if trees:  # at each threshold, and just above and below
        thresholds = np.concatenate([t.threshold[t.feature >= 0] for t in trees]).astype(np.float32)
        drawn = RNG.choice(thresholds, (900, 4))
        new[:300], new[300:600] = drawn[:300], np.nextafter(drawn[300:600], np.float32(9))
        new[600:900] = np.nextafter(drawn[600:], np.float32(-9))
    labels, probabilities = run_onnx(exported.model.SerializeToString(), new)
    np.testing.assert_allclose(probabilities, student.predict_proba(new), atol=3e-6)
    assert (labels == student.predict(new)).mean() > 0.999  # scores of two classes may be equal


def test_a_class_that_the_estimator_never_saw_has_the_members_probability():
    with pytest.warns(UserWarning, match="without the classes"):
        member = SklearnMember(
            LogisticRegression().fit(X, np.where(Y > 0, "a", "c")), classes=("a", "b", "c")
        )
    exported = to_onnx(student_of(member, X), X)
    _, probabilities = run_onnx(exported.model.SerializeToString(), X)
    assert exported.largest_difference < 1e-6
    assert 0 < probabilities[:, 1].max() < 1e-5


def test_a_pipeline_on_raw_columns_is_one_graph():
    table, y = frame(200), np.arange(200) % 3
    columns = make_column_transformer(
        (make_pipeline(SimpleImputer(add_indicator=True), StandardScaler()), ["debt", "account"]),
        (OneHotEncoder(handle_unknown="ignore"), ["city", "job"]),
    )
    for last in (LogisticRegression(), RandomForestClassifier(5, random_state=0)):
        estimator = make_pipeline(columns, last).fit(table, y)
        student = student_of(SklearnMember(estimator), table, (0, 1, 2))
        exported = to_onnx(student, table)
        new = frame(300, seed=3).assign(city="Paris")
        _, probabilities = run_onnx(exported.model.SerializeToString(), new)
        np.testing.assert_allclose(probabilities, student.predict_proba(new), atol=2e-6)


def test_an_estimator_behind_a_preprocess_is_one_graph():
    table, y = frame(200), np.arange(200) % 3
    transformer = default_transformer(table)
    member = SklearnMember(ExtraTreesClassifier(5, random_state=0).fit(transformer(table), y))
    student = student_of(Preprocessed(member, transformer), table, (0, 1, 2))
    exported = to_onnx(student, table)
    new = frame(300, seed=3)
    _, probabilities = run_onnx(exported.model.SerializeToString(), new)
    np.testing.assert_allclose(probabilities, student.predict_proba(new), atol=2e-6)


def test_a_probability_of_zero_stays_what_the_member_makes_of_it():
    tree = RandomForestClassifier(1, bootstrap=False, random_state=0).fit(X, Y)
    student = student_of(SklearnMember(tree), X, (0, 1, 2), temperature=2.0)
    assert to_onnx(student, X).largest_difference < 1e-6


@pytest.mark.parametrize(
    ("estimator", "words"),
    [
        (HistGradientBoostingClassifier(max_iter=3), "HistGradientBoostingClassifier keeps its own format"),
        (
            KNeighborsClassifier(),
            "KNeighborsClassifier keeps its own format, because it holds the training rows",
        ),
        (
            VotingClassifier([("a", HistGradientBoostingClassifier(max_iter=3))], voting="soft"),
            "HistGradientBoostingClassifier keeps its own format, .*--to safetensors",
        ),
    ],
)
def test_estimators_without_an_exact_form_are_refused(estimator, words):
    student = student_of(SklearnMember(estimator.fit(X, Y)), X, (0, 1, 2))
    with pytest.raises(ValueError, match=words):
        to_onnx(student, X)


def test_boosters_keep_their_own_format():
    xgboost = pytest.importorskip("xgboost")
    member = BoostedMember(xgboost.XGBClassifier(n_estimators=2).fit(X, Y))
    with pytest.raises(ValueError, match="xgbclassifier keeps its own format"):
        to_onnx(student_of(member, X, (0, 1, 2)), X)


def test_a_booster_at_the_end_of_a_pipeline_keeps_its_own_format():
    lightgbm = pytest.importorskip("lightgbm")
    pipeline = make_pipeline(StandardScaler(), lightgbm.LGBMClassifier(n_estimators=2, verbose=-1)).fit(X, Y)
    student = student_of(SklearnMember(pipeline), X, (0, 1, 2))
    with pytest.raises(ValueError, match="LGBMClassifier keeps its own format, its library's"):
        to_onnx(student, X)


def test_categories_of_boosters_are_refused():
    table, y = frame(200), np.arange(200) % 3
    categories = Categories().fit(table)
    trees = HistGradientBoostingClassifier(max_iter=2, categorical_features="from_dtype")
    member = SklearnMember(trees.fit(categories(table), y))
    with pytest.raises(ValueError, match="categories are for boosted trees, which keep their own format"):
        to_onnx(student_of(Preprocessed(member, categories), table, (0, 1, 2)), table)


def test_an_estimator_that_skl2onnx_does_not_know_is_named():
    from sklearn.base import BaseEstimator, ClassifierMixin

    class Own(ClassifierMixin, BaseEstimator):
        def fit(self, x, y):
            self.classes_ = np.unique(y)
            return self

        def predict_proba(self, x):
            return np.full((len(x), 3), 1 / 3)

    student = student_of(SklearnMember(Own().fit(X, Y)), X, (0, 1, 2))
    with pytest.raises(ValueError, match=r"ONNX can't express .*Own \(skl2onnx: .*--to safetensors"):
        to_onnx(student, X)


def test_texts_of_a_pipeline_are_refused():
    from sklearn.feature_extraction.text import TfidfVectorizer

    texts = ["a red fox", "a blue sky", "the sea"] * 5
    estimator = make_pipeline(TfidfVectorizer(), LogisticRegression()).fit(texts, [0, 1, 2] * 5)
    student = student_of(SklearnMember(estimator), texts, (0, 1, 2))
    with pytest.raises(ValueError, match="HashedNgrams or Tokens"):
        to_onnx(student, texts)


def test_a_transformer_on_an_array_is_part_of_the_graph():
    scaler = Transformer(StandardScaler().fit(X))
    member = SklearnMember(GaussianNB().fit(scaler(X), Y))
    assert to_onnx(student_of(Preprocessed(member, scaler), X, (0, 1, 2)), X).largest_difference < 1e-6
