"""Caches of samples that have their data set's own uids, any int64: written, read, damaged."""

import pickle
import shutil
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from cache_helpers import contents, digits, rewrite
from uid_helpers import EVERY, OWN, ROWS, SMALL, own_rows

from ensdistill.cache import (
    CacheCorrupt,
    CacheError,
    CacheIncomplete,
    CacheMismatch,
    TargetCache,
    cache_targets,
    publishing,
    remote,
)
from ensdistill.cache.uids import entry_of, write_uids
from ensdistill.data import Rows


@pytest.mark.filterwarnings("ignore::ensdistill.cache.CacheLossWarning")
@pytest.mark.parametrize(("codec", "mixture_at"), EVERY)
def test_targets_are_those_of_the_given_uids(tmp_path, codec, mixture_at):
    """The bits of a cache whose uids are the places."""
    options = {"codec": codec, "mixture_at": mixture_at, **SMALL}
    teachers, rows = own_rows()
    places = cache_targets(*own_rows(np.arange(ROWS)), tmp_path / "places", **options)
    cache = cache_targets(teachers, rows, tmp_path / "own", **options)
    asked = np.random.default_rng(1).integers(0, ROWS, 500)  # repeats, any order
    for found in (cache, TargetCache.open(tmp_path / "own", check="full"), pickle.loads(pickle.dumps(cache))):
        np.testing.assert_array_equal(found.uids, OWN)
        np.testing.assert_array_equal(found.gather_records(OWN[asked]), places.gather_records(asked))
        np.testing.assert_array_equal(found.gather_logits(OWN[asked]), places.gather_logits(asked))
    assert torch.equal(
        cache.gather(torch.from_numpy(OWN)).to_logits(), places.gather(np.arange(ROWS)).to_logits()
    )
    for one, other in zip(
        cache.stream(OWN[asked].reshape(10, 50)), places.stream(asked.reshape(10, 50)), strict=True
    ):
        assert torch.equal(one.to_logits(), other.to_logits())
    if codec == "fp32":
        np.testing.assert_array_equal(cache.gather_logits(OWN[asked]), teachers.logits[:, asked])
    cache.verify_inputs(OWN[asked], rows.inputs[asked])
    with pytest.raises(CacheMismatch, match=rf"inputs: uid {OWN[5]} .* 2 of 2 differ"):
        cache.verify_inputs(OWN[[5, 6]], rows.inputs[[6, 5]])
    shuffled = rows.take(np.random.default_rng(2).permutation(ROWS))
    assert cache.verify_against(teachers, shuffled, share=1.0) == ROWS
    wrong = Rows(rows.inputs, np.roll(OWN, 1), rows.labels)
    with pytest.raises(CacheMismatch, match="is not what the cache was made from"):
        cache.verify_against(teachers, wrong, share=1.0)


def test_rows_that_are_uids_are_kept_without_a_table(tmp_path, uid_cache):
    cache = cache_targets(*digits(ROWS), tmp_path / "c", **SMALL)  # a permutation of 0..N-1
    assert "uids" not in cache.manifest
    assert (cache.manifest["format_version"], uid_cache.manifest["format_version"]) == (3, 4)
    assert cache.manifest["fingerprint"]["inputs"].keys() == {"rows", "hash"}
    assert not (tmp_path / "c" / "uids.safetensors").exists()
    np.testing.assert_array_equal(cache.uids, np.arange(ROWS))
    for one in (cache, uid_cache):
        with pytest.raises(ValueError, match="read-only"):
            one.uids[0] = 1


def test_the_table_is_a_safetensors_file(uid_cache):
    from safetensors.numpy import load_file

    np.testing.assert_array_equal(load_file(uid_cache.path / "uids.safetensors")["uids"], OWN)
    assert uid_cache.manifest["uids"]["bytes"] == 4096 + 8 * ROWS


def test_unknown_uids_are_named(uid_cache):
    for uids, error, message in (
        (
            [OWN[0], -2, 1_000_000],
            IndexError,
            r"it has no sample with uid -2 \(2 of 3 uids are not its own\)",
        ),
        (np.arange(ROWS), IndexError, "it has no sample with uid 0 "),
        (
            np.array([2**64 - 100], np.uint64),
            IndexError,
            "expected no more than 9223372036854775807; got 18446744073709551516",
        ),
        ([1.0], TypeError, "uids: expected integers; got float64"),
    ):
        for ask in (
            uid_cache.gather,
            uid_cache.gather_logits,
            uid_cache.lengths,
            lambda u: list(uid_cache.stream([u])),
        ):
            with pytest.raises(error, match=message):
                ask(uids)
    assert uid_cache.gather([]).shape == (3, 0, 10)


def test_other_uids_are_another_cache(uid_copy):
    teachers, rows = own_rows()
    before = contents(uid_copy)
    cache_targets(
        replace(teachers, logits=None), rows, uid_copy, codec="fp32", **SMALL
    )  # opened, without asking anybody
    assert contents(uid_copy) == before
    one_other = OWN.copy()
    one_other[9] = 12345
    for other in (np.roll(OWN, 1), one_other, np.arange(ROWS)):
        with pytest.raises(CacheMismatch, match=r"fingerprint\.inputs\.uids: the cache has '\w+', expected"):
            cache_targets(teachers, Rows(rows.inputs, other, rows.labels), uid_copy, codec="fp32", **SMALL)
    plain = cache_targets(*own_rows(np.arange(ROWS)), uid_copy.with_name("plain"), codec="fp32", **SMALL)
    with pytest.raises(
        CacheMismatch, match=r"fingerprint\.inputs\.uids: the cache has nothing, expected '\w+'"
    ):
        cache_targets(teachers, rows, plain.path, codec="fp32", **SMALL)
    assert contents(uid_copy) == before
    np.testing.assert_array_equal(
        cache_targets(
            teachers, rows, uid_copy.with_name("plain"), codec="fp32", overwrite=True, **SMALL
        ).uids,
        OWN,
    )
    assert contents(uid_copy.with_name("plain")) == before
    cache_targets(*own_rows(np.arange(ROWS)), uid_copy, codec="fp32", overwrite=True, **SMALL)
    assert not (uid_copy / "uids.safetensors").exists()


class Stop(Exception):
    pass


@pytest.mark.parametrize("harm", ["none", "missing", "flipped", "cut"])
def test_an_interrupted_writer_is_resumed(tmp_path, uid_cache, harm):
    teachers, rows = own_rows()
    table = tmp_path / "c" / "uids.safetensors"

    def stop(done, total):
        if done > 130:
            raise Stop

    with pytest.raises(Stop):
        cache_targets(teachers, rows, tmp_path / "c", codec="fp32", progress=stop, **SMALL)
    assert len(list((tmp_path / "c").glob("*.commit.json"))) == 2
    with pytest.raises(CacheIncomplete):
        TargetCache.open(tmp_path / "c")
    with pytest.raises(CacheMismatch, match=r"fingerprint\.inputs\.uids"):
        cache_targets(
            teachers, Rows(rows.inputs, np.roll(OWN, 1), rows.labels), tmp_path / "c", codec="fp32", **SMALL
        )
    content = table.read_bytes()
    if harm == "missing":
        table.unlink()
    elif harm != "none":
        table.write_bytes(content[:-8] if harm == "cut" else content[:-1] + bytes([content[-1] ^ 1]))
    first = []

    def predict(inputs):
        first.append(int(inputs[0, 0]))
        return teachers.logits[:, inputs[:, 0].astype(int)]

    resumed = replace(teachers)
    object.__setattr__(resumed, "predict_logits", predict)
    cache_targets(resumed, rows, tmp_path / "c", codec="fp32", **SMALL)
    assert first[0] == 128  # the two finished shards are not predicted again
    assert contents(tmp_path / "c") == contents(uid_cache.path)


def test_several_writers_keep_one_table(tmp_path, uid_cache, monkeypatch):
    monkeypatch.setattr(publishing, "PATIENCE", 0.0)
    with pytest.raises(CacheIncomplete):
        cache_targets(*own_rows(), tmp_path / "c", codec="fp32", rank=1, world=2, **SMALL)
    cache_targets(*own_rows(), tmp_path / "c", codec="fp32", rank=0, world=2, **SMALL)
    assert contents(tmp_path / "c") == contents(uid_cache.path)


def test_an_invalid_member_leaves_nothing_behind(tmp_path):
    teachers, rows = own_rows()
    with pytest.raises(ValueError, match=rf"member 'b' gave nan for uid {OWN[70]}, class 4"):
        cache_targets(teachers.with_logit(1, 70, 4, np.nan), rows, tmp_path, shard_rows=500)
    assert contents(tmp_path) == {}
    with pytest.raises(CacheError, match=rf"max_kl: .*for 'a', uid {OWN[70]}"):
        cache_targets(
            teachers.with_logit(0, 70, slice(0, 5), -60.0), rows, tmp_path, max_kl=1e-4, shard_rows=500
        )


def test_damage_of_the_table_is_found(uid_copy, uid_cache):
    table = uid_copy / "uids.safetensors"
    sound = table.read_bytes()
    positions = {
        0,
        7,
        8,
        100,
        4095,
        4096,
        len(sound) - 1,
        *np.random.default_rng(0).integers(4096, len(sound), 10).tolist(),
    }
    for position in positions:
        flipped = bytearray(sound)
        flipped[position] ^= 4
        table.write_bytes(flipped)
        cache = TargetCache.open(uid_copy)
        for use in (
            cache.gather,
            cache.gather_records,
            cache.lengths,
            partial(cache.verify_inputs, inputs=np.zeros((2, 65), np.float32)),
        ):
            with pytest.raises(
                CacheCorrupt, match=r"uids\.safetensors: the bytes are not those that were written"
            ):
                use(OWN[:2])
        with pytest.raises(CacheCorrupt, match=r"uids\.safetensors"):
            TargetCache.open(uid_copy, check="full")
        with pytest.raises(CacheCorrupt, match=r"uids\.safetensors"):
            remote.upload(uid_copy, f"memory://{uid_copy}")
    for changed, message in ((sound[:-8], "the file was cut"), (sound + b"\0" * 8, "the file was added to")):
        table.write_bytes(changed)
        with pytest.raises(CacheCorrupt, match=message):
            TargetCache.open(uid_copy)
    table.unlink()
    with pytest.raises(CacheIncomplete, match=r"uids\.safetensors: no such file"):
        TargetCache.open(uid_copy)
    with pytest.raises(CacheIncomplete, match=r"uids\.safetensors"):
        cache_targets(*own_rows(), uid_copy, codec="fp32", **SMALL)
    cache_targets(*own_rows(), uid_copy, codec="fp32", overwrite=True, **SMALL)
    assert contents(uid_copy) == contents(uid_cache.path)


def test_another_caches_table_does_not_pass(uid_copy, tmp_path):
    opened = TargetCache.open(uid_copy)
    other = cache_targets(*own_rows(OWN[::-1].copy()), tmp_path / "other", codec="fp32", **SMALL)
    shutil.copy(other.path / "uids.safetensors", uid_copy)
    with pytest.raises(CacheCorrupt, match="uids"):
        TargetCache.open(uid_copy).gather(OWN[:2])
    for file in other.path.iterdir():
        shutil.copy(file, uid_copy)
    with pytest.raises(CacheMismatch, match="replaced by another since it was opened"):
        opened.gather(OWN[:2])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(format_version=3), r"unknown fields \['uids'\]"),
        (lambda m: m.pop("uids"), "uids: expected an object; the field is missing"),
        (lambda m: m.update(uids=[]), r"uids: expected an object; got \[\]"),
        (lambda m: m["uids"].update(file="../uids.safetensors"), "uids: expected .* and a hash"),
        (lambda m: m["uids"].update(bytes=[]), "uids: expected .* and a hash"),
        (lambda m: m["uids"].update(hash=3), "uids: expected .* and a hash"),
        (lambda m: m["uids"].pop("hash"), "uids: expected .* and a hash"),
        (lambda m: m["uids"].update(more=1), "uids: expected .* and a hash"),
        (
            lambda m: (m.update(format_version=3), m.pop("uids")),
            "header does not describe",
        ),  # nor does it become one of rows
        (lambda m: m["fingerprint"]["inputs"].update(uids="0" * 32), "fingerprint.inputs"),
    ],
)
def test_a_manifest_that_was_changed_is_refused(uid_copy, change, message):
    rewrite(uid_copy, change)
    with pytest.raises(CacheCorrupt, match=message):
        TargetCache.open(uid_copy, check="full").gather([0])


def test_a_uid_that_stands_twice_is_refused(uid_copy):
    twice = OWN.copy()
    twice[5] = twice[6]
    rewrite(uid_copy, lambda manifest: manifest.update(uids=entry_of(twice)))
    write_uids(uid_copy, entry_of(twice), twice)
    with pytest.raises(CacheCorrupt, match=f"{OWN[6]} stands there more than once"):
        TargetCache.open(uid_copy).gather(OWN[:2])
