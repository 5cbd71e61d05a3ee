"""Weights of rows in calibration, in mixture weights and in ensembles that are trained with folds."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

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
