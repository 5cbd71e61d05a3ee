"""Every kind of damage is found before a value of the damaged file is handed out."""

import json
import os
import shutil
import threading
from dataclasses import replace

import numpy as np
import pytest
from cache_helpers import contents, digits
from hypothesis import assume, given, settings
from hypothesis import strategies as st

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
from ensdistill.cache.files.checked import write_checked
from ensdistill.cache.manifest import shard_header


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    folder = tmp_path_factory.mktemp("original") / "cache"
    cache_targets(*digits(), folder, shard_rows=64)
    return folder


@pytest.fixture
def copy(original, tmp_path):
    shutil.copytree(original, tmp_path / "cache")
    return tmp_path / "cache"


def read_all(folder):
    cache = TargetCache.open(folder)
    for uid in range(0, 230, 64):
        cache.gather_records([uid])


def rewrite(folder, change):
    """A manifest that was changed by someone who knows how its checksum is made."""
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["checksum"]
    change(manifest)
    write_checked(folder / "manifest.json", manifest)


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


def test_verify_reads_again_what_was_read_before(copy):
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
def test_a_reader_of_a_cache_that_was_replaced_says_so(copy, codec):
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


def test_damage_is_told_of_where_only_the_weights_were_replaced(copy):
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


CONVERTED = {"from": "uint8", "kl": {"max": 0.0}}


def test_a_newer_format_is_refused_even_if_its_checksum_is_made_differently(copy):
    text = (copy / "manifest.json").read_text().replace('"format_version": 3', '"format_version": 6')
    (copy / "manifest.json").write_text(text)
    with pytest.raises(CacheMismatch, match="format_version 6, but this ensdistill reads up to 5; upgrade"):
        TargetCache.open(copy)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda m: m["shards"][0].update(file="../shard-00000.safetensors"),
            r"shards\[0\]: expected .*got .*\.\./shard",
        ),
        (lambda m: m["shards"][0].update(file="/etc/passwd"), r"shards\[0\]"),
        (lambda m: m["shards"][1].update(rows=10**15), r"shards\[1\]"),
        (lambda m: m["shards"].pop(), "shards: expected 4 shards"),
        (lambda m: m.update(rows=10**18), "shards: expected 15625000000000000 shards"),
        (lambda m: m.update(rows=-1), "rows: expected a positive integer; got -1"),
        (lambda m: m.update(shard_rows=10**18), "shards: expected 1 shards"),
        (lambda m: m.update(shard_rows=True), "shard_rows: expected a positive integer; got True"),
        (lambda m: m.update(codec="pickle"), "codec: expected one of"),
        (lambda m: m.update(codec=["uint8"]), "codec: expected one of"),
        (lambda m: m.update(codec="fp32"), "record: expected the layout of its codec"),
        (
            lambda m: m.update(codec="topk-3"),
            "temperature: expected a number, because topk-3 holds a mixture",
        ),
        (
            lambda m: m.update(codec="topk-30", temperature=1.0),
            "codec: topk-30 needs at least 30 classes; got 10",
        ),
        (lambda m: m.update(temperature=0), "temperature: expected 'any' or a number above 0; got 0"),
        (lambda m: m.update(views=2), "shards: expected 8 shards"),
        (lambda m: m.update(views=10**18), "shards: expected 4000000000000000000 shards"),
        (lambda m: m.update(sequences=True), r"shards\[0\]: expected .*'bytes'"),
        (lambda m: m.update(block_bytes=1), "block_bytes: expected 65536; got 1"),
        (lambda m: m["shards"][2].pop("blocks"), r"shards\[2\]: expected"),
        (lambda m: m.update(members=["a"] * 10**6), "weights: expected 1000000 numbers"),
        (
            lambda m: m.update(weights=[0, 0, 0]),
            "weights: expected a list of non-negative numbers with a positive sum",
        ),
        (lambda m: m["record"].update(bytes=10**18), r"shards\[0\]: expected"),
        (lambda m: m.update(combiner="vote"), "combiner: expected one of"),
        (lambda m: m.update(statistics={}), "statistics: expected"),
        (lambda m: m.update(floor=-1.0), "floor: expected null or a number above 0; got -1.0"),
        (lambda m: m.pop("floor"), "floor: expected null or a number above 0; the field is missing"),
        (
            lambda m: (m.update(floor=None), m["statistics"]["members"]["a"].update(floored=3)),
            "floor: expected a number, because",
        ),
        (lambda m: m["statistics"]["members"]["a"].update(floored=-3), "statistics: expected"),
        (lambda m: m["statistics"]["members"]["a"].update(floored="3"), "statistics: expected"),
        (lambda m: m["fingerprint"].update(derived=5), "fingerprint: expected an object, whose derived"),
        (lambda m: m["fingerprint"].update(derived=[5]), "fingerprint: expected an object, whose derived"),
        (
            lambda m: m["fingerprint"].update(derived=[{"add": 5}]),
            "fingerprint: expected an object, whose derived",
        ),
        (
            lambda m: m["fingerprint"].update(derived=[{"convert": {"from": "uint8"}}]),
            "fingerprint: expected an object, whose derived",
        ),
        (
            lambda m: m["fingerprint"].update(derived=[{"convert": CONVERTED | {"from": 5}}]),
            "fingerprint: expected an object, whose derived",
        ),
        (
            lambda m: m["fingerprint"].update(derived=[{"convert": CONVERTED | {"floor": "1"}}]),
            "fingerprint: expected an object, whose",
        ),
        (lambda m: m["statistics"]["members"]["a"].update(bins=[[0]]), "statistics: expected"),
        (lambda m: m.update(format="other"), "format: expected 'ensdistill-target-cache'; got 'other'"),
        (lambda m: m.update(colour="red"), r"unknown fields \['colour'\]"),
        (lambda m: m.pop("classes"), "classes: expected a list of names; the field is missing"),
    ],
)
def test_a_malformed_manifest_with_a_right_checksum(copy, change, message):
    rewrite(copy, change)
    with pytest.raises(CacheCorrupt, match=message):
        TargetCache.open(copy)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"null",
        b"[]",
        b"{",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"rows": ' + b"9" * 10_000 + b"}",
        b'{"rows": NaN}',
    ],
)
def test_not_a_manifest_at_all(copy, text):
    (copy / "manifest.json").write_bytes(text)
    with pytest.raises(CacheCorrupt, match="manifest"):
        TargetCache.open(copy)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_any_json_in_any_field_is_refused_or_harmless(original, tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("fuzzed")
    for file in original.glob("shard-*"):
        os.link(file, folder / file.name)
    shutil.copy(original / "manifest.json", folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    field = data.draw(st.sampled_from(sorted(manifest.keys() - {"checksum"})))
    value = data.draw(JSON)
    assume(json.dumps(value) != json.dumps(manifest[field]))
    rewrite(folder, lambda m: m.update({field: value}))
    try:
        TargetCache.open(folder, check="full")
    except CacheError:
        pass
    else:  # what it takes is data about the targets, never their sizes or places
        assert field in (
            "fingerprint",
            "members",
            "classes",
            "weights",
            "combiner",
            "statistics",
            "seed",
            "floor",
        )


def test_a_header_that_lies_is_refused_even_with_a_right_hash(copy):
    import xxhash

    shard = copy / "shard-00000.safetensors"
    manifest = TargetCache.open(copy).manifest
    header = shard_header(manifest, 0, 64)
    lie = header.replace(b'"shape":[64', b'"shape":[63')
    data = shard.read_bytes().replace(header, lie)
    shard.write_bytes(data)
    rewrite(copy, lambda m: m["shards"][0].update(hash=xxhash.xxh3_128_hexdigest(data)))
    with pytest.raises(CacheCorrupt, match="the header does not describe the records"):
        TargetCache.open(copy).gather([0])


def test_the_fingerprint_must_be_that_of_the_records(copy):
    rewrite(copy, lambda m: m["fingerprint"]["inputs"].update(hash="0" * 32))
    TargetCache.open(copy).gather([0])
    with pytest.raises(CacheCorrupt, match=r"fingerprint\.inputs"):
        TargetCache.open(copy, check="full")


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


def test_a_full_disk_leaves_what_can_be_resumed(tmp_path):
    teachers, rows = digits()
    cache_targets(teachers, rows, tmp_path / "whole", shard_rows=64)
    folder = tmp_path / "full"

    def fill(done, total):
        # The third shard is written through a link to /dev/full, where the kernel itself answers ENOSPC.
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


def test_what_a_name_stands_for_is_on_the_disk_before_the_name(tmp_path, monkeypatch):
    """A power cut keeps for certain what was fsynced: content before name, shard before commit, all before
    the manifest."""
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
def test_resuming_writes_again_what_has_no_valid_commit(tmp_path, damage, overwrite):
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
