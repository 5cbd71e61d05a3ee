"""Metrics of numbers against scikit-learn, SciPy's distributions and integrals."""

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import norm
from sklearn.metrics import mean_absolute_error, r2_score, root_mean_squared_error
from sklearn.preprocessing import StandardScaler

from ensdistill.report import regression_metrics as metrics
from ensdistill.report.measures import MEASURES
from ensdistill.report.regression_metrics import Forecasts

SCALE = np.array([3000.0, 0.02, 1.0])


def case(seed: int = 0, n: int = 97) -> tuple[Forecasts, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.normal(1, 1, (n, 3)) * SCALE
    mean = labels + rng.normal(0, 0.3, (n, 3)) * SCALE
    return Forecasts(mean, rng.uniform(0.02, 0.2, (n, 3)) * SCALE**2), labels


def of(name: str, prediction: Forecasts, labels: np.ndarray, weights: np.ndarray | None = None) -> float:
    return MEASURES["regression"].by_name[name].of(prediction, labels, weights)


def test_errors_agree_with_scikit_learn_on_standardised_numbers() -> None:
    prediction, labels = case()
    scaler = StandardScaler().fit(labels)
    y, mean = scaler.transform(labels), scaler.transform(prediction.mean)
    assert of("rmse", prediction, labels) == pytest.approx(root_mean_squared_error(y.ravel(), mean.ravel()))
    assert of("mae", prediction, labels) == pytest.approx(mean_absolute_error(y, mean), rel=1e-12)
    assert of("r2", prediction, labels) == pytest.approx(r2_score(labels, prediction.mean), rel=1e-12)
    each = root_mean_squared_error(labels, prediction.mean, multioutput="raw_values")
    np.testing.assert_allclose(metrics.rmse_each(prediction, labels), each, rtol=1e-12)
    assert metrics.rmse(prediction, labels) == of("rmse", prediction, labels)


def test_nll_is_that_of_scipys_normal_in_the_datas_units() -> None:
    prediction, labels = case()
    assert prediction.variance is not None
    expected = -norm(prediction.mean, np.sqrt(prediction.variance)).logpdf(labels).sum(1)
    np.testing.assert_allclose(metrics.nll_rows(prediction, labels), expected, rtol=1e-10)


def test_crps_is_the_integral_of_the_squared_distance_of_distributions() -> None:
    prediction, labels = case(n=4)
    assert prediction.variance is not None
    deviations = metrics.deviations(labels)

    def integral(mean: float, sd: float, y: float) -> float:
        def below(x: float) -> float:
            return float(norm.cdf(x, mean, sd) ** 2)

        def above(x: float) -> float:
            return float((1 - norm.cdf(x, mean, sd)) ** 2)

        ends = min(mean, y) - 12 * sd, max(mean, y) + 12 * sd
        return quad(below, ends[0], y, epsabs=1e-12)[0] + quad(above, y, ends[1], epsabs=1e-12)[0]

    scaled = [a / deviations for a in (prediction.mean, np.sqrt(prediction.variance), labels)]
    expected = [[integral(*triple) for triple in zip(*row, strict=True)] for row in zip(*scaled, strict=True)]
    np.testing.assert_allclose(metrics.crps_rows(prediction, labels), np.mean(expected, 1), rtol=1e-7)


def test_crps_of_a_point_is_its_absolute_error() -> None:
    prediction, labels = case()
    point = Forecasts(prediction.mean)
    expected = metrics.absolute_rows(point, labels)
    np.testing.assert_array_equal(metrics.crps_rows(point, labels), expected)
    nearly = Forecasts(prediction.mean, np.full(labels.shape, 1e-10) * SCALE**2)
    np.testing.assert_allclose(metrics.crps_rows(nearly, labels), expected, atol=1e-5)


def test_intervals_of_a_gaussian_cover_what_scipys_do() -> None:
    prediction, labels = case()
    assert prediction.variance is not None
    low, high = norm.interval(0.9, prediction.mean, np.sqrt(prediction.variance))
    expected = ((low <= labels) & (labels <= high)).mean()
    assert of("coverage", prediction, labels) == pytest.approx(expected)
    assert 0.2 < expected < 1
    assert of("width", prediction, labels) == pytest.approx(((high - low) / labels.std(0)).mean())
    levels = np.array([0.5, 0.9])
    half = norm.interval(0.5, prediction.mean, np.sqrt(prediction.variance))
    inside = ((half[0] <= labels) & (labels <= half[1])).mean()
    curve = metrics.coverage_curve(prediction, labels, levels)
    np.testing.assert_allclose(curve, [inside, expected], rtol=1e-12)


def test_a_given_interval_takes_the_place_of_the_gaussian_one() -> None:
    prediction, labels = case()
    below = labels - SCALE, labels - 0.5 * SCALE
    given = Forecasts(prediction.mean, prediction.variance, below)
    assert of("coverage", given, labels) == 0
    assert of("width", given, labels) == pytest.approx((0.5 * SCALE / labels.std(0)).mean())
    assert of("coverage", Forecasts(prediction.mean, interval=(labels, labels)), labels) == 1
    some = given.take(np.arange(5))
    assert some.interval is not None
    np.testing.assert_array_equal(some.interval[0], below[0][:5])


def test_units_do_not_matter() -> None:
    prediction, labels = case()
    assert prediction.variance is not None
    factor, shift = np.array([1e-3, 50.0, 1.0]), np.array([5.0, -2.0, 0.0])
    other = Forecasts(prediction.mean * factor + shift, prediction.variance * factor**2)
    for name in ("rmse", "mae", "r2", "crps", "coverage", "width"):
        assert of(name, other, labels * factor + shift) == pytest.approx(
            of(name, prediction, labels), rel=1e-9
        )
    apart = of("nll", other, labels * factor + shift) - of("nll", prediction, labels)
    assert apart == pytest.approx(np.log(factor).sum(), rel=1e-9)


def test_whole_weights_count_as_repeated_rows() -> None:
    prediction, labels = case(2)
    times = np.random.default_rng(0).integers(1, 4, len(labels))
    repeated = np.repeat(np.arange(len(labels)), times)
    # The unit is that of the unweighted rows, so relative errors are compared.
    for name in ("rmse", "mae"):
        scale = metrics.deviations(labels)[0] / metrics.deviations(labels[repeated])[0]
        one, y = Forecasts(prediction.mean[:, :1]), labels[:, :1]
        expected = of(name, one.take(repeated), y[repeated]) / scale
        assert of(name, one, y, times.astype(float)) == pytest.approx(expected, rel=1e-10)
    each = metrics.rmse_each(prediction, labels, times.astype(float))
    np.testing.assert_allclose(
        each, metrics.rmse_each(prediction.take(repeated), labels[repeated]), rtol=1e-10
    )


def test_a_constant_label_has_the_unit_one() -> None:
    assert metrics.deviations(np.array([[5.0, 1.0], [5.0, 3.0]])).tolist() == [1, 1]


def test_a_variance_of_zero_costs_the_floor_and_is_counted() -> None:
    prediction, labels = case(n=9)
    assert prediction.variance is not None
    prediction.variance[3] = 0
    exact = Forecasts(labels.copy(), prediction.variance)
    assert np.isfinite(metrics.nll_rows(exact, labels)).all()
    assert metrics.floored_rows(exact, labels) == 1
    assert metrics.floored_rows(Forecasts(labels), labels) == 0


GOOD = np.zeros((2, 1))


@pytest.mark.parametrize(
    ("prediction", "labels", "error", "message"),
    [
        (
            Forecasts(GOOD.astype(np.float32)),
            GOOD,
            TypeError,
            "mean of predictions: expected a float64 .*float32",
        ),
        (Forecasts(GOOD), GOOD.astype(np.int64), TypeError, "labels: expected a float64 array; got int64"),
        (Forecasts(GOOD[:, 0]), GOOD, ValueError, r"mean of predictions: expected \[N, D\] .*; got \[2\]"),
        (Forecasts(GOOD), GOOD[:1], ValueError, r"labels: expected \[2, 1\]; got \[1, 1\]"),
        (
            Forecasts(GOOD),
            np.array([[0.0], [np.nan]]),
            ValueError,
            "labels: expected finite numbers; row 1 has nan",
        ),
        (Forecasts(GOOD + np.inf), GOOD, ValueError, "mean of predictions: expected finite .*row 0 has inf"),
        (Forecasts(GOOD, GOOD - 1), GOOD, ValueError, "variance of predictions: expected .*row 0 has -1.0"),
        (
            Forecasts(GOOD, interval=(GOOD, GOOD - 1)),
            GOOD,
            ValueError,
            "upper ends .*none below the lower end",
        ),
    ],
)
def test_bad_input_is_named(prediction, labels, error, message) -> None:
    for rows in (metrics.squared_rows, metrics.absolute_rows, metrics.crps_rows):
        with pytest.raises(error, match=message):
            rows(prediction, labels)


def test_a_metric_of_a_missing_variance_is_refused() -> None:
    _, labels = case()
    for rows in (metrics.nll_rows, metrics.covered_rows, metrics.width_rows):
        with pytest.raises(ValueError, match="predictions: expected a variance"):
            rows(Forecasts(labels), labels)
