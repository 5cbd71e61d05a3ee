"""Caches of samples with their own uids in use: derived, copied, exported, trained from."""

from functools import partial

import fsspec
import numpy as np
import pytest
import torch
from cache_helpers import contents, digits
from scipy.special import softmax
from uid_helpers import EVERY, OWN, ROWS, SMALL, own_rows
from view_helpers import LENGTHS, N, Seeing, token_teachers

from ensdistill import ArrayMember, Ensemble
from ensdistill.cache import (
    CacheCorrupt,
    CacheIncomplete,
    CacheMismatch,
    TargetCache,
    add_member,
    cache_targets,
    convert,
    drop_member,
    remote,
    reweight,
)
from ensdistill.cache.export import export_parquet
from ensdistill.cli.cache import main as cache_command
from ensdistill.common.optimization import Optimization
from ensdistill.data import Rows
from ensdistill.data.augmentation import ShiftImages
from ensdistill.data.versions import view_inputs
from ensdistill.models import CNN, MLP
from ensdistill.student.trainer import StudentTrainer


@pytest.mark.filterwarnings("ignore::ensdistill.cache.CacheLossWarning")
@pytest.mark.parametrize(("codec", "mixture_at"), EVERY)
def test_converted_caches_keep_the_uids(uid_cache, tmp_path, codec, mixture_at):
    teachers, rows = own_rows()
    small = convert(uid_cache, tmp_path / "small", codec=codec, mixture_at=mixture_at)
    direct = cache_targets(teachers, rows, tmp_path / "direct", codec=codec, mixture_at=mixture_at, **SMALL)
    np.testing.assert_array_equal(small.uids, OWN)
    np.testing.assert_array_equal(small.gather_records(OWN[::-1]), direct.gather_records(OWN[::-1]))
    assert small.verify_against(teachers, rows, share=1.0) == ROWS
    TargetCache.open(small.path, check="full")


def test_derived_caches_keep_the_uids(uid_cache, uid_copy, tmp_path):
    teachers, _ = own_rows()
    shuffle = np.random.default_rng(3).permutation(ROWS)
    new = teachers.logits[0] * 2
    added = add_member(
        uid_cache, tmp_path / "added", name="d", logits=new[shuffle], uids=OWN[shuffle], weight=1
    )
    np.testing.assert_array_equal(added.gather_logits(OWN)[3], new)
    np.testing.assert_array_equal(added.gather_logits(OWN)[:3], teachers.logits)
    fewer = drop_member(added, tmp_path / "fewer", name="b")
    np.testing.assert_array_equal(fewer.gather_logits(OWN)[0], teachers.logits[0])
    again = reweight(uid_copy, {"a": 1, "b": 2, "c": 3})
    np.testing.assert_array_equal(again.gather_logits(OWN), teachers.logits)
    for cache in (added, fewer, again):
        np.testing.assert_array_equal(TargetCache.open(cache.path, check="full").uids, OWN)
    with pytest.raises(
        ValueError,
        match=r"uids: expected each of the cache's \(-9223372036854775808 to 9223372036854775807\) once",
    ):
        add_member(uid_cache, tmp_path / "n", name="d", logits=new, uids=np.arange(ROWS), weight=1)


def test_there_and_back(uid_cache, tmp_path):
    url = f"memory://{tmp_path}"
    remote.upload(uid_cache.path, url)
    cache = TargetCache.open(url, check="full", local=tmp_path / "here")
    assert contents(cache.path) == contents(uid_cache.path)
    np.testing.assert_array_equal(cache.gather_records(OWN), uid_cache.gather_records(OWN))
    (cache.path / "uids.safetensors").unlink()
    np.testing.assert_array_equal(TargetCache.open(url, local=tmp_path / "here").uids, OWN)  # fetched again
    system, path = fsspec.core.url_to_fs(url)
    system.pipe(f"{path}/uids.safetensors", b"\0" * uid_cache.manifest["uids"]["bytes"])
    with pytest.raises(
        CacheCorrupt, match=r"uids\.safetensors: the bytes are not those that the manifest names"
    ):
        remote.download(url, tmp_path / "there")
    remote.upload(uid_cache.path, url)  # mended
    remote.download(url, tmp_path / "there")
    system.rm(f"{path}/uids.safetensors")
    with pytest.raises(CacheIncomplete, match=r"uids\.safetensors: no such file"):
        remote.download(url, tmp_path / "elsewhere")


def test_a_copy_without_uids_replaces_one_with_them(uid_cache, tmp_path):
    plain = cache_targets(*own_rows(np.arange(ROWS)), tmp_path / "plain", codec="fp32", **SMALL)
    url = f"memory://{tmp_path}"
    remote.upload(uid_cache.path, url)
    remote.download(url, tmp_path / "here")
    with pytest.raises(CacheMismatch, match=r"fingerprint\.inputs\.uids"):
        remote.upload(plain.path, url)
    remote.upload(plain.path, url, overwrite=True)
    with pytest.raises(CacheMismatch, match=r"fingerprint\.inputs\.uids"):
        remote.download(url, tmp_path / "here")
    remote.download(url, tmp_path / "here", overwrite=True)
    assert contents(tmp_path / "here") == contents(plain.path)


def test_exported(uid_cache, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    export_parquet(uid_cache, tmp_path / "t.parquet")
    table = parquet.read_table(tmp_path / "t.parquet")
    np.testing.assert_array_equal(table["uid"].to_numpy(), OWN)
    np.testing.assert_array_equal(np.stack(table["logits: b"].to_numpy()), own_rows()[0].logits[1])


def test_the_commands_use_the_uids(uid_cache, tmp_path, capsys):
    assert cache_command(["info", str(uid_cache.path)]) == 0
    assert "the data set's own, in uids.safetensors" in capsys.readouterr().out
    np.save(tmp_path / "n.npy", own_rows()[0].logits[0])
    words = ["--name", "d", "--logits", str(tmp_path / "n.npy"), "--uids", "in-order", "--weight", "1"]
    assert cache_command(["add-member", str(uid_cache.path), str(tmp_path / "more"), *words]) == 0
    np.testing.assert_array_equal(
        TargetCache.open(tmp_path / "more").gather_logits(OWN)[3], own_rows()[0].logits[0]
    )


def test_sequences_have_uids_too(tmp_path):
    teachers, inputs = token_teachers()
    uids, labels = np.random.default_rng(4).permutation(N) * 11 - 40, np.zeros(N, np.int64)
    options = {"lengths": LENGTHS, "codec": "fp32", "shard_rows": 16}
    places = cache_targets(teachers, Rows(inputs, np.arange(N), labels), tmp_path / "p", **options)
    cache = cache_targets(teachers, Rows(inputs, uids, labels), tmp_path / "c", **options)
    order = np.random.default_rng(5).permutation(N)
    np.testing.assert_array_equal(cache.lengths(uids[order]), LENGTHS[order])
    np.testing.assert_array_equal(cache.gather_records(uids[order]), places.gather_records(order))
    added = add_member(
        cache,
        tmp_path / "a",
        name="d",
        logits=cache.gather_logits(uids[order])[0],
        uids=uids[order],
        weight=1,
    )
    np.testing.assert_array_equal(added.gather_logits(uids)[-1], cache.gather_logits(uids)[0])
    TargetCache.open(tmp_path / "a", check="full")


def test_versions_are_keyed_by_uid(tmp_path):
    _, rows = digits(N)
    uids = np.random.default_rng(4).permutation(N) * 11 - 40
    images = Rows((rows.inputs[:, 1:] / 16).reshape(N, 1, 8, 8), uids, rows.labels)
    options = {"codec": "fp32", "views": 2, "augment": ShiftImages(1), "seed": 5, "shard_rows": 32}
    cache = cache_targets(Seeing(), images, tmp_path / "c", **options)
    for view in range(2):
        pixels = view_inputs(ShiftImages(1), images.inputs, uids, view, seed=5)
        np.testing.assert_array_equal(cache.gather_logits(uids, view)[0], Seeing().predict_logits(pixels)[0])
    assert cache.verify_against(Seeing(), images, share=1.0, augment=ShiftImages(1)) == N
    trainer = StudentTrainer(Optimization(steps=8, batch_size=16))
    assert np.isfinite(
        trainer.distill(partial(CNN, channels=[4]), images, cache, augment=ShiftImages(1)).losses
    ).all()


@pytest.mark.filterwarnings("ignore::ensdistill.cache.CacheLossWarning")
@pytest.mark.parametrize(
    ("codec", "mixture_at"), [("uint8", None), ("fp32", None), ("topk-5", 1.0), ("counts-50", 1.0)]
)
def test_a_student_is_the_same_for_any_uids(tmp_path, codec, mixture_at):
    students = []
    trainer = StudentTrainer(Optimization(steps=40, batch_size=32))
    for name, uids in (("places", np.arange(ROWS)), ("own", OWN)):
        teachers, rows = own_rows(uids)
        cache = cache_targets(teachers, rows, tmp_path / name, codec=codec, mixture_at=mixture_at, **SMALL)
        students.append(trainer.distill(partial(MLP, 65, [8], 10), rows, cache))
    assert np.array_equal(students[0].losses, students[1].losses)
    for one, other in zip(*(student.module.state_dict().values() for student in students), strict=True):
        assert torch.equal(one, other)
    with pytest.raises(
        ValueError, match=r"^rows: expected rows with targets in the cache.*such as uid 1000000"
    ):
        trainer.distill(partial(MLP, 65, [8], 10), own_rows(np.arange(ROWS) + 10**6)[1], cache)
    with pytest.raises(CacheMismatch, match="is not what the cache was made from"):
        trainer.distill(partial(MLP, 65, [8], 10), own_rows(np.roll(OWN, 1))[1], cache)
    subset = rows.take(np.random.default_rng(0).permutation(ROWS)[:100])
    assert np.isfinite(trainer.distill(partial(MLP, 65, [8], 10), subset, cache).losses).all()


def test_stored_answers_meet_a_cache_by_uid(tmp_path):
    generator = np.random.default_rng(6)
    z, x = (
        generator.normal(size=(ROWS, 3)).astype(np.float32) * 3,
        generator.normal(size=(ROWS, 4)).astype(np.float32),
    )
    shuffle = generator.permutation(ROWS)
    member = ArrayMember(uids=OWN[shuffle], logits=z[shuffle], name="stored")
    ensemble = Ensemble.from_members([member], classes=["a", "b", "c"])
    labels = np.where(generator.random(ROWS) < 0.3, (z.argmax(1) + 1) % 3, z.argmax(1))
    rows = Rows(x, OWN, labels)
    cache = cache_targets(ensemble, rows, tmp_path / "c", codec="fp32", batch_size=64)
    np.testing.assert_array_equal(cache.gather_logits(OWN)[0], z)
    np.testing.assert_allclose(
        softmax(cache.gather_logits(OWN[:5])[0], 1),
        ensemble.for_uids(OWN[:5]).predict_proba(x[:5]),
        atol=1e-6,
    )
    assert cache.verify_against(ensemble, rows, share=1.0) == ROWS
    by_place = Ensemble.from_members([ArrayMember(logits=z, name="stored")], classes=["a", "b", "c"])
    for ask in (
        lambda: cache_targets(by_place, rows, tmp_path / "n"),
        lambda: cache.verify_against(by_place, rows),
    ):
        with pytest.raises(ValueError, match="by their place, which is also their uid only if"):
            ask()
    # Labels in an order of their own, and fewer than there are samples.
    some = shuffle[:150]
    for fit in ("calibrate", "weigh"):
        known, fresh = (
            Ensemble.from_members([member, ArrayMember(uids=OWN, logits=-z, name="other")]) for _ in range(2)
        )
        both = cache_targets(known, rows, tmp_path / fit, codec="fp32")
        getattr(known, fit)(both, labels[some], uids=OWN[some])
        getattr(fresh, fit)(np.stack([z, -z])[:, some], labels[some])
        np.testing.assert_allclose(known.temperatures, fresh.temperatures, rtol=1e-6)
        np.testing.assert_allclose(known.weights, fresh.weights, rtol=1e-6)
