"""Caches of multi-label ensembles: what a reader gets, what storing costs, and which codecs there are."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from codec_helpers import stored
from hypothesis import given, settings
from hypothesis import strategies as st
from task_helpers import SMALL, labelled

from ensdistill.cache import cache_targets, convert
from ensdistill.functional import multilabel_distillation_loss
from ensdistill.loss.targets import EnsembleLogits, LogProbs, QuantizedLogits, TopK
from ensdistill.teachers import Ensemble
from ensdistill.teachers.members import ArrayMember

pytestmark = pytest.mark.filterwarnings("ignore::ensdistill.cache.CacheLossWarning")
DENSE = ["fp32", "fp16", "bf16", "uint8"]
FEW = settings(max_examples=4, deadline=None)
log_odds = st.integers(0, 2**32 - 1)


def of_labels(codec, logits, **options):
    """Decoded log-odds [N, K, C], fields, and the measured KL [N, K]."""
    return stored(codec, logits, task="multilabel", **options)


def binary_kl(exact, decoded):
    """The sum over labels, float64, by another formula than the codecs'."""
    p, q = (1 / (1 + np.exp(-np.asarray(z, np.float64))) for z in (exact, decoded))
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(p > 0, p * np.log(p / q), 0) + np.where(
            p < 1, (1 - p) * np.log((1 - p) / (1 - q)), 0
        )
    return terms.sum(-1)


@pytest.mark.parametrize("codec", DENSE)
def test_targets_are_the_members_log_odds(tmp_path, codec):
    teachers, rows = labelled()
    cache = cache_targets(teachers, rows, tmp_path, codec=codec, **SMALL)
    target = cache.gather(rows.uids)
    assert (cache.task, cache.location, cache.scale) == ("multilabel", None, None)
    assert isinstance(target, QuantizedLogits if codec == "uint8" else EnsembleLogits)
    error = {"fp32": 0.0, "fp16": 2.0**-11, "bf16": 2.0**-8, "uint8": 1.0 / 255}[codec]
    size = np.abs(teachers.logits).max(-1, keepdims=True)
    assert (np.abs(target.to_logits().numpy() - teachers.logits) <= error * size).all()
    found = cache.manifest["statistics"]["kl"]
    # float64 sigmoids of the plain formula lose digits where p is near 1.
    exact = binary_kl(teachers.logits, cache.gather_logits(rows.uids))
    assert found["max"] == pytest.approx(exact.max(), rel=1e-6, abs=1e-12)
    assert found["mean"] == pytest.approx(exact.mean(), rel=1e-6, abs=1e-12)
    cache.verify()
    assert cache.verify_against(teachers, rows, share=1.0) == 230


@pytest.mark.parametrize(
    "codec",
    [
        "fp32",
        "uint8",
        "topk-4",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("fp16", "bf16", "topk-10")),
    ],
)
def test_the_loss_of_a_stored_mixture_is_that_of_the_members(tmp_path, codec):
    teachers, rows = labelled()
    student = torch.from_numpy(np.random.default_rng(3).normal(size=(230, 10)))
    exact = EnsembleLogits(torch.from_numpy(teachers.logits).double(), torch.from_numpy(teachers.weights))
    wanted = multilabel_distillation_loss(student, exact, temperature=2.0, reduction="none")
    cache = cache_targets(teachers, rows, tmp_path, codec=codec, mixture_at=2.0, **SMALL)
    target = cache.gather(rows.uids)
    kind = TopK if codec.startswith("topk") else QuantizedLogits if codec == "uint8" else LogProbs
    assert isinstance(target, kind)
    found = multilabel_distillation_loss(student, target, temperature=2.0, reduction="none")
    tolerance = {"fp32": 1e-6, "fp16": 2e-3, "bf16": 2e-2, "uint8": 2e-2, "topk-4": 0.5, "topk-10": 2e-3}[
        codec
    ]
    torch.testing.assert_close(found.double(), wanted, rtol=0, atol=4 * tolerance)
    assert cache.verify_against(teachers, rows, share=1.0) == 230


def test_top_k_lists_the_likeliest_labels_and_the_sum_of_the_others():
    logits = np.array([[[3.0, -1.0, 0.5, -2.0, 0.5]]], np.float32)
    decoded, fields, kl = of_labels("topk-2", logits, mixture_at=1.0)
    p = 1 / (1 + np.exp(-logits[0, 0].astype(np.float64)))
    assert np.exp(fields["log_probs"][0].astype(float)) == pytest.approx(
        p[[0, 2]], rel=1e-3
    )  # ties: the lower id
    assert np.exp(fields["tail_log_mass"][0]) == pytest.approx(p[[1, 3, 4]].sum(), rel=1e-6)
    assert (1 / (1 + np.exp(-decoded[0, 0, [1, 3, 4]]))).tolist() == pytest.approx([p[[1, 3, 4]].mean()] * 3)
    assert kl[0, 0] == pytest.approx(binary_kl(logits, decoded)[0, 0], rel=1e-4)


def test_labels_that_are_almost_certain_stay_uncertain():
    logits = np.array([[[30.0, 29.0, 28.0, 27.0, -90.0]]], np.float32)
    for k in (1, 3, 5):
        decoded, fields, kl = of_labels(f"topk-{k}", logits, mixture_at=1.0)
        assert (fields["log_probs"] < 0).all()
        assert np.isfinite(decoded).all()
        # The tail of two unlike labels costs much, and that of none little.
        assert kl[0, 0] < (1e-6 if k == 5 else 10)


@FEW
@given(log_odds)
def test_codes_are_within_half_a_step(seed):
    generator = np.random.default_rng(seed)
    logits = generator.normal(0, 10 ** generator.uniform(-2, 2), (7, 3, 11)).astype(np.float32)
    logits[generator.random(logits.shape) < 0.1] = -np.inf
    decoded, fields, kl = of_labels("uint8", logits)
    assert np.array_equal(np.isneginf(decoded), np.isneginf(logits))
    finite = np.isfinite(logits)
    logits, decoded = (np.where(finite, rows, 0) for rows in (logits, decoded))
    clipped = np.clip(logits, -185, 185)  # 10 (ln 11 + 16) = 184
    half = np.abs(fields["scale"])[..., None] / 2 + 1e-5 * np.abs(clipped)
    assert (np.abs(decoded - clipped) <= half + 1).all()
    near = finite & (np.abs(logits) < 180).all(-1, keepdims=True)
    assert (np.abs(decoded - logits) <= half)[near].all()
    assert (kl <= 11 * (half.max(-1) ** 2) / 8 + 1e-9)[near.any(-1)].all()


@FEW
@given(log_odds)
def test_labels_and_members_may_be_permuted(seed):
    generator = np.random.default_rng(seed)
    logits = generator.normal(0, 4, (5, 3, 6)).astype(np.float32)
    labels, members = generator.permutation(6), generator.permutation(3)
    weights = generator.dirichlet(np.ones(3))
    for codec, options in (("uint8", {}), ("fp16", {}), ("topk-3", {"mixture_at": 2.0})):
        mixed = options and {**options, "weights": weights}
        one, _, kl = of_labels(codec, logits, **mixed)
        moved = options and {**options, "weights": weights[members]}
        other, _, other_kl = of_labels(codec, logits[:, members][..., labels], **moved)
        order = slice(None) if options else members
        np.testing.assert_allclose(other, one[:, order][..., labels], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(other_kl, kl[:, order], rtol=1e-3, atol=1e-9)


@FEW
@given(log_odds, st.sampled_from(["prob", "logit"]))
def test_a_stored_mixture_is_that_of_the_ensemble(seed, combiner):
    generator = np.random.default_rng(seed)
    logits, weights = generator.normal(0, 4, (4, 3, 6)).astype(np.float32), np.array([0.7, 0.3, 0.0])
    members = [ArrayMember(logits=logits[:, k], name=str(k), task="multilabel") for k in range(3)]
    ensemble = Ensemble.from_members(members, weights=weights, combiner=combiner)
    wanted = ensemble.combine(logits.swapaxes(0, 1), 2.0)
    found, _, _ = of_labels("fp32", logits, mixture_at=2.0, weights=weights, combiner=combiner)
    np.testing.assert_allclose(1 / (1 + np.exp(-found[:, 0].astype(float))), wanted, rtol=1e-6)
    logits[:, 2] = generator.normal(size=(4, 6))  # of weight 0
    again, _, _ = of_labels("fp32", logits, mixture_at=2.0, weights=weights, combiner=combiner)
    assert np.array_equal(found, again)


def test_extreme_log_odds_are_stored_at_the_floor():
    logits = np.array([[[-1e4, 2.0, 1e4, -1.0]]], np.float32)
    decoded, _, kl = of_labels("uint8", logits)
    floor = 10 * (math.log(4) + 16)
    np.testing.assert_allclose(decoded[0, 0, [0, 2]], [-floor, floor], rtol=1e-5)
    assert np.abs(decoded[0, 0, [1, 3]] - [2, -1]).max() <= floor / 255
    assert 0 < kl[0, 0] < 0.2
    exact, _, _ = of_labels("fp16", np.array([[[-1e6, 2.0, 1e6]]], np.float32))
    assert exact[0, 0].tolist() == [-65504, 2, 65504]


def test_a_row_may_rule_every_label_out(tmp_path):
    teachers, rows = labelled()
    logits = teachers.logits.copy()
    logits[:, 7] = -np.inf
    uid = rows.uids[[7]]
    ruled = replace(teachers, logits=logits)
    for codec, mixture_at in (("uint8", None), ("fp16", None), ("topk-3", 1.0), ("fp32", 1.0)):
        cache = cache_targets(ruled, rows, tmp_path / codec, codec=codec, mixture_at=mixture_at, **SMALL)
        assert np.isneginf(cache.gather_logits(uid)).all()
        loss = multilabel_distillation_loss(torch.zeros(1, 10), cache.gather(uid), temperature=1.0)
        assert loss.item() == pytest.approx(10 * math.log(2), rel=1e-5)


def test_sequences_have_labels_at_each_position(tmp_path):
    teachers, rows = labelled(40)
    lengths = np.random.default_rng(1).integers(1, 4, 40)
    long = np.stack([teachers.logits] * 3, axis=2)  # [K, N, L, C]

    class Sequences(type(teachers)):
        def predict_logits(self, inputs):
            return long[:, inputs[:, 0].astype(int)]

    cache = cache_targets(Sequences(teachers.logits), rows, tmp_path, codec="fp32", lengths=lengths)
    found = cache.gather(rows.uids).to_logits()
    assert torch.equal(found, torch.from_numpy(np.repeat(teachers.logits, lengths, axis=1)))


def test_a_calibration_is_fitted_to_a_cache(tmp_path):
    teachers, rows = labelled()
    members = [
        ArrayMember(logits=logits, name=name, uids=rows.uids, task="multilabel")
        for name, logits in zip("abc", teachers.logits, strict=True)
    ]
    one, other = Ensemble.from_members(members), Ensemble.from_members(members)
    cache = cache_targets(other, rows, tmp_path, codec="fp32")
    one.calibrate(teachers.logits, rows.labels)
    other.calibrate(cache, rows.labels, uids=rows.uids)
    np.testing.assert_allclose(other.temperatures, one.temperatures, rtol=1e-5)


def test_a_conversion_counts_both_steps(tmp_path):
    teachers, rows = labelled()
    source = cache_targets(teachers, rows, tmp_path / "source", codec="uint8", **SMALL)
    made = convert(source, tmp_path / "made", codec="topk-9", mixture_at=2.0)
    about = made.manifest["fingerprint"]["derived"][0]["convert"]
    assert about["kl"] == source.manifest["statistics"]["kl"]
    assert (made.task, made.codec.name) == ("multilabel", "topk-9")
    assert made.verify_against(teachers, rows, share=1.0) == 230
