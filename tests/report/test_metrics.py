"""Metrics of probabilities against scikit-learn and against sums by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, brier_score_loss, log_loss

from ensdistill.report import metrics

# Means of at most 2000 float64 terms of size one: two orders of adding them differ by less than 2000 ulp.
TOLERANCE = 1e-12


@pytest.fixture(scope="module")
def digits() -> tuple[np.ndarray, np.ndarray]:
    inputs, labels = load_digits(return_X_y=True)
    model = LogisticRegression(C=0.001, max_iter=200).fit(inputs[:200], labels[:200])
    return model.predict_proba(inputs[200:]), labels[200:].astype(np.int64)


def random_case(seed: int, n: int = 123, c: int = 7) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.dirichlet(np.full(c, 0.3), size=n), rng.integers(c, size=n)


def slow_ece(probabilities: np.ndarray, labels: np.ndarray, bins: int) -> float:
    """Guo et al. (2017), equation 3, one row and one bin at a time, with masks instead of a search."""
    total = 0.0
    for b in range(bins):
        members = [i for i, p in enumerate(probabilities) if b / bins < max(p) <= (b + 1) / bins]
        if members:
            hits = np.mean([np.argmax(probabilities[i]) == labels[i] for i in members])
            total += (
                len(members) / len(labels) * abs(hits - np.mean([max(probabilities[i]) for i in members]))
            )
    return total


def test_means_agree_with_scikit_learn(digits: tuple[np.ndarray, np.ndarray]) -> None:
    probabilities, labels = digits
    classes = list(range(10))
    assert metrics.accuracy(*digits) == accuracy_score(labels, probabilities.argmax(axis=1))
    assert metrics.nll(*digits) == pytest.approx(
        log_loss(labels, probabilities, labels=classes), rel=TOLERANCE
    )
    expected = brier_score_loss(labels, probabilities, labels=classes, scale_by_half=False)
    assert metrics.brier(*digits) == pytest.approx(expected, rel=TOLERANCE)


def test_rows_average_to_the_metric(digits: tuple[np.ndarray, np.ndarray]) -> None:
    expected_brier = [sum((p[c] - (c == y)) ** 2 for c in range(10)) for p, y in zip(*digits, strict=True)]
    np.testing.assert_allclose(metrics.brier_rows(*digits), expected_brier, rtol=TOLERANCE)
    np.testing.assert_allclose(
        metrics.nll_rows(*digits), [-np.log(p[y]) for p, y in zip(*digits, strict=True)], rtol=TOLERANCE
    )


@pytest.mark.parametrize("bins", [1, 10, 15])
def test_ece_agrees_with_an_independent_implementation(
    digits: tuple[np.ndarray, np.ndarray], bins: int
) -> None:
    assert metrics.ece(*digits, bins=bins) > 0.01
    assert metrics.ece(*digits, bins=bins) == pytest.approx(slow_ece(*digits, bins), rel=1e-10)


def test_ece_by_hand() -> None:
    # Confidences 0.9, 0.9 (one right), 0.6 (right), 0.55 (wrong); five bins of 0.2: (0.8, 1] and (0.4, 0.6].
    probabilities = np.array([[0.9, 0.1], [0.9, 0.1], [0.4, 0.6], [0.55, 0.45]])
    labels = np.array([0, 1, 1, 1])
    expected = 2 / 4 * abs(0.5 - 0.9) + 2 / 4 * abs(0.5 - 0.575)
    assert metrics.ece(probabilities, labels, bins=5) == pytest.approx(expected, rel=TOLERANCE)


def test_a_confidence_on_an_edge_belongs_to_the_bin_below_it() -> None:
    probabilities = np.array([[0.5, 0.5], [0.49, 0.51]])
    assert list(metrics.reliability(probabilities, np.array([0, 1]), bins=2).count) == [1, 1]


def test_adaptive_ece_by_hand() -> None:
    # Sorted confidences 0.6 0.7 | 0.8 0.9 with hits 1 0 | 1 1.
    probabilities = np.array([[0.8, 0.2], [0.6, 0.4], [0.9, 0.1], [0.7, 0.3]])
    labels = np.array([0, 0, 0, 1])
    expected = 0.5 * abs(0.5 - 0.65) + 0.5 * abs(1 - 0.85)
    assert metrics.adaptive_ece(probabilities, labels, bins=2) == pytest.approx(expected, rel=TOLERANCE)


def test_adaptive_bins_hold_equally_many_rows() -> None:
    counts = metrics.reliability(*random_case(0, n=300), adaptive=True).count
    assert list(counts) == [20] * 15


@given(st.integers(0, 2**32 - 1))
def test_order_of_rows_and_names_of_classes_do_not_matter(seed: int) -> None:
    probabilities, labels = random_case(seed)
    probabilities = np.round(probabilities, 1)  # many equal confidences, the hard case for bins of equal mass
    probabilities[:, 0] += 1 - probabilities.sum(axis=1)
    probabilities = np.clip(probabilities, 0, None)
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(labels))
    for metric in (metrics.accuracy, metrics.nll, metrics.brier, metrics.ece, metrics.adaptive_ece):
        value = metric(probabilities, labels)
        assert metric(probabilities[order], labels[order]) == pytest.approx(value, abs=TOLERANCE)
    names = rng.permutation(probabilities.shape[1])
    for metric in (metrics.nll, metrics.brier):
        assert metric(probabilities[:, names], np.argsort(names)[labels]) == pytest.approx(
            metric(probabilities, labels), abs=TOLERANCE
        )


def test_an_exact_zero_costs_as_much_as_in_scikit_learn_and_is_counted() -> None:
    probabilities = np.array([[1.0, 0.0], [1.0, 0.0], [0.5, 0.5]])
    labels = np.array([1, 0, 0])
    assert metrics.nll_rows(probabilities, labels)[0] == pytest.approx(36.04365338911715, rel=TOLERANCE)
    assert metrics.nll(probabilities, labels) == pytest.approx(log_loss(labels, probabilities), rel=TOLERANCE)
    assert metrics.floored_rows(probabilities, labels) == 1


@pytest.mark.parametrize(
    ("probabilities", "labels", "error", "message"),
    [
        (
            np.full((2, 2), 0.5, np.float32),
            np.array([0, 1]),
            TypeError,
            "probabilities: expected a float64 array; got float32",
        ),
        ([[0.5, 0.5]], np.array([0]), TypeError, "probabilities: expected a float64 array; got list"),
        (
            np.full((2, 2), 0.5),
            np.array([0.0, 1.0]),
            TypeError,
            "labels: expected a int64 array; got float64",
        ),
        (np.full(2, 0.5), np.array([0, 1]), ValueError, r"probabilities: expected \[N, C\].*got \[2\]"),
        (np.empty((0, 2)), np.empty(0, np.int64), ValueError, r"at least 1; got \[0, 2\]"),
        (np.full((2, 2), 0.5), np.array([0]), ValueError, r"labels: expected \[2\].*got \[1\]"),
        (
            np.full((2, 2), 0.5),
            np.array([0, 2]),
            ValueError,
            r"labels: expected class indices in \[0, 2\); row 1 has 2",
        ),
        (np.full((2, 2), 0.5), np.array([-100, 1]), ValueError, "row 0 has -100"),
        (np.array([[0.5, 0.5], [1.2, -0.2]]), np.array([0, 1]), ValueError, "row 1 has -0.2 to 1.2"),
        (np.array([[np.nan, 1.0]]), np.array([0]), ValueError, "row 0 has nan"),
        (np.array([[0.5, 0.5], [0.9, 0.9]]), np.array([0, 1]), ValueError, r"row 1 sums to 1.8"),
    ],
)
def test_bad_input_is_named(
    probabilities: np.ndarray, labels: np.ndarray, error: type[Exception], message: str
) -> None:
    for metric in (metrics.accuracy, metrics.nll, metrics.brier, metrics.ece):
        with pytest.raises(error, match=message):
            metric(probabilities, labels)


@pytest.mark.parametrize("bins", [0, -1, 2.5])
def test_bad_bins_are_named(bins: int) -> None:
    with pytest.raises(ValueError, match=f"bins: expected a positive integer; got {bins}"):
        metrics.ece(*random_case(0), bins=bins)


def test_whole_weights_count_as_repeated_rows():
    generator = np.random.default_rng(0)
    p = generator.dirichlet(np.ones(3), 60)
    y, times = generator.integers(0, 3, 60), generator.integers(0, 4, 60)
    repeated = np.repeat(np.arange(60), times)
    for metric in (metrics.accuracy, metrics.nll, metrics.brier, metrics.ece):
        weighted = metric(p, y, weights=times.astype(float))
        assert weighted == pytest.approx(metric(p[repeated], y[repeated]), rel=1e-12)
        assert weighted != pytest.approx(metric(p, y), rel=1e-3)
        assert metric(p, y, weights=np.full(60, 0.5)) == pytest.approx(metric(p, y), rel=1e-12)
