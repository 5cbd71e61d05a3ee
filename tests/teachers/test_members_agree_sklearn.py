"""Odd scikit-learn classifiers as members: they predict as their own ``predict_proba`` or
``decision_function``, also when loaded."""

import functools
import tempfile
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax, softmax
from sklearn import (
    calibration,
    discriminant_analysis,
    dummy,
    ensemble,
    gaussian_process,
    linear_model,
    model_selection,
    multiclass,
    naive_bayes,
    neighbors,
    neural_network,
    semi_supervised,
    svm,
    tree,
)
from sklearn.decomposition import PCA
from sklearn.feature_selection import RFE, SelectKBest
from sklearn.impute import SimpleImputer
from sklearn.kernel_approximation import Nystroem
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import (
    FunctionTransformer,
    KBinsDiscretizer,
    MinMaxScaler,
    QuantileTransformer,
    StandardScaler,
)

from ensdistill.teachers.members import SklearnMember, load_member

LABELS = {
    "strings": ["zebra", "ant", "mouse", "bee"],
    "gaps": [7, 2, 40, -1],
    "numbers as strings": ["10", "9", "2", "1"],
    "whole floats": [3.0, 1.0, 2.0, 0.0],
    "booleans": [True, False],
}
GaussianNB, SVC = naive_bayes.GaussianNB, svm.SVC
ROOT = {"random_state": 0}
MODELS = {
    "logistic": lambda: linear_model.LogisticRegression(C=30, class_weight="balanced"),
    "huber": lambda: linear_model.SGDClassifier(loss="modified_huber", **ROOT),
    "hinge": lambda: linear_model.SGDClassifier(loss="hinge", average=True, **ROOT),
    "ridge": lambda: linear_model.RidgeClassifier(alpha=0.1),
    "crammer singer": lambda: svm.LinearSVC(multi_class="crammer_singer", **ROOT),
    "svc": lambda: SVC(C=5, kernel="poly", coef0=1),
    "nu svc": lambda: svm.NuSVC(nu=0.2, break_ties=True),
    "one against one": lambda: multiclass.OneVsOneClassifier(svm.LinearSVC(**ROOT)),
    "one against rest": lambda: multiclass.OneVsRestClassifier(GaussianNB()),
    "one against rest of margins": lambda: multiclass.OneVsRestClassifier(SVC(decision_function_shape="ovo")),
    "forest": lambda: ensemble.RandomForestClassifier(
        7, max_features=None, class_weight="balanced_subsample", **ROOT
    ),
    "extra trees": lambda: ensemble.ExtraTreesClassifier(
        5, bootstrap=True, max_depth=4, criterion="entropy", **ROOT
    ),
    "tree": lambda: tree.DecisionTreeClassifier(ccp_alpha=0.01, **ROOT),
    "histogram": lambda: ensemble.HistGradientBoostingClassifier(max_iter=5, min_samples_leaf=5, **ROOT),
    "histogram of categories": lambda: ensemble.HistGradientBoostingClassifier(
        max_iter=5, min_samples_leaf=5, categorical_features=[4], **ROOT
    ),
    "histogram stopped early": lambda: ensemble.HistGradientBoostingClassifier(
        max_iter=30, early_stopping=True, learning_rate=0.8, **ROOT
    ),
    "gradient boosting": lambda: ensemble.GradientBoostingClassifier(n_estimators=4, subsample=0.7, **ROOT),
    "adaboost": lambda: ensemble.AdaBoostClassifier(n_estimators=4, **ROOT),
    "bagged margins": lambda: ensemble.BaggingClassifier(SVC(decision_function_shape="ovo"), 4, **ROOT),
    "bagged on few columns": lambda: ensemble.BaggingClassifier(GaussianNB(), 4, max_features=0.6, **ROOT),
    "vote": lambda: ensemble.VotingClassifier(
        [("a", GaussianNB()), ("b", tree.DecisionTreeClassifier())], voting="soft", weights=[3, 1]
    ),
    "stack": lambda: ensemble.StackingClassifier(
        [("a", GaussianNB()), ("b", SVC())], linear_model.LogisticRegression(), cv=2
    ),
    "neighbours": lambda: neighbors.KNeighborsClassifier(3, weights="distance", metric="manhattan"),
    "neighbours of tree": lambda: neighbors.KNeighborsClassifier(4, algorithm="kd_tree"),
    "centroids": lambda: neighbors.NearestCentroid(),
    "naive": lambda: GaussianNB(var_smoothing=1e-3),
    "bernoulli": lambda: naive_bayes.BernoulliNB(binarize=0.3),
    "multinomial": lambda: make_pipeline(MinMaxScaler(clip=True), naive_bayes.MultinomialNB()),
    "quadratic": lambda: discriminant_analysis.QuadraticDiscriminantAnalysis(reg_param=0.2),
    "linear discriminant": lambda: discriminant_analysis.LinearDiscriminantAnalysis(
        solver="lsqr", shrinkage="auto"
    ),
    "process": lambda: gaussian_process.GaussianProcessClassifier(optimizer=None),
    "network": lambda: make_pipeline(
        StandardScaler(), neural_network.MLPClassifier((5,), max_iter=20, activation="tanh", **ROOT)
    ),
    "prior": lambda: dummy.DummyClassifier(strategy="prior"),
    "sigmoid": lambda: calibration.CalibratedClassifierCV(svm.LinearSVC(**ROOT), cv=2),
    "isotonic": lambda: calibration.CalibratedClassifierCV(
        GaussianNB(), method="isotonic", cv=2, ensemble=False
    ),
    "search": lambda: model_selection.GridSearchCV(SVC(), {"C": [0.1, 1]}, cv=2),
    "imputed": lambda: make_pipeline(
        SimpleImputer(add_indicator=True), StandardScaler(), linear_model.LogisticRegression()
    ),
    "components": lambda: make_pipeline(
        StandardScaler(), PCA(3), SelectKBest(k=2), linear_model.LogisticRegression()
    ),
    "binned": lambda: make_pipeline(
        KBinsDiscretizer(4, quantile_method="averaged_inverted_cdf"), naive_bayes.BernoulliNB()
    ),
    "quantiles": lambda: make_pipeline(
        QuantileTransformer(n_quantiles=20), neighbors.KNeighborsClassifier(3)
    ),
    "kernel": lambda: make_pipeline(Nystroem(n_components=10, **ROOT), linear_model.LogisticRegression()),
    "fewer columns": lambda: RFE(linear_model.LogisticRegression(), n_features_to_select=2),
    "spread labels": lambda: semi_supervised.LabelSpreading(kernel="knn", n_neighbors=4),
}
TAKES_NAN = {
    "histogram",
    "histogram of categories",
    "histogram stopped early",
    "imputed",
    "tree",
    "forest",
    "extra trees",
    "prior",
}


def rows(classes, kind, dtype, seed):
    """60 rows of five columns, of which the last is a small whole number, and labels of that kind."""
    rng = np.random.default_rng(seed)
    index = np.arange(60) % classes
    x = rng.normal(size=(60, 5)) + np.eye(5)[index] * 1.5
    x[:, 4] = rng.integers(0, 4, 60)
    return x.astype(dtype), np.array(LABELS[kind])[index]


def own_scores(estimator, output, x):
    if output == "probability":
        return estimator.predict_proba(x)
    scores = estimator.decision_function(x)
    return softmax(np.stack([-scores / 2, scores / 2], 1) if scores.ndim == 1 else scores, -1)


def check(model, classes, kind, dtype, nan, seed, saved=True):
    classes = min(classes, len(LABELS[kind]))
    x, y = rows(classes, kind, dtype, seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of fits that have not converged
        estimator = MODELS[model]().fit(x, y)
    if nan and model in TAKES_NAN:
        x = np.where(np.random.default_rng(seed).random(x.shape) < 0.2, np.array(np.nan, dtype), x)
    order = [str(int(c) if isinstance(c, float) else c) for c in estimator.classes_.tolist()]
    member = SklearnMember(estimator, classes=order[::-1], batch_size=64)
    expected = own_scores(estimator, member.output, x)[:, ::-1]
    if member.output == "probability":
        expected = (expected + 1e-6) / (1 + classes * 1e-6)  # the smoothing, which is meant
    before = member.fingerprint() if saved else None
    logits = member.predict_logits(x)
    assert logits.dtype == np.float32
    np.testing.assert_allclose(softmax(logits.astype(float), -1), expected, atol=2e-6, err_msg=model)
    assert member.classes == tuple(order[::-1])
    if saved:
        with tempfile.TemporaryDirectory() as folder:
            member.save(folder)
            loaded = load_member(folder)
            np.testing.assert_array_equal(loaded.predict_logits(x), logits, err_msg=model)
            assert before == member.fingerprint() == loaded.fingerprint(), model
            assert loaded.classes == member.classes


@pytest.mark.parametrize("model", MODELS)
def test_every_classifier_predicts_as_it_does_itself(model):
    check(model, 3, "strings", np.float32, True, 0, saved=False)


drawn = st.builds(
    dict,
    model=st.sampled_from(sorted(MODELS)),
    classes=st.integers(2, 4),
    kind=st.sampled_from(sorted(LABELS)),
    dtype=st.sampled_from([np.float32, np.float64]),
    nan=st.booleans(),
    seed=st.integers(0, 1000),
)


@settings(max_examples=25, deadline=None, derandomize=True, database=None)
@given(drawn)
def test_odd_classifiers_predict_as_they_do_themselves(case):
    check(**case)


@pytest.mark.slow
@settings(max_examples=600, deadline=None, derandomize=True, database=None)
@given(drawn)
def test_many_odd_classifiers_predict_as_they_do_themselves(case):
    check(**case)


def test_rows_are_predicted_in_their_own_dtype_and_shape():
    """float32 makes such rows equal; integers and strings are no floats."""
    time = 1.7e9 + np.arange(200) * 10.0
    x, y = np.c_[time, time % 7], (np.arange(200) // 5) % 2
    trees = ensemble.HistGradientBoostingClassifier(max_iter=60, min_samples_leaf=1, **ROOT).fit(x, y)
    got = softmax(SklearnMember(trees).predict_logits(x), -1)
    np.testing.assert_allclose(got, trees.predict_proba(x), atol=5e-6)
    assert np.abs(got - trees.predict_proba(x.astype(np.float32))).max() > 0.1

    seen = []

    class Looks(dummy.DummyClassifier):
        def predict_proba(self, X):
            seen.append((X.dtype, X.shape))
            return super().predict_proba(X)

    for inputs in (
        np.ones((4, 2, 3), np.float16),
        np.ones((4, 6), np.int8),
        np.array(["a b"] * 4),
        np.ones((4, 6), object),
    ):
        SklearnMember(
            Looks().fit(np.ones((4, 1)), [0, 1, 1, 1]).__class__().fit(inputs.reshape(4, -1), [0, 1, 1, 1])
        ).predict_logits(inputs)
    assert seen == [
        (np.float16, (4, 6)),
        (np.int8, (4, 6)),
        (np.dtype("<U3"), (4,)),
        (np.dtype(object), (4, 6)),
    ]


def test_decision_functions_of_pairs_are_refused_within_any_wrapper():
    x, y = rows(3, "strings", np.float64, 0)
    ovo = SVC(decision_function_shape="ovo")
    for estimator in (
        ovo,
        svm.NuSVC(nu=0.2, decision_function_shape="ovo"),
        make_pipeline(StandardScaler(), ovo),
        model_selection.GridSearchCV(make_pipeline(StandardScaler(), ovo), {"svc__C": [1, 2]}, cv=2),
        ensemble.BaggingClassifier(ovo, 2),
        ensemble.StackingClassifier([("a", GaussianNB())], ovo, cv=2),
    ):
        with pytest.raises(
            ValueError, match=r"decision_function_shape: .*expected 'ovr'.*got 'ovo'.*set_params"
        ):
            SklearnMember(estimator.fit(x, y), output="decision")
    fitted = SVC(decision_function_shape="ovo").fit(x, y)
    fitted.set_params(decision_function_shape="ovr")  # as the message advises
    assert (
        SklearnMember(fitted).predict_logits(x).argmax(1)
        == np.searchsorted(fitted.classes_, fitted.predict(x))
    ).mean() > 0.95
    two = SVC(decision_function_shape="ovo").fit(
        x[y != "bee"], y[y != "bee"] == "ant"
    )  # one pair is no matter
    got = log_softmax(SklearnMember(two).predict_logits(x), -1)[:, 1]
    np.testing.assert_allclose(got, -np.log1p(np.exp(-two.decision_function(x))), rtol=1e-5)


def test_estimators_of_several_labels_are_refused():
    from sklearn.multioutput import ClassifierChain, MultiOutputClassifier

    x, _ = rows(3, "strings", np.float64, 0)
    labels = (x[:, :3] > 0.7).astype(int)
    for estimator in (
        multiclass.OneVsRestClassifier(linear_model.LogisticRegression()),
        MultiOutputClassifier(linear_model.LogisticRegression()),
        ClassifierChain(linear_model.LogisticRegression()),
        ensemble.RandomForestClassifier(3, **ROOT),
        neighbors.KNeighborsClassifier(),
        neural_network.MLPClassifier((3,), max_iter=5),
        linear_model.RidgeClassifier(),
        make_pipeline(StandardScaler(), neural_network.MLPClassifier((3,), max_iter=5)),
        make_pipeline(StandardScaler(), tree.DecisionTreeClassifier()),
        model_selection.GridSearchCV(tree.DecisionTreeClassifier(), {"max_depth": [2]}, cv=2),
    ):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            estimator.fit(x, labels)
        with pytest.raises(ValueError, match=r"estimator: .* was fitted to several labels for each row"):
            SklearnMember(estimator).predict_logits(x)


def test_one_number_for_a_row_is_a_margin_only_between_two_named_classes():
    x = rows(2, "strings", np.float64, 0)[0]
    one_class = svm.OneClassSVM().fit(x)
    with pytest.raises(
        ValueError, match=r"has no classes_; .*classes=\[where it is negative, where it is positive\]"
    ):
        SklearnMember(one_class).predict_logits(x)
    logits = SklearnMember(one_class, classes=["out", "in"]).predict_logits(x)
    np.testing.assert_allclose(logits[:, 1] - logits[:, 0], one_class.decision_function(x), rtol=1e-5)
    column = linear_model.LinearRegression().fit(x, x[:, :1] > 0)
    with pytest.raises(ValueError, match="one number a row"):
        SklearnMember(column).predict_logits(x)


def test_another_number_of_columns_is_an_error():
    x, y = rows(2, "strings", np.float64, 0)
    for estimator in (dummy.DummyClassifier(), GaussianNB(), make_pipeline(StandardScaler(), SVC())):
        for columns in (4, 6):
            with pytest.raises(
                ValueError, match=rf"inputs: .* was fitted to 5 features \(columns\); got {columns}"
            ):
                SklearnMember(estimator.fit(x, y)).predict_logits(np.ones((3, columns)))


def test_partial_of_a_function_that_is_not_trusted_is_refused(tmp_path):
    x, y = rows(2, "strings", np.float64, 0)
    cut = FunctionTransformer(functools.partial(np.fromfile, dtype=float), check_inverse=False)
    estimator = make_pipeline(cut, GaussianNB())
    estimator.steps[0] = ("cut", FunctionTransformer().fit(x))
    member = SklearnMember(estimator.fit(x, y))
    estimator.steps[0] = ("cut", cut)
    member.save(tmp_path)
    with pytest.raises(ValueError, match=r"types that are not trusted: \['numpy\.fromfile'\]"):
        load_member(tmp_path)
