"""Partitions: sizes, classes, groups, times, folds and given parts, each kept to."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ensdistill.data import UNLABELLED, Rows
from ensdistill.data.copies import equal_inputs, merged, stratified_folds
from ensdistill.data.partition import DRAWN, POOL, TEST, TRAIN, Partition, Whole

ROWS, CLASSES = 360, ("a", "b", "c")


def whole(seed=0, groups=0, copies=0.0, unlabelled=0, times=None, given=None, rows=ROWS):
    """Rows of three classes, of which a share ``copies`` repeats others, in ``groups`` groups."""
    rng = np.random.default_rng(seed)
    inputs, labels = rng.normal(size=(rows, 2)), rng.integers(3, size=rows)
    group = rng.integers(groups, size=rows) if groups else None
    again = rng.permutation(rows)[: int(copies * rows)]
    source = rng.integers(rows, size=len(again))
    inputs[again] = inputs[source]
    if group is not None:
        group[again] = group[source]
    labels[rng.permutation(rows)[:unlabelled]] = UNLABELLED
    found = Rows(inputs, np.arange(rows) + 1000, labels, np.arange(rows, dtype=float), group)
    return Whole(found, CLASSES, (5, 7, 9), times, given)


def parts_of(split):
    return [part.uids - 1000 for part in (split.labelled, split.pool, split.test)]


@given(
    seed=st.integers(0, 5),
    groups=st.sampled_from([0, 30, 90]),
    copies=st.sampled_from([0.0, 0.05]),
    unlabelled=st.sampled_from([0, 40]),
    pool=st.sampled_from([0, 0.2, 60]),
    test=st.sampled_from([None, 0.3, 80]),
    stratified=st.booleans(),
    test_seed=st.sampled_from([None, 4]),
)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_parts_share_no_row_no_copy_and_no_group(
    seed, groups, copies, unlabelled, pool, test, stratified, test_seed
):
    data = whole(seed, groups, copies, unlabelled)
    partition = Partition(pool=pool, test=test, stratified=stratified, test_seed=test_seed)
    split = partition.split(data, seed)
    index = parts_of(split)
    everything = np.concatenate(index)
    assert len(np.unique(everything)) == len(everything) == ROWS - split.left_out
    units = merged(equal_inputs(data.rows.inputs)[0], data.rows.groups)
    labelled_pool = [data.rows.labels[part] != UNLABELLED for part in index]
    assert labelled_pool[0].all()
    assert labelled_pool[2].all()
    for one, other in ((0, 2), (1, 2), (0, 1)):
        kept = (
            index[other] if other == 2 else index[1][labelled_pool[1]]
        )  # an unlabelled copy may be in the pool
        assert not np.intersect1d(units[index[one]], units[kept]).size
    drawn = ROWS - unlabelled
    for found, size in ((len(index[2]), test or 0.25), (int(labelled_pool[1].sum()), pool)):
        asked = round(size * drawn) if isinstance(size, float) else size
        assert (0.5 if groups else 0.95) * asked <= found <= asked
    if stratified:
        known = data.rows.labels[data.rows.labels != UNLABELLED]
        share = np.bincount(data.rows.labels[index[2]], minlength=3) / len(index[2])
        assert np.abs(share - np.bincount(known) / len(known)).max() < (0.12 if groups else 0.03)
    np.testing.assert_array_equal(split.test.inputs, data.rows.inputs[index[2]])
    np.testing.assert_array_equal(split.test.weights, index[2])
    assert split.labels == (5, 7, 9)
    again = partition.split(whole(seed, groups, copies, unlabelled), seed)
    assert all((a == b).all() for a, b in zip(index, parts_of(again), strict=True))
    other = partition.split(data, seed + 1)
    assert (set(parts_of(other)[2]) == set(index[2])) == (test_seed is not None)
    assert set(parts_of(other)[0]) != set(index[0]) or pool == 0


@pytest.mark.parametrize("groups", [0, 60])
def test_folds_test_every_row_once(groups):
    data = whole(groups=groups, copies=0.1)
    splits = [Partition(folds=4).split(data, seed) for seed in range(5)]
    tested = np.concatenate([parts_of(split)[2] for split in splits[:4]])
    assert sorted(tested) == list(range(ROWS))
    np.testing.assert_array_equal(splits[4].test.uids, splits[0].test.uids)
    assert len(splits[0].labelled) + len(splits[0].test) == ROWS
    other = Partition(folds=4, test_seed=1).split(data, 0)
    assert set(other.test.uids) != set(splits[0].test.uids)
    fewer = Partition(folds=4, labelled=100, pool=50).split(data, 0)
    assert 90 < len(fewer.labelled) <= 100
    assert 45 < len(fewer.pool) <= 50


@pytest.mark.parametrize("kind", ["numbers", "days", "strings"])
def test_the_latest_rows_are_test_rows(kind):
    hours = np.random.default_rng(1).permutation(ROWS) // 7
    times = {
        "numbers": hours / 2,
        "days": np.datetime64("2020-01-01") + hours,
        "strings": np.char.zfill(hours.astype(str), 3),
    }[kind]
    data = whole(unlabelled=30, times=times)
    split = Partition(time="when", pool=60, test=90).split(data, 0)
    labelled, pool, test = (hours[part] for part in parts_of(split))
    known = data.rows.labels[parts_of(split)[1]] != UNLABELLED
    assert labelled.max() <= pool[known].min()
    assert pool.max() < test.min()
    assert abs(len(test) - 90) <= 7 / 2
    assert len(labelled) + len(pool) + len(test) + split.left_out == ROWS
    np.testing.assert_array_equal(
        split.test.uids, Partition(time="when", pool=60, test=90).split(data, 5).test.uids
    )


def test_later_copies_of_earlier_rows_are_left_out():
    data = whole(times=np.arange(ROWS))
    data.rows.inputs[350:] = data.rows.inputs[:10]
    split = Partition(time="when", test=60).split(data, 0)
    assert (len(split.test), split.left_out) == (50, 10)
    data.rows.inputs[300:] = data.rows.inputs[:60]
    with pytest.raises(ValueError, match=r"^when: every test row equals an earlier row; got 60 such rows$"):
        Partition(time="when", test=60).split(Whole(data.rows, CLASSES, CLASSES, data.times), 0)
    with pytest.raises(ValueError, match=r"^time: expected rows of several times; all are of 3$"):
        Partition(time="when").split(whole(times=np.full(ROWS, 3)), 0)


def test_given_parts_are_kept():
    given = np.full(ROWS, DRAWN, np.int8)
    given[:100], given[100:150], given[150:200] = TRAIN, POOL, TEST
    data = whole(given=given)
    split = Partition(pool=40).split(data, 0)
    labelled, pool, test = parts_of(split)
    assert set(range(100)) <= set(labelled)
    assert set(range(100, 150)) <= set(pool)
    assert list(test) == list(range(150, 200))
    assert (len(labelled), len(pool), split.left_out) == (100 + 120, 50 + 40, 0)
    with pytest.raises(
        ValueError, match=r"^test: expected without test rows of their own, which the data has$"
    ):
        Partition(test=0.2).split(data, 0)
    data.rows.labels[170] = UNLABELLED
    with pytest.raises(
        ValueError,
        match=r"^test: expected a label for each of its 50 rows; row 20 of these \(170 of all\) has none \(1",
    ):
        Partition().split(data, 0)
    with pytest.raises(ValueError, match=r"^split: expected rows with 'test' among them; got none$"):
        Partition(column="split").split(whole(given=np.zeros(ROWS, np.int8)), 0)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"test": 1.0}, r"^test: expected a share below 1, or a whole number of rows; got 1\.0$"),
        ({"test": 0}, r"^test: expected at least 1 rows; got 0$"),
        ({"labelled": 0.0}, r"^labelled: expected a share below 1"),
        ({"pool": -1}, r"^pool: expected at least 0 rows; got -1$"),
        ({"folds": 1}, r"^folds: expected at least 2; got 1$"),
        ({"folds": 3, "test": 0.2}, r"^folds: expected without test, because both decide on the test rows$"),
        ({"time": "t", "group": "g"}, r"^time: expected without group"),
    ],
)
def test_settings_that_contradict_each_other(options, words):
    with pytest.raises(ValueError, match=words):
        Partition(**options)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"test": 400}, r"^test=400: expected fewer than the 360 rows that have a label$"),
        (
            {"labelled": 200, "pool": 100, "test": 100},
            r"^labelled=200, pool=100, test=100: expected no more than the 260 rows that have a label and are no",
        ),
        ({"labelled": 2}, r"^labelled=2: the rows cannot be split by class"),
        ({"folds": 400}, r"^folds: expected at most 360"),
    ],
)
def test_sizes_that_the_data_cannot_give(options, words):
    with pytest.raises(ValueError, match=words):
        Partition(**options).split(whole(), 0)


def test_a_class_that_cannot_be_in_every_part_is_named():
    data = whole()
    labels = np.where(np.arange(ROWS) == 7, 2, np.arange(ROWS) % 2)
    rare = Whole(Rows(data.rows.inputs, data.rows.uids, labels), CLASSES, CLASSES)
    for options in ({}, {"folds": 5}):
        with pytest.raises(
            ValueError,
            match=r"^labels: expected at least 2 rows of each class, one for each part; 'c' has 1: leave",
        ):
            Partition(**options).split(rare, 0)
    groups = np.where(labels == 1, 0, np.arange(ROWS))
    one = Rows(data.rows.inputs, data.rows.uids, labels * (labels < 2), groups=groups)
    with pytest.raises(ValueError, match=r"'b' has 1 \(179, but equal rows, and"):
        Partition(group="g").split(Whole(one, ("a", "b"), ("a", "b")), 0)
    last = Whole(data.rows, CLASSES, CLASSES, times=data.rows.labels)
    with pytest.raises(
        ValueError, match=r"^labelled: no row of class 'b' among the \d+, but test rows of it"
    ):
        Partition(time="t", test=200).split(last, 0)


def test_a_group_that_is_too_large_is_an_error():
    data = whole()
    groups = np.minimum(np.arange(ROWS) // 2, 20)  # one group of 320 rows
    rows = Rows(data.rows.inputs, data.rows.uids, data.rows.labels, groups=groups)
    with pytest.raises(
        ValueError,
        match=r"^test=90: only 40 rows can be drawn, because rows of one user, and equal rows, stay",
    ):
        Partition(group="user").split(Whole(rows, CLASSES, CLASSES), 0)


def test_folds_of_labelled_rows_keep_groups_together():
    data = whole(groups=50)
    rows = data.rows.take(np.arange(0, ROWS, 2))
    for train, held in stratified_folds(rows.inputs, rows.labels, 3, 0, rows.groups):
        assert not np.intersect1d(rows.groups[train], rows.groups[held]).size


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=12))
@settings(max_examples=50, deadline=None, derandomize=True)
def test_connected_rows_have_one_number(pairs):
    first, second = np.array(pairs).T
    found = merged(first, second)
    reach = (first[:, None] == first) | (second[:, None] == second)
    for _ in pairs:
        reach = reach @ reach
    np.testing.assert_array_equal(found[:, None] == found, reach)
