"""The bootstrap: paired resamples, intervals of means and of ratios."""

import numpy as np
import pytest

from ensdistill.report.bootstrap import interval, ratio_interval, resampled_means


def slow_means(values: list[np.ndarray], resamples: int, seed: int) -> np.ndarray:
    """The definition, one seed and one resample at a time, with other random numbers."""
    rng = np.random.default_rng(seed)
    means = []
    for _ in range(resamples):
        drawn = [values[i] for i in rng.integers(len(values), size=len(values))]
        means.append(
            np.mean([rows[rng.integers(len(rows), size=len(rows))].mean(axis=0) for rows in drawn], axis=0)
        )
    return np.array(means)


def test_agrees_with_the_definition() -> None:
    rng = np.random.default_rng(0)
    # Seeds that differ by more than their rows' error, and in length: leaving out either level shows in the
    # spread.
    values = [rng.normal(shift, 1, size=(n, 2)) for shift, n in ((0.0, 40), (0.3, 60), (0.9, 80))]
    fast, slow = resampled_means(values, resamples=20_000), slow_means(values, 20_000, 1)
    spread = slow.std(axis=0)
    # Standard errors: of a mean 1/sqrt(20000) = 0.7 % of the spread, of the spread itself about half of that;
    # five of them each.
    np.testing.assert_allclose(fast.mean(axis=0), slow.mean(axis=0), atol=0.05 * spread.max())
    np.testing.assert_allclose(fast.std(axis=0), spread, rtol=0.05)
    np.testing.assert_allclose(np.corrcoef(fast.T)[0, 1], np.corrcoef(slow.T)[0, 1], atol=0.05)


def test_single_seed_gives_the_standard_error_of_a_mean() -> None:
    rows = np.random.default_rng(3).normal(size=(500, 1))
    assert resampled_means([rows], resamples=20_000).std() == pytest.approx(
        rows.std() / np.sqrt(500), rel=0.03
    )


def test_columns_are_paired() -> None:
    rows = np.random.default_rng(0).normal(size=(97, 1))
    draws = resampled_means([np.hstack([rows, rows + 0.25]), np.hstack([rows**2, rows**2 + 0.25])])
    np.testing.assert_allclose(draws[:, 1] - draws[:, 0], 0.25, atol=1e-12)


def test_the_size_of_a_part_changes_nothing_but_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    values = [np.random.default_rng(s).normal(size=(n, 2)) for s, n in enumerate((31, 17))]
    whole = resampled_means(values)
    monkeypatch.setattr("ensdistill.report.bootstrap._CELLS", 31 * 7)
    # A product of another shape may be summed in another order: the last bits are the linear algebra
    # library's.
    np.testing.assert_allclose(resampled_means(values), whole, rtol=0, atol=1e-14)


def test_seeded() -> None:
    values = [np.random.default_rng(0).normal(size=(50, 1))]
    np.testing.assert_array_equal(resampled_means(values, seed=5), resampled_means(values, seed=5))
    assert (resampled_means(values, seed=5) != resampled_means(values, seed=6)).any()


def test_interval_leaves_a_fortieth_on_either_side() -> None:
    low, high = interval(np.random.default_rng(0).permutation(np.arange(4001.0)))
    assert (low, high) == (100, 3900)


def test_ratio_without_trouble_is_the_plain_percentile_interval() -> None:
    rng = np.random.default_rng(0)
    numerator, denominator = rng.normal(0.9, 0.05, 4000), rng.uniform(0.9, 1.1, 4000)
    assert ratio_interval(numerator, denominator) == interval(numerator / denominator)


def test_resamples_without_gain_widen_the_interval_on_both_sides() -> None:
    rng = np.random.default_rng(0)
    numerator = rng.normal(0.9, 0.05, 4000)
    clean = ratio_interval(numerator, np.ones(4000))
    touched = ratio_interval(numerator, np.where(np.arange(4000) < 80, -1e-9, 1.0))
    assert clean is not None
    assert touched is not None
    assert touched[0] < clean[0] < clean[1] < touched[1]
    assert np.isfinite(touched).all()


@pytest.mark.parametrize("without_gain", [99, 100, 101])
def test_ratio_is_unbounded_exactly_when_the_denominators_interval_reaches_zero(without_gain: int) -> None:
    denominator = np.where(np.arange(4000) < without_gain, 0.0, 1.0)
    bounded = interval(denominator)[0] > 0
    assert bounded == (without_gain <= 99)
    result = ratio_interval(np.full(4000, 0.5), denominator)
    assert (result is not None) == bounded
    assert result is None or np.isfinite(result).all()


@pytest.mark.parametrize("resamples", [0, 1999, 2500.0])
def test_too_few_resamples(resamples: int) -> None:
    with pytest.raises(ValueError, match=f"resamples: expected an integer of at least 2000; got {resamples}"):
        resampled_means([np.zeros((3, 1))], resamples=resamples)


def test_resampled_means_of_equal_weights_are_the_unweighted_ones():
    rows = [np.random.default_rng(s).normal(size=(20, 3)) for s in range(2)]
    plain = resampled_means(rows)
    np.testing.assert_allclose(resampled_means(rows, weights=[np.full(20, 3.0)] * 2), plain, atol=1e-12)
    first = np.eye(20)[0] + 1e-9
    heavy = resampled_means(rows, weights=[first, first])
    drawn = np.abs(heavy - np.mean([r[0] for r in rows], axis=0)).max(1) < 1e-6
    assert 0.2 < drawn.mean() < 0.8  # resamples that drew the heavy row of each seed
