"""Damaged, missing and replaced files are found before a number of theirs is used."""

import os
import threading
from dataclasses import replace

import numpy as np
import pytest
from cache_helpers import contents, digits

from ensdistill import _shards
from ensdistill.cache import (
    CacheCorrupt,
    CacheError,
    CacheIncomplete,
    CacheMismatch,
    TargetCache,
    cache_targets,
)
from ensdistill.cache.derive import reweight


def read_all(folder):
    cache = TargetCache.open(folder)
    for uid in range(0, 230, 64):
        cache.gather_records([uid])


def test_a_flipped_bit_anywhere_is_found(copy):
    generator = np.random.default_rng(5)
    sound = contents(copy)
    for name, data in sound.items():
        sampled = {0, 7, 8, len(data) - 1, *generator.integers(0, len(data), 60).tolist()}
        for position in sampled:
            flipped = bytearray(data)
            flipped[position] ^= 1 << int(generator.integers(8))
            (copy / name).write_bytes(flipped)
            with pytest.raises(CacheError, match=name.replace(".", r"\.")):
                read_all(copy)
        (copy / name).write_bytes(data)
    read_all(copy)


def test_a_sound_shard_is_still_read_and_the_damaged_one_is_not(copy):
    shard = copy / "shard-00002.safetensors"
    data = bytearray(shard.read_bytes())
    data[5000] ^= 1  # the header takes 4096
    shard.write_bytes(data)
    cache = TargetCache.open(copy)
    cache.gather([0, 64, 229])
    for _ in range(2):  # not only the first time
        with pytest.raises(
            CacheCorrupt, match=r"shard-00002\.safetensors: the bytes are not those .*bytes 0 to 65536"
        ):
            cache.gather([0, 128])
    with pytest.raises(CacheCorrupt, match="shard-00002"):
        cache.verify()
    with pytest.raises(CacheCorrupt, match="shard-00002"):
        TargetCache.open(copy, check="full")


def test_records_changed_together_with_their_checksums_are_found(copy):
    shard = copy / "shard-00002.safetensors"
    data, records = bytearray(shard.read_bytes()), TargetCache.open(copy)
    data[5000] ^= 1
    end = 4096 + 64 * records.layout.bytes
    data[end:] = _shards.checksums(bytes(data[4096:end]), 1 << 16).tobytes()
    shard.write_bytes(data)
    with pytest.raises(CacheCorrupt, match="table of checksums"):
        TargetCache.open(copy).gather([128])


def test_verify_reads_blocks_again_that_were_read_before(copy):
    cache = TargetCache.open(copy)
    cache.gather([0])
    cache.verify()
    data = bytearray((copy / "shard-00000.safetensors").read_bytes())
    data[-1] ^= 1
    (copy / "shard-00000.safetensors").write_bytes(data)
    with pytest.raises(CacheCorrupt, match="shard-00000"):
        cache.verify()


@pytest.mark.parametrize("name", ["manifest.json", "shard-00000.safetensors", "shard-00003.safetensors"])
@pytest.mark.parametrize("keep", [0, 1, 8, 100, -1])
def test_a_cut_file_is_found_at_opening(copy, name, keep):
    data = (copy / name).read_bytes()
    (copy / name).write_bytes(data[:keep])
    with pytest.raises(CacheCorrupt, match=name):
        TargetCache.open(copy)
    (copy / name).write_bytes(data + b" ")
    with pytest.raises(CacheCorrupt, match=name):
        TargetCache.open(copy)


def test_a_file_that_goes_while_it_is_opened_is_missing(copy, monkeypatch):
    kind = os.lstat(copy / "shard-00001.safetensors")
    (copy / "shard-00001.safetensors").unlink()
    monkeypatch.setattr(os, "lstat", lambda path: kind)  # it was there when it was looked at
    with pytest.raises(CacheIncomplete, match=r"shard-00001\.safetensors: no such file"):
        TargetCache.open(copy)


def test_readers_while_the_cache_is_built_anew_get_one_cache_or_a_cache_error(tmp_path):
    teachers, rows = digits()
    scaled = [replace(teachers, logits=teachers.logits * np.float32(n), version=str(n)) for n in range(1, 7)]
    cache_targets(scaled[0], rows, tmp_path, codec="fp32", shard_rows=32)
    in_order, stop, faults, read = teachers.logits[:, np.argsort(rows.uids)], threading.Event(), [], []

    def reader():
        while not stop.is_set():
            try:
                cache = TargetCache.open(tmp_path)
                found = cache.gather_logits(np.arange(230))
                factor = np.float32(cache.manifest["fingerprint"]["ensemble"]["members"][0]["weights"])
                read.append(np.array_equal(found, in_order * factor))
            except CacheError:
                pass
            except Exception as error:
                faults.append(error)

    threads = [threading.Thread(target=reader) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for other in scaled[1:]:
            cache_targets(other, rows, tmp_path, codec="fp32", shard_rows=32, overwrite=True)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not faults
    assert read
    assert all(read)


@pytest.mark.parametrize("codec", ["fp32", "uint8"])  # shards of another size, and of the same
def test_a_reader_of_a_cache_that_was_replaced_raises(copy, codec):
    teachers, rows = digits()
    early, late = TargetCache.open(copy), TargetCache.open(copy)
    expected = early.gather_records(np.arange(230))
    other = replace(teachers, logits=teachers.logits * np.float32(2), version="2")
    cache_targets(other, rows, copy, codec=codec, shard_rows=64, overwrite=True)
    np.testing.assert_array_equal(early.gather_records(np.arange(230)), expected)  # its files are still open
    for read in (late.verify, lambda: late.gather([70])):
        with pytest.raises(
            CacheMismatch,
            match=r"the cache was replaced by another since it was opened \(shard-.*\); open it again",
        ):
            read()
    shard = copy / "shard-00001.safetensors"
    data = bytearray(shard.read_bytes())
    cut = TargetCache.open(copy)
    shard.write_bytes(data[:-1])
    with pytest.raises(CacheCorrupt, match="the file was cut; delete the cache and build it again"):
        cut.gather([70])
    (copy / "manifest.json").unlink()
    with pytest.raises(CacheIncomplete, match=r"is not there any more: open it again when it is finished"):
        late.gather([70])


def test_damage_is_found_where_only_the_weights_were_replaced(copy):
    cache = TargetCache.open(copy)
    reweight(copy, {"a": 1, "b": 2, "c": 3})
    assert len(cache.gather_records([0]))
    shard = copy / "shard-00001.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(CacheCorrupt, match="the file was cut"):
        cache.gather([70])
    shard.unlink()
    with pytest.raises(CacheIncomplete, match=r"shard-00001\.safetensors: no such file"):
        cache.gather([70])


def test_missing_files(copy, tmp_path):
    (copy / "shard-00001.safetensors").unlink()
    with pytest.raises(CacheIncomplete, match=r"shard-00001\.safetensors: no such file"):
        TargetCache.open(copy)
    with pytest.raises(CacheIncomplete, match="shard-00001"):
        cache_targets(*digits(), copy, shard_rows=64)
    with pytest.raises(CacheIncomplete, match=r"no manifest\.json: no cache has been written there"):
        TargetCache.open(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["manifest.json", "shard-00000.safetensors"])
def test_links_and_pipes_are_refused(copy, tmp_path, name):
    (copy / name).rename(tmp_path / "elsewhere")
    (copy / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CacheCorrupt, match=rf"{name}: expected a regular file; got a symbolic link"):
        TargetCache.open(copy)
    (copy / name).unlink()
    os.mkfifo(copy / name)
    with pytest.raises(
        CacheCorrupt, match=rf"{name}: expected a regular file"
    ):  # and it does not wait for a writer
        TargetCache.open(copy)
