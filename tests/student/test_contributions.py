"""Each member's part of the mixture, from a cache alone."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
from job_helpers import run

from ensdistill import ArrayMember, Ensemble, Rows, cache_targets
from ensdistill.student import member_contributions

N, K, C = 60, 3, 4
DRAWS = np.random.default_rng(0)
LABELS = DRAWS.integers(0, C, N)
LOGITS = DRAWS.normal(size=(K, N, C)).astype(np.float32)
LOGITS[0, np.arange(N), LABELS] += 2
ROWS = Rows(np.arange(N, dtype=np.float32)[:, None], np.arange(N), np.full(N, -100))
WEIGHTS = np.array([0.5, 0.3, 0.2])


def members_of(logits):
    return [ArrayMember(logits=one, name=f"m{k}") for k, one in enumerate(logits)]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    ensemble = Ensemble.from_members(members_of(LOGITS), weights=WEIGHTS)
    return cache_targets(ensemble, ROWS, tmp_path_factory.mktemp("parts") / "targets", codec="fp32")


def softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def worth(subset, known):
    """KL (negative), accuracy, and negative NLL of the mixture of some members."""
    p = softmax(np.float64(LOGITS))
    whole = (WEIGHTS[:, None, None] * p).sum(0)
    w = np.array([WEIGHTS[k] if k in subset else 0.0 for k in range(K)])
    mix = (
        (w[:, None, None] * p).sum(0) / w.sum()
        if subset
        else np.bincount(LABELS[known], minlength=C) / known.sum()
    )
    mix = np.broadcast_to(mix, whole.shape)
    own = mix[known]
    return np.array(
        [
            -(whole * np.log(whole / mix)).sum(-1).mean(),
            (own.argmax(1) == LABELS[known]).mean(),
            np.log(own[np.arange(len(own)), LABELS[known]]).mean(),
        ]
    )


def test_the_values_are_those_of_all_orders(cache):
    known = np.arange(N) % 4 > 0
    found = member_contributions(cache, np.where(known, LABELS, -100))
    assert found.metrics == ("divergence", "accuracy", "nll")
    assert (found.rows, found.labelled) == (N, known.sum())
    expected = np.zeros((K, 3))
    for order in itertools.permutations(range(K)):
        for place, k in enumerate(order):
            expected[k] += worth(order[: place + 1], known) - worth(order[:place], known)
    np.testing.assert_allclose(found.shapley, expected / 6, atol=1e-5)
    np.testing.assert_allclose(found.errors, 0)
    for k in range(K):
        rest = [j for j in range(K) if j != k]
        gain = worth(range(K), known) - worth(rest, known)
        np.testing.assert_allclose(found.leave_one_out[k], gain, atol=1e-5)
    assert found.shapley[0, 2] == found.shapley[:, 2].max()


def test_without_labels_the_values_sum_to_the_divergence_of_the_uniform_distribution(cache):
    found = member_contributions(cache)
    whole = (WEIGHTS[:, None, None] * softmax(np.float64(LOGITS))).sum(0)
    assert found.shapley.sum() == pytest.approx((whole * np.log(whole * C)).sum(-1).mean(), rel=1e-5)
    assert (found.leave_one_out > 0).all()
    assert found.labelled == 0
    some = member_contributions(cache, rows=10)
    assert some.rows == 10


def test_members_without_weight_and_single_members(tmp_path):
    ensemble = Ensemble.from_members(members_of(LOGITS), weights=[1.0, 0.0, 0.0])
    found = member_contributions(cache_targets(ensemble, ROWS, tmp_path / "one", codec="fp32"), LABELS)
    assert np.isnan(found.leave_one_out[0]).all()
    assert (found.shapley[1:] == 0).all()
    assert (found.leave_one_out[1:] == 0).all()


def test_more_than_ten_members_are_sampled(tmp_path):
    many = np.random.default_rng(1).normal(size=(12, N, C)).astype(np.float32)
    many[:, np.arange(N), LABELS] += np.linspace(0, 3, 12)[:, None]
    made = cache_targets(Ensemble.from_members(members_of(many)), ROWS, tmp_path / "many", codec="fp32")
    found = member_contributions(made, LABELS, orders=32)
    assert (found.errors > 0).all()
    assert np.corrcoef(found.shapley[:, 2], np.arange(12))[0, 1] > 0.8


def test_several_labels(tmp_path):
    labels = DRAWS.integers(0, 2, (N, 3)).astype(np.int8)
    labels[::5, 1] = -1
    logits = DRAWS.normal(size=(2, N, 3)).astype(np.float32)
    logits[1] += 3 * (labels - 0.5)
    members = [ArrayMember(logits=z, name=f"m{k}", task="multilabel") for k, z in enumerate(logits)]
    rows = Rows(ROWS.inputs, ROWS.uids, np.full((N, 3), -1, np.int8))
    made = cache_targets(Ensemble.from_members(members), rows, tmp_path / "labels", codec="fp32")
    found = member_contributions(made, labels)
    known, q = labels >= 0, 1 / (1 + np.exp(-np.float64(logits)))
    log = [np.where(labels == 1, np.log(p), np.log(1 - p))[known].mean() for p in (q[0], q.mean(0))]
    assert found.leave_one_out[1, 2] == pytest.approx(log[1] - log[0], abs=1e-5)
    assert found.labelled == known.sum()


def test_what_does_not_fit_is_refused(cache, tmp_path):
    mixture = cache_targets(
        Ensemble.from_members(members_of(LOGITS)), ROWS, tmp_path / "m", codec="fp32", mixture_at=1.0
    )
    with pytest.raises(ValueError, match=r"^cache: expected the targets of every member; .*build it again"):
        member_contributions(mixture)
    for labels, message in (
        (LABELS[:5], r"expected integers \[60\], .*got int64 \[5\]"),
        (LABELS.astype(float), "got float64"),
        (LABELS + 1, "expected 0 to 3, or -100 where unknown; got 4"),
        (np.full(N, -100), "expected some that are known"),
    ):
        with pytest.raises(ValueError, match=f"^labels: .*{message}"):
            member_contributions(cache, labels)


def test_the_command_prints_a_table_or_json(cache, tmp_path):
    np.save(tmp_path / "labels.npy", LABELS)
    status, out, err = run(
        "cache", "contributions", cache.path, "--labels", tmp_path / "labels.npy", "--json"
    )
    assert status == 0, err
    found, told = member_contributions(cache, LABELS), json.loads(out)
    assert told["members"]["m0"]["nll"]["shapley"] == pytest.approx(found.shapley[0, 2])
    assert told["members"]["m1"]["divergence"]["leave_one_out"] == pytest.approx(found.leave_one_out[1, 0])
    status, out, _ = run("cache", "contributions", cache.path)
    assert status == 0
    assert "m2" in out
    assert "60 rows" in out
    assert run("cache", "contributions", cache.path, "--labels", "none.npy")[0] == 2
