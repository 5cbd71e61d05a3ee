"""Caches of samples that have their data set's own uids: any int64, kept beside the rows and asked by
everywhere."""

import json
import pickle
import shutil
from dataclasses import replace
from functools import partial

import fsspec
import numpy as np
import pytest
import torch
from cache_helpers import contents, digits
from scipy.special import softmax
from test_cache_views import LENGTHS, N, Seeing, token_teachers

from ensdistill import ArrayMember, Ensemble
from ensdistill.cache import (
    CacheCorrupt,
    CacheError,
    CacheIncomplete,
    CacheMismatch,
    TargetCache,
    add_member,
    cache_targets,
    convert,
    drop_member,
    publishing,
    remote,
    reweight,
)
from ensdistill.cache.export import export_parquet
from ensdistill.cache.files.checked import write_checked
from ensdistill.cache.uids import entry_of, write_uids
from ensdistill.cli.cache import main as cache_command
from ensdistill.common.optimization import Optimization
from ensdistill.data import Rows
from ensdistill.data.augmentation import ShiftImages
from ensdistill.data.versions import view_inputs
from ensdistill.models import CNN, MLP
from ensdistill.student.trainer import StudentTrainer

ROWS = 230
# Shuffled, with gaps, negative ones, and both ends of int64.
OWN = np.random.default_rng(7).permutation(np.arange(-100, 3 * ROWS - 100, 3))
OWN[[3, 77]] = np.iinfo(np.int64).min, np.iinfo(np.int64).max
EVERY = [
    ("uint8", None),
    ("fp16", None),
    ("bf16", None),
    ("fp32", None),
    ("uint8", 2.0),
    ("topk-9", 2.0),
    ("counts-200", 1.0),
]
SMALL = {"shard_rows": 64, "batch_size": 50}


def own_rows(uids=OWN):
    """Teachers who look a sample up by its place, and the samples with these uids."""
    teachers, rows = digits(ROWS)
    return teachers, Rows(rows.inputs, uids, rows.labels)


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return cache_targets(*own_rows(), tmp_path_factory.mktemp("own") / "cache", codec="fp32", **SMALL)


@pytest.fixture
def copy(original, tmp_path):
    shutil.copytree(original.path, tmp_path / "copy")
    return tmp_path / "copy"


@pytest.mark.filterwarnings("ignore::ensdistill.cache.CacheLossWarning")
@pytest.mark.parametrize(("codec", "mixture_at"), EVERY)
def test_targets_are_those_of_the_samples_asked_for(tmp_path, codec, mixture_at):
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


def test_rows_that_are_uids_are_kept_without_a_table(tmp_path, original):
    cache = cache_targets(*digits(ROWS), tmp_path / "c", **SMALL)  # a permutation of 0..N-1
    assert "uids" not in cache.manifest
    assert (cache.manifest["format_version"], original.manifest["format_version"]) == (3, 4)
    assert cache.manifest["fingerprint"]["inputs"].keys() == {"rows", "hash"}
    assert not (tmp_path / "c" / "uids.safetensors").exists()
    np.testing.assert_array_equal(cache.uids, np.arange(ROWS))
    for one in (cache, original):
        with pytest.raises(ValueError, match="read-only"):
            one.uids[0] = 1


def test_the_table_is_a_safetensors_file(original):
    from safetensors.numpy import load_file

    np.testing.assert_array_equal(load_file(original.path / "uids.safetensors")["uids"], OWN)
    assert original.manifest["uids"]["bytes"] == 4096 + 8 * ROWS


def test_unknown_uids_are_named(original):
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
            original.gather,
            original.gather_logits,
            original.lengths,
            lambda u: list(original.stream([u])),
        ):
            with pytest.raises(error, match=message):
                ask(uids)
    assert original.gather([]).shape == (3, 0, 10)


def test_other_uids_are_another_cache(copy):
    teachers, rows = own_rows()
    before = contents(copy)
    cache_targets(
        replace(teachers, logits=None), rows, copy, codec="fp32", **SMALL
    )  # opened, without asking anybody
    assert contents(copy) == before
    one_other = OWN.copy()
    one_other[9] = 12345
    for other in (np.roll(OWN, 1), one_other, np.arange(ROWS)):
        with pytest.raises(CacheMismatch, match=r"fingerprint\.inputs\.uids: the cache has '\w+', expected"):
            cache_targets(teachers, Rows(rows.inputs, other, rows.labels), copy, codec="fp32", **SMALL)
    plain = cache_targets(*own_rows(np.arange(ROWS)), copy.with_name("plain"), codec="fp32", **SMALL)
    with pytest.raises(
        CacheMismatch, match=r"fingerprint\.inputs\.uids: the cache has nothing, expected '\w+'"
    ):
        cache_targets(teachers, rows, plain.path, codec="fp32", **SMALL)
    assert contents(copy) == before
    np.testing.assert_array_equal(
        cache_targets(teachers, rows, copy.with_name("plain"), codec="fp32", overwrite=True, **SMALL).uids,
        OWN,
    )
    assert contents(copy.with_name("plain")) == before
    cache_targets(*own_rows(np.arange(ROWS)), copy, codec="fp32", overwrite=True, **SMALL)
    assert not (copy / "uids.safetensors").exists()


class Stop(Exception):
    pass


@pytest.mark.parametrize("harm", ["none", "missing", "flipped", "cut"])
def test_an_interrupted_writer_is_resumed(tmp_path, original, harm):
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
    assert first[0] == 128  # the two finished shards are not asked for again
    assert contents(tmp_path / "c") == contents(original.path)


def test_several_writers_keep_one_table(tmp_path, original, monkeypatch):
    monkeypatch.setattr(publishing, "PATIENCE", 0.0)
    with pytest.raises(CacheIncomplete):
        cache_targets(*own_rows(), tmp_path / "c", codec="fp32", rank=1, world=2, **SMALL)
    cache_targets(*own_rows(), tmp_path / "c", codec="fp32", rank=0, world=2, **SMALL)
    assert contents(tmp_path / "c") == contents(original.path)


def test_an_invalid_member_leaves_nothing_behind(tmp_path):
    teachers, rows = own_rows()
    with pytest.raises(ValueError, match=rf"member 'b' gave nan for uid {OWN[70]}, class 4"):
        cache_targets(teachers.with_logit(1, 70, 4, np.nan), rows, tmp_path, shard_rows=500)
    assert contents(tmp_path) == {}
    with pytest.raises(CacheError, match=rf"max_kl: .*for 'a', uid {OWN[70]}"):
        cache_targets(
            teachers.with_logit(0, 70, slice(0, 5), -60.0), rows, tmp_path, max_kl=1e-4, shard_rows=500
        )


def test_damage_of_the_table_is_found(copy, original):
    table = copy / "uids.safetensors"
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
        cache = TargetCache.open(copy)
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
            TargetCache.open(copy, check="full")
        with pytest.raises(CacheCorrupt, match=r"uids\.safetensors"):
            remote.upload(copy, f"memory://{copy}")
    for changed, message in ((sound[:-8], "the file was cut"), (sound + b"\0" * 8, "the file was added to")):
        table.write_bytes(changed)
        with pytest.raises(CacheCorrupt, match=message):
            TargetCache.open(copy)
    table.unlink()
    with pytest.raises(CacheIncomplete, match=r"uids\.safetensors: no such file"):
        TargetCache.open(copy)
    with pytest.raises(CacheIncomplete, match=r"uids\.safetensors"):
        cache_targets(*own_rows(), copy, codec="fp32", **SMALL)
    cache_targets(*own_rows(), copy, codec="fp32", overwrite=True, **SMALL)
    assert contents(copy) == contents(original.path)


def test_another_caches_table_does_not_pass(copy, tmp_path):
    opened = TargetCache.open(copy)
    other = cache_targets(*own_rows(OWN[::-1].copy()), tmp_path / "other", codec="fp32", **SMALL)
    shutil.copy(other.path / "uids.safetensors", copy)
    with pytest.raises(CacheCorrupt, match="uids"):
        TargetCache.open(copy).gather(OWN[:2])
    for file in other.path.iterdir():
        shutil.copy(file, copy)
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
def test_a_manifest_that_was_changed_is_refused(copy, change, message):
    manifest = json.loads((copy / "manifest.json").read_text())
    del manifest["checksum"]
    change(manifest)
    write_checked(copy / "manifest.json", manifest)
    with pytest.raises(CacheCorrupt, match=message):
        TargetCache.open(copy, check="full").gather([0])


def test_a_uid_that_stands_twice_is_refused(copy):
    twice = OWN.copy()
    twice[5] = twice[6]
    manifest = json.loads((copy / "manifest.json").read_text())
    del manifest["checksum"]
    write_checked(copy / "manifest.json", {**manifest, "uids": entry_of(twice)})
    write_uids(copy, entry_of(twice), twice)
    with pytest.raises(CacheCorrupt, match=f"{OWN[6]} stands there more than once"):
        TargetCache.open(copy).gather(OWN[:2])


# Made from it
# ------------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::ensdistill.cache.CacheLossWarning")
@pytest.mark.parametrize(("codec", "mixture_at"), EVERY)
def test_converted_caches_keep_the_uids(original, tmp_path, codec, mixture_at):
    teachers, rows = own_rows()
    small = convert(original, tmp_path / "small", codec=codec, mixture_at=mixture_at)
    direct = cache_targets(teachers, rows, tmp_path / "direct", codec=codec, mixture_at=mixture_at, **SMALL)
    np.testing.assert_array_equal(small.uids, OWN)
    np.testing.assert_array_equal(small.gather_records(OWN[::-1]), direct.gather_records(OWN[::-1]))
    assert small.verify_against(teachers, rows, share=1.0) == ROWS
    TargetCache.open(small.path, check="full")


def test_derived_caches_keep_the_uids(original, copy, tmp_path):
    teachers, _ = own_rows()
    shuffle = np.random.default_rng(3).permutation(ROWS)
    new = teachers.logits[0] * 2
    added = add_member(
        original, tmp_path / "added", name="d", logits=new[shuffle], uids=OWN[shuffle], weight=1
    )
    np.testing.assert_array_equal(added.gather_logits(OWN)[3], new)
    np.testing.assert_array_equal(added.gather_logits(OWN)[:3], teachers.logits)
    fewer = drop_member(added, tmp_path / "fewer", name="b")
    np.testing.assert_array_equal(fewer.gather_logits(OWN)[0], teachers.logits[0])
    again = reweight(copy, {"a": 1, "b": 2, "c": 3})
    np.testing.assert_array_equal(again.gather_logits(OWN), teachers.logits)
    for cache in (added, fewer, again):
        np.testing.assert_array_equal(TargetCache.open(cache.path, check="full").uids, OWN)
    with pytest.raises(
        ValueError,
        match=r"uids: expected each of the cache's \(-9223372036854775808 to 9223372036854775807\) once",
    ):
        add_member(original, tmp_path / "n", name="d", logits=new, uids=np.arange(ROWS), weight=1)


def test_there_and_back(original, tmp_path):
    url = f"memory://{tmp_path}"
    remote.upload(original.path, url)
    cache = TargetCache.open(url, check="full", local=tmp_path / "here")
    assert contents(cache.path) == contents(original.path)
    np.testing.assert_array_equal(cache.gather_records(OWN), original.gather_records(OWN))
    (cache.path / "uids.safetensors").unlink()
    np.testing.assert_array_equal(TargetCache.open(url, local=tmp_path / "here").uids, OWN)  # fetched again
    system, path = fsspec.core.url_to_fs(url)
    system.pipe(f"{path}/uids.safetensors", b"\0" * original.manifest["uids"]["bytes"])
    with pytest.raises(
        CacheCorrupt, match=r"uids\.safetensors: the bytes are not those that the manifest names"
    ):
        remote.download(url, tmp_path / "there")
    remote.upload(original.path, url)  # mended
    remote.download(url, tmp_path / "there")
    system.rm(f"{path}/uids.safetensors")
    with pytest.raises(CacheIncomplete, match=r"uids\.safetensors: no such file"):
        remote.download(url, tmp_path / "elsewhere")


def test_a_copy_without_uids_replaces_one_with_them(original, tmp_path):
    plain = cache_targets(*own_rows(np.arange(ROWS)), tmp_path / "plain", codec="fp32", **SMALL)
    url = f"memory://{tmp_path}"
    remote.upload(original.path, url)
    remote.download(url, tmp_path / "here")
    with pytest.raises(CacheMismatch, match=r"fingerprint\.inputs\.uids"):
        remote.upload(plain.path, url)
    remote.upload(plain.path, url, overwrite=True)
    with pytest.raises(CacheMismatch, match=r"fingerprint\.inputs\.uids"):
        remote.download(url, tmp_path / "here")
    remote.download(url, tmp_path / "here", overwrite=True)
    assert contents(tmp_path / "here") == contents(plain.path)


def test_exported(original, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    export_parquet(original, tmp_path / "t.parquet")
    table = parquet.read_table(tmp_path / "t.parquet")
    np.testing.assert_array_equal(table["uid"].to_numpy(), OWN)
    np.testing.assert_array_equal(np.stack(table["logits: b"].to_numpy()), own_rows()[0].logits[1])


def test_the_commands_know_the_uids(original, tmp_path, capsys):
    assert cache_command(["info", str(original.path)]) == 0
    assert "the data set's own, in uids.safetensors" in capsys.readouterr().out
    np.save(tmp_path / "n.npy", own_rows()[0].logits[0])
    words = ["--name", "d", "--logits", str(tmp_path / "n.npy"), "--uids", "in-order", "--weight", "1"]
    assert cache_command(["add-member", str(original.path), str(tmp_path / "more"), *words]) == 0
    np.testing.assert_array_equal(
        TargetCache.open(tmp_path / "more").gather_logits(OWN)[3], own_rows()[0].logits[0]
    )


# Asked by whom
# ------------------------------------------------------------------------------------------------------------


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
def test_a_student_does_not_see_by_which_uids_its_samples_are_known(tmp_path, codec, mixture_at):
    students = []
    trainer = StudentTrainer(Optimization(steps=40, batch_size=32))
    for name, uids in (("places", np.arange(ROWS)), ("own", OWN)):
        teachers, rows = own_rows(uids)
        cache = cache_targets(teachers, rows, tmp_path / name, codec=codec, mixture_at=mixture_at, **SMALL)
        students.append(trainer.distill(partial(MLP, 65, [8], 10), rows, cache))
    assert np.array_equal(students[0].losses, students[1].losses)
    for one, other in zip(*(student.module.state_dict().values() for student in students), strict=True):
        assert torch.equal(one, other)
    with pytest.raises(IndexError, match="it has no sample with uid"):
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
