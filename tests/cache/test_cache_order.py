"""Arrays, labels and caches that hold the same samples in different orders."""

import numpy as np
import pytest
from cache_helpers import digits, in_uid_order
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression
from view_helpers import LENGTHS, N, token_teachers

from ensdistill import ArrayMember, CallableMember, Ensemble, Rows, SklearnMember
from ensdistill.cache import CacheMismatch, TargetCache, add_member, cache_targets, convert, drop_member
from ensdistill.data.augmentation import ShiftImages
from ensdistill.teachers.members import load_member

ROWS = 300
RNG = np.random.default_rng(0)
X, Z = RNG.normal(size=(ROWS, 4)).astype(np.float32), RNG.normal(size=(ROWS, 3)).astype(np.float32) * 3
P, SHUFFLED = softmax(Z.astype(float), 1), RNG.permutation(ROWS)
UNKNOWN = np.full(ROWS, -100)


def fresh(member, **options):
    return Ensemble.from_members([member], classes=["a", "b", "c"], **options)


@pytest.mark.parametrize("batch_size", [1024, 100, 7])
def test_answers_by_place_belong_to_uids_in_order(tmp_path, batch_size):
    """Also in batches of as many rows as the array has, or of fewer."""
    rows = Rows(X, np.arange(ROWS), UNKNOWN)
    cache = cache_targets(fresh(P), rows, tmp_path / "c", codec="fp32", batch_size=batch_size, shard_rows=150)
    np.testing.assert_allclose(softmax(cache.gather_logits(np.arange(ROWS))[0], 1), P, atol=1e-5)
    assert cache.verify_against(fresh(P), rows, share=0.3) == 90
    with pytest.raises(CacheMismatch, match="stored target differs"):
        cache.verify_against(fresh(P[::-1].copy()), rows, share=0.3)


def test_answers_by_place_are_refused_for_uids_in_another_order(tmp_path):
    rows = Rows(X, SHUFFLED, UNKNOWN)
    message = (
        r"uids: ndarray holds outputs for 300 rows by their place, .* 0\.\.299 in order; "
        r".*ArrayMember\(uids=\.\.\."
    )
    with pytest.raises(ValueError, match=message):
        cache_targets(fresh(P), rows, tmp_path / "c")
    with pytest.raises(ValueError, match=r"for 299 rows by their place"):
        cache_targets(fresh(P[:-1]), rows, tmp_path / "c")
    # More rows than the array has, in batches of exactly its rows: each batch would get all of them.
    twice = Rows(np.concatenate([X, X]), np.arange(2 * ROWS), np.full(2 * ROWS, -100))
    with pytest.raises(ValueError, match=r"got 600 uids that are not"):
        cache_targets(fresh(P), twice, tmp_path / "c", batch_size=ROWS, shard_rows=ROWS)
    assert not (tmp_path / "c").exists()
    ordered = cache_targets(
        fresh(ArrayMember(uids=SHUFFLED, probabilities=P, name="p")), rows, tmp_path / "c"
    )
    with pytest.raises(ValueError, match="by their place"):
        ordered.verify_against(Ensemble.from_members([ArrayMember(probabilities=P, name="p")]), rows)


@pytest.mark.parametrize("batch_size", [1024, 64])
def test_answers_by_uid_reach_their_samples(tmp_path, batch_size):
    member = ArrayMember(uids=SHUFFLED, logits=Z, name="stored")
    rows = Rows(X, SHUFFLED, UNKNOWN).take(RNG.permutation(ROWS))  # in a third order
    mixed = [member, CallableMember(lambda x: x[:, :3], name="f", version="1", output="logits")]
    ensemble = Ensemble.from_members(mixed)
    cache = cache_targets(
        ensemble, rows, tmp_path / "c", codec="fp32", batch_size=batch_size
    )  # classes are counted by asking
    found = cache.gather_logits(SHUFFLED)
    np.testing.assert_array_equal(found[0], Z)
    np.testing.assert_array_equal(found[1], X[:, :3])
    assert cache.verify_against(ensemble, rows, share=1.0) == ROWS
    np.testing.assert_allclose(ensemble.for_uids(SHUFFLED[:9]).predict_logits(X[:9])[0], Z[:9])
    assert ensemble.for_uids(SHUFFLED[:9]).fingerprint() != ensemble.fingerprint()
    for call, message in (
        (lambda: ensemble.predict_proba(X), r"stored finds its outputs by uid, .*ensemble\.for_uids\(uids\)"),
        (
            lambda: ensemble.for_uids(np.array([3, ROWS])),
            r"stored has no output for uid 300 \(1 of 2 uids have none\)",
        ),
        (
            lambda: cache_targets(
                ensemble, Rows(np.r_[X, X[:1]], np.arange(301), np.zeros(301, int)), tmp_path / "n"
            ),
            "uid 300",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_a_wrapper_is_not_passed_over(tmp_path):
    """A wrapper that passes on every method it lacks would pass on ``for_uids``, whose result is the ensemble
    inside: the wrapper's own change would be lost."""

    class Around:
        def __init__(self, ensemble):
            self.ensemble = ensemble

        def __getattr__(self, name):
            return getattr(self.ensemble, name)

        def predict_logits(self, inputs):
            return 2 * self.ensemble.predict_logits(inputs)

    class Complete(Around):
        def for_uids(self, uids, among):
            return Complete(self.ensemble.for_uids(uids, among))

    rows = Rows(X, np.arange(ROWS), UNKNOWN)
    for member in (P, ArrayMember(uids=np.arange(ROWS), logits=Z, name="stored")):
        with pytest.raises(
            TypeError,
            match=r"ensemble: Around passes on the for_uids of a Ensemble .*for_uids\(uids, among\)",
        ):
            cache_targets(Around(fresh(member)), rows, tmp_path / "c")
    cache = cache_targets(Complete(fresh(member)), rows, tmp_path / "c", codec="fp32", batch_size=64)
    np.testing.assert_array_equal(cache.gather_logits(np.arange(ROWS))[0], 2 * Z)


def test_outputs_by_uid_are_saved_and_have_a_fingerprint_of_their_own(tmp_path):
    member = ArrayMember(uids=SHUFFLED, logits=Z, name="stored", classes=["a", "b", "c"])
    member.save(tmp_path)
    again = load_member(tmp_path)
    assert (
        again.fingerprint()
        == member.fingerprint()
        != ArrayMember(uids=SHUFFLED[::-1], logits=Z, name="stored").fingerprint()
    )
    np.testing.assert_array_equal(again.for_uids(SHUFFLED[5:2:-1], SHUFFLED).predict_logits(X[:3]), Z[5:2:-1])
    for arguments, message in (
        ({"uids": np.zeros(ROWS, int)}, "uids: stored: expected different uids; 0 stands 300 times"),
        (
            {"uids": np.zeros(ROWS)},
            r"uids: stored: expected integers \[N\], at least one; got float64 \[300\]",
        ),
        ({"uids": np.arange(3)}, r"expected outputs \[3, C\]"),
        ({"uids": SHUFFLED, "inputs": X}, "inputs, uids: expected at most one of the two"),
    ):
        with pytest.raises(ValueError, match=message):
            ArrayMember(logits=Z, name="stored", **arguments)


def test_answers_by_inputs_need_no_uids(tmp_path):
    ensemble = fresh(ArrayMember(X, logits=Z, name="stored"))
    assert ensemble.for_uids(SHUFFLED) is ensemble
    cache = cache_targets(ensemble, Rows(X, SHUFFLED, UNKNOWN), tmp_path / "c", codec="fp32", batch_size=64)
    np.testing.assert_array_equal(cache.gather_logits(SHUFFLED)[0], Z)


def test_stored_answers_are_not_those_of_augmented_inputs(tmp_path):
    images = Rows(X.reshape(ROWS, 1, 2, 2), np.arange(ROWS), UNKNOWN)
    for member in (P, ArrayMember(uids=np.arange(ROWS), logits=Z, name="stored")):
        with pytest.raises(
            ValueError, match="augment: a member with stored answers has none for augmented inputs"
        ):
            cache_targets(fresh(member), images, tmp_path / "c", views=2, augment=ShiftImages(1))


def test_double_precision_is_not_rounded_away():
    """float32 holds 1e8 and 1e8 + 1 as the same number, and nothing above 3.4e38."""
    z = np.array([[1e8, 1e8 + 1, 0.0], [0.5, 0.25, -1e300], [1e300, 0.0, -np.inf], [1.5, -np.inf, 0.0]])
    found = ArrayMember(logits=z, name="m").predict_logits(np.zeros((4, 1)))
    np.testing.assert_array_equal(
        found, np.array([[-1, 0, -1e8 - 1], [0, -0.25, -np.inf], [0, -np.inf, -np.inf], z[3]], np.float32)
    )
    z = np.random.default_rng(0).normal(size=(5, 3)) * 100
    np.testing.assert_array_equal(
        ArrayMember(logits=z, name="m").logits, z.astype(np.float32)
    )  # nothing is shifted without need
    assert np.isnan(
        ArrayMember(logits=np.array([[np.nan, 1e9]]), name="m").logits
    ).any()  # refused when it predicts
    scores = np.array([[1e8, 1e8 + 1, 1e8 - 1]])
    function = CallableMember(lambda x: scores, name="f", version="1", output="logits")
    estimator = LogisticRegression().fit(np.eye(3), [0, 1, 2])
    estimator.intercept_, estimator.coef_ = scores[0], np.zeros((3, 3))
    for member in (function, SklearnMember(estimator, output="decision")):
        np.testing.assert_array_equal(member.predict_logits(np.zeros((1, 3))), [[-1, 0, -2]])


# Labels and logits beside a cache
# -----------------------------------------------------------------------------------------------------


def test_labels_beside_a_cache_come_with_their_uids(tmp_path):
    labels = Z.argmax(1)
    rows = Rows(X, SHUFFLED, labels)
    ensemble = fresh(
        ArrayMember(uids=SHUFFLED, logits=Z * 4, name="stored")
    )  # too sure, except of its mistakes
    labels = np.where(RNG.random(ROWS) < 0.3, (labels + 1) % 3, labels)
    cache = cache_targets(ensemble, rows, tmp_path / "c", codec="fp32")
    expected = (
        fresh(ArrayMember(uids=SHUFFLED, logits=Z * 4, name="stored"))
        .calibrate(Z[None] * 4, labels)
        .temperatures
    )
    np.testing.assert_allclose(
        ensemble.calibrate(cache, labels, uids=rows.uids).temperatures, expected, rtol=1e-4
    )
    for fit in (ensemble.calibrate, ensemble.weigh, ensemble.select):
        with pytest.raises(
            ValueError, match=r"uids: expected those of the rows that `labels` are of, .*uids=rows\.uids"
        ):
            fit(cache, labels)


def test_a_member_that_was_added_is_no_member_of_an_ensemble(tmp_path):
    """Not even under the name of one that the cache had."""
    members = [
        CallableMember(lambda x, i=i: x[:, :3] * i, name=n, version="1", output="logits")
        for i, n in ((1, "a"), (2, "b"))
    ]
    ensemble = Ensemble.from_members(members)
    ensemble.temperature = 2.0
    cache = cache_targets(ensemble, Rows(X, SHUFFLED, UNKNOWN), tmp_path / "c")
    few = drop_member(cache, tmp_path / "few", name="b")
    with pytest.raises(CacheMismatch, match=r"members\.b: the cache has no such member"):
        ensemble.calibrate(few, np.zeros(ROWS, int), uids=np.arange(ROWS))
    other = add_member(few, tmp_path / "other", name="b", logits=Z, uids=SHUFFLED, weight=0.5)
    with pytest.raises(CacheMismatch, match=r"members\.b: the cache has no such member"):
        ensemble.calibrate(other, np.zeros(ROWS, int), uids=np.arange(ROWS))
    ensemble.only("a").calibrate(other, np.zeros(ROWS, int), uids=np.arange(ROWS))


@pytest.mark.parametrize("codecs", [("fp16",), ("bf16",), ("fp16", "fp32")])
def test_vector_scaling_is_not_fitted_on_shifted_rows(tmp_path, codecs):
    ensemble = Ensemble.from_members(
        [CallableMember(lambda x: x[:, :3], name="f", version="1", output="logits")]
    )
    cache = cache_targets(ensemble, Rows(X, np.arange(ROWS), UNKNOWN), tmp_path / "0", codec=codecs[0])
    for i, codec in enumerate(codecs[1:]):
        cache = convert(cache, tmp_path / str(i + 1), codec=codec)
    labels, uids = Z.argmax(1), np.arange(ROWS)
    ensemble.calibrate(cache, labels, uids=uids).weigh(
        cache, labels, uids=uids
    )  # a temperature doesn't see a shift
    with pytest.raises(ValueError, match=rf"was stored as {codecs[0]}, which keeps a row only up to a shift"):
        ensemble.calibrate(cache, labels, uids=uids, method="vector")
    exact = cache_targets(
        Ensemble.from_members(ensemble.members), Rows(X, uids, UNKNOWN), tmp_path / "exact", codec="fp32"
    )
    ensemble.calibrate(exact, labels, uids=uids, method="vector")
    with pytest.raises(ValueError, match="which keeps a row only up to a shift"):
        ensemble.weigh(cache, labels, uids=uids)
    exact = cache_targets(ensemble, Rows(X, uids, UNKNOWN), tmp_path / "scaled", codec="fp16")
    with pytest.raises(
        ValueError, match="which keeps a row only up to a shift"
    ):  # its scaling can't be undone
        Ensemble.from_members(ensemble.members).calibrate(exact, labels, uids=uids)


def test_the_logits_of_an_added_member_come_with_their_uids(tmp_path):
    teachers, rows = digits()
    source = cache_targets(teachers, rows, tmp_path / "c", codec="fp32", shard_rows=64)
    new = in_uid_order(teachers, rows)[0] * 2
    plain = add_member(source, tmp_path / "plain", name="d", logits=new, uids=np.arange(230), weight=1)
    added = add_member(
        source, tmp_path / "added", name="d", logits=teachers.logits[0] * 2, uids=rows.uids, weight=1
    )
    everything = np.arange(230)
    np.testing.assert_array_equal(added.gather_logits(everything)[3], new)
    assert added.manifest["fingerprint"] == plain.manifest["fingerprint"]
    for uids in (rows.uids[1:], rows.uids + 1, rows.uids.astype(float), np.zeros(230, int)):
        with pytest.raises(
            ValueError,
            match=(
                r"uids: expected each of the cache's \(0 to 229\) once, for the sample that each row of "
                r"logits is of"
            ),
        ):
            add_member(source, tmp_path / "n", name="d", logits=new, uids=uids, weight=1)


def test_the_sequences_of_an_added_member_come_with_their_uids(tmp_path):
    teachers, inputs = token_teachers()
    rows = Rows(inputs, np.arange(N), np.zeros(N, np.int64))
    source = cache_targets(teachers, rows, tmp_path / "c", lengths=LENGTHS, codec="fp32", shard_rows=16)
    packed, order = source.gather_logits(np.arange(N))[0], np.random.default_rng(3).permutation(N)
    added = add_member(
        source, tmp_path / "a", name="d", logits=source.gather_logits(order)[0], uids=order, weight=1
    )
    np.testing.assert_array_equal(added.gather_logits(np.arange(N))[-1], packed)


def test_other_lengths_are_another_cache(tmp_path):
    teachers, inputs = token_teachers()
    rows = Rows(inputs, np.arange(N), np.zeros(N, np.int64))
    cache_targets(teachers, rows, tmp_path / "c", lengths=LENGTHS, shard_rows=16)
    cache_targets(teachers, rows, tmp_path / "c", lengths=LENGTHS, shard_rows=16)
    with pytest.raises(CacheMismatch, match="lengths"):
        cache_targets(teachers, rows, tmp_path / "c", lengths=np.maximum(LENGTHS - 1, 1), shard_rows=16)
    TargetCache.open(tmp_path / "c", check="full")


def test_rows_to_verify_against_have_the_caches_uids(tmp_path):
    teachers, rows = digits()
    cache = cache_targets(teachers, rows, tmp_path / "c")
    with pytest.raises(
        ValueError,
        match=(
            r"rows\.uids: expected those of the cache .*; its uid 1 is not among them \(115 of 230 are not\)"
        ),
    ):
        cache.verify_against(teachers, Rows(rows.inputs, rows.uids * 2, rows.labels))
