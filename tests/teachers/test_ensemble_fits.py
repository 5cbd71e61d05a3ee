"""Fits to held-out predictions, from arrays and from a cache: calibration, weights, selection; and
stacked prediction."""

import functools
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.optimize import OptimizeResult
from scipy.special import log_softmax
from sklearn.linear_model import LogisticRegression
from torch import nn

from ensdistill.cache import CacheMismatch, cache_targets
from ensdistill.data import Digits, Rows
from ensdistill.models import CNN, MLP
from ensdistill.teachers import Ensemble
from ensdistill.teachers.fitting.calibration import (
    NEGLIGIBLE,
    fit_temperature,
    fit_weights,
    log_mixture,
    negative_log_likelihood,
)
from ensdistill.teachers.fitting.vector_scaling import fit_vector
from ensdistill.teachers.members import TorchMember


def nll(z, labels):
    return negative_log_likelihood(log_softmax(np.asarray(z, np.float64), -1), labels)


@given(
    z=arrays(np.float64, (9, 3), elements=st.floats(-30, 30)),
    labels=arrays(np.int64, 9, elements=st.integers(0, 2)),
)
@settings(max_examples=40, deadline=None)
def test_vector_scaling_is_never_worse(z, labels):
    scale, bias = fit_vector(z, labels)
    assert (
        nll(z * scale + bias, labels)
        <= nll(z / fit_temperature(z, labels), labels) + 1e-12
        <= nll(z, labels) + 1e-12
    )
    assert (scale > 0).all()


def test_vector_scaling_is_the_optimum():
    rng = np.random.default_rng(0)
    labels = rng.choice(4, size=500, p=[0.6, 0.2, 0.1, 0.1])
    z = (2 * np.eye(4)[labels] + rng.normal(size=(500, 4))) * [3, 1, 0.5, 1] + [0, 1, -2, 0]
    x = fit_vector(z, labels, prior_rows=0)
    best = nll(z * x[0] + x[1], labels)
    assert best < nll(z / fit_temperature(z, labels), labels) - 0.1
    for i in np.ndindex(2, 4):  # convex: no step to any side is better
        for step in (1e-2, -1e-2):
            other = x.copy()
            other[i] += step
            assert nll(z * other[0] + other[1], labels) >= best - 1e-9
    few = fit_vector(z, labels)
    assert nll(z * few[0] + few[1], labels) < best + 0.03  # 500 rows outweigh the prior
    z[:, 3] = np.where(labels == 3, z[:, 3], -np.inf)
    scale, bias = fit_vector(z, labels)
    assert np.isneginf((z * scale + bias)[labels != 3, 3]).all()


def unequal(rows=400):
    rng = np.random.default_rng(0)
    labels = rng.integers(4, size=rows)
    noise, sharp = np.array([0.7, 0.9, 5.0]), np.array([20.0, 0.3, 1.0])
    z = sharp[:, None, None] * (2 * np.eye(4)[labels] + noise[:, None, None] * rng.normal(size=(3, rows, 4)))
    return z.astype(np.float32), labels


def mixture_nll(ensemble, z, labels):
    return negative_log_likelihood(np.log(ensemble.combine(ensemble.apply_temperatures(z))), labels)


def test_three_ways_to_calibrate():
    z, labels = unequal()
    plain = Ensemble.from_members(list(z))
    pooled = Ensemble.from_members(list(z)).calibrate(z, labels, method="pooled")
    assert mixture_nll(pooled, z, labels) < mixture_nll(plain, z, labels)
    assert (pooled.temperatures == 1).all()
    vector = Ensemble.from_members(list(z)).calibrate(z, labels, method="vector")
    tempered = Ensemble.from_members(list(z)).calibrate(z, labels)
    for k in range(3):
        own = [nll(e.apply_temperatures(z)[k], labels) for e in (vector, tempered, plain)]
        assert own == sorted(own)
    assert vector.fingerprint() != tempered.fingerprint()
    vector.calibrate(z, labels)  # the other way takes its place
    assert vector.fingerprint() == tempered.fingerprint()
    with pytest.raises(ValueError, match="method: expected temperature, vector or pooled; got 'platt'"):
        plain.calibrate(z, labels, method="platt")


def test_a_calibration_doesnt_depend_on_those_before_it(monkeypatch):
    z, labels = unequal(100)
    monkeypatch.setattr(
        "ensdistill.teachers.ensemble.fit_vector",
        lambda z, labels, **_: np.stack([np.full(4, 2.0), np.arange(4.0)]),
    )

    def calibrate(ensemble, method):
        return ensemble.calibrate(z, labels, method=method)

    steps = [functools.partial(calibrate, method=method) for method in ("temperature", "vector", "pooled")]
    for last in steps:
        expected = last(Ensemble.from_members(list(z))).fingerprint()
        weighed = last(Ensemble.from_members(list(z))).weigh(z, labels).fingerprint()
        for before in [*steps, lambda e: e.weigh(z, labels)]:
            found = before(Ensemble.from_members(list(z)))
            found.weights = np.full(
                3, 1 / 3
            )  # pooled: the mixture's temperature is that of the weights there are
            assert last(found).fingerprint() == expected
            assert found.weigh(z, labels).fingerprint() == weighed


def test_very_many_members_keep_their_weights(monkeypatch):
    labels = np.arange(6) % 3
    # As it ends for equal members; with so many, it would take its time.
    monkeypatch.setattr(
        "ensdistill.teachers.fitting.calibration.minimize", lambda loss, start, **_: OptimizeResult(x=start)
    )
    np.testing.assert_allclose(
        fit_weights(np.broadcast_to(np.eye(3)[labels], (1200, 6, 3)), labels), np.full(1200, 1 / 1200)
    )


def test_a_weight_that_a_row_needs_is_not_rounded_to_zero():
    labels = np.random.default_rng(0).integers(2, size=5000)
    z = np.zeros((2, 5000, 2))
    z[0, np.arange(5000), labels] = 9
    z[0, 0, labels[0]] = -np.inf  # sure of all rows, and wrong about one
    weights = fit_weights(z, labels, prior_rows=0)
    assert 0 < weights[1] < NEGLIGIBLE
    z[0, 0, labels[0]] = 0
    assert fit_weights(z, labels, prior_rows=0)[1] == 0


def test_vectors_are_saved(tmp_path):
    z, labels = unequal()
    x = np.arange(400.0)[:, None]
    from ensdistill.teachers.members import ArrayMember

    ensemble = Ensemble.from_members([ArrayMember(x, logits=m, name=f"m{i}") for i, m in enumerate(z)])
    ensemble.calibrate(z, labels, method="vector").weigh(z, labels)
    ensemble.save(tmp_path)
    loaded = Ensemble.load(tmp_path)
    np.testing.assert_array_equal(loaded.predict_proba(x), ensemble.predict_proba(x))
    about = json.loads((tmp_path / "ensemble.json").read_text())
    about["vectors"][0][1][2] += 1.0
    (tmp_path / "ensemble.json").write_text(json.dumps(about))
    assert not np.array_equal(Ensemble.load(tmp_path).predict_proba(x), ensemble.predict_proba(x))


def test_inputs_may_be_tensors():
    x = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    ensemble = Ensemble.from_members([MLP(4, [], 3), MLP(4, [8], 3)])
    assert torch.equal(
        ensemble.predict_logits(torch.from_numpy(x).requires_grad_()), ensemble.predict_logits(x)
    )
    np.testing.assert_array_equal(ensemble.predict_proba(torch.from_numpy(x)), ensemble.predict_proba(x))
    np.testing.assert_array_equal(
        ensemble.uncertainty(torch.from_numpy(x)).total, ensemble.uncertainty(x).total
    )
    for call in (ensemble.predict_logits, ensemble.predict_proba, ensemble.uncertainty, ensemble.seconds):
        with pytest.raises(TypeError, match=r"inputs: expected samples \(array, .*\); got a list of list"):
            call(x.tolist())


def test_members_fitted_to_integers_are_named_by_index():
    rng = np.random.default_rng(0)
    x, names = rng.normal(size=(60, 3)), np.array(["zebra", "ant", "mouse"])
    y = x.argmax(1)
    numbers, named = LogisticRegression().fit(x, y), LogisticRegression().fit(x, names[y])
    ensemble = Ensemble.from_members([numbers, named], classes=list(names))
    assert ensemble.classes == tuple(names)
    np.testing.assert_allclose(*ensemble.predict_logits(x), atol=1e-4)
    with pytest.raises(
        ValueError, match=r"classes: logisticregression-1 has \[0, 1, 2\]; expected \['a', 'b'\]"
    ):
        Ensemble.from_members([numbers, named], classes=["a", "b"])
    with pytest.raises(TypeError, match="members: expected a sequence of members; got one Sequential"):
        Ensemble.from_members(nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2)))


def test_an_ensemble_takes_the_place_of_another_and_of_nothing_else(tmp_path):
    def ensemble(*names):
        factory = functools.partial(MLP, inputs=4, hidden=[], outputs=3)
        return Ensemble.from_members([TorchMember(factory(), name=n, factory=factory) for n in names])

    (tmp_path / "e.part").mkdir()
    ensemble("a", "b").save(tmp_path / "e")
    (tmp_path / "e" / "members" / "a" / "trained.json").write_text("{}")
    (tmp_path / "e" / "members" / "notes").mkdir()
    ensemble("a", "c").save(tmp_path / "e")
    assert Ensemble.load(tmp_path / "e").names == ("a", "c")
    assert sorted(p.name for p in (tmp_path / "e" / "members").iterdir()) == ["a", "c", "notes"]
    assert sorted(p.name for p in (tmp_path / "e" / "members" / "a").iterdir()) == [
        "member.json",
        "model.safetensors",
    ]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["e", "e.part"]


def test_select_keeps_the_settings_of_the_chosen():
    z, labels = unequal()
    ensemble = Ensemble.from_members(list(z)).calibrate(z, labels)
    chosen = ensemble.select(z, labels)
    assert chosen.names == ("ndarray-1", "ndarray-2")
    assert ensemble.names == ("ndarray-1", "ndarray-2", "ndarray-3")
    np.testing.assert_array_equal(chosen.temperatures, ensemble.temperatures[:2])
    assert chosen.weights.sum() == pytest.approx(1)
    assert mixture_nll(chosen, z[:2], labels) < mixture_nll(ensemble, z, labels)
    cheap = ensemble.select(z, labels, costs=[5, 1, 1], budget=3)
    assert cheap.names == ("ndarray-2",)
    vector = Ensemble.from_members(list(z)).calibrate(z, labels, method="vector")
    few = vector.select(z, labels)
    places = [vector.names.index(n) for n in few.names]
    np.testing.assert_array_equal(few.apply_temperatures(z[places]), vector.apply_temperatures(z)[places])


@pytest.fixture(scope="module")
def cached(tmp_path_factory):
    split = Digits(labelled=60, pool=100).split(seed=0)
    x = np.concatenate([split.labelled.inputs, split.pool.inputs])
    labels = np.concatenate([split.labelled.labels, split.pool.labels])
    torch.manual_seed(0)
    linear = LogisticRegression(max_iter=200).fit(x[:60].reshape(60, -1), labels[:60])
    ensemble = Ensemble.from_members([TorchMember(MLP(), name="mlp", factory=MLP), linear])
    rng = np.random.default_rng(0)
    ensemble.temperatures, ensemble.temperature = np.array([0.5, 3.0]), 0.8
    ensemble.vectors = np.stack([rng.uniform(0.5, 2, (2, 10)), rng.normal(size=(2, 10))])
    cache = cache_targets(
        ensemble, Rows(x, np.arange(160), labels), tmp_path_factory.mktemp("cache") / "c", codec="fp32"
    )
    return ensemble, cache, x, labels


def test_from_a_cache_no_member_is_run_again(cached, monkeypatch):
    ensemble, cache, x, labels = cached
    uids = np.arange(59, -1, -1)
    fresh = Ensemble.from_members(ensemble.members)
    raw = fresh.raw_logits(x[uids])
    expected = Ensemble.from_members(ensemble.members).calibrate(raw, labels[uids]).weigh(raw, labels[uids])
    selected = expected.select(raw, labels[uids])
    for member in ensemble.members:
        monkeypatch.setattr(member, "predict_logits", lambda x: pytest.fail("was run again"))
    # Stored after, and undone before, a scaling in float32: 1e-7 of logits up to some tens.
    fresh.calibrate(cache, labels[uids], uids=uids).weigh(cache, labels[uids], uids=uids)
    np.testing.assert_allclose(fresh.temperatures, expected.temperatures, rtol=1e-4)
    np.testing.assert_allclose(fresh.weights, expected.weights, atol=1e-4)
    assert fresh.select(cache, labels[uids], uids=uids).names == selected.names
    part = Ensemble.from_members(ensemble.members[1:]).calibrate(cache, labels[uids], uids=uids)
    np.testing.assert_allclose(part.temperatures, expected.temperatures[1:], rtol=1e-4)


def test_caches_that_are_refused(cached):
    ensemble, cache, _, labels = cached
    with pytest.raises(
        ValueError,
        match=(
            r"labels: expected 0\.\.9; got -100\.\.9; rows without a label \(-100\) can be left out by uids"
        ),
    ):
        ensemble.calibrate(cache, labels, uids=np.arange(160))
    with pytest.raises(ValueError, match=r"labels: expected 3, one for each uid; got 2"):
        ensemble.select(cache, labels[:2], uids=np.arange(3))
    torch.manual_seed(1)
    other = Ensemble.from_members([TorchMember(MLP(), name="mlp", factory=MLP), ensemble.members[1]])
    with pytest.raises(CacheMismatch, match=r"members\.mlp: weights differ"):
        other.calibrate(cache, labels[:60], uids=np.arange(60))
    with pytest.raises(ValueError, match="uids: expected a cache beside them"):
        ensemble.calibrate(np.zeros((2, 3, 10)), labels[:3], uids=np.arange(3))
    with pytest.raises(ValueError, match=r"labels: expected integers \[N\]"):
        ensemble.calibrate(np.zeros((2, 3, 10)), labels[:3].astype(float))


def test_stacked_members_predict_as_they_do_alone():
    torch.manual_seed(0)
    normed = functools.partial(nn.Sequential, nn.Flatten())
    mlps = [MLP(64, [16], 10, dropout=0.5).train() for _ in range(3)]
    norms = [normed(nn.BatchNorm1d(64), nn.Linear(64, 10)) for _ in range(2)]
    for m in norms:
        m[1].running_mean.normal_()
    ensemble = Ensemble.from_members([mlps[0], CNN([[4]]), *norms, *mlps[1:]])
    x = np.random.default_rng(0).random((2100, 1, 8, 8), np.float32)  # more than a batch
    alone, together = ensemble.predict_logits(x), ensemble.predict_logits(x, way="stacked")
    assert float((alone - together).abs().max()) < 1e-5  # rounding of float32 logits of about 1
    assert all(m.training for m in mlps)
    with torch.no_grad():  # a change of the weights is noticed
        mlps[1][-1].bias += 1.0
    assert float((ensemble.predict_logits(x) - alone).abs().max()) > 0.9
    assert float((ensemble.predict_logits(x) - ensemble.predict_logits(x, way="stacked")).abs().max()) < 1e-5
    with pytest.raises(ValueError, match="way: expected one_by_one or stacked; got 'fast'"):
        ensemble.predict_logits(x, way="fast")


class Signed(nn.Linear):
    """Two of them look the same and compute something else."""

    sign = 1

    def forward(self, x):
        return self.sign * super().forward(x)


def test_members_that_only_look_alike_are_not_stacked():
    a, b = Signed(3, 2), Signed(3, 2)
    b.sign = -1
    ensemble = Ensemble.from_members([a, b])
    x = np.random.default_rng(0).random((5, 3), np.float32)
    with pytest.warns(
        UserWarning,
        match="Signed can't be stacked, its members predict one by one: signed-2 computes something else",
    ):
        together = ensemble.predict_logits(x, way="stacked")
    assert torch.equal(together, ensemble.predict_logits(x))


def test_seconds_are_of_each_member():
    import time

    ensemble = Ensemble.from_members(
        [lambda x: np.zeros((len(x), 2)), lambda x: (time.sleep(0.02), np.zeros((len(x), 2)))[1]]
    )
    quick, slow = ensemble.seconds(np.zeros((3, 1)), repeats=3)
    assert slow >= 0.02
    assert quick < slow


def test_the_mixture_of_the_chosen_is_the_weighted_one():
    z, labels = unequal()
    chosen = Ensemble.from_members(list(z)).select(z, labels, rounds=7)
    p = log_mixture(z[: len(chosen)], chosen.weights)
    np.testing.assert_allclose(chosen.predict_proba(np.zeros((400, 1))), np.exp(p), atol=1e-6)
