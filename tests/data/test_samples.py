"""Samples of every kind: rows taken, joined, hashed and described alike, whichever library holds them."""

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import Dataset, IterableDataset

from ensdistill.data import batches as b
from ensdistill.data.collate import collate
from ensdistill.data.samples import Held, Joined, Lazy, as_samples, sample_hashes, stream, subset

COLUMNS = {
    "age": [31, 7, 50, 7],
    "income": [0.5, None, -2.0, 1e300],
    "city": ["Rom", None, "Oslo", "Rom"],
    "own": [True, False, True, True],
}


def frames():
    polars, pyarrow = pytest.importorskip("polars"), pytest.importorskip("pyarrow")
    return [pd.DataFrame(COLUMNS), polars.DataFrame(COLUMNS), pyarrow.table(COLUMNS)]


def every_kind():
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 255, (4, 5, 6, 3)).astype(np.uint8)
    numbers = generator.normal(size=(4, 3))
    return {
        "float64": numbers,
        "uint8": pixels,
        "bfloat16": torch.from_numpy(numbers).bfloat16(),
        "text": ["a", "", "naïve", "a b"],
        "pandas": pd.DataFrame(COLUMNS),
        "mapping": {"ids": pixels[:, 0], "frame": pd.DataFrame(COLUMNS), "text": ["a", "b", "c", "d"]},
        "images": [pixels[0], pixels[1, :2], pixels[2], pixels[3]],
        "pillow": [Image.fromarray(image) for image in pixels],
    }


@pytest.mark.parametrize("name", every_kind())
def test_rows_keep_their_hash_wherever_they_stand(name):
    batch = every_kind()[name]
    whole, order = b.hashes(batch), np.array([2, 0, 3])
    assert b.count(batch) == 4
    assert len(set(whole.tolist())) == 4
    taken = b.take(batch, order)
    np.testing.assert_array_equal(b.hashes(taken), whole[order])
    assert b.describe(taken) == b.describe(batch)
    both = b.join([taken, b.take(batch, slice(1, 2))])
    np.testing.assert_array_equal(b.hashes(both), whole[[2, 0, 3, 1]])
    assert b.kind_of(both).name == b.kind_of(batch).name


def test_frames_of_three_libraries_have_one_hash():
    first, *others = frames()
    for other in others:
        assert b.describe(other) == b.describe(first)
        np.testing.assert_array_equal(b.hashes(other), b.hashes(first))


@pytest.mark.parametrize("column", COLUMNS)
def test_the_hash_sees_every_column(column):
    frame = pd.DataFrame(COLUMNS)
    changed = frame.copy()
    changed[column] = frame[column].to_numpy()[[0, 0, 2, 3]]
    differ = b.hashes(frame) != b.hashes(changed)
    assert differ.tolist() == [False, True, False, False]


def test_columns_in_another_order_are_the_same_samples():
    frame = pd.DataFrame(COLUMNS)
    np.testing.assert_array_equal(b.hashes(frame), b.hashes(frame[["own", "city", "income", "age"]]))


@given(st.lists(st.one_of(st.none(), st.integers(-(2**53), 2**53)), min_size=1, max_size=8))
@settings(max_examples=50, deadline=None, derandomize=True)
def test_equal_values_have_equal_hashes_and_only_these(values):
    frame = pd.DataFrame({"x": pd.array(values, dtype="Int64")})
    found = b.hashes(frame)
    for i, one in enumerate(values):
        for j, other in enumerate(values):
            assert (found[i] == found[j]) == (one == other)


@pytest.mark.parametrize(
    ("column", "words"),
    [([[1], [2]], "list"), ([b"a", b"b"], "bytes"), (["a", 1], "one type; got float, str")],
)
def test_columns_without_a_reading_are_refused_by_name(column, words):
    with pytest.raises(TypeError, match=f"'odd'.*{words}"):
        b.describe(pd.DataFrame({"fine": [1, 2], "odd": column}))


class Listed(Dataset):
    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, position):
        return self.items[position]


class Numbers(Dataset):
    def __init__(self, inputs):
        self.inputs = inputs

    def __len__(self):
        return len(self.inputs)

    def __getitem__(self, i):
        return self.inputs[i], int(i % 2)


def test_a_data_set_is_read_where_it_is_asked_for():
    inputs = np.arange(40, dtype=np.float32).reshape(20, 2)
    samples = as_samples(Numbers(inputs))
    assert isinstance(samples, Lazy)
    np.testing.assert_array_equal(samples[np.array([3, 1])], inputs[[3, 1]])
    assert samples.item(3)[1] == 1
    parts = [np.array([0, 5]), np.array([7]), np.array([2, 2, 19])]
    for workers in (0, 2):
        for part, batch in zip(parts, stream(samples, parts, workers=workers), strict=True):
            np.testing.assert_array_equal(batch, inputs[part])


def test_items_that_are_dicts_leave_their_label_out():
    samples = Lazy([{"text": "a", "y": 1}, {"text": "b", "y": 0}], label="y")
    assert samples[np.array([1, 0])] == {"text": ["b", "a"]}
    with pytest.raises(
        ValueError, match=r"label: expected a key of each item, \['text', 'y'\]; got 'z', which sample 0"
    ):
        Lazy(samples.dataset, label="z")[slice(0, 1)]


def test_an_iterable_data_set_is_refused_with_a_remedy():
    class Endless(IterableDataset):
        def __iter__(self):
            return iter(range(3))

    with pytest.raises(TypeError, match=r"map-style data set.*Endless.*__getitem__"):
        as_samples(Endless())


def test_ragged_items_are_refused_and_images_of_unlike_sizes_are_not():
    with pytest.raises(
        ValueError, match=r"expected float32 \[2\] like the first; item 1 of the batch is float32 \[3\]"
    ):
        collate([np.zeros(2, np.float32), np.zeros(3, np.float32)])
    images = [np.zeros((2, 3), np.uint8), np.zeros((4, 4), np.uint8)]
    assert b.kind_of(collate(images)).name == "images"


def test_numbers_of_python_have_one_dtype_whichever_batch_they_are_in():
    items = [{"age": 3, "paid": True}, {"age": 2.5, "paid": False}, {"age": -4, "paid": True}]
    samples = as_samples(Listed(items))
    expected = np.array([3, 2.5, -4], np.float64), np.array([True, False, True])
    for index in ([0, 1, 2], [0, 2], [1]):
        batch = samples[np.array(index)]
        for found, wanted in zip((batch["age"], batch["paid"]), expected, strict=True):
            assert found.dtype == wanted.dtype
            np.testing.assert_array_equal(found, wanted[index])
    np.testing.assert_array_equal(sample_hashes(samples, batch_size=1), sample_hashes(samples))


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, r"items\['age'\]: expected a value in each sample; that of sample 2 is None: put"),
        (True, r"items\['age'\]: expected numbers like the first; sample 2 is True"),
        ("3", r"items\['age'\]: expected numbers like the first; sample 2 is '3'"),
        (2**53 + 1, r"sample 2 is 9007199254740993: give np\.int64"),
    ],
)
def test_a_number_that_is_none_is_refused_by_its_place_and_key(value, words):
    samples = as_samples(Listed([{"age": 1}, {"age": 2.5}, {"age": value}]))
    with pytest.raises(ValueError, match=words):
        samples[np.array([1, 2])]
    with pytest.raises(ValueError, match=r"item 1 of the batch is None"):
        collate([1, None])


def test_fields_of_unlike_length_are_refused():
    with pytest.raises(ValueError, match=r"as many samples in each field; got \{'a': 2, 'b': 3\}"):
        as_samples({"a": np.zeros(2), "b": np.zeros(3)})


@pytest.mark.parametrize(
    "value",
    [None, 3, [], [object()], np.array([object()])],
    ids=["None", "number", "empty", "objects", "array of objects"],
)
def test_what_holds_no_samples_is_refused(value):
    with pytest.raises(
        TypeError,
        match=r"inputs: expected samples \(array, images, mapping, table, tensor, text(, tokens)?\); got",
    ):
        as_samples(value)


def test_held_samples_are_not_copied():
    frame = pd.DataFrame(COLUMNS)
    assert isinstance(as_samples(frame), Held)
    assert as_samples(frame).batch is frame


@pytest.mark.parametrize("name", every_kind())
def test_joined_samples_give_rows_of_all_parts_in_the_order_that_is_asked(name):
    batch = every_kind()[name]
    joined = Joined((as_samples(batch), as_samples(b.take(batch, np.array([3, 1]))), as_samples(batch)))
    whole = sample_hashes(joined, batch_size=3)
    np.testing.assert_array_equal(whole, b.hashes(batch)[[0, 1, 2, 3, 3, 1, 0, 1, 2, 3]])
    order = np.array([9, 0, 4, 5, 1, 8])
    np.testing.assert_array_equal(b.hashes(joined[order]), whole[order])
    np.testing.assert_array_equal(sample_hashes(subset(joined, order)), whole[order])


def test_a_subset_of_a_data_set_is_not_read():
    class Unread(Numbers):
        def __getitem__(self, i):
            raise OSError("truncated file")

    part = subset(as_samples(Unread(np.zeros((5, 2)))), np.array([4, 1]))
    assert len(part) == 2
    with pytest.raises(OSError, match="truncated file") as failed:
        part[slice(None)]
    assert "sample 0 of Subset" in failed.value.__notes__[0]


def test_a_label_among_the_inputs_is_refused():
    class Items(Dataset):
        def __len__(self):
            return 3

        def __getitem__(self, i):
            return {"input": np.zeros(2), "label": i}

    with pytest.raises(
        ValueError, match=r"item 0 has the key 'label', .* pass Lazy\(dataset, label='label'\)"
    ):
        as_samples(Items())[:2]
    assert set(Lazy(Items(), label="label")[:2]) == {"input"}
