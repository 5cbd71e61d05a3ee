"""Encoders against the cache's codec, against closed forms in NumPy, and against their own specification."""

import math

import numpy as np
import pytest
import torch
from closed_forms import make_codes, make_logits
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from ensdistill.cache.codecs import codec_of, kl_divergence
from ensdistill.functional import distillation_loss
from ensdistill.loss import encoders_reference
from ensdistill.loss.encoders import quantize_logits, sample_counts, top_k_targets
from ensdistill.loss.targets import EnsembleLogits

IMPLS = ("fused", "reference")
SIZES = (1, 2, 7, 8, 9, 10, 123, 252, 507, 1031)  # around the lanes, and ragged
# Probabilities from sums of doubles, rounded differently by two codes: 1e-15 for each of a few thousand terms
# at most. A KL is a difference of such sums, whose size is the logarithms in them (up to 100 here).
CLOSE = {"rtol": 1e-11, "atol": 1e-12}


def masked(logits: torch.Tensor, every: int = 5) -> torch.Tensor:
    """Every so many classes masked for every other member and row, never class 1."""
    logits = logits.clone()
    logits[::2, ::2, 2::every] = -torch.inf
    return logits


def codec(logits: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The cache's uint8 format for logits [K, N, C], written down a third time, in NumPy; and the KL of the
    decoded rows."""
    finite = np.isfinite(logits)
    masked = ~finite.all(-1)
    low = np.min(logits, -1, where=finite, initial=np.inf).astype(np.float64)
    high = np.max(logits, -1, where=finite, initial=-np.inf).astype(np.float64)
    # 255 steps lie between 256 codes; a masked row gives code 0 away. A step below the smallest normal
    # float32 could be flushed to zero by a kernel, and a zero step has no sign to flag the mask with: such a
    # row counts as constant.
    step = ((high - low) / np.where(masked, 254, 255)).astype(np.float32)
    step = np.where(step < np.finfo(np.float32).tiny, masked.astype(np.float32), step)
    offset = (low - np.where(masked, step, 0)).astype(np.float32)
    # The codes are chosen for the rounded step and offset, because the reader has only those.
    divisor = np.where(step == 0, 1, step).astype(np.float64)[..., None]
    codes = np.rint(
        (np.where(finite, logits, low[..., None]) - offset.astype(np.float64)[..., None]) / divisor
    )
    codes = np.where(finite, np.clip(codes, masked[..., None].astype(np.float64), 255), 0).astype(np.uint8)
    fields = {"scale": np.where(masked, -step, step), "offset": offset, "codes": codes}
    return fields, kl_divergence(logits, codec_of("uint8").decode(fields, logits.shape[-1]))


def mixture(logits: torch.Tensor, weights=None, temperature=1.0, combiner="prob") -> np.ndarray:
    """Log-probabilities [N, C] in NumPy's long double."""
    z = logits.double().numpy().astype(np.longdouble) / temperature
    w = np.ones(len(z)) if weights is None else np.asarray(weights, float)
    z, w = z[w > 0], (w[w > 0] / w.sum()).astype(np.longdouble)[:, None, None]
    with np.errstate(divide="ignore"):
        if combiner != "prob":
            return log_softmax((w * z).sum(0))
        logs = log_softmax(z) + np.log(w)
        top = np.where(np.isneginf(logs.max(0)), 0, logs.max(0))
        return top + np.log(np.exp(logs - top).sum(0))


def log_softmax(z: np.ndarray) -> np.ndarray:
    z = z - z.max(-1, keepdims=True)
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


# Row quantisation
# -----------------------------------------------------------------------------------------------------


def check_codec(logits: torch.Tensor, impl: str) -> None:
    fields, expected_kl = codec(logits.float().numpy() if logits.dtype != torch.float64 else logits.numpy())
    found, kl = quantize_logits(logits, impl=impl)
    for name in ("codes", "scale", "offset"):
        np.testing.assert_array_equal(getattr(found, name).numpy(), fields[name], err_msg=name)
    np.testing.assert_allclose(kl.numpy(), expected_kl, **CLOSE)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("classes", SIZES)
def test_quantization_gives_the_codecs_bits(classes, dtype, impl):
    logits = make_logits(3, 5, classes, seed=classes, dtype=dtype)
    check_codec(logits, impl)
    if classes > 2:
        check_codec(masked(logits), impl)


@given(
    arrays(
        np.float32,
        st.tuples(st.integers(1, 3), st.integers(1, 2), st.integers(2, 40)),
        elements=st.floats(-50, 50, width=32),
    )
)
@settings(max_examples=100, deadline=None)
def test_quantization_gives_the_codecs_bits_for_any_row(logits):
    """Hypothesis likes constant rows, subnormal ranges and halfway codes."""
    check_codec(torch.from_numpy(logits), "fused")
    logits = logits.copy()
    logits[..., 1::3] = -np.inf
    check_codec(torch.from_numpy(logits), "fused")


@pytest.mark.parametrize(
    "row",
    [
        [0.5, 0.5, 0.5],
        [0.0, 1e-40, 0.0],
        [-1e38, 0.0, 1e38],
        [0.0, -math.inf, 0.0],
        [7.0, 127.5 + 7, 255.0 + 7],
    ],
)
def test_quantization_of_rows_at_the_edge(row):
    """Constant; a range of subnormals; the widest allowed; one value and a mask; a code halfway between
    two."""
    for impl in IMPLS:
        check_codec(torch.tensor([[row]]), impl)


def test_the_codes_can_be_decoded():
    logits = masked(make_logits(3, 4, 50, seed=0))
    found, kl = quantize_logits(EnsembleLogits(logits, weights=torch.ones(3)))
    assert torch.equal(found.weights, torch.ones(3))
    assert torch.equal(found.to_logits().isneginf(), logits.isneginf())
    span = logits.masked_fill(logits.isneginf(), 0).amax(-1) - logits.masked_fill(logits.isneginf(), 0).amin(
        -1
    )
    # the bound in the docstring, with a masked class 254 steps; 1 % for the float32 arithmetic of decoding
    assert bool((kl <= 1.01 * (span / 508).double() ** 2 / 2).all())
    assert bool((kl > 0).all())


# Top-k
# ------------------------------------------------------------------------------------------------------------


def check_top_k(targets, logits, k, impl, **arguments) -> None:
    log_p = mixture(logits, **arguments)
    found, kl = top_k_targets(targets, k, impl=impl, **arguments)
    assert (found.ids.dtype, found.log_probs.dtype, found.tail_log_mass.dtype, kl.dtype) == (
        torch.int32,
        torch.float32,
        torch.float32,
        torch.float64,
    )
    assert found.temperature == arguments.get("temperature", 1.0)
    order = np.argsort(-log_p, -1, kind="stable")
    ids, outside = order[:, :k], order[:, k:]
    listed = np.take_along_axis(log_p, ids, -1)
    np.testing.assert_array_equal(found.ids.numpy(), ids)
    np.testing.assert_allclose(
        found.log_probs.numpy(), listed, rtol=2**-23, atol=1e-13
    )  # float32's rounding; a probability of 1
    with np.errstate(divide="ignore"):
        rest = np.take_along_axis(log_p, outside, -1)
        top = rest.max(-1, keepdims=True, initial=-np.inf)
        top = np.where(np.isneginf(top), 0, top)
        tail = top[:, 0] + np.log(np.exp(rest - top).sum(-1))
    np.testing.assert_allclose(found.tail_log_mass.numpy(), tail, rtol=2**-23, atol=1e-13)
    # KL from its definition, over the whole distribution and its reconstruction
    if k < log_p.shape[-1]:
        reconstruction = np.broadcast_to((tail - np.log(log_p.shape[-1] - k))[:, None], log_p.shape).copy()
    else:
        reconstruction = np.full_like(log_p, -np.inf)
    np.put_along_axis(reconstruction, ids, listed, -1)
    p = np.exp(log_p)
    terms = np.multiply(p, np.subtract(log_p, reconstruction, where=p > 0, out=np.zeros_like(p)))
    np.testing.assert_allclose(kl.numpy(), np.maximum(terms.sum(-1), 0).astype(float), **CLOSE)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("combiner", ["prob", "logit", "log_prob"])
@pytest.mark.parametrize("members", [1, 3])
@pytest.mark.parametrize("classes", SIZES)
def test_top_k(classes, members, combiner, impl):
    logits = make_logits(members, 4, classes, seed=classes)
    for k in {1, min(2, classes), (classes + 1) // 2, classes}:
        check_top_k(
            logits, logits, k, impl, temperature=2.0, combiner=combiner, weights=[1.0, 0.0, 3.0][:members]
        )
        if classes > 2:
            check_top_k(masked(logits), masked(logits), k, impl, combiner=combiner)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_top_k_of_other_types(dtype, impl):
    # Few distinct values in half precision: ties are certain.
    logits = make_logits(2, 6, 507, seed=1, dtype=dtype)
    check_top_k(logits, logits, 20, impl, combiner="log_prob")


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("combiner", ["prob", "logit"])
def test_top_k_of_codes(combiner, impl):
    for members in (1, 4):
        for classes in (123, 1031):  # decoded one by one, and through a table
            codes = make_codes(members, 6, classes, seed=2, masked=True)
            check_top_k(codes, codes.to_logits(), 9, impl, temperature=3.0, combiner=combiner)


@pytest.mark.parametrize("impl", IMPLS)
def test_ties_go_to_the_lower_id(impl):
    row = torch.zeros(1, 1, 40)
    row[..., [3, 17, 30]] = 1.0
    assert top_k_targets(row, 5, impl=impl)[0].ids.tolist() == [[3, 17, 30, 0, 1]]
    assert top_k_targets(row, 2, impl=impl)[0].ids.tolist() == [[3, 17]]
    # masked classes are last, and ties among themselves
    row[..., :38] = -torch.inf
    found = top_k_targets(row, 4, impl=impl)[0]
    assert found.ids.tolist() == [[38, 39, 0, 1]]
    assert found.log_probs[0, 2:].tolist() == [-math.inf] * 2
    assert found.tail_log_mass.item() == -math.inf


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("members", [1, 2])
def test_the_tail_is_exact_where_one_minus_the_sum_is_noise(members, impl):
    """Tails of 1e-12 and of exp(-1000), which no double holds, of a teacher and of a mixture."""
    for gap in (27.6, 1000.0):
        logits = torch.zeros(members, 1, 100, dtype=torch.float64)
        logits[..., 4] = gap
        found, kl = top_k_targets(logits, 1, impl=impl)
        expected = math.log(99) - gap - math.log1p(99 * math.exp(-gap))
        assert found.ids.item() == 4
        assert found.tail_log_mass.item() == pytest.approx(expected, rel=2**-23)
        assert kl.item() == pytest.approx(0, abs=1e-15)
    second = top_k_targets(logits, 3, impl=impl)[0]
    assert second.ids.tolist() == [[4, 0, 1]]
    assert second.log_probs[0, 1:].tolist() == [-1000.0, -1000.0]


@pytest.mark.parametrize("members", [1, 2])
def test_the_divergence_is_good_to_the_last_digits(members):
    """Two classes outside, of random masses: all terms are below 1, so the only error is the rounding of a
    dozen operations on them."""
    logits = make_logits(1, 4000, 3, seed=8, dtype=torch.float64, spread=1.0).repeat(members, 1, 1)
    log_p = np.sort(mixture(logits), -1)
    p, tail = np.exp(log_p[:, :2]), np.logaddexp(log_p[:, 0], log_p[:, 1])
    expected = (p * (log_p[:, :2] - tail[:, None] + np.log(np.longdouble(2)))).sum(-1)
    np.testing.assert_allclose(
        top_k_targets(logits, 1)[1].numpy(), expected.astype(float), rtol=0, atol=16 * 2.0**-53
    )


# Sampled counts
# -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("combiner", ["prob", "logit"])
@pytest.mark.parametrize("members", [1, 3])
@pytest.mark.parametrize("classes", SIZES)
def test_counts_are_those_of_the_specification(classes, members, combiner):
    """Draw for draw: a point would have to be within 1e-15 of a class's edge for the two to differ."""
    logits = make_logits(members, 5, classes, seed=classes)
    for draws in (1, 6, 301):
        for values in (logits, masked(logits) if classes > 2 else logits):
            arguments = {"seed": 2**63 - 1 - classes, "temperature": 1.5, "combiner": combiner}
            found, kl = sample_counts(values, draws, **arguments)
            expected, expected_kl = sample_counts(values, draws, impl="reference", **arguments)
            assert found.ids.shape == (5, min(draws, classes))
            assert torch.equal(found.ids, expected.ids)
            assert torch.equal(found.counts, expected.counts)
            assert (found.counts.sum(-1) == draws).all()
            torch.testing.assert_close(kl, expected_kl, **CLOSE)


def test_counts_of_codes():
    """And row ids of all 64 bits."""
    codes, row_ids = make_codes(3, 5, 123, seed=2, masked=True), torch.tensor([7, -1, 2**62 + 1, -(2**63), 0])
    found, expected = (sample_counts(codes, 50, seed=1, row_ids=row_ids, impl=impl)[0] for impl in IMPLS)
    assert torch.equal(found.ids, expected.ids)
    assert torch.equal(found.counts, expected.counts)


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        (0, 0, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        (2**64 - 1, 2**64 - 1, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ],
)
def test_philox_gives_the_published_answers(counter, key, words):
    """Published test vectors of Random123 for philox4x32-10."""
    signed = counter - 2**64 if counter >= 2**63 else counter
    found = encoders_reference.philox(key, torch.tensor(signed), torch.tensor(signed))
    numbers = [int(x) >> shift & 0xFFFFFFFF for x in found for shift in (0, 32)]
    assert [f"{x:08x}" for x in numbers] == words.split()


def test_counts_follow_the_mixture():
    """400 000 draws of a row: chi-square over 30 classes, 29 degrees of freedom; 58.3 is exceeded once in a
    thousand seeds."""
    logits = make_logits(2, 3, 30, seed=4, spread=1.0)
    found, kl = sample_counts(logits, 400_000, seed=11, temperature=1.5)
    expected = 400_000 * np.exp(mixture(logits, temperature=1.5)).astype(float)
    counts = torch.zeros(3, 30).scatter_(-1, found.ids.long(), found.counts.float()).numpy()
    statistic = ((counts - expected) ** 2 / expected).sum(-1)
    assert (statistic < 58.3).all()
    assert (statistic > 8).all()  # nor closer than chance: exceeded by all but one in 10^5
    # 2 S KL is that statistic to first order
    np.testing.assert_allclose(2 * 400_000 * kl.numpy(), statistic, rtol=0.05)


def test_rows_draw_independently_of_each_other():
    """Equal rows with different ids: the covariance of their counts, and of neighbouring seeds, is that of
    independent draws."""
    logits = torch.zeros(1, 4000, 2)
    ones = [sample_counts(logits, 100, seed=seed)[0].counts[:, 0].double() - 50 for seed in (0, 1)]
    for x, y in ((ones[0][:-1], ones[0][1:]), (ones[0], ones[1])):
        assert abs(float((x * y).mean())) < 4 * 25 / math.sqrt(
            4000
        )  # the standard error of a product of variances 25
    assert float(ones[0].var()) == pytest.approx(25, rel=0.1)  # binomial; its own standard error is 2.2 %


def test_neither_batches_nor_order_nor_threads_change_the_draws():
    logits = make_logits(2, 64, 300, seed=5)
    row_ids = torch.arange(64)
    whole, kl = sample_counts(logits, 40, seed=9)
    for part in (slice(0, 13), slice(13, 64), slice(5, 64, 3)):
        found, part_kl = sample_counts(logits[:, part], 40, seed=9, row_ids=row_ids[part])
        assert torch.equal(found.ids, whole.ids[part])
        assert torch.equal(found.counts, whole.counts[part])
        assert torch.equal(part_kl, kl[part])
    threads = torch.get_num_threads()
    try:
        for n in (1, 4):
            torch.set_num_threads(n)
            again, _ = sample_counts(logits, 40, seed=9)
            assert torch.equal(again.ids, whole.ids)
            assert torch.equal(again.counts, whole.counts)
    finally:
        torch.set_num_threads(threads)
    assert not torch.equal(sample_counts(logits, 40, seed=10)[0].ids, whole.ids)
    assert not torch.equal(sample_counts(logits, 40, seed=9, row_ids=row_ids + 2**40)[0].ids, whole.ids)


# Layouts, shapes, dispatch
# --------------------------------------------------------------------------------------------


def encoders(targets, **arguments):
    """All tensors of all three, in one list."""
    top, top_kl = top_k_targets(targets, 4, **arguments)
    counts, counts_kl = sample_counts(targets, 7, seed=3, **arguments)
    found = [top.ids, top.log_probs, top.tail_log_mass, top_kl, counts.ids, counts.counts, counts_kl]
    if isinstance(targets, torch.Tensor):
        codes, kl = quantize_logits(targets, **arguments)
        found += [codes.codes, codes.scale, codes.offset, kl]
    return found


@pytest.mark.parametrize("impl", IMPLS)
def test_leading_dimensions_and_strides(impl):
    """[K, B, T, C] is [K, N, C] by another name; strides are followed."""
    flat = make_logits(2, 12, 9, seed=6)
    expected = encoders(flat, impl=impl)
    wide = torch.full((2, 12, 20), torch.nan)
    wide[..., 3:12] = flat
    classes_first, rows_first = flat.mT.contiguous().mT, flat.swapaxes(0, 1).contiguous().swapaxes(0, 1)
    for values in (flat.view(2, 3, 4, 9), wide[..., 3:12], classes_first, rows_first):
        for found, want in zip(encoders(values, impl=impl), expected, strict=True):
            assert torch.equal(found.flatten(), want.flatten())
    found = encoders(flat.view(2, 3, 4, 9), impl=impl)
    assert [tuple(x.shape) for x in found] == [
        *[(3, 4, 4), (3, 4, 4), (3, 4), (3, 4)],
        *[(3, 4, 7), (3, 4, 7), (3, 4)],
        *[(2, 3, 4, 9), (2, 3, 4), (2, 3, 4), (2, 3, 4)],
    ]


@pytest.mark.parametrize("impl", IMPLS)
def test_no_rows(impl):
    assert [x.shape[0] for x in encoders(torch.zeros(2, 0, 9), impl=impl)] == [0] * 7 + [2] * 4


def test_members_without_weight_are_not_read():
    logits = make_logits(3, 4, 10, seed=7)
    top = top_k_targets(logits, 3, weights=[1, 1, 0])
    logits[2] = torch.nan
    again = top_k_targets(EnsembleLogits(logits, torch.tensor([2.0, 2.0, 0.0])), 3)
    assert torch.equal(top[0].log_probs, again[0].log_probs)
    assert torch.equal(top[1], again[1])


def test_opcheck():
    logits, weights = masked(make_logits(3, 5, 10, seed=0)), torch.arange(3, dtype=torch.float64)
    codes = make_codes(3, 5, 10, seed=1, masked=True)
    calls = [(torch.ops.ensdistill.encode_uint8.default, (logits,))]
    for values in ((logits, None, None), (codes.codes, codes.scale, codes.offset)):
        calls += [
            (torch.ops.ensdistill.encode_top_k.default, (*values, weights, 2.0, "prob", 4)),
            (
                torch.ops.ensdistill.encode_counts.default,
                (*values, None, 2.0, "logit", 4, 5, torch.arange(5)),
            ),
        ]
    for op, arguments in calls:
        assert set(torch.library.opcheck(op, arguments).values()) == {"SUCCESS"}


def test_fake_kernels_have_the_real_shapes_and_dtypes():
    logits = make_logits(2, 5, 9, seed=0, dtype=torch.bfloat16)
    for real, meta in zip(encoders(logits), encoders(logits.to("meta")), strict=True):
        assert (real.shape, real.dtype, real.stride()) == (meta.shape, meta.dtype, meta.stride())


def test_compiled_in_one_graph():
    logits = make_logits(2, 5, 9, seed=0)
    compiled = torch.compile(encoders, fullgraph=True, backend="aot_eager")
    for found, expected in zip(compiled(logits), encoders(logits), strict=True):
        assert torch.equal(found, expected)
    logits[1, 2, 0] = torch.nan  # compiled code can't check values, so NaN comes out
    found = compiled(logits)
    assert found[3].isnan().tolist() == found[6].isnan().tolist() == [False, False, True, False, False]
    assert bool(found[1][2].isnan().all())
    assert bool(found[5][2].eq(0).all())
    assert found[10].isnan().nonzero().tolist() == [[1, 2]]


def test_the_loss_takes_the_encoders_results():
    """With nothing left out, the targets are the ensemble itself, up to float32; counts are so in the
    limit."""
    logits, student = make_logits(2, 5, 9, seed=0), make_logits(5, 9, seed=1)
    arguments = {"temperature": 2.0, "reduction": "none", "impl": "reference"}
    expected = distillation_loss(student, logits, **arguments)
    top, _ = top_k_targets(logits, 9, temperature=2.0)
    torch.testing.assert_close(distillation_loss(student, top, **arguments), expected, rtol=1e-5, atol=1e-6)
    counts, _ = sample_counts(logits, 10**6, seed=0, temperature=2.0)
    # The sampling error of a mean of 10^6 draws of log(p / q), which varies by about 1, times T².
    torch.testing.assert_close(
        distillation_loss(student, counts, **arguments), expected, rtol=0, atol=4 * 5e-3
    )
    assert not torch.equal(
        distillation_loss(student, top_k_targets(logits, 3, temperature=2.0)[0], **arguments), expected
    )


def test_no_gradient_flows():
    assert not any(x.requires_grad for x in encoders(make_logits(2, 5, 9, seed=0).requires_grad_()))
