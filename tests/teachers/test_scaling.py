"""The calibration of a finished model by one number: against a search on a grid, and its priors."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit, log_expit, log_softmax, softmax

from ensdistill.teachers.fitting.scaling import Scaling, closest_scaling, scaling_by_labels
from ensdistill.teachers.members import Moments

DRAWS = np.random.default_rng(0)
Z = DRAWS.normal(size=(300, 3)) * 2
GRID = np.exp(np.linspace(-2, 3, 4001))


def least(loss):
    return GRID[np.argmin([loss(t) for t in GRID])]


def binary(z, p):
    return -(p * log_expit(z) + (1 - p) * log_expit(-z)).mean()


@pytest.mark.parametrize("task", ["classification", "multilabel"])
def test_the_temperature_is_the_one_of_the_least_divergence(task):
    noisy = 3 * (Z + DRAWS.normal(size=Z.shape))
    if task == "classification":
        p = softmax(Z, 1)
        best = least(lambda t: -(p * log_softmax(noisy / t, 1)).sum(1).mean())
    else:
        p = expit(Z)
        best = least(lambda t: binary(noisy / t, p))
    found = closest_scaling(task, noisy, p, prior_rows=0)
    assert found.temperature == pytest.approx(best, rel=2e-3)
    assert found == Scaling(found.temperature)
    near_one = closest_scaling(task, noisy[:4], p[:4]).temperature
    alone = closest_scaling(task, noisy[:4], p[:4], prior_rows=0).temperature
    assert abs(np.log(near_one)) < abs(np.log(alone))


def test_the_variance_factor_is_the_one_of_the_least_divergence():
    mean, target = DRAWS.normal(size=(2, 300, 2))
    variance, wanted = DRAWS.gamma(2, size=(2, 300, 2))
    square = (target - mean) ** 2 + wanted
    best = least(lambda f: (np.log(f * variance) + square / (f * variance)).mean())
    outputs, targets = Moments(mean, variance), Moments(target, wanted)
    found = closest_scaling("regression", outputs, targets, prior_rows=0)
    assert found.variance_factor == pytest.approx(best, rel=2e-3)
    np.testing.assert_allclose(found.moments(outputs).variance, found.variance_factor * variance)
    noise = np.array(closest_scaling("regression", Moments(mean, None), targets).noise)
    np.testing.assert_allclose(noise, square.mean(0))
    assert closest_scaling("regression", Moments(mean, None), Moments(target, None)) == Scaling()
    # A mixture that the model equals changes nothing.
    same = closest_scaling("regression", outputs, outputs)
    assert same.variance_factor == pytest.approx(1)


def test_means_alone_get_the_error_that_the_mixture_had_on_labels():
    """A mixture that is far too sure of a few rows has a mean variance below its mean squared error."""
    random = np.random.default_rng(0)
    rare = random.random((20_000, 1)) < 0.05
    middle = random.normal(size=rare.shape)
    labels = middle + random.normal(size=rare.shape) * np.where(rare, 10.0, 1.0)
    mixture = Moments(middle, np.where(rare, 9.0, 1.0))
    student = Moments(middle + 0.5 * random.normal(size=rare.shape), None)
    error = np.square(labels - middle).mean(0)
    found = closest_scaling("regression", student, mixture, error=error)
    np.testing.assert_allclose(found.noise, np.square(labels - student.mean).mean(0), rtol=0.02)
    assert closest_scaling("regression", student, mixture).noise < 0.3 * np.array(found.noise)
    assert closest_scaling("regression", student, Moments(middle, None), error=error) == found
    assert closest_scaling("regression", mixture, mixture, error=error).variance_factor == pytest.approx(1)


def test_units_of_the_numbers_have_no_effect():
    mean, labels = DRAWS.normal(size=(2, 50, 2))
    variance = DRAWS.gamma(2, size=(50, 2))
    factor = np.array([1000.0, 0.01])
    one = scaling_by_labels("regression", Moments(mean, variance), labels)
    two = scaling_by_labels(
        "regression", Moments(5 + factor * mean, factor**2 * variance), 5 + factor * labels
    )
    assert one.variance_factor == pytest.approx(two.variance_factor)
    plain = scaling_by_labels("regression", Moments(mean, None), labels)
    np.testing.assert_allclose(plain.noise, np.square(labels - mean).mean(0), rtol=1e-4)


def test_labels_that_are_unknown_are_left_out():
    labels = np.where(DRAWS.random(Z.shape) < 0.4, -1, DRAWS.random(Z.shape) < expit(Z / 2)).astype(np.int8)
    known = labels >= 0
    best = least(lambda t: binary((Z / t)[known], labels[known]))
    found = scaling_by_labels("multilabel", Z, labels, prior_rows=0)
    assert found.temperature == pytest.approx(best, rel=2e-3)
    numbers = np.where(np.arange(300)[:, None] % 2, np.nan, Z)
    mean = Moments(np.zeros_like(Z), np.ones_like(Z))
    whole = scaling_by_labels("regression", Moments(mean.mean[::2], mean.variance[::2]), Z[::2])
    assert scaling_by_labels("regression", mean, numbers) == whole
    weights = np.arange(300) % 2 * 1.0
    assert scaling_by_labels("regression", mean, numbers, weights) == Scaling()  # no row counts
    assert scaling_by_labels("multilabel", Z, np.full(Z.shape, -1, np.int8)) == Scaling()


def test_a_record_has_the_numbers_that_were_fitted():
    assert Scaling().record() == {}
    found = Scaling(2.0, 3.0, (0.5,))
    assert found.record() == {"temperature": 2.0, "variance_factor": 3.0, "noise": [0.5]}
    assert Scaling(**found.record()) == found
    for wrong in ({"temperature": 0.0}, {"variance_factor": np.nan}, {"noise": (-1.0,)}):
        with pytest.raises(ValueError, match=rf"^{next(iter(wrong))}: expected"):
            Scaling(**wrong)
