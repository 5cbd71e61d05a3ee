"""Columns of Parquet and Arrow with gaps: one type for the whole file, lazily as in memory."""

import pickle

import numpy as np
import pytest

from ensdistill.data import Partition, Table
from ensdistill.data import batches as b
from ensdistill.data.arrow import ArrowSamples
from ensdistill.data.parquet import ParquetSamples
from ensdistill.data.preprocess import default_transformer
from ensdistill.data.reading import default_workers
from ensdistill.data.samples import Joined, form, read_by_thread, sample_hashes, subset, whole
from ensdistill.data.table_files import read_table

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
pd = pytest.importorskip("pandas")
ROWS = 60
LARGE = 2**60 + 1
TYPES = {"k": "float", "m": "boolean", "id": "integer", "u": "integer", "n": "integer", "city": "text"}


def columns(gaps=(7, 41)):
    number = range(ROWS)
    values = {
        "k": pa.array([None if i in gaps else i % 5 for i in number], pa.int32()),
        "m": pa.array([None if i in gaps else i % 3 == 0 for i in number], pa.bool_()),
        "id": pa.array([None if i in gaps else LARGE + i for i in number], pa.int64()),
        "u": pa.array([None if i in gaps else 2**63 + i for i in number], pa.uint64()),
        "n": pa.array(list(number), pa.int64()),
        "city": pa.array([None if i < 3 else f"c{i % 4}" for i in number], pa.string()),
    }
    return pa.table(values)


def saved(folder, name, table):
    path = folder / name
    if path.suffix == ".parquet":
        # Nothing is known of the second file's values but by reading them.
        pq.write_table(table, path, row_group_size=10, write_statistics=name != "unknown.parquet")
    else:
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)
    return path


@pytest.mark.parametrize("name", ["t.parquet", "unknown.parquet", "t.arrow"])
def test_a_row_has_one_hash_and_type_whichever_rows_are_read_with_it(tmp_path, name):
    path = saved(tmp_path, name, columns())
    samples = ArrowSamples(path) if name == "t.arrow" else ParquetSamples(path)
    held = read_table(path)
    expected = {"kind": "table", "columns": TYPES}
    assert b.describe(held) == expected
    assert held["id"].tolist()[:2] == [LARGE, LARGE + 1]
    for some in (samples, subset(samples, np.array([0, 1])), pickle.loads(pickle.dumps(samples))):
        assert form(some) == expected
        assert b.describe(some[:1]) == b.describe(some[:0]) == expected
    assert form(Joined((samples, samples))) == expected
    for size in (1, 7, 60):
        np.testing.assert_array_equal(sample_hashes(samples, batch_size=size), b.hashes(held))
    assert b.describe(whole(samples, batch_size=5)) == expected
    transform = default_transformer(held)
    np.testing.assert_array_equal(
        np.concatenate([transform(samples[i : i + 1]) for i in range(ROWS)]), transform(held)
    )


@pytest.mark.parametrize("other", [(), (3,)])
def test_lazy_rows_have_the_uids_of_those_in_memory(tmp_path, other):
    label = pa.array(["a", "b"] * (ROWS // 2))
    chosen = ["k", "m", "n", "city"]
    train = columns().select(chosen).append_column("label", label)
    test = columns(other).select(chosen).append_column("label", label)
    paths = [saved(tmp_path, f"{i}.parquet", table) for i, table in enumerate([train, test])]
    found = [Table(paths[0], "label", test_path=paths[1], lazy=lazy).whole.rows for lazy in (False, True)]
    np.testing.assert_array_equal(found[0].uids, found[1].uids)
    assert b.describe(found[1].inputs[np.array([0, ROWS])]) == form(found[0].inputs)
    for seed in range(6):
        split = Table(paths[0], "label", lazy=True, parts=Partition(test=0.5)).split(seed)
        assert form(split.test.inputs) == form(split.labelled.inputs)


def test_equal_rows_are_copies_whichever_batch_they_are_in(tmp_path):
    number = np.arange(9000)
    k = [int(i) % 8 for i in number]
    x = number * 0.5
    k[5000], x[5000], k[100] = k[10], x[10], None
    path = tmp_path / "t.parquet"
    label = ["a", "b"] * 4500
    pq.write_table(
        pa.table({"k": pa.array(k, pa.int64()), "x": x, "label": label}), path, row_group_size=1000
    )
    units = Table(path, "label", lazy=True).whole.units
    assert units[10] == units[5000]


def test_pandas_own_nullable_types_stay(tmp_path):
    import pandas as pd

    frame = pd.DataFrame({"k": pd.array([1, None, 3], "Int64"), "m": pd.array([True, None, True], "boolean")})
    frame.to_parquet(tmp_path / "t.parquet")
    assert form(ParquetSamples(tmp_path / "t.parquet"))["columns"] == {"k": "integer", "m": "boolean"}
    pd.testing.assert_frame_equal(ParquetSamples(tmp_path / "t.parquet")[:], frame)


def test_a_run_of_arrow_rows_equals_the_same_rows_one_by_one(tmp_path):
    table = pa.table(
        {"n": pa.array([1, None, 3, 4, 5]), "t": pa.array(list("abcde")), "x": [0.5, 1, 2, 3, 4]}
    )
    with pa.ipc.new_file(str(tmp_path / "t.arrow"), table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    samples = ArrowSamples(tmp_path / "t.arrow")
    for start, stop in ((0, 5), (1, 4), (3, 4)):
        run, single = samples[np.arange(start, stop)], [samples[np.array([i])] for i in range(start, stop)]
        pd.testing.assert_frame_equal(run, pd.concat(single, ignore_index=True))
    pd.testing.assert_frame_equal(samples[np.array([2, 1])], samples[1:3][::-1].reset_index(drop=True))
    with pytest.raises(IndexError, match=r"0\.\.4; got 3 to 5"):
        samples[np.array([3, 4, 5])]


def test_mapped_arrow_is_read_by_a_thread_and_not_by_processes(tmp_path):
    with pa.ipc.new_file(str(tmp_path / "t.arrow"), pa.schema([("x", pa.int64())])) as writer:
        writer.write_table(pa.table({"x": [1, 2, 3]}))
    samples = ArrowSamples(tmp_path / "t.arrow")
    assert default_workers(samples) == default_workers(samples.subset(np.array([2, 0]))) == 1
    assert read_by_thread(samples)
