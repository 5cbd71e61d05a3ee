"""Splits of samples of every kind: parts of one form, without a common row, copies together."""

import numpy as np
import pandas as pd
import pytest
import torch
from torch.utils.data import Dataset

from ensdistill.data import UNLABELLED, Rows, Split, stratified_split
from ensdistill.data.copies import count_copies, equal_inputs, stratified_folds
from ensdistill.data.samples import Held, Lazy, as_samples, sample_hashes, whole


class Items(Dataset):
    """A data set that counts how often it is read."""

    def __init__(self, items):
        self.items, self.reads = items, 0

    def __len__(self):
        return len(self.items)

    def __getitem__(self, i):
        self.reads += 1
        return self.items[i]


def every_kind(rows=40):
    """``rows`` different samples, each of which stands twice, in containers of every kind."""
    number = np.arange(2 * rows) % rows
    generator = np.random.default_rng(0)
    pixels = [generator.integers(0, 255, (3 + i % 3, 4, 3)).astype(np.uint8) for i in range(rows)]
    images = [pixels[i] for i in number]
    texts = [f"text {i}" for i in number]
    return {
        "array": np.stack([number, number**2], 1).astype(np.float32),
        "tensor": torch.from_numpy(np.stack([number, number**2], 1)).bfloat16(),
        "table": pd.DataFrame(
            {"x": np.where(number == 3, np.nan, number), "city": [f"c{i}" for i in number]}
        ),
        "text": texts,
        "images": images,
        "mapping": {"ids": np.stack([number, number], 1), "text": texts},
        "lazy": Items(images),
    }


KINDS = sorted(every_kind(1))
LABELS = np.arange(80) % 40 % 2


@pytest.mark.parametrize("name", KINDS)
def test_samples_of_every_kind_are_split_with_their_copies(name):
    samples = as_samples(every_kind()[name])
    groups = np.arange(80) % 40
    np.testing.assert_array_equal(equal_inputs(samples)[0], groups)
    for test in (None, 20):
        split = stratified_split(samples, LABELS, "ab", labelled=24, pool=16, test=test, seed=3)
        parts = [split.labelled, split.pool, split.test]
        assert [len(part) for part in parts] == [24, 16, test or 40]
        hashes = sample_hashes(samples)
        for part in parts:
            np.testing.assert_array_equal(sample_hashes(part.inputs), hashes[part.uids])
        for one, other in ((0, 1), (0, 2), (1, 2)):
            assert not np.intersect1d(groups[parts[one].uids], groups[parts[other].uids]).size
        assert not count_copies(split).test.any()
    arrays = stratified_split(every_kind()["array"], LABELS, "ab", labelled=24, pool=16, test=20, seed=3)
    np.testing.assert_array_equal(split.test.uids, arrays.test.uids)  # the kind changes no draw
    for train, held in stratified_folds(samples, LABELS, 4, seed=0):
        assert not np.intersect1d(groups[train], groups[held]).size


@pytest.mark.parametrize("name", KINDS)
def test_a_part_may_be_empty(name):
    split = stratified_split(every_kind()[name], LABELS, "ab", labelled=24, pool=0, test=None, seed=0)
    assert (len(split.pool), len(split.test)) == (0, 56)
    found = count_copies(split, split.test.take(np.arange(6)).inputs)
    test = split.test.uids % 40  # equal for copies
    assert (found.synthetic, found.labelled, found.pool) == (np.isin(test, test[:6]).sum(), 0, 0)


@pytest.mark.parametrize("name", KINDS)
def test_copies_in_given_parts_are_counted(name):
    samples = as_samples(every_kind()[name])
    rows = Rows(samples, np.arange(80), LABELS)
    # Samples 0..39 and 40..79 are equal: 10 of the test rows equal labelled ones, 4 rows of the pool.
    labelled, pool = rows.take(np.arange(10)), rows.take(np.arange(36, 40)).without_labels()
    split = Split(labelled, pool, rows.take(np.arange(40, 80)), ("a", "b"))
    found = count_copies(split)
    assert (found.labelled, found.pool, found.synthetic, found.labelled_in_pool) == (10, 4, 0, 0)
    assert found.test[:10].all()
    assert count_copies(split, samples[np.arange(20, 23)]).synthetic == 3


def test_equal_images_are_found_whichever_images_stand_beside_them():
    alike, other = np.full((3, 4, 3), 7, np.uint8), np.zeros((5, 4, 3), np.uint8)
    both = Lazy(Items([alike, other])), Lazy(Items([alike]))
    held, stacked = as_samples([alike]), alike[None]
    assert [part.tolist() for part in equal_inputs(*both, held)] == [[0, 1], [0], [0]]
    assert sample_hashes(stacked)[0] == sample_hashes(held)[0]
    assert [image.shape for image in whole(both[0], batch_size=1)] == [(3, 4, 3), (5, 4, 3)]


def test_keys_that_samples_bring_are_used_without_reading_them():
    items = Items(list(np.eye(6)))
    samples = Lazy(items, content_keys=np.array([5, 6, 5, 7, 8, 6], np.uint64))
    first, second = samples.subset(np.arange(4)), samples.subset(np.array([5, 4]))
    items.reads = 0
    one, other = equal_inputs(first, second)
    assert (one.tolist(), other.tolist()) == ([0, 1, 0, 2], [1, 3])
    assert items.reads <= 2  # the forms are compared by the first of each
    # Keys are comparable within one data set only, so beside other samples the contents are read.
    one, other = equal_inputs(first, np.eye(6)[:2])
    assert (one.tolist(), other.tolist()) == ([0, 1, 2, 3], [0, 1])


FRAME = pd.DataFrame({"age": [3, 4, 5, 6], "city": list("abcd")})


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        (FRAME.drop(columns="age"), r"column 'age' is missing; got 'city'$"),
        (FRAME.assign(more=1), r"column 'more' is not among 'age', 'city'$"),
        (FRAME.assign(age=list("abcd")), r"column 'age': expected integer; got text$"),
        (list("abcd"), r"expected table; got text$"),
        (np.ones((4, 2)), r"expected table; got array$"),
    ],
)
@pytest.mark.parametrize("part", ["pool", "test"])
def test_parts_of_unlike_form_are_refused(part, inputs, words):
    labels = {"pool": np.full(4, UNLABELLED), "test": np.arange(4) % 2}[part]
    labelled = Rows(FRAME, np.arange(4), np.arange(4) % 2)
    given = {"pool": labelled.take(np.arange(0)), "test": Rows(FRAME, np.arange(10, 14), np.arange(4) % 2)}
    given[part] = Rows(inputs, np.arange(20, 24), labels)
    with pytest.raises(
        ValueError, match=rf"^{part}\.inputs: expected samples as the labelled rows are; {words}"
    ):
        Split(labelled, given["pool"], given["test"], ("a", "b"))


def test_fields_and_shapes_of_unlike_form_are_refused():
    with pytest.raises(ValueError, match=r"^parts: field 'ids': expected shape \[3\]; got \[2\]$"):
        equal_inputs({"ids": np.zeros((2, 3))}, {"ids": np.zeros((2, 2))})
    with pytest.raises(ValueError, match=r"^parts: expected channels 3; got 1$"):
        equal_inputs([np.zeros((2, 3, 3), np.uint8)], [np.zeros((2, 3), np.uint8)])


def test_a_split_gives_the_labels_back_as_they_were():
    rows = Rows(np.eye(4), np.arange(4), np.arange(4) % 2)
    split = Split(rows, rows.take(np.arange(0)), Rows(np.eye(4), np.arange(4, 8), rows.labels), ("a", "b"))
    assert split.labels == ("a", "b")
    with pytest.raises(ValueError, match=r"^labels: expected 2, one for each class; got 1$"):
        Split(split.labelled, split.pool, split.test, ("a", "b"), labels=(3,))


def test_taking_held_samples_looks_at_the_taken_ones_alone():
    class Counted(list):
        scans = 0

        def __iter__(self):
            Counted.scans += 1
            return super().__iter__()

    samples = Held(Counted(["a", "b"]))
    Counted.scans = 0
    assert (len(samples), samples[np.array([1])]) == (2, ["b"])
    assert Counted.scans == 0
