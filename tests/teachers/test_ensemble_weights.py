"""Weights of rows in calibration, in mixture weights and in ensembles that are trained with folds."""

import warnings
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax, softmax
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import StackingClassifier, VotingClassifier
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression, LogisticRegressionCV
from sklearn.model_selection import GridSearchCV, RandomizedSearchCV, StratifiedKFold
from sklearn.multiclass import OneVsRestClassifier
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import Normalizer, StandardScaler

from ensdistill.data import Rows
from ensdistill.teachers import Ensemble, train_ensemble
from ensdistill.teachers.fitting.calibration import fit_temperature, fit_weights
from ensdistill.teachers.fitting.vector_scaling import fit_vector
from ensdistill.teachers.recipes import SklearnMembers


def problem(seed=0, rows=120):
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 3, rows)
    logits = generator.normal(size=(2, rows, 3))
    logits[0][np.arange(rows), labels] += 3 * (generator.random(rows) < 0.7)
    logits[1][np.arange(rows), labels] += 2 * (generator.random(rows) < 0.8)
    return 4 * logits, labels


def fitted(logits, labels, weights, method):
    ensemble = Ensemble.from_members(list(np.zeros((2, 1, 3), np.float32) + np.arange(3, dtype=np.float32)))
    ensemble.calibrate(logits, labels, method=method, sample_weight=weights)
    ensemble.weigh(logits, labels, sample_weight=weights)
    return ensemble.settings()


def numbers(found):
    return [found["weights"], found["temperatures"], found["temperature"], found.get("vectors", [])]


@pytest.mark.parametrize("method", ["temperature", "vector", "pooled"])
def test_equal_weights_change_no_bit_and_rows_of_weight_0_are_left_out(method):
    logits, labels = problem()
    plain = fitted(logits, labels, None, method)
    assert numbers(fitted(logits, labels, np.full(120, 4.0), method)) == numbers(plain)
    kept = np.arange(120) % 3 > 0
    without = fitted(logits[:, kept], labels[kept], None, method)
    assert numbers(fitted(logits, labels, kept * 2.0, method)) == numbers(without)
    assert numbers(without) != numbers(plain)


@settings(max_examples=8, deadline=None, derandomize=True, database=None)
@given(seed=st.integers(0, 99), combiner=st.sampled_from(["prob", "logit"]))
def test_whole_weights_are_rows_that_stand_so_often(seed, combiner):
    logits, labels = problem(seed, 60)
    weights = np.random.default_rng(seed).integers(1, 4, 60)
    again = np.repeat(np.arange(60), weights)
    temperature = fit_temperature(logits[0], labels, 0, sample_weight=weights)
    assert temperature == pytest.approx(fit_temperature(logits[0][again], labels[again], 0), rel=1e-5)
    found = fit_weights(logits, labels, combiner, 0, weights)
    np.testing.assert_allclose(found, fit_weights(logits[:, again], labels[again], combiner, 0), atol=1e-4)
    vector = fit_vector(logits[0], labels, 0, weights)
    np.testing.assert_allclose(vector, fit_vector(logits[0][again], labels[again], 0), atol=2e-3)


def test_the_weighted_loss_is_the_one_that_is_least():
    logits, labels = problem(3)
    weights = np.random.default_rng(3).random(120) ** 3

    def loss(temperature):
        log_p = log_softmax(logits[0] / temperature, -1)[np.arange(120), labels]
        return -(weights * log_p).sum() / weights.sum()

    best = fit_temperature(logits[0], labels, 0, sample_weight=weights)
    assert loss(best) <= min(loss(best * 1.01), loss(best / 1.01))
    assert abs(best / fit_temperature(logits[0], labels, 0) - 1) > 0.01


def test_weights_that_are_refused():
    logits, labels = problem()
    for weights, words in (
        (np.zeros(120), "expected a weight above 0 among 120 rows"),
        (np.ones(3), r"expected \[120\], one for each row; got \[3\]"),
        (-np.ones(120), "expected finite numbers of at least 0; row 0 has -1.0"),
    ):
        with pytest.raises(ValueError, match=f"sample_weight: {words}"):
            fitted(logits, labels, weights, "temperature")


def test_weights_of_rows_count_in_members_and_in_the_fit_of_the_ensemble():
    generator = np.random.default_rng(0)
    x = generator.normal(size=(160, 3))
    labels = (x[:, 0] > 0).astype(np.int64)
    labels[::4] = 1 - labels[::4]  # wrong labels, which the weights make light of
    weights = np.where(np.arange(160) % 4 == 0, 0.01, 1.0)
    recipes = [SklearnMembers(LogisticRegression(), name=f"l{c}") for c in "ab"]

    def trained(weights):
        return train_ensemble(recipes, Rows(x, np.arange(160), labels, weights), ("no", "yes"), folds=2)

    (plain, _), (weighted, held_out) = trained(None), trained(weights)
    assert numbers(trained(np.ones(160))[0].settings()) == numbers(plain.settings())
    expected = LogisticRegression().fit(x, labels, sample_weight=weights).predict_proba(x)
    np.testing.assert_allclose(np.exp(weighted.raw_logits(x)[0]), expected, rtol=0, atol=2e-6)
    again = Ensemble.from_members(list(weighted.members)).calibrate(held_out, labels, sample_weight=weights)
    assert again.temperatures.tolist() == weighted.temperatures.tolist()
    assert weighted.temperatures[0] < plain.temperatures[0]
    with pytest.raises(
        ValueError, match="sample_weight: kneighborsclassifier: the fit of KNeighborsClassifier"
    ):
        train_ensemble(
            [SklearnMembers(KNeighborsClassifier(3))],
            Rows(x, np.arange(160), labels, weights),
            ("no", "yes"),
            folds=2,
        )


def rows_of(x, labels, weights=None):
    return Rows(x, np.arange(len(x)), labels, weights)


def table(classes=2, rows=160):
    generator = np.random.default_rng(1)
    x = generator.normal(size=(rows, 4))
    return x, (x[:, 0] + generator.normal(0, 1, rows) > 0).astype(np.int64) + (classes > 2) * (x[:, 1] > 0)


def members_of(estimator, rows, **options):
    classes = [str(i) for i in np.unique(rows.labels)]
    return train_ensemble([SklearnMembers(estimator, **options)], rows, classes)[0]


def chances(ensemble, x):
    """The first member's probabilities, which no temperature has changed."""
    return softmax(ensemble.raw_logits(x)[0], -1)


LINEAR = LogisticRegression(C=0.05, tol=1e-9)
PIPE = make_pipeline(Normalizer(), LINEAR)
WEIGHED = {
    "pipeline": PIPE,
    "pipeline of a pipeline": make_pipeline(Normalizer(), PIPE),
    "vote": VotingClassifier([("a", LINEAR), ("b", GaussianNB()), ("c", "drop")], voting="soft"),
    "pipeline of a vote": make_pipeline(
        VotingClassifier([("a", LINEAR), ("b", GaussianNB())], voting="soft")
    ),
    "one against the rest": OneVsRestClassifier(LINEAR),
    "grid": GridSearchCV(LINEAR, {"C": [0.05]}),
    "random grid": RandomizedSearchCV(LINEAR, {"C": [0.05]}, n_iter=1, random_state=0),
    "grid of a pipeline": GridSearchCV(PIPE, {"logisticregression__C": [0.05]}),
}


@pytest.mark.parametrize("name", WEIGHED)
def test_a_weight_of_2_is_a_row_that_stands_twice_in_composed_estimators(name):
    x, labels = table(3 if "one" in name else 2)
    weights = 1.0 + (np.arange(len(x)) < 60)
    again = np.repeat(np.arange(len(x)), weights.astype(int))
    weighed = chances(members_of(WEIGHED[name], rows_of(x, labels, weights)), x)
    twice = chances(members_of(WEIGHED[name], rows_of(x[again], labels[again])), x)
    np.testing.assert_allclose(weighed, twice, rtol=0, atol=1e-5)
    plain = chances(members_of(WEIGHED[name], rows_of(x, labels)), x)
    assert np.abs(plain - weighed).max() > 0.01


def test_weights_reach_an_estimator_that_is_fitted_against_the_rest(tmp_path):
    x, labels = table(3)
    weights = 1.0 + (np.arange(len(x)) < 60)
    ensemble = members_of(LINEAR, rows_of(x, labels, weights), one_vs_rest=True)
    binary = [
        LogisticRegression(C=0.05, tol=1e-9).fit(x, labels == c, sample_weight=weights) for c in range(3)
    ]
    each = np.stack([one.predict_proba(x)[:, 1] for one in binary], 1)
    np.testing.assert_allclose(chances(ensemble, x), each / each.sum(1, keepdims=True), rtol=0, atol=1e-5)
    assert not any("_metadata_request" in vars(one) for one in ensemble.members[0].estimator.estimators_)
    ensemble.save(tmp_path / "e")
    assert Ensemble.load(tmp_path / "e").predict_proba(x).tolist() == ensemble.predict_proba(x).tolist()


def test_a_calibrated_classifier_and_a_scaled_one_are_weighed_as_by_their_own_fit():
    x, labels = table()
    weights = 1.0 + (np.arange(len(x)) < 60)
    calibrated = CalibratedClassifierCV(LINEAR, cv=3)
    scaled = make_pipeline(StandardScaler(), LINEAR)
    stacked = StackingClassifier([("a", LINEAR), ("b", GaussianNB())], LogisticRegression(), cv=3)
    found = [members_of(one, rows_of(x, labels, weights)) for one in (calibrated, scaled, stacked)]
    own = [
        calibrated.fit(x, labels, sample_weight=weights),
        scaled.fit(x, labels, logisticregression__sample_weight=weights),
        stacked.fit(x, labels, sample_weight=weights),
    ]
    for ensemble, one in zip(found, own, strict=True):
        np.testing.assert_allclose(chances(ensemble, x), one.predict_proba(x), rtol=0, atol=1e-6)


NEAR = make_pipeline(StandardScaler(), KNeighborsClassifier(3))
SCALED = make_pipeline(ColumnTransformer([("s", StandardScaler(), [0, 1, 2])]), LINEAR)
KEY = "logisticregression__sample_weight"


def by_hand(kind, x, labels, weights):
    """Probabilities of a composed estimator of ``SCALED`` and naive Bayes, put together from plain fits."""

    def fit(estimator, rows, target):
        more = {KEY if isinstance(estimator, Pipeline) else "sample_weight": weights[rows]}
        return clone(estimator).fit(x[rows], target[rows], **more)

    def held_out(estimator, folds):
        made = np.zeros((len(x), labels.max() + 1))
        for train, test in StratifiedKFold(folds).split(x, labels):
            made[test] = fit(estimator, train, labels).predict_proba(x[test])
        return made

    every = np.arange(len(x))
    both = SCALED, GaussianNB()
    answers = [fit(one, every, labels).predict_proba(x) for one in both]
    if kind == "vote":
        return np.mean(answers, 0)
    if kind == "stack":
        columns = slice(1, None) if labels.max() == 1 else slice(None)
        learned, shown = (
            np.hstack([one[:, columns] for one in ones])
            for ones in ([held_out(one, 3) for one in both], answers)
        )
        return LogisticRegression().fit(learned, labels, sample_weight=weights).predict_proba(shown)
    if kind == "rest":
        each = [fit(SCALED, every, labels == c).predict_proba(x)[:, 1] for c in range(labels.max() + 1)]
        return np.stack(each, 1) / np.sum(each, 0)[:, None]
    parts = []
    for train, test in StratifiedKFold(3).split(x, labels):
        one = fit(SCALED, train, labels)
        frozen = CalibratedClassifierCV(FrozenEstimator(one), ensemble=True, cv=[(train, test)])
        parts.append(frozen.fit(x, labels, sample_weight=weights).predict_proba(x))
    return np.mean(parts, 0)


COMPOSED = {
    "vote": VotingClassifier([("a", SCALED), ("b", GaussianNB()), ("c", "drop")], voting="soft"),
    "stack": StackingClassifier([("a", SCALED), ("b", GaussianNB())], cv=3),
    "rest": OneVsRestClassifier(SCALED),
    "calibrated": CalibratedClassifierCV(SCALED, cv=3),
}


@settings(max_examples=4, deadline=None, derandomize=True, database=None)
@given(seed=st.integers(0, 99), classes=st.sampled_from([2, 3]), outer=st.booleans())
@pytest.mark.parametrize("kind", COMPOSED)
def test_weights_reach_pipelines_within_as_in_fits_by_hand(kind, seed, classes, outer):
    classes = 3 if kind == "rest" else classes
    x, labels = table(classes)
    weights = np.random.default_rng(seed).exponential(size=len(x)) + 0.01
    estimator = make_pipeline("passthrough", COMPOSED[kind]) if outer else COMPOSED[kind]
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        ensemble = members_of(estimator, rows_of(x, labels, weights))
    expected = by_hand(kind, x, labels, weights)
    np.testing.assert_allclose(chances(ensemble, x), expected, rtol=0, atol=2e-6)
    assert np.abs(by_hand(kind, x, labels, np.ones(len(x))) - expected).max() > 1e-3


@pytest.mark.parametrize("kind", COMPOSED)
def test_members_with_weighted_pipelines_within_are_saved_and_the_recipe_stays_as_it_was(kind, tmp_path):
    x, labels = table(3)
    before = repr(COMPOSED[kind].get_params())
    ensemble = members_of(COMPOSED[kind], rows_of(x, labels, np.random.default_rng(0).random(len(x)) + 0.1))
    ensemble.save(tmp_path / "e")
    assert Ensemble.load(tmp_path / "e").predict_proba(x).tolist() == ensemble.predict_proba(x).tolist()
    assert not any(b"_metadata_request" in path.read_bytes() for path in unzipped(tmp_path / "e"))
    assert repr(COMPOSED[kind].get_params()) == before


def unzipped(folder):
    found = []
    for path in list(folder.rglob("*.skops")):
        with zipfile.ZipFile(path) as archive:
            archive.extractall(path.with_suffix(".d"))
        found += [one for one in path.with_suffix(".d").rglob("*") if one.is_file()]
    assert found
    return found


@pytest.mark.parametrize(
    ("estimator", "words"),
    [
        (KNeighborsClassifier(3), "KNeighborsClassifier"),
        (make_pipeline(StandardScaler(), KNeighborsClassifier(3)), r"Pipeline \(of KNeighborsClassifier\)"),
        (
            VotingClassifier([("a", PIPE), ("b", NEAR)], voting="soft"),
            r"VotingClassifier \(of Pipeline, KNei.*\)",
        ),
        (CalibratedClassifierCV(NEAR), r"CalibratedClassifierCV \(of .*Pipeline\)"),
        (OneVsRestClassifier(NEAR), r"OneVsRestClassifier \(of .*Pipeline\)"),
        (CalibratedClassifierCV(make_pipeline(LogisticRegressionCV(cv=2))), r"Cal.* \(of Pipeline\)"),
        (CalibratedClassifierCV(GridSearchCV(PIPE, {})), r"CalibratedClassifierCV \(of GridSearchCV\)"),
    ],
)
def test_weights_that_cannot_reach_a_classifier_are_refused_or_ignored(estimator, words):
    x, labels = table()
    weights = 1.0 + (np.arange(len(x)) < 60)
    refusal = rf"sample_weight: {type(estimator).__name__.lower()}: the fit of {words} takes no .*ignore_weights=True"
    with pytest.raises(ValueError, match=refusal):
        members_of(estimator, rows_of(x, labels, weights))
    ignoring = members_of(estimator, rows_of(x, labels, weights), ignore_weights=True)
    plain = members_of(estimator, rows_of(x, labels))
    assert np.array_equal(ignoring.raw_logits(x), plain.raw_logits(x))
