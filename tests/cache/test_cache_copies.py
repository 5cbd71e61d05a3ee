"""Copies of an open cache in other processes, and caches whose folder was named relative to a directory that
changes."""

import copy
import multiprocessing
import pickle
import shutil

import numpy as np
import pytest
import torch
from cache_helpers import digits, in_uid_order

from ensdistill.cache import CacheIncomplete, CacheMismatch, TargetCache, cache_targets, convert, reweight
from ensdistill.cache.remote import download, upload
from ensdistill.data import BadRows

SMALL = {"shard_rows": 64, "batch_size": 50, "codec": "fp32"}
UIDS = np.array([229, 0, 64, 64])


class Data(torch.utils.data.Dataset):
    def __init__(self, cache):
        self.cache = cache

    def __len__(self):
        return 8

    def __getitem__(self, i):
        return self.cache.gather_logits(np.array([i]))[:, 0]


@pytest.mark.parametrize("method", ["spawn", pytest.param("forkserver", marks=pytest.mark.slow), "fork"])
def test_workers_read_the_same_as_this_process(tmp_path, method):
    teachers, rows = digits()
    cache = cache_targets(teachers, rows, tmp_path / "cache", **SMALL)
    cache.gather(UIDS)  # its files are mapped when the copies are made
    with multiprocessing.get_context(method).Pool(1) as pool:
        found = pool.apply(cache.gather_logits, (UIDS,))
    np.testing.assert_array_equal(found, in_uid_order(teachers, rows)[:, UIDS])


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_workers_of_a_data_loader(tmp_path, method):
    teachers, rows = digits()
    cache = cache_targets(teachers, rows, tmp_path / "cache", **SMALL)
    batches = list(torch.utils.data.DataLoader(Data(cache), 4, num_workers=2, multiprocessing_context=method))
    np.testing.assert_array_equal(
        torch.cat(batches).numpy().swapaxes(0, 1), in_uid_order(teachers, rows)[:, :8]
    )


@pytest.mark.parametrize(
    "copied", [copy.copy, copy.deepcopy, lambda cache: pickle.loads(pickle.dumps(cache))]
)
def test_a_copy_reads_the_same_and_is_checked_by_itself(tmp_path, copied):
    teachers, rows = digits()
    cache = cache_targets(teachers, rows, tmp_path / "cache", **SMALL)
    expected = cache.gather_records(UIDS)
    again = copied(cache)
    assert (again.path, again.url, again.names, again.shards.mapped) == (cache.path, None, cache.names, 0)
    np.testing.assert_array_equal(again.gather_records(UIDS), expected)
    file = tmp_path / "cache" / "shard-00000.safetensors"
    data = bytearray(file.read_bytes())
    data[5000] ^= 1
    file.unlink()  # another file: a cache that has mapped the first one keeps it
    file.write_bytes(data)
    np.testing.assert_array_equal(cache.gather_records(UIDS), expected)
    with pytest.raises(ValueError, match="the bytes are not those that were written"):
        copied(cache).gather_records(UIDS)


def test_the_copy_of_a_url_reads_the_local_folder(tmp_path):
    teachers, rows = digits()
    cache_targets(teachers, rows, tmp_path / "cache", **SMALL)
    upload(tmp_path / "cache", f"file://{tmp_path}/there")
    cache = TargetCache.open(f"file://{tmp_path}/there", local=tmp_path / "here")
    shutil.rmtree(tmp_path / "there")
    again = pickle.loads(pickle.dumps(cache))
    assert (again.path, again.url) == (tmp_path / "here", f"file://{tmp_path}/there")
    np.testing.assert_array_equal(again.gather_records(UIDS), cache.gather_records(UIDS))


def test_a_copy_of_a_cache_that_is_gone_or_replaced_raises(tmp_path):
    teachers, rows = digits()
    cache = cache_targets(teachers, rows, tmp_path / "cache", **SMALL)
    copies = [pickle.loads(pickle.dumps(cache)) for _ in range(2)]
    cache_targets(
        teachers.with_logit(0, 0, 0, 5.0), rows.take(np.arange(230)[::-1]), tmp_path / "other", **SMALL
    )
    shutil.rmtree(tmp_path / "cache")
    with pytest.raises(CacheIncomplete, match=r"cache: no such folder: .* open the cache again where it is"):
        copies[0].gather(UIDS)
    (tmp_path / "other").rename(tmp_path / "cache")
    with pytest.raises(CacheMismatch, match="the cache was replaced by another since it was opened"):
        copies[1].gather(np.arange(230))
    pickle.loads(pickle.dumps(TargetCache.open(tmp_path / "cache"))).gather(UIDS)


def test_errors_of_workers_arrive_whole():
    error = pickle.loads(pickle.dumps(BadRows("row 3", np.array([3]))))
    assert (str(error), error.rows.tolist()) == ("row 3", [3])
    error = pickle.loads(pickle.dumps(CacheMismatch("other", ["a: 1", "b: 2"])))
    assert (str(error), error.differences) == ("other\n  a: 1\n  b: 2", ("a: 1", "b: 2"))


def test_the_working_directory_may_change(tmp_path, monkeypatch):
    """While a cache is written, and before the first record is read."""
    teachers, rows = digits()
    home, away = tmp_path / "home", tmp_path / "away"
    home.mkdir()
    away.mkdir()
    expected = in_uid_order(teachers, rows)

    def leave(*_):
        monkeypatch.chdir(away)

    def check(cache, path):
        monkeypatch.chdir(away)
        assert cache.path == home / path
        np.testing.assert_array_equal(cache.gather_logits(np.arange(230)), expected)
        cache.verify()
        monkeypatch.chdir(home)

    monkeypatch.chdir(home)
    check(cache_targets(teachers, rows, "targets", progress=leave, **SMALL), "targets")
    check(TargetCache.open("targets"), "targets")
    check(convert("targets", "copy", codec="fp32", progress=leave), "copy")
    check(reweight("copy", dict.fromkeys("abc", 1.0)), "copy")
    upload("copy", f"file://{tmp_path}/there", progress=leave)
    monkeypatch.chdir(home)
    assert download(f"file://{tmp_path}/there", "pulled", progress=leave) == home / "pulled"
    monkeypatch.chdir(home)
    check(TargetCache.open(f"file://{tmp_path}/there", local="pulled"), "pulled")
    assert not list(away.iterdir())
