"""Ensembles of regressors: mixtures, variances, fits, few rows."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ensdistill.teachers import Ensemble
from ensdistill.teachers.fitting import gaussian
from ensdistill.teachers.members import ArrayMember, Moments

FEW = settings(max_examples=6, deadline=None)
seeds = st.integers(0, 2**32 - 1)


def regression(mean, variance=None, **more):
    spread = [None] * len(mean) if variance is None else variance
    members = [
        ArrayMember(name=f"m{k}", means=m, variances=v)
        for k, (m, v) in enumerate(zip(mean, spread, strict=True))
    ]
    return Ensemble.from_members(members, task="regression", **more)


@FEW
@given(seeds)
def test_the_total_variance_is_that_of_draws(seed):
    generator = np.random.default_rng(seed)
    mean, variance = generator.normal(0, 3, (3, 2, 2)), generator.gamma(2, 1, (3, 2, 2))
    weights = generator.dirichlet(np.ones(3))
    found = regression(mean, variance, weights=weights).predict_distribution(np.zeros((2, 1)))
    member = generator.choice(3, 40_000, p=weights)
    draws = generator.normal(mean[member], np.sqrt(variance[member]))
    np.testing.assert_allclose(found.mean, draws.mean(0), atol=0.15)
    np.testing.assert_allclose(found.variance, draws.var(0), rtol=0.1)


@FEW
@given(seeds)
def test_numbers_and_members_of_regressors_may_be_permuted(seed):
    generator = np.random.default_rng(seed)
    mean, variance = generator.normal(0, 3, (3, 30, 2)), generator.gamma(2, 1, (3, 30, 2))
    y = mean.mean(0) + generator.normal(size=(30, 2))
    order = generator.permutation(3)
    for metric in ("rmse", "nll"):
        one = regression(mean, variance).weigh(Moments(mean, variance), y, metric=metric)
        moved = mean[order][:, :, ::-1], variance[order][:, :, ::-1]
        other = regression(*moved).weigh(Moments(*moved), y[:, ::-1], metric=metric)
        np.testing.assert_allclose(other.weights, one.weights[order], atol=1e-4)
        np.testing.assert_allclose(other.variance_factor, one.variance_factor, rtol=1e-4)
        units = regression(1e3 * mean, 1e6 * variance).weigh(
            Moments(1e3 * mean, 1e6 * variance), 1e3 * y + 0, metric=metric
        )
        np.testing.assert_allclose(units.weights, one.weights, atol=1e-4)


@FEW
@given(seeds)
def test_equal_regressors_are_one(seed):
    generator = np.random.default_rng(seed)
    mean, variance = generator.normal(100, 3, (1, 9, 2)), generator.gamma(2, 1, (1, 9, 2))
    same = regression(
        np.repeat(mean, 4, 0), np.repeat(variance, 4, 0), weights=generator.dirichlet(np.ones(4))
    )
    found = same.predict_distribution(np.zeros((9, 1)))
    np.testing.assert_allclose(found.mean, mean[0], rtol=1e-12)
    np.testing.assert_allclose(found.variance, variance[0], rtol=1e-9)
    parts = same.uncertainty(np.zeros((9, 1)))
    np.testing.assert_allclose(parts.epistemic, 0, atol=1e-9)
    np.testing.assert_array_equal(parts.total, parts.aleatoric + parts.epistemic)


def test_slopes_of_the_losses_are_right():
    generator = np.random.default_rng(0)
    mean, variance = generator.normal(0, 1, (3, 20, 2)), generator.gamma(2, 1, (3, 20, 2))
    held_out = gaussian.HeldOut.of(mean, variance, generator.normal(size=(20, 2)), generator.random(20))
    for metric in ("rmse", "nll"):
        loss, votes = held_out.loss(metric, 4.0), held_out.votes(metric)
        w, step = np.array([0.2, 0.5, 0.3]), 1e-6 * np.eye(3)
        value, slope = loss(np.tensordot(w, votes, 1))
        exact = np.tensordot(votes, slope, 3)
        numeric = [
            (loss(np.tensordot(w + d, votes, 1))[0] - loss(np.tensordot(w - d, votes, 1))[0]) / 2e-6
            for d in step
        ]
        np.testing.assert_allclose(exact, numeric, rtol=1e-5, atol=1e-8)
        assert np.isfinite(value)


def noisy(rows, generator, spread=(1.0, 3.0, 0.3)):
    y = generator.normal(50, 10, (rows, 1))
    mean = np.stack([y + generator.normal(0, s, (rows, 1)) for s in spread])
    return y, mean


def test_weights_and_selection_prefer_the_better_regressor():
    generator = np.random.default_rng(0)
    y, mean = noisy(3000, generator)
    ensemble = regression(mean)
    expected = 1 / np.array([1.0, 3.0, 0.3]) ** 2  # independent errors: inverse variances
    np.testing.assert_allclose(ensemble.weigh(mean, y).weights, expected / expected.sum(), atol=0.02)
    chosen = regression(mean).select(mean, y)
    assert "m2" in chosen.names
    assert chosen.weights[chosen.names.index("m2")] > 0.8
    within = np.tile(np.array([1.0, 9.0, 0.09])[:, None, None], (1, 3000, 1))
    by_nll = regression(mean, within).weigh(Moments(mean, within), y, metric="nll")
    assert by_nll.weights.argmax() == 2
    assert regression(mean, within).select(Moments(mean, within), y, metric="nll").weights.max() > 0.8
    cheap = regression(mean).select(mean, y, costs=[1, 1, 5], budget=2)
    assert set(cheap.names) <= {"m0", "m1"}
    few = regression(mean[:, :5]).weigh(mean[:, :5], y[:5])
    assert few.weights.min() > 0.05  # five rows leave nobody out


@pytest.mark.parametrize("rows", [3, 8, 30])
def test_few_rows_of_numbers_do_little_harm(rows):
    generator = np.random.default_rng(rows)
    gains, errors = [], []
    for _ in range(12):
        y, mean = noisy(rows + 500, generator, spread=(1.0, 1.2, 0.9, 1.1))
        few = regression(mean[:, :rows]).weigh(mean[:, :rows], y[:rows])
        rmse = np.sqrt(np.square(np.einsum("k,knd->nd", few.weights, mean[:, rows:]) - y[rows:]).mean())
        equal = np.sqrt(np.square(mean[:, rows:].mean(0) - y[rows:]).mean())
        gains.append(rmse / equal)
        errors.append(few.weights.min())
    assert np.mean(gains) < 1.05
    assert np.max(gains) < 1.25


def test_one_factor_or_a_noise_calibrates_the_variance():
    generator = np.random.default_rng(0)
    true = generator.gamma(2, 1, (4000, 1))
    y = generator.normal(0, np.sqrt(true))
    variance = np.stack([true / 4, true / 4])
    mean = np.zeros((2, 4000, 1))
    ensemble = regression(mean, variance).calibrate(Moments(mean, variance), y)
    assert ensemble.variance_factor == pytest.approx(4, rel=0.1)
    assert ensemble.noise is None
    y, mean = noisy(4000, generator, spread=(1.0, 1.0))
    y = y + generator.normal(0, 2, y.shape)
    before = regression(mean).predict_distribution(np.zeros((4000, 1)))
    ensemble = regression(mean).calibrate(mean, y)
    mean_, total = ensemble.predict_distribution(np.zeros((4000, 1)))
    assert total.mean() == pytest.approx(np.square(y - mean_).mean(), rel=0.05)
    assert gaussian.gaussian_nll(mean_, total, y) < gaussian.gaussian_nll(*before, y)
    assert (ensemble.variance_factor, ensemble.noise.shape) == (1.0, (1,))
    few = regression(mean, mean * 0 + 1).calibrate(Moments(mean[:, :2], mean[:, :2] * 0 + 1), mean[0, :2])
    assert 0.5 < few.variance_factor <= 1.1  # two rows without an error are weak evidence
    unlabelled = np.where(np.arange(4000)[:, None] < 3000, y, np.nan)
    part = regression(mean[:, :3000]).calibrate(mean[:, :3000], y[:3000])
    np.testing.assert_array_equal(regression(mean).calibrate(mean, unlabelled).noise, part.noise)
    weighed = regression(mean).calibrate(mean, y, sample_weight=np.repeat([1.0, 0.0], [3000, 1000]))
    np.testing.assert_allclose(weighed.noise, part.noise, rtol=1e-6)


def test_the_interval_covers_new_rows_at_its_level():
    generator = np.random.default_rng(0)
    covered = []
    for _ in range(60):
        spread = generator.gamma(2, 1, (219, 2))
        y = generator.standard_t(3, (219, 2)) * spread
        mean, variance = np.zeros((2, 219, 2)), np.tile(np.square(spread), (2, 1, 1))
        held, new = Moments(mean[:, :19], variance[:, :19]), slice(19, None)
        fitted = (
            regression(mean[:, new], variance[:, new]).calibrate(held, y[:19]).fit_interval(held, y[:19], 0.8)
        )
        low, high = fitted.predict_interval(np.zeros((200, 1)))
        covered.append(((low <= y[new]) & (y[new] <= high)).mean())
    assert np.mean(covered) == pytest.approx(0.8, abs=0.03)  # 16 of 20 places: exactly the level
    with pytest.raises(ValueError, match=r"^level: expected at least 9 rows for an interval of 0\.9; got 8"):
        regression(mean).fit_interval(mean[:, :8], y[:8])
    with pytest.raises(ValueError, match=r"^interval: expected a fitted one"):
        regression(mean).predict_interval(np.zeros((219, 1)))
    with pytest.raises(ValueError, match=r"^moments: expected variances above 0; .* call calibrate first"):
        regression(mean).fit_interval(mean, y)
    alone = regression(mean[:1]).fit_interval(mean[:1], y, 0.5)
    low, high = alone.predict_interval(np.zeros((219, 1)))
    assert np.ptp(high - low, axis=0).max() < 1e-9  # without a variance the width is one


def test_members_with_and_without_a_variance_are_mixed():
    mean, variance = np.zeros((3, 5, 1)), np.full((5, 1), 2.0)
    ensemble = regression(mean, [variance, None, 2 * variance])
    assert ensemble.predict_moments(np.zeros((5, 1))).variance[:, 0, 0].tolist() == [2.0, 3.0, 4.0]
    assert ensemble.predict_distribution(np.zeros((5, 1))).variance[0, 0] == pytest.approx(3.0)
    assert regression(mean[:1]).predict_distribution(np.zeros((5, 1))).variance is None
    with pytest.raises(ValueError, match=r"^metric: expected rmse, because no member gives a variance"):
        regression(mean).weigh(mean, np.arange(5.0), metric="nll")


def test_wrong_moments_are_refused():
    mean = np.zeros((2, 5, 1))
    ensemble, y = regression(mean), np.arange(5.0)
    for moments, labels, message in (
        (mean[:1], y, r"^moments: expected means \[2, N, D\]; got \[1, 5, 1\]"),
        (Moments(mean, mean[:1]), y, r"^moments: expected variances \[2, 5, 1\]"),
        (Moments(mean, mean - 1), y, "^moments: expected finite means, and variances of at least 0"),
        (mean, y[:4], r"^labels: expected \[5, 1\]; got \[4, 1\]"),
    ):
        with pytest.raises(ValueError, match=message):
            ensemble.calibrate(moments, labels)
    uneven = [ArrayMember(name="a", means=mean[0]), ArrayMember(name="b", means=np.zeros((5, 2)))]
    with pytest.raises(ValueError, match=r"^members: b predicts 2 numbers, a predicts 1"):
        Ensemble.from_members(uneven).predict_moments(np.zeros((5, 1)))
    named = [ArrayMember(name=n, means=mean[0], classes=[n]) for n in "ab"]
    with pytest.raises(ValueError, match=r"^members: b predicts \['b'\]; expected \['a'\]"):
        Ensemble.from_members(named)


@FEW
@given(seeds)
def test_the_mixture_of_calibrated_members_has_the_fitted_variance(seed):
    generator = np.random.default_rng(seed)
    mean, variance = generator.normal(0, 3, (3, 30, 2)), generator.gamma(2, 1, (3, 30, 2))
    y = mean.mean(0) + generator.normal(0, 10 ** generator.uniform(-1, 1), size=(30, 2))
    for given_variance in (variance, None):
        moments = Moments(mean, given_variance)
        ensemble = regression(mean, given_variance, weights=generator.dirichlet(np.ones(3)))
        np.testing.assert_array_equal(ensemble.calibrated(moments).mean, mean)  # nothing is fitted yet
        ensemble.calibrate(moments, y)
        fitted, wanted = ensemble.calibrated(moments), ensemble.combine(moments)
        middle, within, between = gaussian.mixture_moments(*fitted, ensemble.weights)
        np.testing.assert_allclose(middle, wanted.mean, atol=1e-12)
        np.testing.assert_allclose(within + between, wanted.variance, rtol=1e-9)
