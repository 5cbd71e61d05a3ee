"""Caches made from caches, and reading them from elsewhere."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from cache_helpers import Teachers, contents, digits, in_uid_order
from view_helpers import LENGTHS, N, token_teachers

from ensdistill.cache import (
    CacheError,
    CacheMismatch,
    TargetCache,
    add_member,
    cache_targets,
    convert,
    drop_member,
    remote,
    reweight,
)
from ensdistill.data import Rows

UIDS = np.arange(230)
CODECS = ("uint8", "fp16", "bf16", "fp32")


def two_of(teachers: Teachers) -> Teachers:
    return replace(teachers, logits=teachers.logits[:2], names=("a", "b"), weights=teachers.weights[:2])


def records(cache: TargetCache) -> np.ndarray:
    return cache.gather_records(np.arange(len(cache)))


@pytest.mark.parametrize("codec", CODECS)
def test_an_added_member_is_as_if_it_had_been_there(tmp_path, codec):
    teachers, rows = digits()
    cache_targets(two_of(teachers), rows, tmp_path / "two", codec=codec, shard_rows=64)
    whole = cache_targets(teachers, rows, tmp_path / "three", codec=codec, shard_rows=64)
    new = in_uid_order(teachers, rows)[2]
    added = add_member(tmp_path / "two", tmp_path / "added", name="c", logits=new, uids=UIDS, weight=0.2)
    np.testing.assert_array_equal(records(added), records(whole))
    assert (added.names, added.weights.tolist()) == (whole.names, whole.weights.tolist())
    assert added.manifest["statistics"] == whole.manifest["statistics"]
    assert added.manifest["fingerprint"]["derived"][0]["add"]["name"] == "c"
    # And taken away again, the bytes of the first.
    dropped = drop_member(added, tmp_path / "dropped", name="c")
    np.testing.assert_array_equal(records(dropped), records(TargetCache.open(tmp_path / "two")))
    assert dropped.manifest["statistics"] == TargetCache.open(tmp_path / "two").manifest["statistics"]
    TargetCache.open(tmp_path / "dropped", check="full")


@pytest.mark.parametrize(
    ("codec", "mixture_at"), [("uint8", None), ("bf16", None), ("topk-4", 2.0), ("uint8", 1.0)]
)
def test_converting_an_exact_cache_gives_the_records_of_writing_it(tmp_path, codec, mixture_at):
    teachers, rows = digits()
    exact = cache_targets(teachers, rows, tmp_path / "exact", codec="fp32", shard_rows=64)
    direct = cache_targets(
        teachers, rows, tmp_path / "direct", codec=codec, mixture_at=mixture_at, shard_rows=64
    )
    converted = convert(exact, tmp_path / "converted", codec=codec, mixture_at=mixture_at)
    np.testing.assert_array_equal(records(converted), records(direct))
    assert converted.manifest["statistics"] == direct.manifest["statistics"]
    again = contents(tmp_path / "converted")
    convert(exact, tmp_path / "converted", codec=codec, mixture_at=mixture_at)
    assert contents(tmp_path / "converted") == again
    with pytest.raises(CacheMismatch, match="codec: the cache has"):
        convert(exact, tmp_path / "converted", codec="fp16")
    with pytest.raises(CacheError, match="max_kl: expected at most 0 nats"):
        convert(exact, tmp_path / "other", codec=codec, mixture_at=mixture_at, max_kl=0.0)


def test_sequences_are_converted_and_get_members(tmp_path):
    teachers, inputs = token_teachers()
    rows = Rows(inputs, np.random.default_rng(4).permutation(N), np.zeros(N, np.int64))
    options = {"lengths": LENGTHS, "shard_rows": 16}
    exact = cache_targets(teachers, rows, tmp_path / "exact", codec="fp32", **options)
    direct = cache_targets(teachers, rows, tmp_path / "direct", codec="counts-30", mixture_at=1.0, **options)
    np.testing.assert_array_equal(
        records(convert(exact, tmp_path / "c", codec="counts-30", mixture_at=1.0)), records(direct)
    )
    new = exact.gather_logits(np.arange(N))[0] * 2
    added = add_member(exact, tmp_path / "added", name="c", logits=new, uids=np.arange(N), weight=1)
    np.testing.assert_array_equal(
        added.gather_logits(np.arange(N)), np.concatenate([exact.gather_logits(np.arange(N)), new[None]])
    )


def test_reweighting_replaces_one_file(tmp_path):
    teachers, rows = digits()
    cache_targets(teachers, rows, tmp_path, shard_rows=64)
    before = contents(tmp_path)
    cache = reweight(tmp_path, {"c": 0.0, "a": 3, "b": 1.0})
    assert cache.weights.tolist() == [3.0, 1.0, 0.0]
    assert cache.gather([0]).weights.tolist() == [3.0, 1.0, 0.0]
    after = contents(tmp_path)
    assert {name for name in before if before[name] != after[name]} == {"manifest.json"}
    assert cache.manifest["fingerprint"]["derived"] == [{"reweight": {"a": 3.0, "b": 1.0, "c": 0.0}}]
    TargetCache.open(tmp_path, check="full")


def test_impossible_derivations_are_refused(tmp_path):
    teachers, rows = digits()
    cache = cache_targets(teachers, rows, tmp_path / "m", shard_rows=64)
    mixture = cache_targets(teachers, rows, tmp_path / "x", codec="topk-4", mixture_at=1.0)
    new = np.zeros((230, 10), np.float32)
    only = r"holds the mixture at T = 1 only \(topk-4\), and .* needs each member's logits"
    for call, error, message in (
        (lambda: convert(mixture, tmp_path / "n", codec="fp32"), CacheError, only),
        (
            lambda: add_member(mixture, tmp_path / "n", name="d", logits=new, uids=UIDS, weight=1),
            CacheError,
            only,
        ),
        (lambda: drop_member(mixture, tmp_path / "n", name="a"), CacheError, only),
        (lambda: reweight(tmp_path / "x", {"a": 1, "b": 1, "c": 1}), CacheError, only),
        (
            lambda: convert(cache, tmp_path / "n", codec="topk-4"),
            ValueError,
            "mixture_at: expected a temperature",
        ),
        (
            lambda: add_member(cache, tmp_path / "n", name="a", logits=new, uids=UIDS, weight=1),
            ValueError,
            "name: expected one that is none of a, b, c",
        ),
        (
            lambda: add_member(cache, tmp_path / "n", name="d", logits=new[1:], uids=UIDS, weight=1),
            ValueError,
            r"logits: expected \[230, 10\]",
        ),
        (
            lambda: add_member(
                cache, tmp_path / "n", name="d", logits=new.astype(float), uids=UIDS, weight=1
            ),
            TypeError,
            "logits: expected float32",
        ),
        (
            lambda: add_member(cache, tmp_path / "n", name="d", logits=new * np.nan, uids=UIDS, weight=1),
            ValueError,
            "member 'd' gave nan for uid 0",
        ),
        (
            lambda: add_member(cache, tmp_path / "n2", name="d", logits=new, uids=UIDS, weight=-1),
            ValueError,
            "weight: expected a finite number",
        ),
        (
            lambda: drop_member(cache, tmp_path / "n2", name="d"),
            ValueError,
            "name: expected one of a, b, c; got 'd'",
        ),
        (
            lambda: reweight(tmp_path / "m", {"a": 1, "b": 1}),
            ValueError,
            "weights: expected one for each of a, b, c; got a, b",
        ),
        (
            lambda: reweight(tmp_path / "m", {"a": 0, "b": 0, "c": 0}),
            ValueError,
            "weights: expected a positive sum",
        ),
    ):
        with pytest.raises(error, match=message):
            call()
    assert not (tmp_path / "n2").exists()


def test_max_kl_counts_the_kl_of_the_source(tmp_path):
    teachers, rows = digits()
    source = cache_targets(teachers, rows, tmp_path / "m", codec="uint8", shard_rows=64)
    cost = source.manifest["statistics"]["kl"]["max"]
    for steps in range(2):  # of a finished cache too
        exact = convert(source, tmp_path / "exact", codec="fp32", max_kl=1.01 * cost if steps == 0 else None)
        with pytest.raises(CacheError, match=r"max_kl: expected at most .* nats"):
            convert(source, tmp_path / "exact", codec="fp32", max_kl=0.99 * cost)
    assert exact.manifest["statistics"]["kl"]["max"] == 0
    for call in (
        lambda: convert(source, tmp_path / "n", codec="fp16", max_kl=cost),
        lambda: convert(exact, tmp_path / "n", codec="fp32", max_kl=0.99 * cost),
        lambda: convert(exact, tmp_path / "n", codec="topk-10", mixture_at=1.0, max_kl=0.99 * cost),
        lambda: add_member(
            exact,
            tmp_path / "n",
            name="d",
            logits=in_uid_order(teachers, rows)[0],
            uids=UIDS,
            weight=1,
            max_kl=0.5 * cost,
        ),
    ):
        with pytest.raises(CacheError, match=r"max_kl: .* has \S+ \(\S+ of it from the source\)"):
            call()
        # Nothing was written that would stand in the way of another try.
        drop_member(source, tmp_path / "n", name="a")
        shutil.rmtree(tmp_path / "n")


def test_a_cache_is_never_derived_into_its_own_folder(tmp_path):
    teachers, rows = digits()
    source = cache_targets(teachers, rows, tmp_path / "m", shard_rows=64)
    before = contents(source.path)
    more = {"name": "d", "logits": np.zeros((230, 10), np.float32), "uids": UIDS, "weight": 1}
    (tmp_path / "link").symlink_to("m")
    for path in (tmp_path / "m", str(tmp_path / "x" / ".." / "m"), tmp_path / "link"):
        for overwrite in (False, True):
            for call in (
                lambda: convert(source, path, codec="fp16", overwrite=overwrite),  # noqa: B023
                lambda: drop_member(tmp_path / "m", path, name="a", overwrite=overwrite),  # noqa: B023
                lambda: add_member(source, path, **more, overwrite=overwrite),  # noqa: B023
            ):
                with pytest.raises(ValueError, match="path: expected another folder than the source's"):
                    call()
    assert contents(source.path) == before


def test_urls_are_not_written_to(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    teachers, rows = digits()
    source = cache_targets(teachers, rows, tmp_path / "m", shard_rows=64)
    url = f"memory://{tmp_path}/up"
    for call in (
        lambda: cache_targets(teachers, rows, "s3://bucket/targets"),
        lambda: convert(source, url, codec="fp16"),
        lambda: drop_member(source, url, name="a"),
        lambda: add_member(
            source, url, name="d", logits=np.zeros((230, 10), np.float32), uids=UIDS, weight=1
        ),
        lambda: remote.download("memory://nothing", url),
    ):
        with pytest.raises(
            ValueError,
            match=r"path: expected one on this machine; got .*://.*; write to a local folder, then push it",
        ):
            call()
    assert [file.name for file in tmp_path.iterdir()] == ["m"]
    remote.upload(source.path, url)
    for there in (url, TargetCache.open(url)):
        with pytest.raises(
            ValueError, match=r"path: expected a folder; got memory://.*pull, reweight and push it"
        ):
            reweight(there, {"a": 1, "b": 1, "c": 3})
    assert TargetCache.open(url).weights.tolist() == source.weights.tolist()


def test_against_teachers(tmp_path):
    teachers, rows = digits()
    cache = cache_targets(teachers, rows, tmp_path / "m", shard_rows=64)
    assert cache.verify_against(teachers, rows, share=0.1) == 23
    assert cache.verify_against(teachers, rows, share=1e-9) == 1
    mixture = cache_targets(teachers, rows, tmp_path / "x", codec="topk-4", mixture_at=2.0)
    assert mixture.verify_against(teachers, rows, share=1.0) == 230
    counts = cache_targets(teachers, rows, tmp_path / "y", codec="counts-50", mixture_at=2.0)
    assert counts.verify_against(teachers, rows, share=1.0) == 230
    row = int(np.flatnonzero(rows.uids == 77)[0])
    other = teachers.with_logit(1, row, 3, teachers.logits[1, row].max() + 2.0)
    for wrong in (cache, mixture, counts):
        with pytest.raises(CacheMismatch, match=r"uid 77 .*1 of 230 samples differ"):
            wrong.verify_against(other, rows, share=1.0)
    with pytest.raises(CacheMismatch, match="inputs: uid"):
        cache.verify_against(teachers, replace(rows, inputs=rows.inputs[::-1].copy()), share=1.0)
    with pytest.raises(ValueError, match="share: expected a number above 0, up to 1; got 0"):
        cache.verify_against(teachers, rows, share=0)


@pytest.mark.parametrize(
    "steps",
    [
        [("fp32", None)],
        [("fp16", None)],
        [("bf16", None), ("uint8", None), ("fp32", None)],
        [("uint8", 2.0)],
        [("topk-3", 2.0)],
        [("topk-10", 0.5)],
        [("topk4-9", 2.0)],
        [("draws-50", 1.0)],
        [("fp16", None), ("counts-50", 2.0)],
    ],
)
def test_derived_caches_hold_the_teachers_logits(tmp_path, steps):
    teachers, rows = digits()
    cache = cache_targets(two_of(teachers), rows, tmp_path / "0", shard_rows=64)
    new = in_uid_order(teachers, rows)[2]
    for i, (codec, mixture_at) in enumerate(steps):
        if i == len(steps) - 1:  # its logits have come a shorter way
            cache = add_member(cache, tmp_path / "added", name="c", logits=new, uids=UIDS, weight=0.2)
        cache = convert(cache, tmp_path / str(i + 1), codec=codec, mixture_at=mixture_at)
    assert cache.verify_against(teachers, rows, share=1.0) == 230
    generator = np.random.default_rng(2)
    nearly = teachers.logits * (1 + 3e-6 * generator.standard_normal(teachers.logits.shape)).astype(
        np.float32
    )  # another machine
    assert cache.verify_against(replace(teachers, logits=nearly), rows, share=1.0) == 230
    with pytest.raises(CacheMismatch, match="stored target differs"):
        cache.verify_against(replace(teachers, logits=teachers.logits * 2), rows, share=1.0)


def test_derived_sequences_hold_the_teachers_logits(tmp_path):
    teachers, inputs = token_teachers()
    rows = Rows(inputs, np.random.default_rng(4).permutation(N), np.zeros(N, np.int64))
    cache = cache_targets(teachers, rows, tmp_path / "0", lengths=LENGTHS, shard_rows=16)
    for i, (codec, mixture_at) in enumerate([("fp32", None), ("counts-30", 1.0)]):
        cache = convert(cache, tmp_path / str(i + 1), codec=codec, mixture_at=mixture_at)
        assert cache.verify_against(teachers, rows, share=1.0) == N


@pytest.mark.parametrize(
    "codec",
    ["topk-3", "topk-10", "topk4-10", "topk8-3", "counts-50", "counts-200", "draws-100", "uint8", "bf16"],
)
def test_teachers_that_are_a_little_different_are_found(tmp_path, codec):
    teachers, rows = digits()
    mixture_at = 2.0 if "-" in codec else None
    cache = cache_targets(teachers, rows, tmp_path / "m", codec=codec, mixture_at=mixture_at, shard_rows=64)
    noise = np.random.default_rng(5).standard_normal(teachers.logits.shape).astype(np.float32)
    nearly = teachers.logits * (1 + 3e-6 * noise)  # sums in another order, as on another machine
    assert cache.verify_against(replace(teachers, logits=nearly), rows, share=1.0) == 230
    for other in (teachers.logits * np.float32(1.3), teachers.logits + np.float32(0.3) * noise):
        with pytest.raises(CacheMismatch, match="stored target differs"):
            cache.verify_against(replace(teachers, logits=other), rows, share=1.0)


def test_the_manifest_is_plain_json(tmp_path):
    teachers, rows = digits()
    cache = cache_targets(teachers, rows, tmp_path)
    assert json.loads((tmp_path / "manifest.json").read_text())["members"] == list(cache.names)
