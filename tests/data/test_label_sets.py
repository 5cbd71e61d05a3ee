"""Rows with several labels are divided so that each part has its share of each label."""

import numpy as np
import pytest

from ensdistill.data import Rows, stratified_split
from ensdistill.data.copies import draw_stratified, stratified_folds
from ensdistill.data.draws import draw_groups
from ensdistill.data.partition import Partition, Whole

ROWS, FOLDS = 400, 4
CHANCE = np.array([0.5, 0.3, 0.1, 0.05, 0.02])


def table(seed=0, rows=ROWS):
    """Labels of which some are rare; the last one applies to one row for each fold."""
    generator = np.random.default_rng(seed)
    labels = (generator.random((rows, len(CHANCE))) < CHANCE).astype(np.int8)
    rare = np.zeros((rows, 1), np.int8)
    rare[generator.choice(rows, FOLDS, replace=False)] = 1
    return np.hstack([labels, rare])


def deviation(labels, parts):
    """The mean distance of a part's count of a label from its share."""
    shares = [labels.sum(0) * len(part) / len(labels) for part in parts]
    counts = [(labels[part] == 1).sum(0) for part in parts]
    return np.abs(np.array(counts) - np.array(shares)).mean()


@pytest.mark.parametrize("seed", range(3))
def test_folds_share_out_each_label(seed):
    labels, x = table(seed), np.arange(ROWS)[:, None]
    parts = stratified_folds(x, labels, FOLDS, seed)
    held = [own for _, own in parts]
    assert sorted(np.concatenate(held).tolist()) == list(range(ROWS))
    for train, own in parts:
        assert sorted([*train, *own]) == list(range(ROWS))
    assert [int(labels[own, -1].sum()) for own in held] == [1] * FOLDS
    assert max(map(len, held)) - min(map(len, held)) <= ROWS // 20
    at_random = np.array_split(np.random.default_rng(seed).permutation(ROWS), FOLDS)
    assert deviation(labels, held) < 0.5 * deviation(labels, at_random)
    again = stratified_folds(x, labels, FOLDS, seed)
    assert all(np.array_equal(one[1], own) for one, own in zip(again, held, strict=True))
    assert not np.array_equal(stratified_folds(x, labels, FOLDS, seed + 1)[0][1], held[0])


def test_draws_have_their_size_and_each_label_its_share():
    labels, rows = table(1), np.arange(ROWS)
    for size in (37, 100, 399):
        drawn, rest = draw_stratified(rows, labels, rows, size, 0)
        assert len(drawn) == size
        assert sorted([*drawn, *rest]) == rows.tolist()
    drawn, rest = draw_stratified(rows, labels, rows, 100, 0)
    np.testing.assert_array_less(np.abs(labels[drawn].sum(0) - labels.sum(0) / 4), 1.5)


def test_rows_of_one_group_stay_together():
    labels, groups = table(2), np.arange(ROWS) // 3
    held = [own for _, own in stratified_folds(np.arange(ROWS)[:, None], labels, FOLDS, 0, groups)]
    assert sum(len(np.unique(groups[own])) for own in held) == len(np.unique(groups))
    for draw in (draw_stratified, draw_groups):
        drawn, rest = draw(np.arange(ROWS), labels, groups, 120, 0)
        assert 117 < len(drawn) <= 120
        assert not np.isin(groups[drawn], groups[rest]).any()
        assert deviation(labels, [drawn, rest]) < 2


def test_an_unknown_label_is_one_that_does_not_apply():
    labels = table(3)
    masked = np.where(labels == 0, np.int8(-1), labels)
    masked[labels.sum(1) == 0, 0] = 0  # a row has a known label
    x = np.arange(ROWS)[:, None]
    for (_, one), (_, other) in zip(
        stratified_folds(x, labels, 3, 0), stratified_folds(x, masked, 3, 0), strict=True
    ):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("way", ["sizes", "partition", "folds"])
def test_the_parts_of_a_data_set_have_each_label(way):
    labels, x = table(4), np.arange(float(ROWS))[:, None]
    names = tuple("abcdef")
    if way == "sizes":
        split = stratified_split(x, labels, names, labelled=100, pool=100, test=None, seed=0)
    else:
        settings = Partition(pool=0.25, folds=4) if way == "folds" else Partition(pool=0.25, labelled=0.5)
        split = settings.split(Whole(Rows(x, np.arange(ROWS), labels), names, names), 0)
    share = len(split.labelled) / ROWS
    counts = split.labelled.labels.sum(0)
    np.testing.assert_array_less(np.abs(counts - share * labels.sum(0)), 3)
    assert split.labelled.labels[:, -1].any()
    assert split.test.labels[:, -1].any()


def test_rows_that_are_not_to_be_stratified_are_drawn_at_random():
    labels, x = table(5), np.arange(float(ROWS))[:, None]
    whole = Whole(Rows(x, np.arange(ROWS), labels), tuple("abcdef"), tuple("abcdef"))
    stratified, plain = (Partition(stratified=s).split(whole, 0).test.uids for s in (True, False))
    assert len(stratified) == len(plain) == ROWS // 4
    assert deviation(labels, [stratified]) < deviation(labels, [plain])
