"""Codecs of large vocabularies: ids in order as one string of bits, a few bits for a log-probability."""

import numpy as np
import pytest
from cache_helpers import digits
from codec_helpers import stored
from hypothesis import given, settings
from hypothesis import strategies as st

from ensdistill.cache import TargetCache, cache_targets
from ensdistill.cache.codecs import codec_of
from ensdistill.cache.native import shards


def bits_by_hand(ids, codes, classes, width):
    """The string of bits of one row, after the specification in docs/cache-format.md."""
    count = len(ids)
    low = max(0, int(np.floor(np.log2(classes / count))))
    high = np.zeros(count + ((classes - 1) >> low), np.uint8)
    high[[(i >> low) + j for j, i in enumerate(ids)]] = 1
    parts = [high]
    parts += [(i >> np.arange(low)) & 1 for i in ids]
    parts += [(c >> np.arange(width)) & 1 for c in codes]
    return np.packbits(np.concatenate(parts).astype(np.uint8), bitorder="little")


@given(st.integers(1, 200_000), st.integers(1, 300), st.integers(0, 16), st.booleans(), st.integers(0, 2**31))
@settings(max_examples=150, deadline=None)
def test_sorted_ids_are_packed_as_specified_and_without_loss(classes, count, width, repeated, seed):
    generator = np.random.default_rng(seed)
    count = count if repeated else min(count, classes)
    ids = np.stack([generator.choice(classes, count, replace=repeated) for _ in range(3)])
    ids = np.sort(ids, 1).astype(np.int32)
    codes = generator.integers(0, 2**width, ids.shape).astype(np.int32)
    packed = shards.pack_sorted(ids, codes, classes, width)
    assert packed.shape == (3, shards.sorted_bytes(count, classes, width))
    for row, id_row, code_row in zip(packed, ids, codes, strict=True):
        np.testing.assert_array_equal(row, bits_by_hand(id_row.astype(np.int64), code_row, classes, width))
    wide = np.full((3, packed.shape[1] + 5), 255, np.uint8)  # as a view of records
    wide[:, 2:-3] = packed
    found = shards.unpack_sorted(wide[:, 2:-3], count, classes, width)
    np.testing.assert_array_equal(found[0], ids)
    np.testing.assert_array_equal(found[1], codes)


@given(st.integers(1, 5000), st.integers(1, 40), st.integers(0, 8), st.integers(0, 2**31))
@settings(max_examples=100, deadline=None)
def test_bits_of_no_ids_are_an_error_and_never_an_id_out_of_range(classes, count, width, seed):
    size = shards.sorted_bytes(count, classes, width)
    noise = np.random.default_rng(seed).integers(0, 256, (1, size)).astype(np.uint8)
    try:
        ids, codes = shards.unpack_sorted(noise, count, classes, width)
    except ValueError as error:
        assert "expected ids of the classes in ascending order" in str(error)  # noqa: PT017
    else:
        assert ids.min() >= 0
        assert ids.max() < classes
        assert (np.diff(ids) >= 0).all()
        assert codes.max() < 2**width


@pytest.mark.parametrize(
    ("ids", "codes", "words"),
    [
        ([[3, 2]], [[0, 0]], "ids: expected ids of the classes in ascending order"),
        ([[0, 10]], [[0, 0]], "ids: expected ids of the classes in ascending order"),
        ([[-1, 2]], [[0, 0]], "ids: expected ids of the classes in ascending order"),
        ([[0, 1]], [[0]], r"ids, codes: expected int32 \[N, k\]"),
    ],
)
def test_ids_out_of_order_are_refused(ids, codes, words):
    with pytest.raises(ValueError, match=words):
        shards.pack_sorted(np.array(ids, np.int32), np.array(codes, np.int32), 10, 4)


def language_like(count, classes, seed=0):
    """Logits [N, 1, C] whose probabilities fall as a power of the rank, sharper in some rows."""
    generator = np.random.default_rng(seed)
    falling = -1.1 * np.log(np.arange(1, classes + 1))
    rows = [
        generator.permutation(falling) * generator.uniform(0.9, 2.5) + generator.normal(size=classes)
        for _ in range(count)
    ]
    return np.stack(rows).astype(np.float32)[:, None]


@pytest.mark.parametrize(("classes", "rest"), [(8192, 1), (1001, 3)])  # fewer unlisted classes cost less
@pytest.mark.parametrize(
    ("bits", "k", "excess"), [(4, 50, 0.04), (5, 128, 0.04), (6, 128, 0.01), (8, 64, 0.002)]
)
def test_few_bits_cost_little_more_than_float16(classes, rest, bits, k, excess):
    logits = language_like(30, classes)
    _, plain, kl = stored(f"topk-{k}", logits, mixture_at=1.0)
    decoded, coded, coded_kl = stored(f"topk{bits}-{k}", logits, mixture_at=1.0)
    assert coded_kl.mean() <= (1 + rest * excess) * kl.mean()
    np.testing.assert_array_equal(coded["tail_log_mass"], plain["tail_log_mass"])  # exact, as ever
    np.testing.assert_allclose(np.exp(decoded[:, 0].astype(np.float64)).sum(1), 1, atol=1e-5)
    ids, log_p = codec_of(f"topk-{k}").listed(plain, classes)
    order = np.argsort(ids, 1)
    coded_ids, coded_log_p = codec_of(f"topk{bits}-{k}").listed(coded, classes)
    np.testing.assert_array_equal(coded_ids, np.take_along_axis(ids, order, 1))
    apart = np.abs(coded_log_p - np.take_along_axis(log_p, order, 1).astype(np.float64))
    # Half a step, and at most as much for all of a row together.
    assert (apart <= 1.01 * np.abs(coded["step"].astype(np.float64))[:, None] + 0.01).all()


@pytest.mark.parametrize(
    ("codec", "most"), [("topk5-128", 300), ("topk4-50", 130), ("draws-12", 32), ("counts-12", 48)]
)
def test_bytes_of_a_record_for_a_vocabulary_of_152_064(codec, most):
    from ensdistill.cache.codecs import record_of

    assert record_of(codec_of(codec), 1, 152_064).bytes <= most


def test_excluded_classes_stay_excluded():
    logits = np.full((3, 1, 9), -np.inf, np.float32)
    logits[0, 0, [1, 7]] = 0.0, -1.0
    logits[1, 0, 4] = 2.0
    logits[2, 0] = np.linspace(-300, 0, 9)
    for codec in ("topk4-5", "topk8-9"):
        decoded, _, kl = stored(codec, logits, mixture_at=1.0)
        found = np.exp(decoded[:, 0])
        np.testing.assert_allclose(found[0, [1, 7]], 1 / (1 + np.exp([-1.0, 1.0])), atol=2e-3)
        assert found[0, [0, 2, 3, 4, 5, 6, 8]].max() == 0
        assert found[1].tolist() == [0, 0, 0, 0, 1, 0, 0, 0, 0]
        assert (kl < 1e-4).all()


@pytest.mark.parametrize(("classes", "draws"), [(10, 40), (3000, 12), (2, 255)])
def test_draws_are_the_counts(classes, draws):
    logits = language_like(40, classes, seed=3)
    counts, _, kl = stored(f"counts-{draws}", logits, mixture_at=1.0)
    drawn, packed, drawn_kl = stored(f"draws-{draws}", logits, mixture_at=1.0)
    np.testing.assert_array_equal(counts, drawn)
    np.testing.assert_array_equal(kl, drawn_kl)
    ids, counts = codec_of(f"draws-{draws}").drawn(packed, classes)
    assert (counts.sum(1, dtype=int) == draws).all()
    kept = [sorted(row[count > 0]) for row, count in zip(ids, counts, strict=True)]
    assert all(len(set(row)) == len(row) for row in kept)


@pytest.mark.parametrize("codec", ["topk5-4", "draws-30"])
def test_a_whole_cache(tmp_path, codec):
    teachers, rows = digits()
    made = cache_targets(teachers, rows, tmp_path / "c", codec=codec, mixture_at=2.0, shard_rows=64)
    cache = TargetCache.open(made.path)
    assert cache.codec.name == codec
    assert cache.verify_against(teachers, rows, share=1.0) == 230
    cache.verify()
    target, uids = cache.gather(np.array([5, 77, 5])), [5, 77, 5]
    decoded = cache.gather_logits(np.array(uids))[0]
    if codec == "draws-30":
        np.testing.assert_allclose(target.to_logits()[0].numpy(), decoded, rtol=1e-6)
    else:
        listed = np.take_along_axis(decoded, target.ids.numpy().astype(np.int64), 1)
        np.testing.assert_array_equal(target.log_probs.numpy(), listed)


@pytest.mark.parametrize(
    ("codec", "words"),
    [
        ("topk5-11", "codec: topk5-11 needs at least 11 classes; got 10"),
        ("topk7-3", r"codec: expected one of .*topk-N, topk4-N, topk5-N, topk6-N, topk8-N, .*got 'topk7-3'"),
        ("draws-256", r"codec: expected one of .*at most 255.*got 'draws-256'"),
    ],
)
def test_wrong_names(tmp_path, codec, words):
    teachers, rows = digits()
    with pytest.raises(ValueError, match=words):
        cache_targets(teachers, rows, tmp_path / "c", codec=codec, mixture_at=1.0)
    assert not (tmp_path / "c").exists()
