"""Each member's part of a mixture of regressors, from a cache alone."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
from job_helpers import run

from ensdistill import ArrayMember, Ensemble, Rows, cache_targets
from ensdistill.student import member_contributions

N, K, D = 50, 3, 2
DRAWS = np.random.default_rng(0)
Y = DRAWS.normal([3.0, -20.0], [1.0, 50.0], (N, D))
UNIT = Y.std(0)
MEANS = Y + DRAWS.normal(size=(K, N, D)) * UNIT * np.array([0.3, 0.6, 1.2])[:, None, None]
VARIANCES = np.square(UNIT) * DRAWS.uniform(0.2, 1.5, (K, N, D))
WEIGHTS = np.array([0.5, 0.3, 0.2])
ROWS = Rows(np.arange(N, dtype=np.float32)[:, None], np.arange(N), np.full((N, D), np.nan))


def cache_of(folder, means=MEANS, variances=VARIANCES, **more):
    members = [
        ArrayMember(name=f"m{k}", means=mean, variances=None if variances is None else variances[k])
        for k, mean in enumerate(means)
    ]
    ensemble = Ensemble.from_members(members, weights=WEIGHTS)
    return cache_targets(ensemble, ROWS, folder / "targets", codec="fp32", **more)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return cache_of(tmp_path_factory.mktemp("numbers"))


def mixed(subset, none):
    """Mean and variance of the mixture of some members."""
    if not subset:
        return none.mean(0), none.var(0)
    w = WEIGHTS[list(subset)] / WEIGHTS[list(subset)].sum()
    own, v = MEANS[list(subset)], VARIANCES[list(subset)]
    mean = (w[:, None, None] * own).sum(0)
    return mean, (w[:, None, None] * (v + np.square(own))).sum(0) - np.square(mean)


def worth(subset):
    """The negative distance, RMSE and NLL."""
    mean, variance = mixed(subset, Y)
    whole = mixed(range(K), Y)[0]
    distance, error = ((mean - other) / Y.std(0) for other in (whole, Y))
    nll = 0.5 * (np.log(2 * np.pi * variance) + np.square(Y - mean) / variance).sum(1).mean()
    return np.array([-np.sqrt(np.square(distance).mean()), -np.sqrt(np.square(error).mean()), -nll])


def test_the_values_are_those_of_all_orders(cache):
    found = member_contributions(cache, Y)
    assert found.metrics == ("distance", "rmse", "nll")
    assert (found.rows, found.labelled) == (N, N * D)
    expected = np.zeros((K, 3))
    for order in itertools.permutations(range(K)):
        for place, k in enumerate(order):
            expected[k] += worth(order[: place + 1]) - worth(order[:place])
    np.testing.assert_allclose(found.shapley, expected / 6, rtol=1e-4, atol=1e-5)
    for k in range(K):
        gain = worth(range(K)) - worth([j for j in range(K) if j != k])
        np.testing.assert_allclose(found.leave_one_out[k], gain, rtol=1e-4, atol=1e-5)
    assert found.shapley[0, 1] == found.shapley[:, 1].max()


def test_without_labels_the_values_sum_to_the_spread_of_the_mixture(cache):
    found = member_contributions(cache)
    assert (found.metrics, found.labelled) == (("distance",), 0)
    assert found.shapley.sum() == pytest.approx(1.0, rel=1e-5)  # in units of that spread
    assert (found.leave_one_out > 0).all()


def test_members_without_variances_have_no_density(tmp_path):
    plain = cache_of(tmp_path, variances=None)
    found = member_contributions(plain, Y)
    assert found.metrics == ("distance", "rmse")
    whole = np.sqrt(np.square((mixed(range(K), Y)[0] - Y) / UNIT).mean())
    assert found.shapley[:, 1].sum() == pytest.approx(1 - whole, rel=1e-4)


def test_unknown_numbers_have_no_part(cache):
    some = Y.copy()
    some[::3, 0] = np.nan
    some[4] = np.nan
    found = member_contributions(cache, some)
    known = ~np.isnan(some)
    assert found.labelled == known.sum()
    unit = np.nanstd(some, 0)
    rmse = [
        np.sqrt(np.square(((mixed(subset, Y)[0] - some) / unit)[known]).mean())
        for subset in (range(K), [1, 2])
    ]
    assert found.leave_one_out[0, 1] == pytest.approx(rmse[1] - rmse[0], rel=1e-4)


def test_what_does_not_fit_is_refused(cache, tmp_path):
    for labels, message in (
        (Y[:5], r"expected numbers \[50, 2\], .*got float64 \[5, 2\]"),
        (np.full((N, D), "a"), "expected numbers"),
        (np.where(np.arange(N)[:, None] == 3, np.inf, Y), "expected finite numbers, or NaN where unknown"),
        (np.where([False, True], np.nan, Y), "expected some that are known of each number; all of number 1"),
    ):
        with pytest.raises(ValueError, match=f"^labels: .*{message}"):
            member_contributions(cache, labels)
    mixture = cache_of(tmp_path, mixture_at=1.0)
    with pytest.raises(ValueError, match=r"^cache: expected the targets of every member"):
        member_contributions(mixture, Y)


def test_the_command_prints_them(cache, tmp_path):
    np.save(tmp_path / "y.npy", Y)
    status, out, err = run("cache", "contributions", cache.path, "--labels", tmp_path / "y.npy", "--json")
    assert status == 0, err
    found, told = member_contributions(cache, Y), json.loads(out)
    assert told["members"]["m1"]["rmse"]["shapley"] == pytest.approx(found.shapley[1, 1])
    status, out, _ = run("cache", "contributions", cache.path)
    assert status == 0
    assert "distance" in out
