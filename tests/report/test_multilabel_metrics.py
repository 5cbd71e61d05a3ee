"""Metrics of labels against scikit-learn and against sums by hand."""

import numpy as np
import pytest
from sklearn.metrics import (
    average_precision_score,
    f1_score,
    label_ranking_average_precision_score,
    log_loss,
)

from ensdistill.report import multilabel_metrics as metrics
from ensdistill.report.multilabel_metrics import LabelProbabilities

THRESHOLDS = np.array([0.3, 0.5, 0.45, 0.6])


def case(
    seed: int = 0, n: int = 123, unknown: float = 0.0, digits: int = 2
) -> tuple[LabelProbabilities, np.ndarray]:
    """Rounded probabilities, so that many are equal; four labels, the last of them rare."""
    rng = np.random.default_rng(seed)
    labels = (rng.random((n, 4)) < [0.5, 0.3, 0.2, 0.05]).astype(np.int8)
    p = np.round(np.clip(0.25 + 0.3 * labels + rng.normal(0, 0.2, labels.shape), 0.01, 0.99), digits)
    hidden = rng.random(labels.shape) < unknown
    hidden[:, 0] = False  # each row keeps a known label
    labels[hidden] = -1
    return LabelProbabilities(p, THRESHOLDS), labels


def without(prediction: LabelProbabilities, labels: np.ndarray, c: int) -> tuple[np.ndarray, np.ndarray]:
    known = labels[:, c] != -1
    return prediction.values[known, c], labels[known, c]


def test_values_agree_with_scikit_learn() -> None:
    prediction, labels = case()
    p, chosen = prediction.values, prediction.values >= THRESHOLDS
    assert metrics.mean_average_precision(prediction, labels) == average_precision_score(labels, p)
    assert metrics.micro_f1(prediction, labels) == f1_score(labels, chosen, average="micro")
    assert metrics.macro_f1(prediction, labels) == pytest.approx(f1_score(labels, chosen, average="macro"))
    expected = label_ranking_average_precision_score(labels, p)
    assert metrics.lrap(prediction, labels) == pytest.approx(expected, rel=1e-12)
    each = [log_loss(labels[:, c], p[:, c]) for c in range(4)]
    assert metrics.bce(prediction, labels) == pytest.approx(np.mean(each), rel=1e-12)


def test_unknown_labels_are_as_if_absent() -> None:
    prediction, labels = case(unknown=0.3)
    found = metrics.average_precisions(prediction, labels)
    for c in range(4):
        p, y = without(prediction, labels, c)
        assert found[c] == average_precision_score(y, p)
    pairs = [without(prediction, labels, c) for c in range(4)]
    f1 = [f1_score(y, p >= t) for (p, y), t in zip(pairs, THRESHOLDS, strict=True)]
    assert metrics.macro_f1(prediction, labels) == pytest.approx(np.mean(f1), rel=1e-12)
    known = labels != -1
    expected = f1_score(labels[known], (prediction.values >= THRESHOLDS)[known])
    assert metrics.micro_f1(prediction, labels) == pytest.approx(expected, rel=1e-12)
    rows = [
        np.mean([-np.log(p if y else 1 - p) for p, y in zip(values, row, strict=True) if y != -1])
        for values, row in zip(prediction.values, labels, strict=True)
    ]
    np.testing.assert_allclose(metrics.bce_rows(prediction, labels), rows, rtol=1e-12)
    ranks = [
        label_ranking_average_precision_score(row[None, k], values[None, k]) if k.sum() > 1 else 1.0
        for values, row, k in zip(prediction.values, labels, known, strict=True)
    ]
    assert metrics.lrap(prediction, labels) == pytest.approx(np.mean(ranks), rel=1e-12)
    # Their probabilities do not matter.
    other = LabelProbabilities(np.where(known, prediction.values, 0.99), THRESHOLDS)
    for metric in (
        metrics.mean_average_precision,
        metrics.bce,
        metrics.micro_f1,
        metrics.macro_f1,
        metrics.lrap,
        metrics.label_ece,
    ):
        assert metric(other, labels) == metric(prediction, labels)


def test_calibration_error_by_hand() -> None:
    p = np.array([[0.9, 0.5], [0.9, 0.5], [0.9, 0.5], [0.05, 0.5]])
    labels = np.array([[1, -1], [1, -1], [0, 1], [0, 0]], np.int8)
    first = 3 / 4 * abs(0.9 - 2 / 3) + 1 / 4 * 0.05
    assert metrics.label_ece(LabelProbabilities(p), labels) == pytest.approx((first + 0) / 2, rel=1e-12)


def test_labels_without_a_positive_row_have_no_precision_and_no_f1() -> None:
    prediction, labels = case()
    labels[:, 3] = 0
    found = metrics.average_precisions(prediction, labels)
    assert np.isnan(found[3])
    assert metrics.mean_average_precision(prediction, labels) == pytest.approx(found[:3].mean())
    f1 = [f1_score(labels[:, c], prediction.values[:, c] >= THRESHOLDS[c]) for c in range(3)]
    assert metrics.macro_f1(prediction, labels) == pytest.approx(np.mean(f1))
    nothing = np.zeros_like(labels)
    for metric in (metrics.mean_average_precision, metrics.micro_f1, metrics.macro_f1):
        assert metric(prediction, nothing) == 0
    assert metrics.lrap(prediction, nothing) == 1


RESAMPLERS = {
    metrics.mean_average_precision: metrics.map_resampler,
    metrics.micro_f1: metrics.f1_resampler("micro"),
    metrics.macro_f1: metrics.f1_resampler("macro"),
}


@pytest.mark.parametrize("metric", RESAMPLERS)
@pytest.mark.parametrize("unknown", [0.0, 0.3])
def test_resamples_are_the_metric_of_the_drawn_rows(metric, unknown) -> None:
    prediction, labels = case(1, unknown=unknown)
    rng = np.random.default_rng(0)
    drawn = rng.integers(len(labels), size=(8, len(labels)))
    counts = np.stack([np.bincount(rows, minlength=len(labels)) for rows in drawn]).astype(float)
    weights = rng.uniform(0.1, 3, len(labels))
    resampler = RESAMPLERS[metric](prediction, labels)
    plain = [metric(LabelProbabilities(prediction.values[rows], THRESHOLDS), labels[rows]) for rows in drawn]
    weighted = [metric(prediction, labels, count * weights) for count in counts]
    np.testing.assert_allclose(resampler(counts), plain, rtol=1e-5)
    np.testing.assert_allclose(resampler(counts * weights), weighted, rtol=1e-5)
    assert np.std(plain) > 1e-3


def test_a_resample_without_a_positive_row_leaves_the_label_out() -> None:
    prediction, labels = case()
    counts = np.ones((1, len(labels)))
    counts[0, labels[:, 3] == 1] = 0
    kept = counts[0] == 1
    rest = LabelProbabilities(prediction.values[kept], THRESHOLDS)
    for metric, resampler in RESAMPLERS.items():
        expected = metric(rest, labels[kept])
        assert resampler(prediction, labels)(counts)[0] == pytest.approx(expected, rel=1e-6)
        assert resampler(prediction, labels)(np.zeros((1, len(labels))))[0] == 0


def test_tuned_thresholds_have_the_largest_f1() -> None:
    prediction, labels = case(2, n=40, unknown=0.2)
    found = metrics.tuned_thresholds(prediction.values, labels)
    for c in range(4):
        p, y = without(prediction, labels, c)
        best = max(f1_score(y, p >= t, zero_division=0) for t in np.r_[np.unique(p), 2])
        assert f1_score(y, p >= found[c]) == pytest.approx(best, rel=1e-12)
    labels[:, 1] = np.minimum(labels[:, 1], 0)
    assert metrics.tuned_thresholds(prediction.values, labels)[1] == 0.5


def test_whole_weights_count_as_repeated_rows() -> None:
    prediction, labels = case(3, unknown=0.1)
    times = np.random.default_rng(0).integers(0, 4, len(labels))
    repeated = np.repeat(np.arange(len(labels)), times)
    many = LabelProbabilities(prediction.values[repeated], THRESHOLDS)
    for metric in (*RESAMPLERS, metrics.bce, metrics.lrap, metrics.label_ece):
        weighted = metric(prediction, labels, times.astype(float))
        assert weighted == pytest.approx(metric(many, labels[repeated]), rel=1e-10)
        assert weighted != pytest.approx(metric(prediction, labels), rel=1e-4)


def test_the_order_of_labels_does_not_matter() -> None:
    prediction, labels = case(4, unknown=0.1)
    order = np.array([2, 0, 3, 1])
    other = LabelProbabilities(prediction.values[:, order], THRESHOLDS[order])
    for metric in (*RESAMPLERS, metrics.bce, metrics.lrap, metrics.label_ece):
        assert metric(other, labels[:, order]) == pytest.approx(metric(prediction, labels), rel=1e-12)


def test_an_impossible_label_costs_the_floor_and_is_counted() -> None:
    p, labels = np.array([[1.0, 0.0], [0.5, 0.0]]), np.array([[0, 0], [1, -1]], np.int8)
    assert metrics.bce_rows(LabelProbabilities(p), labels)[0] == pytest.approx(36.04365338911715 / 2)
    assert metrics.floored_labels(LabelProbabilities(p), labels) == 1


def test_reliability_groups_known_labels() -> None:
    prediction, labels = case(unknown=0.3)
    bins = metrics.reliability(prediction, labels)
    assert bins.count.sum() == (labels != -1).sum()
    assert np.average(bins.accuracy, weights=bins.count) == pytest.approx(
        (labels == 1).sum() / bins.count.sum()
    )


GOOD = np.full((2, 2), 0.5)
ZEROS = np.zeros((2, 2), np.int8)


@pytest.mark.parametrize(
    ("values", "labels", "thresholds", "error", "message"),
    [
        (
            GOOD.astype(np.float32),
            ZEROS,
            None,
            TypeError,
            "probabilities: expected a float64 array; got float32",
        ),
        (GOOD, ZEROS.astype(np.int64), None, TypeError, "labels: expected a int8 array; got int64"),
        (GOOD[0], ZEROS, None, ValueError, r"probabilities: expected \[N, C\] .*; got \[2\]"),
        (GOOD, ZEROS[:1], None, ValueError, r"labels: expected \[2, 2\], as probabilities; got \[1, 2\]"),
        (GOOD, ZEROS + np.int8(2), None, ValueError, r"labels: expected 0, 1, or -1 .*; row 0 has 2"),
        (GOOD, np.array([[0, -1], [-1, -1]], np.int8), None, ValueError, "one known label; row 1 has -1"),
        (np.array([[0.5, 0.5], [0.1, np.nan]]), ZEROS, None, ValueError, "row 1 has nan to nan"),
        (np.array([[0.5, 0.5], [0.1, 2.0]]), ZEROS, None, ValueError, r"row 1 has 0.1 to 2.0 \(log-odds\?\)"),
        (GOOD, ZEROS, np.ones(3), ValueError, r"thresholds of probabilities: expected 2 .*; got \[3\]"),
    ],
)
def test_bad_input_is_named(values, labels, thresholds, error, message) -> None:
    for metric in (metrics.bce, metrics.mean_average_precision, metrics.micro_f1, metrics.lrap):
        with pytest.raises(error, match=message):
            metric(LabelProbabilities(values, thresholds), labels)
