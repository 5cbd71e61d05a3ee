"""Map-style data sets of torch and Hugging Face, whose items are read when they are needed."""

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset, IterableDataset, TensorDataset

from ensdistill.data import Items, Partition
from ensdistill.data.copies import count_copies
from ensdistill.data.samples import whole

ROWS = 40
INPUTS = np.random.default_rng(0).normal(size=(ROWS, 3)).astype(np.float32)
INPUTS[20:24] = INPUTS[:4]  # copies
NAMES = ["cat", "dog"]


class Pairs(Dataset):
    """(input, label) pairs that count how often they are read."""

    def __init__(self, rows=ROWS, length=None, inputs=INPUTS):
        self.rows, self.length, self.inputs, self.reads = rows, length or rows, inputs, []

    def __len__(self):
        return self.length

    def __getitem__(self, i):
        if i >= self.rows:
            raise IndexError(f"no row {i}")
        self.reads.append(i)
        return self.inputs[i], i % 2 + 3


class Listed(Pairs):
    """A data set that lists its labels, and names its classes, as torchvision's do."""

    classes = ("zero", "one", "two", "cat", "dog")

    def __init__(self, **options):
        super().__init__(**options)
        self.targets = [i % 2 + 3 for i in range(self.rows)]


def check(split, labels=(3, 4)):
    """Each row is the item of its uid, and copies are together."""
    assert split.labels == labels
    for part in (split.labelled, split.pool, split.test):
        if len(part):
            np.testing.assert_array_equal(whole(part.inputs), INPUTS[part.uids])
    for part in (split.labelled, split.test):
        assert [split.labels[label] for label in part.labels] == [labels[uid % 2] for uid in part.uids]
    assert not count_copies(split).test.any()
    contents = [
        {INPUTS[uid].tobytes() for uid in part.uids} for part in (split.labelled, split.pool, split.test)
    ]
    assert len(set.union(*contents)) == sum(map(len, contents))


def test_pairs_are_read_when_they_are_needed():
    pairs = Pairs()
    data = Items(pairs, parts=Partition(pool=8))
    split = data.split(0)
    assert (len(split.labelled), len(split.pool), len(split.test)) == (22, 8, 10)
    assert split.classes == ("3", "4")
    assert sorted(set(pairs.reads)) == list(range(ROWS))
    assert len(pairs.reads) <= ROWS + 6  # once, and the first of each part to compare their forms
    check(split)
    pairs.reads.clear()
    data.split(1)
    assert len(pairs.reads) <= 6


def test_worker_processes_read_the_same(monkeypatch):
    monkeypatch.setattr("ensdistill.data.sources.items.FEW", 0)
    check(Items(Pairs()).split(0))


def test_listed_labels_are_not_read():
    listed = Listed()
    split = Items(listed, copies=False).split(0)
    assert split.classes == ("cat", "dog")
    assert split.labels == (3, 4)
    assert len(listed.reads) <= 10  # three labels are compared, and the first of each part is looked at
    assert (
        len(np.intersect1d(split.labelled.uids % 20, split.test.uids % 20)) > 0
    )  # copies are not looked for
    check(Items(Listed()).split(0))
    listed.targets[-1] = 3
    with pytest.raises(
        ValueError, match=r"list of labels to be those of its items; item 39 has 'dog', the list 'cat'$"
    ):
        Items(listed, copies=False).split(0)
    listed.targets.pop()
    with pytest.raises(ValueError, match=r"^dataset: expected a label for each of 40 items; it lists 39$"):
        Items(listed).split(0)


def dicts(rows=ROWS):
    return [
        {"x": INPUTS[i], "y": NAMES[i % 2], "owner": i % 20, "day": i} for i in range(rows)
    ]  # fmt: skip


def test_dicts_have_keys_for_input_and_label():
    data = Items(dicts(), label="y", input="x")
    check(data.split(0), ("cat", "dog"))
    fields = Items(dicts(), label="y", parts=Partition(group="owner", test=0.3)).split(0)
    assert set(fields.test.inputs[:2]) == {"x", "day"}
    assert not np.intersect1d(fields.labelled.uids % 20, fields.test.uids % 20).size
    days = Items([{k: v for k, v in row.items() if k != "owner"} for row in dicts()], label="y")
    one = Items(days.dataset, label="y", parts=Partition(time="day", test=10)).split(0)
    assert one.test.uids.tolist() == list(range(30, 40))
    np.testing.assert_array_equal(
        whole(one.test.inputs), INPUTS[30:]
    )  # the one key that is left is the input
    for options, words in (
        ({"label": "z"}, r"^label: expected the key 'z' in each item; item 0 has 'x', 'y'"),
        ({"label": "y", "input": "z"}, r"^input: expected the key 'z'"),
    ):
        with pytest.raises(ValueError, match=words):
            Items(dicts(), **options).split(0)


def test_given_data_sets_are_the_parts():
    pool = list(INPUTS[30:])
    labels = [3, 4, None, -100, *([3, 4] * 13)]
    train = list(zip(INPUTS[:30], labels, strict=True))
    test = [(np.float32([i, i, i]), 3 + i % 2) for i in range(6)]
    split = Items(train, test_dataset=test, pool_dataset=pool).split(0)
    assert (len(split.labelled), len(split.pool), len(split.test)) == (28, 12, 6)
    assert split.test.uids.tolist() == list(range(30, 36))
    assert set(split.pool.uids) == {2, 3, *range(36, 46)}
    np.testing.assert_array_equal(whole(split.pool.inputs)[2:], INPUTS[30:])
    with pytest.raises(ValueError, match=r"^test_dataset: expected without parts\.test"):
        Items(train, test_dataset=test, parts=Partition(test=0.2))


def test_tensors_and_images_are_items():
    split = Items(TensorDataset(torch.from_numpy(INPUTS), torch.arange(ROWS) % 2 + 3)).split(0)
    assert isinstance(split.test.inputs[:2], torch.Tensor)
    check(split)
    images = [(Image.fromarray(np.full((4 + i % 2, 5), i, np.uint8)), i % 2) for i in range(ROWS)]
    split = Items(images).split(0)
    np.testing.assert_array_equal(
        np.asarray(split.test.inputs[:1][0]), np.asarray(images[split.test.uids[0]][0])
    )


def test_hugging_face_data_sets(tmp_path):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "cat", "dog"])}
    )
    rows = {
        "text": [f"text {i}" for i in range(ROWS)],
        "label": [-1 if i == 5 else i % 2 + 1 for i in range(ROWS)],
    }
    given = datasets.Dataset.from_dict(rows, features=features)
    split = Items(given, parts=Partition(test=0.25)).split(0)
    assert (split.classes, split.labels) == (("cat", "dog"), (1, 2))
    assert split.pool.uids.tolist() == [5]
    assert split.test.inputs[:] == [f"text {i}" for i in split.test.uids]
    assert [split.labels[label] for label in split.test.labels] == [rows["label"][i] for i in split.test.uids]
    parts = datasets.DatasetDict({"train": given, "test": given.select(range(10, 20))})
    parts.save_to_disk(tmp_path / "saved")
    split = Items(str(tmp_path / "saved")).split(0)
    assert (len(split.labelled), len(split.test)) == (ROWS - 1, 10)
    datasets.DatasetDict({"train": given, "validation": given}).save_to_disk(tmp_path / "other")
    with pytest.raises(
        ValueError, match=r"^dataset: expected data sets named train, .*; got train, validation"
    ):
        Items(tmp_path / "other").split(0)
    with pytest.raises(
        ValueError, match=r"^dataset: expected a folder written by save_to_disk; got '.*nowhere'"
    ):
        Items(tmp_path / "nowhere").split(0)


def test_lists_of_numbers_of_a_saved_data_set_are_arrays(tmp_path):
    datasets = pytest.importorskip("datasets")
    features = {
        "x": INPUTS,
        "m": np.arange(ROWS * 4, dtype=np.int16).reshape(ROWS, 2, 2),
        "y": np.arange(ROWS) % 2,
    }
    saved = datasets.Dataset.from_dict(features)
    saved.save_to_disk(tmp_path / "saved")
    data = Items(tmp_path / "saved", label="y", input="x")
    check(data.split(0), (0, 1))
    both = Items(tmp_path / "saved", label="y").split(0)
    batch = both.test.inputs[:]
    assert {name: part.dtype for name, part in batch.items()} == {"x": np.float32, "m": np.int16}
    np.testing.assert_array_equal(batch["m"], features["m"][both.test.uids])
    halved = saved.with_transform(lambda rows: {**rows, "m": [[0.5] for _ in rows["m"]]})
    with pytest.raises(TypeError, match="list"):  # a transform's values are not those of the column
        Items(halved, label="y", input="m").split(0)
    ragged = datasets.Dataset.from_dict({"x": [[1.0] * (1 + i % 2) for i in range(ROWS)], "y": [0, 1] * 20})
    with pytest.raises(ValueError, match="pad or crop them to one shape"):
        Items(ragged, label="y").split(0)


class Endless(IterableDataset):
    def __iter__(self):
        return iter([(1, 2)])


@pytest.mark.parametrize(
    ("dataset", "options", "error", "words"),
    [
        (
            Endless(),
            {},
            TypeError,
            r"^dataset: expected a map-style data set.* whose positions are the samples' uids",
        ),
        (
            Pairs(length=50),
            {},
            ValueError,
            r"^dataset: len\(\) of Pairs is 50, but it has no item 40 \(no row 40\)$",
        ),
        (Listed(length=50), {}, ValueError, r"^dataset: expected a label for each of 50 items; it lists 40$"),
        ([], {}, ValueError, r"^dataset: expected items; len\(\) is 0$"),
        (
            [1.0, 2.0],
            {},
            ValueError,
            r"^dataset: expected items that are \(input, label\) pairs, or dicts; item 0",
        ),
        ([(INPUTS[0], 1, 2)], {}, ValueError, r"item 0 is a tuple of 3$"),
        ([(INPUTS[i], i / 7) for i in range(ROWS)], {}, ValueError, r"^target: .*regression's target"),
        (
            [(INPUTS[i], None) for i in range(ROWS)],
            {},
            ValueError,
            r"^target: .*expected labels; got 40 rows",
        ),
        ([(INPUTS[i], [i % 2]) for i in range(ROWS)], {}, ValueError, r"^target: .* row 0 has \[0\], a list"),
        (
            [(INPUTS[i][: 2 + (i == 9)], i % 2) for i in range(ROWS)],
            {},
            ValueError,
            r"^items: expected float32 \[2\] like the first; sample 9 is float32 \[3\]",
        ),
        (
            [(INPUTS[i], i % 2) for i in range(ROWS)],
            {"parts": Partition(group="owner")},
            ValueError,
            r"^parts: expected items that are dicts, with the key 'owner'; item 0 is a tuple$",
        ),
    ],
)
def test_what_items_cannot_be(dataset, options, error, words):
    with pytest.raises(error, match=words):
        Items(dataset, **options).split(0)


def test_fewer_items_are_found_though_labels_are_listed():
    listed = Listed(length=50)
    listed.targets += [3] * 10
    with pytest.raises(ValueError, match=r"^dataset: len\(\) of Listed is 50, but it has no item 49"):
        Items(listed, copies=False).split(0)


def test_labels_may_be_objects():
    days = [pd.Timestamp("2020-01-01"), pd.Timestamp("2019-01-01")]
    split = Items([(INPUTS[i], days[i % 2]) for i in range(ROWS)]).split(0)
    assert split.labels == tuple(days[::-1])
    assert split.classes[0].startswith("2019-01-01")
