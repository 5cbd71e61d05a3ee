"""The mixture of members: its laws, and the optimum of temperatures and weights."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.special import log_softmax, softmax

from ensdistill.teachers.fitting.calibration import (
    fit_mixture_temperature,
    fit_temperature,
    fit_weights,
    log_mixture,
    negative_log_likelihood,
)

logits_knc = arrays(np.float64, (3, 4, 5), elements=st.floats(-20, 20))
weights_k = arrays(np.float64, 3, elements=st.floats(0.01, 1)).map(lambda w: w / w.sum())


@given(z=logits_knc, w=weights_k, t=st.floats(0.3, 5), shift=st.floats(-50, 50))
@settings(max_examples=60, deadline=None)
def test_laws_of_the_mixture(z, w, t, shift):
    prob, logit, geometric = (log_mixture(z, w, c, t) for c in ("prob", "logit", "log_prob"))
    np.testing.assert_allclose(np.exp(prob), (w[:, None, None] * softmax(z / t, -1)).sum(0), atol=1e-12)
    np.testing.assert_allclose(logit, geometric)
    product = np.exp((w[:, None, None] * log_softmax(z / t, -1)).sum(0))
    np.testing.assert_allclose(np.exp(geometric), product / product.sum(-1, keepdims=True), atol=1e-12)
    for combiner, value in (("prob", prob), ("logit", logit)):
        np.testing.assert_allclose(log_mixture(z + shift, w, combiner, t), value, atol=1e-8)
        np.testing.assert_allclose(log_mixture(z[::-1], w[::-1], combiner, t), value, atol=1e-10)
        np.testing.assert_allclose(log_mixture(z[:, :, ::-1], w, combiner, t), value[:, ::-1], atol=1e-10)
        np.testing.assert_allclose(
            log_mixture(z[[0, 0, 0]], w, combiner, t), log_softmax(z[0] / t, -1), atol=1e-10
        )


def test_masked_classes_and_members_of_weight_zero():
    z = np.array([[[0.0, -np.inf, 0.0]], [[0.0, 0.0, 0.0]], [[np.nan, 0.0, 0.0]]])
    w = np.array([0.5, 0.5, 0.0])
    np.testing.assert_allclose(np.exp(log_mixture(z, w)), [[5 / 12, 1 / 6, 5 / 12]])
    np.testing.assert_allclose(np.exp(log_mixture(z, w, "logit")), [[0.5, 0, 0.5]])
    z[1, 0] = [-np.inf, 0, -np.inf]
    with pytest.raises(ValueError, match="every class of row 0"):
        log_mixture(z, w, "logit")


def noisy(rows, classes, noise, scale, seed):
    rng = np.random.default_rng(seed)
    labels = rng.integers(classes, size=rows)
    return scale * (2 * np.eye(classes)[labels] + rng.normal(0, noise, (rows, classes))), labels


@pytest.mark.parametrize("scale", [1e-4, 0.1, 1.0, 30.0, 1e6])
def test_temperature_is_the_optimum(scale):
    z, labels = noisy(300, 6, 1.0, scale, 0)
    found = fit_temperature(z, labels, prior_rows=0)
    grid = scale * np.exp(np.linspace(-5, 5, 4001))
    losses = [negative_log_likelihood(log_softmax(z / t, -1), labels) for t in grid]
    best = negative_log_likelihood(log_softmax(z / found, -1), labels)
    assert best <= min(losses) + 1e-9
    assert abs(np.log(found / grid[np.argmin(losses)])) < 0.0026  # the grid's step
    # 300 rows outweigh the prior.
    assert negative_log_likelihood(log_softmax(z / fit_temperature(z, labels), -1), labels) < best + (
        0.003 if scale > 0.01 else 0.01
    )


@given(
    z=arrays(np.float64, (8, 3), elements=st.floats(-30, 30)),
    labels=arrays(np.int64, 8, elements=st.integers(0, 2)),
)
@settings(max_examples=60, deadline=None)
def test_temperature_is_never_worse_than_one(z, labels):
    t = fit_temperature(z, labels)
    assert negative_log_likelihood(log_softmax(z / t, -1), labels) <= negative_log_likelihood(
        log_softmax(z, -1), labels
    )


@pytest.mark.parametrize("combiner", ["prob", "logit"])
@pytest.mark.parametrize("prior", [0.0, 5.0])
def test_weights_are_the_optimum(combiner, prior):
    rng = np.random.default_rng(0)
    labels = rng.integers(4, size=150)
    z = 2 * np.eye(4)[labels] + np.array([0.8, 1.5, 1.2, 4.0])[:, None, None] * rng.normal(size=(4, 150, 4))
    w = fit_weights(z, labels, combiner, prior)

    def loss(v):
        return negative_log_likelihood(log_mixture(z, v, combiner), labels) - prior / 150 * (
            np.log(v).sum() if prior else 0
        )

    assert w.sum() == pytest.approx(1, abs=1e-12)
    # Setting weights below 1e-3 to zero costs at most about that much; a step of 2 % towards or away from any
    # member costs more.
    for k in range(4):
        for step in (0.02, -0.02):
            other = np.clip(w + step * (np.eye(4)[k] - w), 1e-12, None)
            assert loss(w) <= loss(other / other.sum()) + 1e-6
    if not prior:
        assert w[3] < 0.05  # it is noise
        assert (w[3] == 0) == (combiner == "prob")


def test_prior_draws_to_equal_weights_and_never_to_zero():
    z, labels = noisy(30, 3, 0.5, 1.0, 0)
    members = np.stack([z, np.random.default_rng(1).normal(size=z.shape)])
    plain, little, much = (fit_weights(members, labels, "prob", p) for p in (0.0, 1.0, 1e4))
    assert plain[1] < little[1] < much[1]
    np.testing.assert_allclose(much, 0.5, atol=1e-2)
    with pytest.raises(ValueError, match="prior_rows"):
        fit_weights(members, labels, "prob", -1.0)


def test_a_class_ruled_out_that_is_true_is_an_error():
    z = np.zeros((2, 2, 2))
    z[:, 1, 0] = -np.inf
    labels = np.array([0, 0])
    with pytest.raises(ValueError, match="true class 0 of row 1"):
        fit_temperature(z[0], labels)
    for combiner in ("prob", "logit"):
        with pytest.raises(ValueError, match="true class of row 1"):
            fit_weights(z, labels, combiner)


def test_averaging_makes_a_mixture_underconfident_and_its_temperature_repairs_it():
    rng = np.random.default_rng(0)
    labels = rng.integers(5, size=2000)
    z = 3 * np.eye(5)[labels] + rng.normal(0, 1.5, (6, 2000, 5))
    z = np.stack([member / fit_temperature(member, labels) for member in z])
    w = np.full(6, 1 / 6)
    t = fit_mixture_temperature(z, w, labels)
    before, after = (negative_log_likelihood(log_mixture(z, w, "prob", s), labels) for s in (1.0, t))
    assert t < 0.9
    assert after < before


def test_a_mixture_temperature_keeps_its_head_on_few_rows():
    """All rows right: without a prior the best temperature is 0."""
    z, labels = 3 * np.eye(4)[None, :, :], np.arange(4)
    z = np.repeat(z, 2, axis=0)
    assert fit_mixture_temperature(z, np.full(2, 0.5), labels, prior_rows=0) < 0.1
    few = fit_mixture_temperature(z, np.full(2, 0.5), labels)
    many = fit_mixture_temperature(np.tile(z, (1, 100, 1)), np.full(2, 0.5), np.tile(labels, 100))
    assert 0.1 < many < few < 1
