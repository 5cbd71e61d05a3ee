"""The mixtures without one member, for the report."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest

from ensdistill.job.contributions import shares_of
from ensdistill.job.predictions import HeldOut, of_ensemble, others_of
from ensdistill.report.measures import MEASURES
from ensdistill.report.regression_metrics import Forecasts
from ensdistill.teachers import Ensemble

RNG = np.random.default_rng(0)
WEIGHTS = [0.5, 0.3, 0.2]


def held_out(logits: np.ndarray, labels: np.ndarray) -> HeldOut:
    return HeldOut(logits, labels)


@pytest.mark.parametrize("combiner", ["prob", "logit"])
def test_classes_without_a_member_are_those_of_the_other_members(combiner: str) -> None:
    members = [RNG.dirichlet(np.ones(4), 30) for _ in WEIGHTS]
    ensemble = Ensemble.from_members(members, weights=WEIGHTS, combiner=combiner)
    rows = np.zeros((30, 1))
    known = held_out(np.zeros((3, 30, 4)), np.zeros(30, np.int64))
    mixed = of_ensemble(ensemble, rows, known)
    assert mixed.mixture.values == pytest.approx(ensemble.predict_proba(rows))
    for k, name in enumerate(ensemble.names):
        rest = ensemble.only(*(other for other in ensemble.names if other != name))
        others = others_of([mixed], k)
        assert others is not None
        assert others.probabilities[0] == pytest.approx(rest.predict_proba(rows))


def test_numbers_without_a_member_are_those_of_the_other_members() -> None:
    members = [RNG.normal(size=(30, 2)) for _ in WEIGHTS]
    ensemble = Ensemble.from_members(members, weights=[0.6, 0.4, 0.0], task="regression")
    rows = np.zeros((30, 1))
    mixed = of_ensemble(ensemble, rows, held_out(np.zeros((3, 30, 2)), np.zeros((30, 2))))
    found = [others_of([mixed], k) for k in range(3)]
    assert found[0] is not None
    assert found[0].forecasts[0].mean == pytest.approx(members[1])
    # A member without weight adds nothing.
    assert found[2] is not None
    assert found[2].forecasts[0].mean == pytest.approx(mixed.mixture.values.mean)
    assert found[2].forecasts[0].variance == pytest.approx(mixed.mixture.values.variance)


@pytest.mark.parametrize("combiner", ["prob", "logit"])
def test_shares_of_classes_are_the_mean_gains_over_all_orders(combiner: str) -> None:
    members, labels = [RNG.dirichlet(np.ones(4), 30) for _ in WEIGHTS], RNG.integers(0, 4, 30)
    ensemble = Ensemble.from_members(members, weights=WEIGHTS, combiner=combiner)
    rows = np.zeros((30, 1))
    mixed = of_ensemble(ensemble, rows, held_out(np.zeros((3, 30, 4)), labels))
    shares = shares_of(mixed, ensemble.weights, "classification", labels)

    def score(names: tuple[str, ...]) -> np.ndarray:
        classes = np.bincount(labels, minlength=4) / 30
        p = ensemble.only(*names).predict_proba(rows) if names else np.tile(classes, (30, 1))
        return np.array([(p.argmax(1) == labels).mean(), np.log(p[np.arange(30), labels]).mean()])

    expected = np.zeros((3, 2))
    for order in permutations(range(3)):
        for place, k in enumerate(order):
            before = tuple(ensemble.names[j] for j in order[:place])
            expected[k] += (score((*before, ensemble.names[k])) - score(before)) / 6
    found = np.stack([shares[metric][:, 0] for metric in ("accuracy", "nll")], 1)
    np.testing.assert_allclose(found, expected, atol=1e-9)
    assert found.sum(0) == pytest.approx(score(tuple(ensemble.names)) - score(()))


def test_shares_of_numbers_and_labels_sum_to_the_gain() -> None:
    numbers = RNG.normal(size=(40, 2))
    members = [numbers + s * RNG.normal(size=(40, 2)) for s in (0.3, 0.6, 1.0)]
    ensemble = Ensemble.from_members(members, weights=[0.6, 0.4, 0.0], task="regression")
    mixed = of_ensemble(ensemble, np.zeros((40, 1)), held_out(np.zeros((3, 40, 2)), numbers))
    shares = shares_of(mixed, ensemble.weights, "regression", numbers)
    error = MEASURES["regression"].by_name["rmse"]
    none = Forecasts(np.tile(numbers.mean(0), (40, 1)), None)
    gain = error.of(none, numbers, None) - error.of(mixed.mixture.values, numbers, None)
    assert shares["rmse"][:, 0].sum() == pytest.approx(gain)
    assert (shares["rmse"][2] == 0).all()  # without weight
    labels = RNG.integers(0, 2, (40, 3)).astype(np.int8)
    logits = [4.0 * labels - 2 + RNG.normal(size=(40, 3)) for _ in range(2)]
    ensemble = Ensemble.from_members([1 / (1 + np.exp(-z)) for z in logits], task="multilabel")
    mixed = of_ensemble(ensemble, np.zeros((40, 1)), held_out(np.zeros((2, 40, 3)), labels))
    shares = shares_of(mixed, ensemble.weights, "multilabel", labels)
    p = labels.mean(0)
    entropy = -(p * np.log(p) + (1 - p) * np.log(1 - p)).mean()
    gain = entropy - MEASURES["multilabel"].by_name["bce"].of(mixed.mixture.values, labels, None)
    assert shares["bce"][:, 0].sum() == pytest.approx(gain)


def test_a_single_member_has_no_others() -> None:
    ensemble = Ensemble.from_members([RNG.dirichlet(np.ones(4), 30)])
    known = held_out(np.zeros((1, 30, 4)), np.zeros(30, np.int64))
    assert others_of([of_ensemble(ensemble, np.zeros((30, 1)), known)], 0) is None
