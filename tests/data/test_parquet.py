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
from ensdistill.data.parquet import ParquetSamples
from ensdistill.data.samples import Held, Joined, sample_hashes, subset

pytest.importorskip("pyarrow")
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
