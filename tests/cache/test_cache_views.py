"""Several versions of a sample, sequences, several writers, and the next batch ahead of time."""

import threading
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from cache_helpers import Teachers, contents, digits
from view_helpers import LENGTHS, N, Seeing, token_teachers

from ensdistill.cache import (
    CacheCorrupt,
    CacheIncomplete,
    CacheLocked,
    CacheMismatch,
    TargetCache,
    cache_targets,
    publishing,
    streaming,
)
from ensdistill.cache.files.locks import writing
from ensdistill.common.optimization import Optimization
from ensdistill.common.random import BatchOrder
from ensdistill.data import Rows
from ensdistill.data.augmentation import ShiftImages
from ensdistill.data.versions import view_inputs
from ensdistill.functional import distillation_loss
from ensdistill.models import CNN
from ensdistill.student.blocks import OneAhead, draw_block
from ensdistill.student.inputs import Preparation, StepReader
from ensdistill.student.sources import targets_for
from ensdistill.student.trainer import StudentTrainer

STUDENT = partial(CNN, channels=[4])


@pytest.fixture(scope="module")
def images():
    _, rows = digits(N)
    return Rows((rows.inputs[:, 1:] / 16).reshape(N, 1, 8, 8), rows.uids, rows.labels)


def views_cache(images, folder, **options):
    return cache_targets(
        Seeing(),
        images,
        folder,
        codec="fp32",
        views=3,
        augment=ShiftImages(1),
        seed=5,
        shard_rows=32,
        **options,
    )


def test_teacher_and_student_see_the_same_pixels(images, tmp_path):
    cache = views_cache(images, tmp_path / "a")
    shuffled = images.take(np.random.default_rng(1).permutation(N))
    views_cache(shuffled, tmp_path / "b", batch_size=7)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")  # for any order and any batches
    assert cache.views == 3
    targets = []
    for view in range(3):
        pixels = view_inputs(ShiftImages(1), images.inputs, images.uids, view, seed=5)
        targets.append(cache.gather_logits(images.uids, view))
        np.testing.assert_array_equal(targets[-1][0], Seeing().predict_logits(pixels)[0])
        cache.verify_inputs(images.uids, pixels, view)
        with pytest.raises(CacheMismatch, match="is not what the cache was made from"):
            cache.verify_inputs(images.uids, pixels, (view + 1) % 3)
    assert not np.array_equal(targets[0], targets[1])
    mixed = cache.gather_logits(images.uids[:3], np.array([2, 0, 1]))
    for i, view in enumerate((2, 0, 1)):
        np.testing.assert_array_equal(mixed[:, i], targets[view][:, i])
    TargetCache.open(tmp_path / "a", check="full")
    with pytest.raises(IndexError, match="view: expected 0 to 2; got 3"):
        cache.gather([0], view=3)
    with pytest.raises(ValueError, match=r"view: expected one for each of the 1 uids; got \[2\]"):
        cache.gather([0], view=np.array([0, 1]))


def test_another_seed_or_augmentation_is_another_cache(images, tmp_path):
    views_cache(images, tmp_path)
    options = {"codec": "fp32", "views": 3, "shard_rows": 32}
    with pytest.raises(CacheMismatch, match=r"fingerprint\.views\.seed: the cache has 5, expected 6"):
        cache_targets(Seeing(), images, tmp_path, augment=ShiftImages(1), seed=6, **options)
    with pytest.raises(CacheMismatch, match=r"fingerprint\.views\.augment"):
        cache_targets(Seeing(), images, tmp_path, augment=ShiftImages(2), seed=5, **options)
    with pytest.raises(ValueError, match="augment: expected an augmentation, because 2 views"):
        cache_targets(Seeing(), images, tmp_path / "none", views=2)


def test_epoch_e_has_view_e_mod_views(images, tmp_path):
    cache = views_cache(images, tmp_path)
    targets, order = targets_for(cache, images, ShiftImages(1)), BatchOrder(N, 25, seed=0)
    read = StepReader(
        images.inputs, images.uids, Preparation(None, False), ShiftImages(1), 3, targets.versions.seed, 1
    )

    def gather(block):
        return targets.of(images.uids[block.positions.reshape(-1)], block.epochs.reshape(-1), None)

    with OneAhead(gather) as gathered:
        seen = np.zeros((N, 3), int)
        block = draw_block(order, 0, 4, 0, 1)
        for step in range(0, 44, 4):  # 1100 samples: twelve epochs and a bit, batches across their borders
            here, block = block, draw_block(order, step + 4, 4, 0, 1)
            logits = gathered.of(here).to_logits()[0]
            gathered.ahead(block)
            steps = zip(here.positions, here.epochs, strict=True)
            pixels = torch.cat([read(positions_and_epochs)[0] for positions_and_epochs in steps])
            expected = torch.from_numpy(Seeing().predict_logits(pixels.numpy())[0])
            assert torch.equal(logits, expected)
            np.add.at(seen, (here.positions.reshape(-1), here.epochs.reshape(-1) % 3), 1)
    assert seen.min() >= 4  # each sample in each version, equally often
    assert seen.max() <= 5
    halves = [draw_block(order, 3, 2, rank, 5) for rank in range(5)]
    whole = draw_block(order, 3, 2, 0, 1)
    assert sorted(np.concatenate([h.positions for h in halves], 1)[1]) == sorted(whole.positions[1])


def test_a_student_trains_from_views_and_refuses_other_versions(images, tmp_path):
    cache = views_cache(images, tmp_path)
    trainer = StudentTrainer(Optimization(steps=40, batch_size=32, learning_rate=0.01))
    trained = trainer.distill(STUDENT, images, cache, augment=ShiftImages(1))
    assert trained.losses[-1] < trained.losses[0]
    for augment, message in (
        (None, "changed by ShiftImages.*pass that, got None"),
        (ShiftImages(2), "augment: the cache has"),
    ):
        with pytest.raises(CacheMismatch, match=message):
            trainer.distill(STUDENT, images, cache, augment=augment)
    with pytest.raises(CacheMismatch, match="is not what the cache was made from"):
        trainer.distill(
            STUDENT, replace(images, inputs=images.inputs[::-1].copy()), cache, augment=ShiftImages(1)
        )
    plain = cache_targets(Seeing(), images, tmp_path / "plain")
    with pytest.raises(CacheMismatch, match="made from inputs as they are"):
        trainer.distill(STUDENT, images, plain, augment=ShiftImages(1))


@pytest.mark.parametrize("codec", ["topk-3", "fp32"])
def test_a_student_refuses_temperatures_members_and_combiners_that_a_cache_lacks(images, tmp_path, codec):
    cache = cache_targets(Seeing(), images, tmp_path / "m", codec=codec, mixture_at=2.0)
    trainer = StudentTrainer(Optimization(steps=5, batch_size=32), temperature=2.0)
    assert np.isfinite(trainer.distill(STUDENT, images, cache).losses).all()
    with pytest.raises(
        ValueError, match=r"temperature: 1\.0, but the cache .* holds the mixture at 2\.0 only"
    ):
        StudentTrainer(Optimization(steps=5)).distill(STUDENT, images, cache)
    with pytest.raises(
        ValueError, match=r"member: 'a' is not in the cache .*: it holds the members' mixture only"
    ):
        trainer.distill(STUDENT, images, cache, member="a")
    other = StudentTrainer(Optimization(steps=5), temperature=2.0, combiner="logit")
    with pytest.raises(
        ValueError, match=r"^combiner: 'logit', but the cache .* holds the mixture by 'prob' only; leave"
    ):
        other.distill(STUDENT, images, cache)


# Sequences
# ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", ["fp32", "uint8", "topk-4", "counts-30"])
def test_sequences_give_every_position_its_target(tmp_path, codec):
    teachers, inputs = token_teachers()
    uids = np.random.default_rng(4).permutation(N)
    mixture = None if codec in ("fp32", "uint8") else 1.0
    rows = Rows(inputs, uids, np.zeros(N, np.int64))
    options = {"codec": codec, "mixture_at": mixture, "lengths": LENGTHS, "shard_rows": 16}
    cache = cache_targets(teachers, rows, tmp_path / "a", batch_size=16, **options)
    asked = np.array([5, 80, 5, 0])
    at = np.argsort(uids)[asked]
    assert cache.lengths(asked).tolist() == LENGTHS[at].tolist()
    target = cache.gather(asked)
    packed = np.concatenate([teachers.logits[:, i, : LENGTHS[i]] for i in at], axis=1)
    assert target.shape[-2] == packed.shape[1] == LENGTHS[at].sum()
    if codec == "fp32":
        np.testing.assert_array_equal(target.to_logits().numpy(), packed)
    student = torch.zeros(packed.shape[1], 12)
    exact = distillation_loss(student, torch.from_numpy(packed), weights=[0.6, 0.4])
    tolerance = {"fp32": 1e-6, "uint8": 1e-2, "topk-4": 0.1, "counts-30": 0.2}[codec]  # as for single samples
    assert distillation_loss(student, target).item() == pytest.approx(exact.item(), abs=tolerance)
    cache.verify_inputs(uids, inputs)
    TargetCache.open(tmp_path / "a", check="full")
    # Of draws too: they follow from uid and position alone.
    other = cache_targets(teachers, rows, tmp_path / "b", batch_size=5, **options)
    np.testing.assert_array_equal(cache.gather_records(np.arange(N)), other.gather_records(np.arange(N)))


def test_lengths_are_checked(tmp_path):
    teachers, inputs = token_teachers()
    rows = Rows(inputs, np.arange(N), np.zeros(N, np.int64))
    for lengths, message in (
        (LENGTHS[:-1], "lengths: expected one integer for each of the 90 rows"),
        (np.zeros(N, int), "lengths: expected 1 to"),
        (
            LENGTHS + 5,
            r"expected \[members, samples, positions, classes\] = \[2, 90, at least 13, 12\]; got \[2, 90, "
            r"8, 12\]",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            cache_targets(teachers, rows, tmp_path / "none", lengths=lengths)


def test_a_flipped_offset_is_found(tmp_path):
    teachers, inputs = token_teachers()
    rows = Rows(inputs, np.arange(N), np.zeros(N, np.int64))
    cache = cache_targets(teachers, rows, tmp_path, lengths=LENGTHS, shard_rows=16)
    shard = tmp_path / "shard-00001.safetensors"
    data = bytearray(shard.read_bytes())
    data[4096 + cache.manifest["shards"][1]["records"] * cache.layout.bytes + 8] ^= 1
    shard.write_bytes(data)
    cache = TargetCache.open(tmp_path)
    cache.gather([0])
    with pytest.raises(CacheCorrupt, match="shard-00001"):
        cache.lengths([16])


# Several writers, and ahead of time
# -----------------------------------------------------------------------------------


def test_several_writers_give_the_same_bytes_and_each_its_share(tmp_path):
    teachers, rows = digits()
    cache_targets(teachers, rows, tmp_path / "one", shard_rows=32)
    asked, results = {}, {}

    def write(rank):
        class Counting(Teachers):
            def predict_logits(self, inputs):
                asked[rank] = asked.get(rank, 0) + len(inputs)
                return super().predict_logits(inputs)

        results[rank] = cache_targets(
            Counting(teachers.logits), rows, tmp_path / "three", shard_rows=32, rank=rank, world=3
        )

    writers = [threading.Thread(target=write, args=(rank,)) for rank in range(3)]
    for thread in writers:
        thread.start()
    for thread in writers:
        thread.join()
    assert contents(tmp_path / "one") == contents(tmp_path / "three")
    assert asked == {
        0: 3 * 32,
        1: 2 * 32 + 6,
        2: 2 * 32,
    }  # shards 0 3 6, 1 4 7 and 2 5; the last of all has 6 rows
    assert [len(cache) for cache in results.values()] == [230] * 3


def test_writers_that_would_meet_are_refused(tmp_path):
    teachers, rows = digits()
    with writing(tmp_path, 0, 2):
        for rank, world, writer in ((0, 2, "0 of 2"), (0, 1, "0 of 2"), (1, 3, "0 of 2")):
            with pytest.raises(
                CacheLocked, match=rf"is being written by another process \(writer {writer}\)"
            ):
                cache_targets(teachers, rows, tmp_path, rank=rank, world=world)
        with writing(tmp_path, 1, 2) as partner:
            assert partner.others_alive() == [".writer-0-of-2.lock"]
    assert len(cache_targets(teachers, rows, tmp_path)) == 230


def test_a_writer_whose_partner_never_comes_raises(tmp_path, monkeypatch):
    monkeypatch.setattr(publishing, "PATIENCE", 0.2)
    teachers, rows = digits()
    with pytest.raises(
        CacheIncomplete,
        match="4 shards of rank 1 of 2 are missing, and no process that writes them is running",
    ):
        cache_targets(teachers, rows, tmp_path, shard_rows=32, rank=0, world=2)
    with pytest.raises(ValueError, match="rank: expected 0 to 1, one of the 2 writers; got 2"):
        cache_targets(teachers, rows, tmp_path, rank=2, world=2)
    assert (
        len(cache_targets(teachers, rows, tmp_path, shard_rows=32)) == 230
    )  # one writer finishes the cache that two began


def test_stream_gathers_ahead_and_in_order(tmp_path, monkeypatch):
    teachers, rows = digits()
    cache = cache_targets(teachers, rows, tmp_path, codec="fp32", shard_rows=32)
    batches = [np.random.default_rng(i).integers(0, 230, 20 + i) for i in range(7)]
    taken = []
    monkeypatch.setattr(streaming, "_BATCHES", 3)
    targets = cache.stream(taken.append(b) or b.copy() for b in batches)
    for i, target in enumerate(targets):
        np.testing.assert_array_equal(target.to_logits().numpy(), cache.gather_logits(batches[i]))
        assert len(taken) == (6 if i < 3 else 7)  # a group ahead
    assert i == 6
    monkeypatch.setattr(streaming, "_BYTES", 21 * cache.layout.bytes)
    taken.clear()
    next(cache.stream(taken.append(b) or b for b in batches))
    assert len(taken) == 3  # the first two are as large as a group may be, and so is the third
    with pytest.raises(IndexError, match="uids: expected 0 to 229; got 300"):
        list(cache.stream([np.array([300])]))
    assert list(cache.stream([])) == []


def test_stream_of_views_and_of_one_array_that_the_caller_fills_again(images, tmp_path):
    cache = views_cache(images, tmp_path)
    uids = np.empty(20, np.int64)
    views = [0, 2, 1, np.arange(20) % 3]

    def batches():
        for i, view in enumerate(views):
            uids[:] = np.arange(20) + i
            yield uids, view

    for i, (target, view) in enumerate(zip(cache.stream(batches()), views, strict=True)):
        np.testing.assert_array_equal(
            target.to_logits().numpy(), cache.gather_logits(np.arange(20) + i, view)
        )
