"""Data sets, splits and the random streams that everything else is keyed by."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file
from sklearn.datasets import load_digits

from ensdistill.common.random import BatchOrder, derive_seed
from ensdistill.data import UNLABELLED, ArrayDataset, Digits, Rows, Split, stratified_split


def test_digits_split_is_disjoint_complete_and_stratified():
    split = Digits(labelled=200, pool=900).split(seed=3)
    digits = load_digits()
    uids = np.concatenate([split.labelled.uids, split.pool.uids, split.test.uids])
    assert sorted(uids) == list(range(1797))
    assert (len(split.labelled), len(split.pool), len(split.test)) == (200, 900, 697)
    assert split.labelled.inputs.dtype == np.float32
    assert split.labelled.inputs.shape[1:] == (1, 8, 8)
    assert (split.labelled.inputs.min(), split.labelled.inputs.max()) == (0, 1)
    for part in (split.labelled, split.test):
        np.testing.assert_array_equal(part.inputs[:, 0] * 16, digits.images[part.uids])
        np.testing.assert_array_equal(part.labels, digits.target[part.uids])
        share = np.bincount(part.labels, minlength=10) / len(part)
        assert (
            np.abs(share - np.bincount(digits.target) / 1797).max() < 1 / len(part) + 1e-9
        )  # rounding to whole rows
    assert (split.pool.labels == UNLABELLED).all()


def test_split_depends_on_the_seed_alone():
    a, b, c = (Digits().split(seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(a.labelled.uids, b.labelled.uids)
    assert set(a.labelled.uids) != set(c.labelled.uids)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"labelled": 1000, "pool": 900},
            "labelled=1000, pool=900: expected no more than the 1797 rows that have a label, and at least "
            "10 left",
        ),
        (
            {"labelled": 1000, "pool": 790},
            "labelled=1000, pool=790: expected no more than the 1797 .* left over for testing",
        ),
        ({"labelled": 5}, "^labelled=5: expected at least 10, a row of each of the 10 classes$"),
        ({"labelled": 0}, "^labelled=0: expected at least 1$"),
        ({"labelled": 200, "pool": 5}, "^pool=5: expected at least 10"),
        ({"labelled": 200, "pool": -1}, "^pool=-1: expected at least 0$"),
    ],
)
def test_impossible_digits_splits(options, words):
    with pytest.raises(ValueError, match=words):
        Digits(**options).split(seed=0)


def test_a_rare_class_is_named():
    labels = np.array([0] * 50 + [1] * 50 + [2], np.int64)
    with pytest.raises(
        ValueError, match=r"labels: expected at least 2 rows of each class, one for each part; 'rare' has 1"
    ):
        stratified_split(
            np.arange(202, dtype=np.float32).reshape(101, 2),
            labels,
            ["a", "b", "rare"],
            labelled=20,
            pool=0,
            test=None,
            seed=0,
        )


@pytest.mark.parametrize(
    ("arrays", "error", "words"),
    [
        (([[1.0, 2.0]], [0], [0]), TypeError, r"^inputs: expected samples \(.*\); got a list of list$"),
        (
            (np.zeros((1, 2)), [0], np.array([0])),
            TypeError,
            r"^uids: expected a NumPy array \[N\], int64; got list$",
        ),
        (
            (np.zeros((1, 2)), np.array([0]), None),
            TypeError,
            r"^labels: expected a NumPy array \[N\], int64; got NoneType$",
        ),
        (
            (np.array(1.0), np.array([0]), np.array([0])),
            TypeError,
            r"^inputs: .* got an array of float64 \[\]$",
        ),
        (
            (np.zeros((1, 2)), np.array([0.0]), np.array([0])),
            ValueError,
            r"^uids: expected int64 \[1\].* got float64 \[1\]$",
        ),
        (
            (np.zeros((2, 2)), np.array([7, 7]), np.array([0, 0])),
            ValueError,
            r"^uids: expected unique ids; 7 stands 2 times$",
        ),
    ],
)
def test_what_rows_are_not(arrays, error, words):
    with pytest.raises(error, match=words):
        Rows(*arrays)


def part(first, count, label=None, change=None):
    """Rows of uids ``first``, ``first`` + 1, ...; ``change`` is (row, value) of an input."""
    inputs = np.ones((count, 3), np.float32)
    if change is not None:
        inputs[change[0], 1] = change[1]
    labels = np.arange(count) % 3 if label is None else np.full(count, label)
    return Rows(inputs, np.arange(first, first + count), labels)


GOOD = {
    "labelled": part(0, 6),
    "pool": part(10, 4, UNLABELLED),
    "test": part(20, 5),
    "classes": ("a", "b", "c"),
}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"test": part(5, 5)},
            r"^labelled and test: expected no common row; uid 5 is in both \(1 such rows\)$",
        ),
        (
            {"test": part(12, 5)},
            r"^pool and test: expected no common row; uid 12 is in both \(2 such rows\)$",
        ),
        (
            {"pool": part(3, 4, UNLABELLED)},
            r"^labelled and pool: expected no common row; uid 3 is in both \(3 such rows\)$",
        ),
        (
            {"labelled": part(0, 6, change=(4, np.nan))},
            r"^labelled\.inputs: expected finite numbers; row 4 \(uid 4\) holds nan",
        ),
        (
            {"pool": part(10, 4, UNLABELLED, (1, np.inf))},
            r"^pool\.inputs: expected finite numbers; row 1 \(uid 11\) holds inf",
        ),
        (
            {"test": part(20, 5, change=(0, -np.inf))},
            r"^test\.inputs: expected finite numbers; row 0 \(uid 20\) holds -inf",
        ),
        (
            {"test": part(20, 5, 7)},
            r"^test\.labels: expected a class index in 0\.\.2; row 0 \(uid 20\) has 7$",
        ),
        (
            {"labelled": part(0, 6, UNLABELLED)},
            r"^labelled\.labels: expected a class index in 0\.\.2; row 0 \(uid 0\) has -100$",
        ),
        ({"pool": part(10, 4)}, r"^pool\.labels: expected -100, .* row 0 \(uid 10\) has 0$"),
        ({"test": part(20, 0)}, r"^test: expected at least one row; got none$"),
        ({"labelled": part(0, 0)}, r"^labelled: expected at least one row; got none$"),
        (
            {"classes": ("a", "b")},
            r"^labelled\.labels: expected a class index in 0\.\.1; row 2 \(uid 2\) has 2$",
        ),
        ({"classes": ("a", "b", "b")}, r"^classes: expected different names; 'b' stands 2 times$"),
        ({"classes": ("a",)}, r"^classes: expected at least two names; got \('a',\)$"),
        ({"classes": ["a", "b", "c"]}, r"^classes: expected a tuple of str; got \['a', 'b', 'c'\]$"),
        ({"pool": None}, r"^pool: expected Rows; got NoneType$"),
        (
            {"test": Rows(np.ones((5, 3)), np.arange(20, 25), np.zeros(5, np.int64))},
            r"^test\.inputs: expected float32, as the labelled rows have; got float64$",
        ),
        (
            {"test": Rows(np.full((5, 3), "a"), np.arange(20, 25), np.zeros(5, np.int64))},
            r"^test\.inputs: expected numbers .* got <U1 \[5, 3\]$",
        ),
        (
            {"pool": Rows(np.ones((4, 2), np.float32), np.arange(10, 14), np.full(4, UNLABELLED))},
            r"^pool\.inputs: expected rows of shape \[3\], as the labelled rows have; got \[2\]$",
        ),
    ],
)
def test_what_is_no_split(change, words):
    Split(**GOOD)
    with pytest.raises((ValueError, TypeError), match=words):
        Split(**{**GOOD, **change})


def test_a_split_without_a_pool():
    assert len(Split(**{**GOOD, "pool": part(10, 0)}).pool) == 0


@pytest.fixture
def files(tmp_path):
    rng = np.random.default_rng(0)
    inputs, labels = rng.random((60, 3), np.float32), np.arange(60) % 3
    labels[50:] = UNLABELLED

    def save(inputs=inputs, labels=labels, **options):
        np.save(tmp_path / "x.npy", inputs)
        np.save(tmp_path / "y.npy", labels)
        return ArrayDataset(tmp_path / "x.npy", tmp_path / "y.npy", **options)

    return inputs, labels, save


def test_array_dataset(files):
    inputs, labels, save = files
    split = save(labels=labels.astype(np.int8), labelled=12, pool=12, test=20, classes=["a", "b", "c"]).split(
        seed=0
    )
    assert (len(split.labelled), len(split.pool), len(split.test)) == (12, 22, 20)
    assert set(range(50, 60)) <= set(split.pool.uids)  # the rows without a label
    assert split.classes == ("a", "b", "c")
    np.testing.assert_array_equal(split.test.inputs, inputs[split.test.uids])
    np.testing.assert_array_equal(split.test.labels, labels[split.test.uids])


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int16, np.int64, np.uint8, bool])
def test_array_dataset_keeps_the_dtype_of_its_file(files, dtype):
    inputs, _, save = files
    table = (inputs * 200).astype(dtype)
    if dtype == np.float64:
        table[0, 0] = 2.0**40 + 1  # float32 would round it
    elif dtype is bool:
        table = np.unpackbits(np.arange(60, dtype=np.uint8)[:, None], axis=1).astype(bool)
    split = save(inputs=table, labelled=12, pool=12).split(seed=0)
    for part in (split.labelled, split.pool, split.test):
        assert part.inputs.dtype == dtype
        np.testing.assert_array_equal(part.inputs, table[part.uids])


def test_array_dataset_takes_labels_as_ensemble_train_does(files):
    _, labels, save = files
    whole = save(labels=labels.astype(np.float64), labelled=12, pool=12).split(seed=0)
    expected = save(labels=labels, labelled=12, pool=12).split(seed=0)
    for part in ("labelled", "pool", "test"):
        np.testing.assert_array_equal(getattr(whole, part).labels, getattr(expected, part).labels)
    named = save(labels=np.array(["b", "a", "c"])[np.arange(60) % 3], labelled=12, pool=12).split(seed=0)
    assert named.classes == ("a", "b", "c")
    np.testing.assert_array_equal(named.test.labels, np.array([1, 0, 2])[named.test.uids % 3])


def test_bad_arrays(files, tmp_path):
    inputs, labels, save = files
    with pytest.raises(ValueError, match=r"inputs: expected numbers .* got <U"):
        save(inputs=inputs.astype(str), labelled=12).split(0)
    with pytest.raises(ValueError, match=r"labels: .*y\.npy: the label of row 0, 0\.5, is a fraction"):
        save(labels=labels + 0.5, labelled=12).split(0)
    with pytest.raises(ValueError, match=r"labels: .*y\.npy: the label of row 0, nan, is missing"):
        save(labels=labels * np.nan, labelled=12).split(0)
    with pytest.raises(
        ValueError, match=r"labels: .*y\.npy: expected rows with a label; got 60 rows, none of which"
    ):
        save(labels=np.full(60, UNLABELLED), labelled=12).split(0)
    with pytest.raises(
        ValueError, match=r"labels: expected one for each of 60 inputs, as int64 .* int8 .* float64 "
    ):
        save(labels=labels[:59], labelled=12).split(0)
    with pytest.raises(
        ValueError,
        match=r"^labelled=12, pool=0, test=39: expected no more than the 50 rows that have a label$",
    ):
        save(labelled=12, test=39).split(0)
    with pytest.raises(ValueError, match=r"^test=2: expected at least 3, a row of each of the 3 classes$"):
        save(labelled=12, test=2).split(0)
    with pytest.raises(ValueError, match=r"expected labels in 0\.\.1 \(or -100\); row 2 has 2"):
        save(labelled=12, classes=["a", "b"]).split(0)
    bad = inputs.copy()
    bad[7, 1] = np.nan
    with pytest.raises(
        ValueError, match=r"inputs: .*x\.npy: expected finite numbers; row 7 holds nan \(1 such rows\)"
    ):
        save(inputs=bad, labelled=12).split(0)
    np.save(tmp_path / "x.npy", np.array([{"code": "run"}], object), allow_pickle=True)
    with pytest.raises(
        ValueError, match=r"inputs: .*x\.npy is not a \.npy file of numbers \(it holds Python objects\)"
    ):
        ArrayDataset(tmp_path / "x.npy", tmp_path / "y.npy", labelled=12).split(0)


@given(rows=st.integers(1, 40), batch=st.integers(1, 50), seed=st.integers(0, 3))
@settings(max_examples=40, deadline=None)
def test_batches_are_whole_epochs_in_any_order_of_asking(rows, batch, seed):
    order = BatchOrder(rows, batch, seed)
    stream = np.concatenate(
        [order(step) for step in range(rows)]
    )  # rows * batch positions: batch whole epochs
    assert (np.sort(stream.reshape(batch, rows), axis=1) == np.arange(rows)).all()
    late = BatchOrder(rows, batch, seed)
    np.testing.assert_array_equal(late(rows - 1), order(rows - 1))
    np.testing.assert_array_equal(late(0), stream[:batch])


def test_batches_are_reshuffled_and_seeded():
    order, other = BatchOrder(50, 50, 0), BatchOrder(50, 50, 1)
    assert (order(0) != order(1)).any()
    assert (order(0) != other(0)).any()


def test_derived_seeds_are_independent_and_fit_a_torch_seed():
    seeds = {derive_seed(*parts) for parts in [(0, 1), (1, 0), ("01",), (0, "1"), (0, 1, None)]}
    assert len(seeds) == 5
    assert all(0 <= seed < 2**63 for seed in seeds)


@pytest.mark.parametrize("kind", ["csv", "empty", "cut"])
def test_another_file_in_the_place_of_an_npy_file(tmp_path, kind):
    np.save(tmp_path / "y.npy", np.arange(40) % 2)
    file = tmp_path / ("x.npy" if kind in ("empty", "cut") else f"x.{kind}")
    if kind == "csv":
        file.write_text("a,b\n1,2\n")
    else:
        file.write_bytes(b"\x93NUMPY\x01" if kind == "cut" else b"")
    for path in (file, str(file)):
        with pytest.raises(ValueError, match=rf"inputs: .*x\.{file.suffix[1:]}") as caught:
            ArrayDataset(path, tmp_path / "y.npy", labelled=12).split(0)
        assert "pickle" not in str(caught.value)
        if kind != "cut":
            assert "expected a .npy file of numbers, as numpy.save writes it" in str(caught.value)
    if kind == "csv":
        assert "which begins with b'a,b" in str(caught.value)
        assert 'numpy.loadtxt("x.csv", delimiter=",", skiprows=1, dtype="float32")' in str(caught.value)


def test_arrays_of_files_that_hold_several(files, tmp_path):
    inputs, labels, save = files
    expected = save(labelled=12).split(0)
    np.savez(tmp_path / "both.npz", x=inputs, y=labels)
    save_file({"x": inputs, "y": labels}, tmp_path / "both.safetensors")
    for name in ("both.npz", "both.safetensors"):
        path = str(tmp_path / name)
        split = ArrayDataset(path, path, labelled=12, inputs_name="x", labels_name="y").split(0)
        for part in ("labelled", "pool", "test"):
            np.testing.assert_array_equal(getattr(split, part).inputs, getattr(expected, part).inputs)
            np.testing.assert_array_equal(getattr(split, part).labels, getattr(expected, part).labels)
        with pytest.raises(
            ValueError, match=rf"^labels_name: expected one of the arrays of {name}, x, y; got 'z'$"
        ):
            ArrayDataset(path, path, labelled=12, inputs_name="x", labels_name="z").split(0)
    np.savez(tmp_path / "one.npz", inputs)
    one = ArrayDataset(tmp_path / "one.npz", tmp_path / "y.npy", labelled=12).split(0)
    np.testing.assert_array_equal(one.test.inputs, expected.test.inputs)
    with pytest.raises(ValueError, match=r"^inputs: there is no file '.*none\.npz'$"):
        ArrayDataset(tmp_path / "none.npz", tmp_path / "y.npy", labelled=12).split(0)
    with pytest.raises(
        ValueError, match=r"^labels_name: expected no name, because a \.npy file holds one array"
    ):
        ArrayDataset(tmp_path / "one.npz", tmp_path / "y.npy", labelled=12, labels_name="y").split(0)
    np.savez(tmp_path / "objects.npz", np.array([{}]))
    with pytest.raises(ValueError, match=r"^inputs: .*objects\.npz can't be read as an array of numbers"):
        ArrayDataset(tmp_path / "objects.npz", tmp_path / "y.npy", labelled=12).split(0)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (
            [np.zeros(2), np.zeros(3)],
            r"got items of unlike shapes, \[2\] in row 0 and \[3\] in row 1: pad or crop",
        ),
        ([[1, 2], [3, 4], [5]], r"got items of unlike shapes, \[2\] in row 0 and \[1\] in row 2"),
        (
            np.array(["a", 1], object),
            r"got an array of object \[2\]: numbers need a dtype \(astype\), strings",
        ),
    ],
)
def test_ragged_arrays_and_objects_are_named(value, words):
    with pytest.raises(TypeError, match=words):
        Rows(value, np.arange(2), np.zeros(2, np.int64))
