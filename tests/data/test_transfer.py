"""Transfer sets on real digits."""

import numpy as np
import pytest

from ensdistill.data import UNLABELLED, BadRows, Digits
from ensdistill.data.augmentation import ShiftImages
from ensdistill.data.transfer import Augmented, Mixup, Munge, TransferSet


@pytest.fixture(scope="module")
def split():
    return Digits().split(seed=0)


@pytest.fixture(scope="module")
def base(split):
    return np.concatenate([split.labelled.inputs, split.pool.inputs])


def test_order_uids_labels_and_origin(split, base):
    transfer = TransferSet(
        synthetic=[Munge(rows=300), Mixup(rows=200), Augmented(ShiftImages(), rows=100)]
    ).build(split, seed=1)
    rows = transfer.rows
    assert transfer.origin == (
        ("labelled", 200),
        ("pool", 900),
        ("munge", 300),
        ("mixup", 200),
        ("augmented", 100),
    )
    np.testing.assert_array_equal(rows.uids, np.arange(1700))
    np.testing.assert_array_equal(rows.inputs[:1100], base)
    np.testing.assert_array_equal(rows.labels[:200], split.labelled.labels)
    assert (rows.labels[200:] == UNLABELLED).all()
    assert rows.inputs.dtype == np.float32
    assert rows.inputs.shape[1:] == (1, 8, 8)


def test_same_seed_same_rows_and_no_pool(split):
    made = [
        TransferSet(pool=False, synthetic=[Munge(rows=50), Mixup(rows=50)]).build(split, seed=s)
        for s in (1, 1, 2)
    ]
    np.testing.assert_array_equal(made[0].rows.inputs, made[1].rows.inputs)
    assert (made[0].rows.inputs[200:] != made[2].rows.inputs[200:]).any()
    assert made[0].origin[:2] == (("labelled", 200), ("munge", 50))


def test_munge_exchanges_with_the_nearest_neighbour(base):
    n = 2 * len(base)
    made = Munge(rows=n, probability=0.3, variance=1e12).make(base, np.random.default_rng(0)).reshape(n, -1)
    flat = base.reshape(len(base), -1).astype(np.float64)
    distances = ((flat[:, None] - flat[None]) ** 2).sum(-1)  # by brute force
    np.fill_diagonal(distances, np.inf)
    own = flat[np.arange(n) % len(flat)]
    near = flat[distances.argmin(1)[np.arange(n) % len(flat)]]
    differs = own != near
    took = np.isclose(made, near, atol=1e-6) & differs
    kept = np.isclose(made, own, atol=1e-6) & differs
    assert (took ^ kept)[differs].all()
    share = took.sum() / differs.sum()
    assert abs(share - 0.3) < 0.01  # about 50 000 draws: 5 standard errors


def test_munge_stays_in_each_attributes_range(base):
    made = Munge(rows=2200, variance=0.2).make(base, np.random.default_rng(0))
    assert (made >= base.min(0)).all()
    assert (made <= base.max(0)).all()


def test_mixup_lies_between_its_parents():
    base = np.array([[0.0, 0.0], [1.0, 2.0]], np.float32)
    made = Mixup(rows=4000).make(base, np.random.default_rng(0))
    np.testing.assert_allclose(made[:, 1], 2 * made[:, 0], atol=1e-6)
    inner = made[(made[:, 0] > 0) & (made[:, 0] < 1), 0]
    assert abs(inner.mean() - 0.5) < 0.03
    assert abs(inner.std() - 12**-0.5) < 0.02  # uniform for alpha = 1
    arcsine = Mixup(rows=4000, alpha=0.1).make(base, np.random.default_rng(0))[:, 0]
    assert arcsine.std() > made[:, 0].std()


def test_mixup_of_variants():
    base = np.zeros((1, 1, 3, 3), np.float32)
    base[0, 0, 1, 1] = 1
    assert (
        len({row.tobytes() for row in Mixup(rows=50).make(base, np.random.default_rng(0))}) == 1
    )  # one row with itself
    made = Mixup(rows=50, augment=ShiftImages()).make(base, np.random.default_rng(0))
    np.testing.assert_allclose(made.sum((1, 2, 3)), 1, atol=1e-6)
    assert (made > 0).any(0).all()  # every shift takes part


def test_augmented_rows_are_distinct_shifts():
    base = np.arange(2 * 9, dtype=np.float32).reshape(2, 1, 3, 3) + 1
    made = Augmented(ShiftImages(1), rows=16).make(base, np.random.default_rng(0))
    assert len({row.tobytes() for row in made}) == 16
    assert not any((row == original).all() for row in made for original in base)
    with pytest.raises(ValueError, match="at most 16"):
        Augmented(ShiftImages(1), rows=17).make(base, np.random.default_rng(0))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Munge(rows=0), "munge: rows"),
        (lambda: Munge(rows=1, probability=1.5), r"probability in \(0, 1\].*1\.5"),
        (lambda: Mixup(rows=1, alpha=0), "alpha"),
        (
            lambda: Munge(rows=1).make(np.zeros((1, 2), np.float32), np.random.default_rng(0)),
            "at least 2 rows",
        ),
    ],
)
def test_bad_settings(make, words):
    with pytest.raises(ValueError, match=words):
        make()


class Made:
    rows = 5

    def __init__(self, change):
        self.change = change

    def make(self, base, generator):
        return self.change(base[:5].copy())


def hole(made):
    made[3, 0, 2, 2] = np.nan
    return made


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (hole, r"expected finite numbers; row 3 holds nan \(1 such rows\)$"),
        (
            lambda made: made.astype(np.float64),
            r"expected make to give float32 rows of shape \[1, 8, 8\], .* got float64 \[5, 1, 8, 8\]$",
        ),
        (lambda made: made[:, 0], r"expected make to give .* got float32 \[5, 8, 8\]$"),
        (lambda made: made[:0], r"expected make to give .* got float32 \[0, 1, 8, 8\]$"),
        (lambda made: made.tolist(), r"expected make to give .* got list$"),
    ],
)
def test_sources_that_make_something_else(split, change, words):
    sources = [Mixup(rows=2), Made(change)]
    with pytest.raises(ValueError, match=r"^transfer\.synthetic\.1 \(Made\): " + words):
        TransferSet(synthetic=sources).build(split, seed=0)


def test_bad_rows_are_counted(split):
    with pytest.raises(BadRows) as found:
        TransferSet(synthetic=[Made(hole)]).build(split, seed=0)
    assert found.value.rows.tolist() == [3]


def test_where_a_row_comes_from(split):
    transfer = TransferSet(synthetic=[Mixup(rows=7)]).build(split, seed=0)
    found = [transfer.source(uid) for uid in (0, 199, 200, 1099, 1100, 1106)]
    assert found == [
        "row 0 of labelled",
        "row 199 of labelled",
        "row 0 of pool",
        "row 899 of pool",
        "row 0 of mixup",
        "row 6 of mixup",
    ]
    with pytest.raises(ValueError, match=r"uid: expected 0\.\.1106; got 1107"):
        transfer.source(1107)
