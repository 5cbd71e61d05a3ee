"""Greedy selection: against trying everything, within budgets, and its errors."""

import itertools

import numpy as np
import pytest
from scipy.special import log_softmax, softmax

from ensdistill.teachers.fitting.calibration import log_mixture, negative_log_likelihood
from ensdistill.teachers.fitting.selection import greedy_selection


def library(members=6, rows=200, classes=4, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(classes, size=rows)
    noise = rng.uniform(0.5, 3.0, members)
    return 2 * np.eye(classes)[labels] + noise[:, None, None] * rng.normal(
        size=(members, rows, classes)
    ), labels


def nll(z, weights, labels, combiner="prob"):
    return negative_log_likelihood(log_mixture(z, weights, combiner), labels)


@pytest.mark.parametrize("combiner", ["prob", "logit", "log_prob"])
def test_every_round_takes_the_best_and_losses_are_the_mixtures(combiner):
    z, labels = library()
    found = greedy_selection(z, labels, combiner=combiner, rounds=12, prior_rows=0)
    taken = np.zeros(6)
    for k, loss in zip(found.order, found.losses, strict=True):
        possible = [nll(z, (taken + e) / (taken + e).sum(), labels, combiner) for e in np.eye(6)]
        assert possible[k] == pytest.approx(min(possible), abs=1e-12)
        taken[k] += 1
        assert loss == pytest.approx(possible[k], abs=1e-12)
    np.testing.assert_array_equal(found.counts, taken)
    assert found.losses[-1] == pytest.approx(min(found.losses), abs=1e-12)
    assert found.weights.sum() == pytest.approx(1)
    assert np.isnan(found.cost)


@pytest.mark.parametrize("metric", ["nll", "accuracy", "brier"])
def test_selection_beats_the_uniform_mixture_and_the_best_member_where_members_are_unequal(metric):
    z, labels = library(8, 400)
    found = greedy_selection(z, labels, metric=metric)

    def loss(weights):
        p = np.exp(log_mixture(z, weights))
        if metric == "nll":
            return nll(z, weights, labels)
        return (
            (p.argmax(1) != labels).mean()
            if metric == "accuracy"
            else ((p - np.eye(4)[labels]) ** 2).sum(1).mean()
        )

    assert loss(found.weights) == pytest.approx(found.losses[-1], abs=1e-12)
    assert loss(found.weights) < loss(np.full(8, 1 / 8))
    assert loss(found.weights) <= min(loss(e) for e in np.eye(8))


def test_equal_members_the_first_is_taken_and_permutations_follow():
    z, labels = library(3)
    assert greedy_selection(z[[1, 1, 1]], labels).counts.tolist() == [1, 0, 0]
    order = [2, 0, 1]
    np.testing.assert_array_equal(
        greedy_selection(z[order], labels).counts, greedy_selection(z, labels).counts[order]
    )


@pytest.mark.parametrize("seed", range(6))
def test_a_budget_is_kept_and_the_choice_is_near_the_best_there_is(seed):
    z, labels = library(6, 120, seed=seed)
    costs = np.random.default_rng(seed + 100).uniform(1, 10, 6)
    found = greedy_selection(z, labels, costs=costs, budget=12.0, rounds=20)
    assert found.cost == pytest.approx(costs[found.counts > 0].sum())
    assert found.cost <= 12.0
    affordable = [
        s for n in range(1, 7) for s in itertools.combinations(range(6), n) if costs[list(s)].sum() <= 12
    ]
    free = [greedy_selection(z[list(s)], labels, rounds=20).losses[-1] for s in affordable]
    # Greedy is no search; with six members it is near the best of all affordable sets, and never worse than
    # one member.
    assert found.losses[-1] <= min(free) * 1.1
    assert found.losses[-1] <= min(nll(z[[k]], np.ones(1), labels) for k in range(6) if costs[k] <= 12)


def test_cost_decides_between_members_of_nearly_equal_worth():
    rng = np.random.default_rng(0)
    labels = rng.integers(3, size=300)
    strong = 3 * np.eye(3)[labels] + rng.normal(size=(300, 3))
    cheap = [2.9 * np.eye(3)[labels] + rng.normal(size=(300, 3)) for _ in range(3)]
    z = np.stack([strong, *cheap])
    found = greedy_selection(z, labels, costs=[10, 3, 3, 3], budget=10)
    assert found.counts[0] == 0  # it alone would use everything up
    assert (found.counts[1:] > 0).sum() == 3


def test_bags_are_reproducible_and_spread_the_choice():
    z, labels = library(10, 40)
    plain, bagged = greedy_selection(z, labels), greedy_selection(z, labels, bags=12, seed=1)
    np.testing.assert_array_equal(bagged.counts, greedy_selection(z, labels, bags=12, seed=1).counts)
    assert (bagged.counts > 0).sum() > (plain.counts > 0).sum()
    assert bagged.losses[-1] == pytest.approx(nll(z, bagged.weights, labels))


def test_masked_classes():
    z = np.array([[[0.0, -np.inf], [0, 0]], [[0, 0], [0, 0.5]]])
    labels = np.array([0, 1])
    for combiner in ("prob", "logit"):
        assert np.isfinite(greedy_selection(z, labels, combiner=combiner).losses).all()
    assert greedy_selection(z, np.array([1, 1]), prior_rows=0).counts[0] == 0  # it rules the truth out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"rounds": 0}, "rounds: expected at least 1; got 0"),
        ({"metric": "f1"}, "metric: expected nll, accuracy or brier; got 'f1'"),
        ({"combiner": "mean"}, "combiner: expected"),
        ({"costs": [1.0]}, "costs: expected 6 numbers"),
        ({"costs": [1, 1, 1, 1, 1, np.nan]}, "costs: expected 6 numbers"),
        ({"budget": 1.0}, "budget: expected costs beside it"),
        (
            {"costs": np.arange(1.0, 7), "budget": 0.5},
            "budget: expected at least 1, the cost of the cheapest member; got 0.5",
        ),
        ({"costs": np.arange(1.0, 7), "budget": 5.0, "bags": 3}, "bags: expected 1 within a budget"),
        ({"prior_rows": -1.0}, "prior_rows: expected a number of at least 0; got -1.0"),
        ({"bags": 2, "share": 0.0}, "share: expected"),
    ],
)
def test_bad_arguments(options, words):
    z, labels = library()
    with pytest.raises(ValueError, match=words):
        greedy_selection(z, labels, **options)


def test_shapes():
    z, labels = library()
    with pytest.raises(ValueError, match=r"logits: expected \[K, 200, C\] for 200 labels; got \[200, 4\]"):
        greedy_selection(z[0], labels)


def test_softmax_and_logits_agree_on_known_numbers():
    """The quick way (true classes only) and the general one are one rule."""
    z, labels = library(4)
    quick = greedy_selection(z, labels, rounds=9)
    p = softmax(z, -1)
    weights = quick.weights
    expected = -np.log((weights[:, None, None] * p).sum(0)[np.arange(200), labels]).mean()
    assert quick.losses[-1] == pytest.approx(expected)
    np.testing.assert_allclose(
        log_mixture(z, weights), np.log((weights[:, None, None] * np.exp(log_softmax(z, -1))).sum(0))
    )
