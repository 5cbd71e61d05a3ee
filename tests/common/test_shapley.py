"""Shapley values against their definition: the mean over all orders."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest

from ensdistill.common.shapley import EXACT, shapley

RNG = np.random.default_rng(0)


def game(parts: int, measures: int = 2):
    """Worths of all subsets, drawn at random."""
    table = RNG.normal(size=(2**parts, measures))
    return lambda subset: table[int((subset * 2 ** np.arange(parts)).sum())]


@pytest.mark.parametrize("parts", [1, 2, 3, 5])
def test_values_are_the_mean_gains_over_all_orders(parts: int) -> None:
    worth, total = game(parts), np.zeros((parts, 2))
    orders = list(permutations(range(parts)))
    for order in orders:
        subset = np.zeros(parts, bool)
        for part in order:
            before = worth(subset)
            subset[part] = True
            total[part] += worth(subset) - before
    found = shapley(worth, parts)
    np.testing.assert_allclose(found.values, total / len(orders), atol=1e-12)
    assert found.orders == 0
    assert (found.errors == 0).all()


def test_sampled_values_are_within_their_errors_of_a_known_game() -> None:
    # Additive but for pairs: the value of a part is its own worth and half of each of its pairs.
    parts = EXACT + 3
    own, pairs = RNG.normal(size=parts), RNG.normal(size=(parts, parts))
    pairs = np.triu(pairs, 1)
    triple = 3.0  # of the first three together

    def worth(subset: np.ndarray) -> np.ndarray:
        x = subset.astype(float)
        return np.array([own @ x + x @ pairs @ x + triple * x[0] * x[1] * x[2]])

    exact = own + (pairs + pairs.T).sum(1) / 2 + np.where(np.arange(parts) < 3, triple / 3, 0)
    found = shapley(worth, parts, orders=400, seed=1)
    difference = np.abs(found.values[:, 0] - exact)
    assert found.orders == 400
    # An order and its reverse have the pairs exactly, so that only the triple has an error.
    np.testing.assert_allclose(found.values[3:, 0], exact[3:], atol=1e-9)
    assert (found.errors[:3, 0] > 0.02).all()
    assert (difference[:3] < 4 * found.errors[:3, 0]).all()
    assert found.values.sum() == pytest.approx(worth(np.ones(parts, bool))[0])


def test_each_subset_is_asked_for_once() -> None:
    asked = []
    shapley(lambda subset: np.array([float(len(asked.append(subset.tobytes()) or asked))]), 4)
    assert len(asked) == len(set(asked)) == 16


def test_bad_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="parts: expected at least 1; got 0"):
        shapley(game(1), 0)
    for orders in (2, 5):
        with pytest.raises(ValueError, match=f"orders: expected an even number of at least 4; got {orders}"):
            shapley(game(1), 1, orders=orders)
