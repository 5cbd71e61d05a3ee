"""How files come to a cache's folder: full disks, power cuts, resumed and overwritten caches."""

import os

import pytest
from cache_helpers import contents, digits

from ensdistill.cache import (
    CacheError,
    CacheIncomplete,
    TargetCache,
    cache_targets,
)


def test_a_full_disk_leaves_a_cache_that_can_be_resumed(tmp_path):
    teachers, rows = digits()
    cache_targets(teachers, rows, tmp_path / "whole", shard_rows=64)
    folder = tmp_path / "full"

    def fill(done, total):
        # The third shard is written through a link to /dev/full, where the kernel itself fails with ENOSPC.
        if done == 192:
            (folder / f"shard-00002.safetensors.{os.getpid()}.part").symlink_to("/dev/full")

    with pytest.raises(OSError, match=r"no space left on the disk of .*run the same command again"):
        cache_targets(teachers, rows, folder, shard_rows=64, progress=fill)
    assert sorted(contents(folder)) == [
        "plan.json",
        *(f"shard-0000{i}.{end}" for i in (0, 1) for end in ("commit.json", "safetensors")),
    ]
    with pytest.raises(CacheIncomplete, match="its writer has not finished"):
        TargetCache.open(folder)
    cache_targets(teachers, rows, folder, shard_rows=64)
    assert contents(folder) == contents(tmp_path / "whole")


def test_content_is_on_the_disk_before_its_name(tmp_path, monkeypatch):
    """Only fsynced bytes and names surely survive a power cut: content comes before its name, a shard before
    its commit, all before the manifest."""
    events, fsync, replace_ = [], os.fsync, os.replace

    def record_fsync(descriptor):
        events.append(("fsync", os.readlink(f"/proc/self/fd/{descriptor}")))
        fsync(descriptor)

    def record_replace(source, target):
        assert events[-1] == ("fsync", str(source))  # the content, and nothing was written to it since
        events.append(("rename", str(target)))
        replace_(source, target)

    monkeypatch.setattr(os, "fsync", record_fsync)
    monkeypatch.setattr(os, "replace", record_replace)
    folder = tmp_path / "new" / "cache"
    cache_targets(*digits(), folder, shard_rows=64)
    assert events[:2] == [
        ("fsync", str(folder.parent)),
        ("fsync", str(tmp_path)),
    ]  # the new folders' own names
    renames = [i for i, (what, _) in enumerate(events) if what == "rename"]
    assert all(
        events[i + 1] == ("fsync", str(folder)) for i in renames
    )  # the name, before anything that relies on it
    shards = [f"shard-0000{i}.{end}" for i in range(4) for end in ("safetensors", "commit.json")]
    assert [os.path.basename(events[i][1]) for i in renames] == ["plan.json", *shards, "manifest.json"]


@pytest.mark.parametrize("name", ["manifest.json", "shard-00002.safetensors"])
def test_a_damaged_cache_can_be_overwritten(copy, original, name):
    data = bytearray((copy / name).read_bytes())
    data[-30] ^= 1
    (copy / name).write_bytes(data)
    cache_targets(*digits(), copy, shard_rows=64, overwrite=True)
    assert contents(copy) == contents(original)


@pytest.mark.parametrize("name", ["manifest.json", "shard-00001.safetensors"])
def test_a_folder_in_a_file_s_place_is_named_and_left_alone(copy, name):
    (copy / name).unlink()
    (copy / name).mkdir()
    (copy / name / "mine").write_text("mine")
    before = sorted(copy.iterdir())
    with pytest.raises(
        CacheError,
        match=rf"{name}: expected a file of the cache, or nothing; got a folder: move it elsewhere",
    ):
        cache_targets(*digits(), copy, shard_rows=64, overwrite=True)
    assert (copy / name / "mine").read_text() == "mine"
    assert {*before} <= {*copy.iterdir()}  # nothing was removed either
    for file in copy.glob("*.*"):
        if file.is_file():
            file.unlink()
    with pytest.raises(CacheError, match=rf"{name}: expected a"):  # nor is one written around it
        cache_targets(*digits(), copy, shard_rows=64)


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("damage", ["shard", "commit", "no shard"])
def test_resuming_writes_shards_without_a_valid_commit_again(tmp_path, damage, overwrite):
    teachers, rows = digits()
    cache_targets(teachers, rows, tmp_path / "whole", shard_rows=64)
    folder, asked = tmp_path / "cache", []

    class Stop(Exception):
        pass

    def stop(done, total):
        if done == total:
            raise Stop

    with pytest.raises(Stop):
        cache_targets(teachers, rows, folder, shard_rows=64, progress=stop)
    file = folder / ("shard-00001.commit.json" if damage == "commit" else "shard-00001.safetensors")
    if damage == "no shard":
        file.unlink()
    else:
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 1
        file.write_bytes(data)

    class Counting(type(teachers)):
        def predict_logits(self, inputs):
            asked.append(len(inputs))
            return super().predict_logits(inputs)

    cache_targets(Counting(teachers.logits), rows, folder, shard_rows=64, overwrite=overwrite)
    assert asked == [64, 38]  # the damaged shard and the one that was not finished, no other
    assert contents(folder) == contents(tmp_path / "whole")
