import numpy as np
import pytest
import torch
from cache_helpers import digits
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from ensdistill.cache.codecs import CODECS, kl_divergence, layout
from ensdistill.targets import QuantizedLogits

LOGITS = arrays(np.float32, st.tuples(st.integers(1, 3), st.integers(1, 2), st.integers(2, 40)), elements=st.floats(-50, 50, width=32))


def stored(codec, logits):
    """What a reader gets: through the bytes of a record and back."""
    n, k, c = logits.shape
    place = layout(codec, k, c)
    records = np.zeros((n, place.bytes), np.uint8)
    views = place.views(records)
    for name, value in CODECS[codec].encode(logits).items():
        views[name][:] = value
    return CODECS[codec].decode(views), views


def mask(logits, keep_class):
    logits = logits.copy()
    logits[..., :: 2 + keep_class] = -np.inf
    logits[..., keep_class] = 0.25
    return logits


@given(LOGITS)
@settings(max_examples=150, deadline=None)
def test_uint8_keeps_the_bound(logits):
    decoded, _ = stored("uint8", logits)
    span = np.ptp(logits.astype(np.float64), axis=-1)
    # Half a step, and the float32 arithmetic of offset + scale * code, whose terms are within 150 (150 * 2^-23 = 2e-5).
    assert (np.abs(decoded.astype(np.float64) - logits).max(-1) <= span / 510 + 2e-5).all()
    assert (kl_divergence(logits, decoded) <= (span / 510 + 2e-5) ** 2 / 2 + 1e-15).all()


@given(LOGITS, st.integers(0, 1))
@settings(max_examples=150, deadline=None)
def test_masked_classes_stay_masked_and_the_others_keep_254_steps(logits, keep_class):
    logits = mask(logits, keep_class)
    decoded, views = stored("uint8", logits)
    masked = np.isneginf(logits)
    np.testing.assert_array_equal(np.isneginf(decoded), masked)
    assert ((views["scale"] < 0) == masked.any(-1)).all()
    finite = np.where(masked, 0.25, logits).astype(np.float64)
    half_step = np.ptp(finite, axis=-1, keepdims=True) / 508 + 2e-5
    assert (np.abs(np.where(masked, 0.25, decoded) - finite) <= half_step).all()


@pytest.mark.parametrize("codec", CODECS)
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
    decoded, _ = stored(codec, logits)
    np.testing.assert_array_equal(np.isneginf(decoded), np.isneginf(logits))
    assert not np.isnan(decoded).any()
    assert not np.isposinf(decoded).any()
    # The half step of a range of 2e38 is enormous, but it lies where softmax is zero; only [1e4, 1e4 + 1] is a real test of precision.
    assert kl_divergence(logits, decoded).item() < 1e-6


@pytest.mark.parametrize(("codec", "mean", "largest"), [("fp32", 0.0, 0.0), ("fp16", 1e-6, 1e-5), ("uint8", 1e-4, 1e-3)])
def test_codecs_on_real_logits(codec, mean, largest):
    logits = digits()[0].logits.swapaxes(0, 1)
    decoded, _ = stored(codec, logits)
    kl = kl_divergence(logits, decoded)
    assert kl.mean() <= mean
    assert kl.max() <= largest
    assert codec == "fp32" or kl.max() > 0  # a codec that loses something must be seen to


def test_fp16_is_shifted_so_that_large_logits_do_not_overflow():
    decoded, _ = stored("fp16", np.array([[[90_000.0, 89_999.0, -1e30, -np.inf]]], np.float32))
    np.testing.assert_array_equal(decoded, [[[0.0, -1.0, -65504.0, -np.inf]]])


def test_kl_is_that_of_torch():
    logits, decoded = np.random.default_rng(1).normal(0, 3, (2, 5, 4, 7)).astype(np.float32)
    p, q = (torch.log_softmax(torch.from_numpy(x).double(), -1) for x in (logits, decoded))
    expected = torch.nn.functional.kl_div(q, p, log_target=True, reduction="none").sum(-1)
    np.testing.assert_allclose(kl_divergence(logits, decoded), expected.numpy(), rtol=1e-12)  # both float64


def test_numpy_and_torch_decode_the_same():
    logits = mask(digits()[0].logits, 1).swapaxes(0, 1)
    decoded, views = stored("uint8", logits)
    torch_views = {name: torch.from_numpy(np.ascontiguousarray(views[name].swapaxes(0, 1))) for name in ("codes", "scale", "offset")}
    np.testing.assert_array_equal(QuantizedLogits(**torch_views).to_logits().numpy(), decoded.swapaxes(0, 1))


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize(("k", "c"), [(1, 2), (3, 7), (8, 1000)])
def test_fields_tile_the_record_and_are_aligned(codec, k, c):
    place, end = layout(codec, k, c), 0
    for offset, dtype, shape in place.fields.values():
        assert offset == end
        assert offset % np.dtype(dtype).itemsize == 0
        end += int(np.prod(shape)) * np.dtype(dtype).itemsize
    assert end <= place.bytes < end + 8
    assert place.bytes % 8 == 0
