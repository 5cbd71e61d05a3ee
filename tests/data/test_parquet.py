"""Parquet by row groups: the rows that pandas reads, few groups in memory, and an order that reads each group
once an epoch."""

import pickle
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor, wait

import numpy as np
import pandas as pd
import pytest

from ensdistill.common.random import GroupedOrder
from ensdistill.data import batches as b
from ensdistill.data import records
from ensdistill.data.arrow_types import as_frame
from ensdistill.data.parquet import ParquetSamples
from ensdistill.data.samples import Held, Joined, sample_hashes, subset

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
ROWS = 130


@pytest.fixture
def table(tmp_path):
    generator = np.random.default_rng(0)
    frame = pd.DataFrame(
        {
            "x": np.where(generator.random(ROWS) < 0.2, np.nan, generator.normal(size=ROWS)),
            "city": generator.choice(["Rom", "Oslo", None], ROWS),
            "n": np.arange(ROWS),
        }
    )
    frame[:100].to_parquet(tmp_path / "a.parquet", row_group_size=30)
    frame[100:].to_parquet(tmp_path / "b.parquet", row_group_size=20)
    return frame, [tmp_path / "a.parquet", tmp_path / "b.parquet"]


def test_rows_are_those_of_the_files(table):
    frame, paths = table
    samples = ParquetSamples(paths)
    assert len(samples) == ROWS
    assert samples.groups.tolist() == [30, 30, 30, 10, 20, 10]
    whole = b.hashes(frame)
    np.testing.assert_array_equal(sample_hashes(samples, batch_size=17), whole)
    order = np.random.default_rng(1).permutation(ROWS)[:50]
    np.testing.assert_array_equal(b.hashes(samples[order]), whole[order])
    np.testing.assert_array_equal(sample_hashes(subset(samples, order), batch_size=7), whole[order])
    np.testing.assert_array_equal(
        sample_hashes(subset(subset(samples, order), np.array([3, 1]))), whole[order[[3, 1]]]
    )
    assert list(ParquetSamples(paths, ["n", "x"])[np.array([4])].columns) == ["n", "x"]
    assert len(samples[np.zeros(0, np.int64)]) == 0


MIXED = {
    "half": pa.array([0.5, None, -1.25, 3.0] * 30, pa.float16()),
    "single": pa.array([0.1, None, 0.3] * 40, pa.float32()),
    "flag": pa.array([True, False, False] * 40),
    "text": pa.array(["a", None, "ccc", "dd"] * 30),
    "double": pa.array(np.linspace(-1, 1, 120)),
    "second": pa.array(np.linspace(1, 2, 120), pa.float32()),
    "gaps": pa.array([1, None, 3] * 40, pa.int16()),
    "few gaps": pa.array([*range(119), None]),
    "large": pa.array([2**62 + 1, None, 3] * 40),
    "byte": pa.array(np.arange(120) % 256, pa.uint8()),
    "most": pa.array([2**64 - 1, 2**63] * 60, pa.uint64()),
    "maybe": pa.array([True, None] * 60),
    "kind": pa.array([str(i // 30 + i % 2) for i in range(120)]).dictionary_encode(),
    "day": pa.array(np.arange(120).astype("datetime64[D]")),
    "time": pa.array(np.arange(120).astype("datetime64[us]")),
}


@pytest.mark.parametrize(
    "columns",
    [None, ["single", "second"], ["text", "kind"], ["double"], ["text", "double", "kind", "byte", "gaps"]],
)
@pytest.mark.parametrize("slab", [records.SLAB, 200])
def test_frames_are_those_that_arrow_makes(tmp_path, monkeypatch, columns, slab):
    monkeypatch.setattr(records, "SLAB", slab)  # of columns that are decoded together
    monkeypatch.setattr(records, "PART", 7)
    monkeypatch.setattr(records, "BLOCK", 11)
    pq.write_table(pa.table(MIXED), tmp_path / "a.parquet", row_group_size=33)
    samples = ParquetSamples(tmp_path / "a.parquet", columns)
    generator = np.random.default_rng(0)
    for index in (np.arange(120), generator.permutation(120), generator.integers(0, 120, 50), np.array([7])):
        # Each group's rows are taken in the order of the groups, and the groups' dictionaries are joined so.
        file, owner = pq.ParquetFile(tmp_path / "a.parquet"), index // 33
        order = np.argsort(owner, kind="stable")
        parts = [
            file.read_row_group(g, columns=samples.columns).take(index[order][owner[order] == g] - 33 * g)
            for g in np.unique(owner)
        ]
        table = pa.concat_tables(parts)
        moved = (np.diff(order) != 1).any()
        expected = as_frame(table.take(np.argsort(order)) if moved else table, samples.types)
        got = samples[index]
        pd.testing.assert_frame_equal(got, expected, check_exact=True, check_column_type="equiv")
        assert got.to_numpy().flags.f_contiguous == expected.to_numpy().flags.f_contiguous
        np.testing.assert_array_equal(b.hashes(got), b.hashes(expected))


def test_labels_and_attributes_of_pandas_come_back(tmp_path):
    frame = pd.DataFrame({0: [1.5, 2.5], 1: ["a", "b"], 2: [3, 4]}, index=["x", "y"])
    frame.attrs["made by"] = "hand"
    frame.to_parquet(tmp_path / "a.parquet")
    got = ParquetSamples(tmp_path / "a.parquet")[np.array([1, 0])]
    pd.testing.assert_frame_equal(got, frame.iloc[[1, 0]].reset_index(drop=True))
    assert got.attrs == {"made by": "hand"}


def test_it_travels_to_workers_and_joins_what_is_in_memory(table):
    frame, paths = table
    samples = pickle.loads(pickle.dumps(ParquetSamples(paths)))
    joined = Joined((samples, Held(frame[:5])))
    np.testing.assert_array_equal(sample_hashes(joined), np.r_[b.hashes(frame), b.hashes(frame)[:5]])


def test_few_groups_stay_in_memory(table, monkeypatch):
    _, paths = table
    samples = ParquetSamples(paths, cached_bytes=1)
    read = []
    opened = samples._opened
    monkeypatch.setattr(samples, "_opened", lambda path: read.append(path) or opened(path))
    for positions in ([0, 29], [31], [32], [1]):
        samples[np.array(positions)]
        assert len(samples._cache) == 1
    assert len(read) == 3


def test_two_threads_may_read_at_a_time(table):
    _, paths = table
    samples = pickle.loads(pickle.dumps(ParquetSamples(paths, cached_bytes=1)))
    others = []

    class Interrupted(OrderedDict):
        """A cache in which another thread reads between a group's being found and its being taken."""

        def __contains__(self, group):
            found = super().__contains__(group)
            if found and not others:
                others.append(threads.submit(samples.__getitem__, np.array([31])))
                wait(others, timeout=0.1)
            return found

    samples._cache = Interrupted()
    with ThreadPoolExecutor(1) as threads:
        assert [samples[np.array([5])]["n"].tolist() for _ in range(2)] == [[5], [5]]
        assert others[0].result()["n"].tolist() == [31]


@pytest.mark.parametrize("buffer", [1, 2, 100])
def test_an_epoch_has_every_row_once_and_each_group_in_one_stretch(buffer):
    sizes = [30, 30, 30, 10, 20, 10]
    order = GroupedOrder(sizes, batch_size=13, seed=3, buffer=buffer)
    epochs = np.concatenate([order(step) for step in range(30)])[: 3 * ROWS].reshape(3, ROWS)
    owner = np.repeat(np.arange(6), sizes)
    for epoch in epochs:
        np.testing.assert_array_equal(np.sort(epoch), np.arange(ROWS))
        # At any place the groups that have begun and not ended are no more than the buffer holds.
        groups = owner[epoch]
        first = {g: np.flatnonzero(groups == g)[0] for g in range(6)}
        last = {g: np.flatnonzero(groups == g)[-1] for g in range(6)}
        assert max(sum(first[g] <= place <= last[g] for g in range(6)) for place in range(ROWS)) <= buffer
    assert (epochs[0] != epochs[1]).any()
    np.testing.assert_array_equal(GroupedOrder(sizes, 13, 3, buffer)(17), order(17))


def test_what_is_no_parquet_is_refused_by_name(table, tmp_path):
    frame, paths = table
    (tmp_path / "c.parquet").write_bytes(b"PAR1 no more")
    frame[["x"]].to_parquet(tmp_path / "d.parquet")
    for path, words in (
        (tmp_path / "nothing.parquet", "there is no file"),
        (tmp_path / "c.parquet", "c.parquet is not Parquet"),
        ([paths[0], tmp_path / "d.parquet"], "equal columns; .*d.parquet has"),
        ([], "at least one file"),
    ):
        with pytest.raises(ValueError, match=f"^path: .*{words}"):
            ParquetSamples(path)
    with pytest.raises(ValueError, match=r"columns: a.parquet has no column 'z', but x, city, n"):
        ParquetSamples(paths, ["z"])
    with pytest.raises(IndexError, match=r"0\.\.129; got 5 to 130"):
        ParquetSamples(paths)[np.array([5, 130])]
