"""Codecs: the stored rows against the given ones, masks, draws, packed ids, and the targets that are made of records."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from cache_helpers import digits, in_uid_order
from codec_helpers import stored
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from ensdistill.cache import CacheError, TargetCache, cache_targets
from ensdistill.cache.codecs import codec_of, kl_divergence, record_of
from ensdistill.cache.codecs.ids import pack_ids, unpack_ids
from ensdistill.functional import distillation_loss
from ensdistill.loss.targets import Counts, LogProbs, QuantizedLogits, TopK

DENSE = ("uint8", "fp16", "bf16", "fp32")
LOGITS = arrays(
    np.float32,
    st.tuples(st.integers(1, 3), st.integers(1, 2), st.integers(2, 40)),
    elements=st.floats(-50, 50, width=32),
)


def mask(logits, keep_class):
    logits = logits.copy()
    logits[..., :: 2 + keep_class] = -np.inf
    logits[..., keep_class] = 0.25
    return logits


@pytest.mark.parametrize(("codec", "mixture_at"), [("uint8", None), ("topk-3", 2.0), ("counts-40", 2.0)])
def test_teachers_on_a_device_without_kernels(monkeypatch, codec, mixture_at):
    """There plain torch encodes, on that device: to the same bytes, but for roundings."""
    teachers, rows = digits(60)
    logits = in_uid_order(teachers, rows).swapaxes(0, 1)
    fused, views, kl = stored(codec, logits, mixture_at=mixture_at)
    monkeypatch.setattr("ensdistill.cache.encoding.why_no_kernels", lambda kind, index: "none for it")
    kernels = {"uint8": "uint8", "topk-3": "top_k", "counts-40": "counts"}
    monkeypatch.setattr(
        torch.ops.ensdistill, f"encode_{kernels[codec]}", None
    )  # a call of the kernel would fail
    plain, plain_views, plain_kl = stored(codec, logits, mixture_at=mixture_at)
    np.testing.assert_allclose(plain, fused, rtol=1e-3)
    np.testing.assert_allclose(plain_kl, kl, rtol=1e-3, atol=1e-12)
    for name in {"codes", "ids", "counts"} & views.keys():
        np.testing.assert_array_equal(plain_views[name], views[name])


@given(LOGITS)
@settings(max_examples=100, deadline=None)
def test_uint8_keeps_the_bound(logits):
    decoded, _, kl = stored("uint8", logits)
    span = np.ptp(logits.astype(np.float64), axis=-1)
    # Half a step, and the float32 arithmetic of offset + scale * code, whose terms are within 150 (150 *
    # 2^-23 = 2e-5).
    assert (np.abs(decoded.astype(np.float64) - logits).max(-1) <= span / 510 + 2e-5).all()
    assert (kl_divergence(logits, decoded) <= (span / 510 + 2e-5) ** 2 / 2 + 1e-15).all()
    assert (kl <= (span / 510 + 2e-5) ** 2 / 2 + 1e-15).all()


@given(LOGITS, st.sampled_from([0.5, 1.0, 4.0]), st.floats(1e-6, 0.5), st.integers(0, 2**31))
@settings(max_examples=100, deadline=None)
def test_the_bound_that_the_codecs_are_judged_by(logits, temperature, error, seed):
    """Any errors within e, up to a shift of the row, cost at most e^2 / (2 T^2)."""
    noise = np.random.default_rng(seed).uniform(-error, error, logits.shape)
    given = logits.astype(np.float64)
    kl = kl_divergence(given / temperature, (given + noise + 7.0) / temperature)
    assert (
        kl <= error**2 / (2 * temperature**2) + 1e-13
    ).all()  # 1e-13: float64 cancellation of logits up to 100


@given(LOGITS, st.sampled_from(["fp16", "bf16"]))
@settings(max_examples=100, deadline=None)
def test_half_precision_keeps_the_bound(logits, codec):
    decoded, _, kl = stored(codec, logits)
    span = np.ptp(logits.astype(np.float64), axis=-1)
    # Half a unit in the last place: 2^-11 and 2^-8 of the distance to the maximum, which float32 subtraction
    # rounds; fp16 has no numbers between 0 and 6e-8.
    error = span * {"fp16": 2.0**-11, "bf16": 2.0**-8}[codec] * 1.001 + 6e-8
    assert (kl <= error**2 / 2 + 1e-15).all()
    np.testing.assert_allclose(kl, kl_divergence(logits, decoded), atol=1e-13)


@given(LOGITS, st.integers(0, 1))
@settings(max_examples=100, deadline=None)
def test_masked_classes_stay_masked_and_the_others_keep_254_steps(logits, keep_class):
    logits = mask(logits, keep_class)
    decoded, views, _ = stored("uint8", logits)
    masked = np.isneginf(logits)
    np.testing.assert_array_equal(np.isneginf(decoded), masked)
    assert ((views["scale"] < 0) == masked.any(-1)).all()
    finite = np.where(masked, 0.25, logits).astype(np.float64)
    half_step = np.ptp(finite, axis=-1, keepdims=True) / 508 + 2e-5
    assert (np.abs(np.where(masked, 0.25, decoded) - finite) <= half_step).all()


@pytest.mark.parametrize("codec", DENSE)
@pytest.mark.parametrize(
    "row",
    [
        [3.0, 3.0, 3.0],
        [7.0, -np.inf, 7.0],
        [-np.inf, -1e30, -np.inf],
        [1e38, -1e38, 0.0],
        [1e-42, 0.0, -np.inf],
        [1e4, 1e4 + 1, -np.inf],
        [0.0, -1e6, -np.inf],
    ],
)
def test_extreme_rows(codec, row):
    logits = np.array(row, np.float32).reshape(1, 1, 3)
    decoded, _, kl = stored(codec, logits)
    deep = logits < logits.max() - 172  # 10 (ln 3 + 16)
    np.testing.assert_array_equal(np.isneginf(decoded), np.isneginf(logits) | (deep & (codec == "uint8")))
    assert not np.isnan(decoded).any()
    assert not np.isposinf(decoded).any()
    # Only [1e4, 1e4 + 1] is a real test of precision: all others have one class, or equal ones.
    assert kl_divergence(logits, decoded).item() < 1e-6
    assert kl.item() < 1e-6


@pytest.mark.parametrize(
    ("codec", "mean", "largest"),
    [("fp32", 0.0, 0.0), ("fp16", 1e-6, 1e-5), ("bf16", 1e-4, 1e-3), ("uint8", 1e-4, 1e-3)],
)
def test_codecs_on_real_logits(codec, mean, largest):
    logits = digits()[0].logits.swapaxes(0, 1)
    decoded, _, measured = stored(codec, logits)
    kl = kl_divergence(logits, decoded)
    assert kl.mean() <= mean
    assert kl.max() <= largest
    assert codec == "fp32" or kl.max() > 0  # a codec that loses something must be seen to
    np.testing.assert_allclose(measured, kl, atol=1e-14)


def test_fp16_is_shifted_so_that_large_logits_do_not_overflow():
    decoded, _, _ = stored("fp16", np.array([[[90_000.0, 89_999.0, -1e30, -np.inf]]], np.float32))
    np.testing.assert_array_equal(decoded, [[[0.0, -1.0, -65504.0, -np.inf]]])


def test_kl_is_that_of_torch():
    logits, decoded = np.random.default_rng(1).normal(0, 3, (2, 5, 4, 7)).astype(np.float32)
    p, q = (torch.log_softmax(torch.from_numpy(x).double(), -1) for x in (logits, decoded))
    expected = torch.nn.functional.kl_div(q, p, log_target=True, reduction="none").sum(-1)
    np.testing.assert_allclose(kl_divergence(logits, decoded), expected.numpy(), rtol=1e-12)  # both float64


def test_numpy_and_torch_decode_the_same():
    logits = mask(digits()[0].logits, 1).swapaxes(0, 1)
    decoded, views, _ = stored("uint8", logits)
    torch_views = {
        name: torch.from_numpy(np.ascontiguousarray(views[name].swapaxes(0, 1)))
        for name in ("codes", "scale", "offset")
    }
    np.testing.assert_array_equal(QuantizedLogits(**torch_views).to_logits().numpy(), decoded.swapaxes(0, 1))


@pytest.mark.parametrize("codec", [*DENSE, "topk-2", "topk5-2", "counts-255", "draws-7"])
@pytest.mark.parametrize(("k", "c"), [(1, 2), (3, 7), (8, 1000)])
def test_fields_tile_the_record_and_are_aligned(codec, k, c):
    place, end = record_of(codec_of(codec), k, c), 0
    for offset, dtype, shape in place.fields.values():
        assert offset == end
        assert offset % np.dtype(dtype).itemsize == 0
        end += int(np.prod(shape)) * np.dtype(dtype).itemsize
    assert end <= place.bytes < end + 8
    assert place.bytes % 8 == 0


# The mixture only
# -----------------------------------------------------------------------------------------------------

WEIGHTS = np.array([0.5, 0.3, 0.2])


def log_mixture(logits, temperature, combiner="prob"):
    """log p at T, float64 [N, C], of logits [N, K, C]."""
    z = logits.astype(np.float64) / temperature
    if combiner == "prob":
        log_p = z - np.logaddexp.reduce(z, -1, keepdims=True)
        return np.logaddexp.reduce(log_p + np.log(WEIGHTS)[:, None], 1)
    z = (z * WEIGHTS[:, None]).sum(1)
    return z - np.logaddexp.reduce(z, -1, keepdims=True)


@pytest.mark.parametrize("combiner", ["prob", "logit"])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize(
    "codec", [*DENSE, "topk-4", "topk-10", "topk8-4", "topk6-10", "counts-200", "draws-200"]
)
def test_the_writer_measures_the_mixture_that_a_reader_gets(codec, temperature, combiner):
    logits = digits()[0].logits.swapaxes(0, 1)
    decoded, _, kl = stored(codec, logits, mixture_at=temperature, weights=WEIGHTS, combiner=combiner)
    log_p = log_mixture(logits, temperature, combiner)
    pair = (decoded[:, 0], log_p) if codec.startswith(("counts", "draws")) else (log_p, decoded[:, 0])
    with np.errstate(invalid="ignore"):  # -inf - -inf, where nothing is drawn
        # Decoded in float32: 6e-8 of a log-probability, of which the KL of dense codecs sees the square only.
        np.testing.assert_allclose(kl[:, 0], kl_divergence(*pair), atol=1e-9 if codec in DENSE else 1e-7)
    limit = {
        "uint8": 1e-3,
        "fp16": 1e-5,
        "bf16": 1e-3,
        "fp32": 1e-9,
        "topk-4": 0.2,
        "topk-10": 1e-5,
        "topk8-4": 0.2,
        "topk6-10": 2e-2,
        "draws-200": 0.2,
        "counts-200": 0.2,
    }[codec]
    assert kl.max() <= limit


@pytest.mark.parametrize("codec", [*DENSE, "topk-4", "topk5-4", "counts-200", "draws-200"])
def test_the_loss_of_the_stored_mixture_is_that_of_the_members(tmp_path, codec):
    teachers, rows = digits()
    whole = cache_targets(teachers, rows, tmp_path / "members", codec="fp32")
    cache = cache_targets(teachers, rows, tmp_path / "mixture", codec=codec, mixture_at=2.0, shard_rows=64)
    kind = {"uint8": QuantizedLogits, "topk-4": TopK, "topk5-4": TopK}.get(codec, LogProbs)
    kind = Counts if codec.endswith("-200") else kind
    uids = np.arange(100, 160)
    target = cache.gather(uids)
    assert isinstance(target, kind)
    student = torch.linspace(-1, 1, 600).view(60, 10)
    expected = distillation_loss(student, whole.gather(uids), temperature=2.0)
    found = distillation_loss(student, target, temperature=2.0)
    # A codec moves a KL of about 1 by its own error, by the tail's shape (a bucket is never above the whole),
    # and by the noise of 200 draws.
    tolerance = {"uint8": 1e-2, "topk-4": 5e-2, "topk5-4": 7e-2, "bf16": 1e-2}.get(codec, 1e-3)
    tolerance = 0.1 if kind is Counts else tolerance
    assert found.item() == pytest.approx(expected.item(), abs=tolerance)
    with pytest.raises(ValueError, match=r"temperature: 1\.0, but targets .* were made at 2\.0"):
        distillation_loss(student, target)
    assert cache.temperature == 2.0
    assert cache.layout.bytes < whole.layout.bytes


def test_counts_are_seeded_by_uid_and_not_by_batch(tmp_path):
    teachers, rows = digits()
    one = cache_targets(
        teachers, rows, tmp_path / "a", codec="counts-50", mixture_at=1.0, shard_rows=64, batch_size=7
    )
    two = cache_targets(teachers, rows, tmp_path / "b", codec="counts-50", mixture_at=1.0, shard_rows=32)
    other = cache_targets(
        teachers, rows, tmp_path / "c", codec="counts-50", mixture_at=1.0, shard_rows=32, seed=1
    )
    uids = np.arange(230)
    np.testing.assert_array_equal(one.gather_records(uids), two.gather_records(uids))
    assert (two.gather_records(uids) != other.gather_records(uids)).any()
    assert (one.gather(uids).counts.sum(-1) == 50).all()


def test_counts_are_unbiased():
    """The mean of many rows' counts is p: within five standard deviations of a binomial."""
    logits = np.tile(np.array([[[2.0, 1.0, 0.0, -1.0]]], np.float32), (4000, 1, 1))
    decoded, _, _ = stored("counts-16", logits, mixture_at=1.0)
    p = np.exp(log_mixture_of_one(logits[0, 0]))
    found = np.exp(decoded[:, 0]).mean(0)
    assert (np.abs(found - p) <= 5 * np.sqrt(p * (1 - p) / (16 * 4000))).all()
    squared = ((np.exp(decoded[:, 0]) - p) ** 2).sum(-1).mean()
    assert squared == pytest.approx(
        (1 - (p**2).sum()) / 16, rel=0.1
    )  # the stated error; 0.1 is about six of its deviations here


def log_mixture_of_one(z):
    return z.astype(np.float64) - np.logaddexp.reduce(z.astype(np.float64))


def test_a_tail_too_small_for_one_minus_the_sum():
    logits = np.array([[[0.0, -40.0, -41.0, -42.0]]], np.float32)
    _, views, _ = stored("topk-1", logits, mixture_at=1.0)
    exact = np.logaddexp.reduce(logits[0, 0, 1:].astype(np.float64)) - np.logaddexp.reduce(
        logits[0, 0].astype(np.float64)
    )
    assert views["tail_log_mass"].item() == pytest.approx(
        exact, rel=1e-6
    )  # float32; 1 - exp(0) would be -inf


@given(st.integers(2, 70_000), st.integers(1, 40), st.integers(0, 2**31))
@settings(max_examples=100, deadline=None)
def test_ids_are_packed_without_loss(classes, count, seed):
    ids = np.random.default_rng(seed).integers(0, classes, (3, count)).astype(np.int32)
    packed = pack_ids(ids, classes)
    bits = int(np.ceil(np.log2(classes)))
    assert packed.shape == (3, -(-count * bits // 8))
    np.testing.assert_array_equal(unpack_ids(packed, count, classes), ids)
    wide = np.zeros((3, packed.shape[1] + 5), np.uint8)  # as a view of records
    wide[:, 2:-3] = packed
    np.testing.assert_array_equal(unpack_ids(wide[:, 2:-3], count, classes), ids)


def test_max_kl_refuses_worse_before_anything_is_written(tmp_path):
    teachers, rows = digits()
    cache = cache_targets(teachers, rows, tmp_path / "free", shard_rows=64)
    kl = kl_divergence(in_uid_order(teachers, rows), cache.gather_logits(np.arange(230)))
    limit = np.sort(kl[:, 64:].max(0))[-1] * 0.999  # the first shard may be within it, or not
    k, uid = np.argwhere(kl > limit)[np.argmin(np.argwhere(kl > limit)[:, 1] // 64)]
    with pytest.raises(
        CacheError, match=rf"max_kl: expected at most .* nats .*'uint8' has .* for '{'abc'[k]}', uid {uid}"
    ):
        cache_targets(teachers, rows, tmp_path / "bound", shard_rows=64, max_kl=float(limit))
    assert not (tmp_path / "bound" / f"shard-{uid // 64:05d}.safetensors").exists()
    with pytest.raises(CacheError, match=r"max_kl: expected at most .* has a row with"):
        cache_targets(teachers, rows, tmp_path / "free", shard_rows=64, max_kl=float(limit))
    better = cache_targets(
        teachers, rows, tmp_path / "better", codec="fp16", shard_rows=64, max_kl=float(limit)
    )
    assert TargetCache.open(better.path).manifest["statistics"]["kl"]["max"] <= limit


def test_codecs_that_do_not_fit_the_cache_are_refused(tmp_path):
    teachers, rows = digits()
    for options, message in (
        (
            {"codec": "topk-4"},
            "mixture_at: expected a temperature, because topk-4 holds the mixture at one only; got None",
        ),
        ({"codec": "topk-11", "mixture_at": 1.0}, "codec: topk-11 needs at least 11 classes; got 10"),
        (
            {"codec": "counts-256", "mixture_at": 1.0},
            "codec: expected one of .*at most 255.*got 'counts-256'",
        ),
        ({"codec": "topk-0", "mixture_at": 1.0}, "codec: expected one of"),
        ({"mixture_at": 0.0}, "mixture_at: expected a number from 0.0001 to 10000; got 0"),
        ({"max_kl": -1.0}, "max_kl: expected a number of at least 0, in nats; got -1"),
    ):
        with pytest.raises(ValueError, match=message):
            cache_targets(teachers, rows, tmp_path / "none", **options)
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("mixture_at", [None, 2.0])
@pytest.mark.parametrize("codec", ["uint8", "fp16", "bf16", "fp32", "topk-3", "counts-20"])
def test_targets_decode_to_the_stored_rows(tmp_path, codec, mixture_at):
    if mixture_at is None and "-" in codec:
        return
    teachers, rows = digits()
    cache = cache_targets(
        replace(teachers, combiner="logit"), rows, tmp_path, codec=codec, mixture_at=mixture_at, shard_rows=64
    )
    target, uids = cache.gather(np.arange(5)), np.arange(5)
    logits, expected = target.to_logits(), torch.from_numpy(cache.gather_logits(uids))
    assert (logits.dtype, tuple(logits.shape)) == (torch.float32, (1 if mixture_at else 3, 5, 10))
    if codec == "uint8" and mixture_at:
        logits = logits / mixture_at
    torch.testing.assert_close(logits.log_softmax(-1), expected.log_softmax(-1), rtol=1e-5, atol=1e-5)
    student = torch.zeros(5, 10)
    how = {} if mixture_at else {"combiner": "logit"}
    loss = distillation_loss(student, target, temperature=mixture_at or 1.0)
    assert torch.equal(loss, distillation_loss(student, target, temperature=mixture_at or 1.0, **how))
    if not mixture_at:
        assert not torch.equal(loss, distillation_loss(student, target, combiner="prob"))


@pytest.mark.parametrize("mixture_at", [None, 2.0])
@pytest.mark.parametrize("codec", ["uint8", "fp16", "bf16", "fp32", "topk-3", "counts-20"])
def test_no_samples_have_empty_targets(tmp_path, codec, mixture_at):
    if mixture_at is None and "-" in codec:
        return
    cache = cache_targets(*digits(), tmp_path, codec=codec, mixture_at=mixture_at, shard_rows=64)
    whole, empty = cache.gather(np.arange(3)), cache.gather(np.array([], np.int64))
    assert type(empty) is type(whole)
    assert empty.shape == (*whole.shape[:-2], 0, whole.shape[-1])
    assert [target.shape for target in cache.stream([np.array([], np.int64)])] == [empty.shape]
    assert cache.gather_logits([]).shape == (1 if mixture_at else 3, 0, 10)
    loss = distillation_loss(torch.zeros(0, 10), empty, temperature=mixture_at or 1.0)
    assert loss.item() == 0
