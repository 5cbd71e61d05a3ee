"""The parts of an ensemble's uncertainty."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.special import softmax

from ensdistill.teachers import Ensemble
from ensdistill.teachers.fitting.uncertainty import decompose


def entropy(p):
    return -(p * np.log(np.where(p > 0, p, 1))).sum(-1)


@given(
    z=arrays(np.float64, (3, 5, 4), elements=st.floats(-30, 30)),
    w=arrays(np.float64, 3, elements=st.floats(0.01, 1)).map(lambda w: w / w.sum()),
)
@settings(max_examples=60, deadline=None)
def test_parts_sum_up_and_match_their_names(z, w):
    p = softmax(z, -1)
    found = decompose(z, w)
    mixture = (w[:, None, None] * p).sum(0)
    np.testing.assert_allclose(found.total, entropy(mixture), atol=1e-9)
    np.testing.assert_allclose(found.aleatoric, (w[:, None] * entropy(p)).sum(0), atol=1e-9)
    np.testing.assert_allclose(found.total, found.aleatoric + found.epistemic, atol=1e-12)
    assert (found.epistemic >= 0).all()
    assert (found.epistemic <= np.log(3) + 1e-9).all()  # it is at most the entropy of the choice of a member
    top = z.argmax(-1)
    pairs = [(i, j) for i in range(3) for j in range(3) if i != j]
    weight = sum(w[i] * w[j] for i, j in pairs)
    np.testing.assert_allclose(
        found.disagreement, sum(w[i] * w[j] * (top[i] != top[j]) for i, j in pairs) / weight, atol=1e-9
    )


def test_one_voice():
    z = np.random.default_rng(0).normal(size=(1, 6, 3))
    for logits, weights in (
        (z, np.ones(1)),
        (z[[0, 0]], np.array([0.3, 0.7])),
        (np.concatenate([z, -z]), np.array([1.0, 0.0])),
    ):
        found = decompose(logits, weights)
        np.testing.assert_allclose(found.epistemic, 0, atol=1e-12)
        assert (found.disagreement == 0).all()


def test_masked_classes_have_no_part():
    z = np.array([[[0.0, -np.inf, 0.0]], [[0.0, -np.inf, 0.0]]])
    found = decompose(z, np.array([0.5, 0.5]))
    np.testing.assert_allclose([found.total, found.epistemic], [[np.log(2)], [0]], atol=1e-12)


def test_of_an_ensemble_after_its_temperatures():
    z = np.random.default_rng(0).normal(size=(2, 6, 3)).astype(np.float32) * 5
    ensemble = Ensemble.from_members(list(z), weights=[1, 3])
    sharp = ensemble.uncertainty(np.zeros((6, 1)))
    ensemble.temperature = 10.0
    assert (ensemble.uncertainty(np.zeros((6, 1))).aleatoric > sharp.aleatoric).all()
