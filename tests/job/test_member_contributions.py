"""The mixtures without one member, for the report."""

from __future__ import annotations

import numpy as np
import pytest

from ensdistill.job.predictions import HeldOut, of_ensemble, others_of
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


def test_a_single_member_has_no_others() -> None:
    ensemble = Ensemble.from_members([RNG.dirichlet(np.ones(4), 30)])
    known = held_out(np.zeros((1, 30, 4)), np.zeros(30, np.int64))
    assert others_of([of_ensemble(ensemble, np.zeros((30, 1)), known)], 0) is None
