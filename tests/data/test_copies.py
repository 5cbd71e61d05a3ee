"""Equal rows: recognised whatever their type, kept together, counted, and refused where they would
flatter."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ensdistill.data import UNLABELLED, Digits, Rows, Split, stratified_split
from ensdistill.data.copies import count_copies, equal_inputs, folds_of, stratified_folds


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (np.array([[0.0, 1.0], [-0.0, 1.0], [0.0, -1.0]], np.float32), [0, 0, 1]),
        (np.array([[np.nan, 1.0], [-np.nan, 1.0], [0.0, 1.0]]), [0, 0, 1]),
        (np.array([1.0, 2.0, 1.0], np.float16), [0, 1, 0]),
        (np.array([[1.0], [2.0], [1.0]], np.longdouble), [0, 1, 0]),
        (np.array([[1 + 0j], [1 - 0j], [1j]]), [0, 0, 1]),
        (np.array([[3, 1], [3, 2], [3, 1]], np.uint8), [0, 1, 0]),
        (np.array([["ab", "c"], ["a", "bc"], ["ab", "c"]]), [0, 1, 0]),
        (np.array([["ab", None], ["ab", float("nan")], ["ab", 0]], object), [0, 0, 1]),
        (np.array(["NaT", "2020-01-01", "NaT"], "M8[D]"), [0, 1, 0]),
        (np.array([(1, np.nan), (1, np.nan), (2, 0.0)], [("a", int), ("b", float)]), [0, 0, 1]),
        (np.zeros((3, 0), np.float32), [0, 0, 0]),
    ],
)
def test_equal_rows_of_every_type(rows, expected):
    assert equal_inputs(rows)[0].tolist() == expected
    # Across parts the numbers are the same ones; an array that is not contiguous holds the same rows.
    first, second = equal_inputs(rows[::-1], rows)
    assert (first[::-1] == second).all()
    assert equal_inputs(np.asfortranarray(rows))[0].tolist() == expected


def test_rows_of_other_shapes_are_no_parts():
    with pytest.raises(ValueError, match=r"parts: expected rows of one shape; got \[2\], \[3\]"):
        equal_inputs(np.zeros((1, 2)), np.zeros((1, 3)))


def copied(rows, classes, copies, seed, other_label=0):
    """Inputs with a share ``copies`` of repeated rows, and labels, of which ``other_label`` copies have
    another than their original."""
    rng = np.random.default_rng(seed)
    inputs = rng.normal(size=(rows, 3)).astype(np.float32)
    labels = rng.integers(classes, size=rows)
    again = rng.permutation(rows)[: int(copies * rows)]
    source = rng.integers(rows, size=len(again))
    inputs[again], labels[again] = inputs[source], labels[source]
    labels[again[:other_label]] = (labels[again[:other_label]] + 1) % classes
    return inputs, labels


@given(
    copies=st.sampled_from([0.0, 0.02, 0.3, 0.6]),
    seed=st.integers(0, 5),
    other=st.integers(0, 9),
    given_test=st.booleans(),
)
@settings(max_examples=30, deadline=None, derandomize=True)
def test_no_part_holds_a_copy_of_anothers_row(copies, seed, other, given_test):
    inputs, labels = copied(600, 3, copies, seed, other)
    split = stratified_split(
        inputs, labels, "abc", labelled=150, pool=200, test=180 if given_test else None, seed=seed
    )
    parts = [split.labelled, split.pool, split.test]
    groups = equal_inputs(*[part.inputs for part in parts])
    for i, j in ((0, 1), (0, 2), (1, 2)):
        assert not np.intersect1d(groups[i], groups[j]).size
    largest = max(np.bincount(equal_inputs(inputs)[0]))
    for part, size in zip(parts, (150, 200, 180 if given_test else 250), strict=True):
        if given_test or part is not split.test:
            assert size - largest < len(part) <= size
        drawn = labels[part.uids]
        assert np.abs(np.bincount(drawn, minlength=3) / len(part) - np.bincount(labels) / 600).max() < 0.03
    assert not count_copies(split).test.any()
    again = stratified_split(
        inputs, labels, "abc", labelled=150, pool=200, test=180 if given_test else None, seed=seed
    )
    assert (again.labelled.uids == split.labelled.uids).all()
    assert (again.test.uids == split.test.uids).all()


def test_a_row_without_a_label_that_equals_a_test_row_is_left_out():
    inputs, labels = copied(200, 2, 0.0, 0)
    inputs, labels = np.concatenate([inputs, inputs]), np.concatenate([labels, np.full(200, UNLABELLED)])
    split = stratified_split(inputs, labels, "ab", labelled=50, pool=50, test=None, seed=0)
    assert (len(split.test), split.left_out) == (100, 100)
    assert len(split.pool) == 50 + 100  # the copies of the labelled rows and of the pool's own
    found = count_copies(split)
    assert (found.test.sum(), found.left_out, found.labelled_in_pool) == (0, 100, 50)


def test_one_row_repeated_is_no_data():
    inputs, labels = np.zeros((100, 2), np.float32), np.arange(100) % 2
    with pytest.raises(
        ValueError, match=r"labels: expected at least 2 rows of each class, .*; 'a' has 1 \(50 with copies\)$"
    ):
        stratified_split(inputs, labels, "ab", labelled=20, pool=0, test=None, seed=0)
    inputs[:20] = np.arange(20)[:, None]
    with pytest.raises(
        ValueError,
        match=r"labelled=50: only 19 rows can be drawn, because equal rows stay together and up to 81 rows",
    ):
        stratified_split(inputs, labels, "ab", labelled=50, pool=0, test=None, seed=0)


def test_folds_keep_copies_together():
    inputs, labels = copied(120, 3, 0.5, 1)
    (groups,) = equal_inputs(inputs)
    parts = stratified_folds(inputs, labels, 4, seed=0)
    assert sorted(np.concatenate([held for _, held in parts])) == list(range(120))
    for train, held in parts:
        assert not np.intersect1d(groups[train], groups[held]).size
        assert set(labels[train]) == {0, 1, 2}
    again = stratified_folds(inputs, labels, 4, seed=0)
    assert all((a[1] == b[1]).all() for a, b in zip(parts, again, strict=True))
    assert any(
        (a[1].shape != b[1].shape) or (a[1] != b[1]).any()
        for a, b in zip(parts, stratified_folds(inputs, labels, 4, 1), strict=True)
    )


def test_folds_of_many_sets_have_the_classes_in_proportion():
    rng = np.random.default_rng(0)
    groups = rng.integers(0, 12_000, 20_000)  # 9 700 sets, most of one or two rows
    labels = rng.choice(4, 20_000, p=[0.7, 0.2, 0.09, 0.01])[groups]
    parts = folds_of(groups, labels, 5, seed=3)
    assert sorted(np.concatenate([held for _, held in parts])) == list(range(20_000))
    shares = np.stack([np.bincount(labels[held], minlength=4) for _, held in parts]) / np.bincount(labels)
    np.testing.assert_allclose(shares, 0.2, atol=0.03)
    for train, held in parts:
        assert len(train) + len(held) == 20_000
        assert not np.intersect1d(groups[train], groups[held]).size
    again = folds_of(groups, labels, 5, seed=3)
    assert all((a[1] == b[1]).all() for a, b in zip(parts, again, strict=True))
    assert (parts[0][1][:50] != folds_of(groups, labels, 5, seed=4)[0][1][:50]).any()


@pytest.mark.parametrize("count", [2101, 2102, 2103])
def test_a_class_of_two_sets_is_in_two_folds(count):
    groups = np.r_[0, np.arange(1, count), np.arange(1, 151), count, count]  # one row, and a pair
    labels = np.r_[2, np.arange(1, count) % 2, np.arange(1, 151) % 2, 2, 2]
    for train, _ in folds_of(groups, labels, 2, seed=0):
        assert set(labels[train]) == {0, 1, 2}


def test_sets_of_several_classes_lose_none():
    groups = np.repeat(np.arange(2100), 2)
    labels = np.tile([0, 1], 2100)
    labels[[1, 2001]] = 2
    for mixed in (labels, np.where(np.arange(4200) < 4180, labels[::2].repeat(2), labels)):  # half, and few
        for seed in range(3):
            for train, held in folds_of(groups, mixed, 2, seed):
                assert set(mixed[train]) == set(mixed)
                assert not np.intersect1d(groups[train], groups[held]).size


def test_a_class_in_the_rest_of_few_sets_is_divided_evenly():
    labels = np.zeros((3000, 10), np.int64)
    labels[::50, 1:] = 1
    parts = folds_of(np.repeat(np.arange(3000), 10), labels.ravel(), 5, seed=0)
    assert [int(labels.ravel()[held].sum()) for _, held in parts] == [108] * 5


def test_large_sets_among_many_are_divided_evenly():
    groups = np.concatenate([np.arange(3_000), np.full(700, 3_000), np.full(700, 3_001)])
    labels = np.arange(len(groups)) % 2
    sizes = [len(held) for _, held in folds_of(groups, labels, 2, seed=0)]
    assert sizes == [2200, 2200]


def test_a_class_of_copies_cannot_be_held_out():
    inputs, labels = copied(60, 2, 0.0, 0)
    inputs[labels == 1] = 7
    with pytest.raises(
        ValueError,
        match=r"folds: 3 folds are too many: .* the copies of class 1 would all be held out at once",
    ):
        stratified_folds(inputs, labels, 3, seed=0)
    with pytest.raises(ValueError, match=r"folds: expected at most 2, .* got 3"):
        stratified_folds(np.repeat(np.eye(2), 10, 0), np.arange(20) % 2, 3, seed=0)


def given_parts(labelled=0, pool=0, synthetic=0, other=0):
    """Digits whose test rows repeat so many rows of each part, and synthetic rows of which so many repeat
    test rows."""
    split = Digits().split(seed=0)
    inputs, labels = split.test.inputs.copy(), split.test.labels.copy()
    inputs[:labelled], labels[:labelled] = split.labelled.inputs[:labelled], split.labelled.labels[:labelled]
    labels[:other] = (labels[:other] + 1) % 10
    inputs[labelled : labelled + pool] = split.pool.inputs[:pool]
    made = np.concatenate([inputs[-synthetic:], np.zeros((5, 1, 8, 8), np.float32)]) if synthetic else None
    return replace(split, test=Rows(inputs, split.test.uids, labels)), made


def test_copies_are_counted_by_part():
    split, made = given_parts(labelled=3, pool=4, synthetic=5, other=2)
    found = count_copies(split, made)
    assert (found.labelled, found.pool, found.synthetic, found.other_label) == (3, 4, 5, 4)
    assert found.test.sum() == 12
    assert found.test[:7].all()
    assert found.test[-5:].all()
    assert count_copies(split, made, pool=False).test.sum() == 8


@pytest.mark.parametrize(
    ("labelled", "allowed", "refused"), [(6, 0.01, False), (7, 0.01, True), (7, 0.011, False), (1, 0.0, True)]
)
def test_more_than_the_allowed_share_is_refused(labelled, allowed, refused):
    found = count_copies(given_parts(labelled)[0])  # of 697 test rows
    if not refused:
        found.refuse(allowed, "data")
        return
    words = (
        rf"^data: {labelled} of 697 test rows \(\d\.\d%\) equal rows that are trained on \({labelled} of "
        rf"them labelled\)"
    )
    with pytest.raises(
        ValueError,
        match=words + rf".* at most max_test_copies={allowed:g} .* set max_test_copies to 0\.0\d+$",
    ):
        found.refuse(allowed, "data")


def test_a_split_is_given_with_copies_and_counted():
    rows = Rows(np.ones((4, 2), np.float32), np.arange(4), np.array([0, 1, 0, 1]))
    part = Rows(rows.inputs[:0], rows.uids[:0], rows.labels[:0])
    found = count_copies(Split(rows, part, replace(rows, uids=rows.uids + 10), ("a", "b")))
    assert (found.labelled, found.other_label) == (4, 8)
