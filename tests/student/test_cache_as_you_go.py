"""A cache that a training fills: the bytes of one that was made before, and the same student, killed or not."""

import errno
import os
from functools import partial

import numpy as np
import pytest
import torch
from cache_helpers import contents
from torch import nn
from view_helpers import Seeing

from ensdistill import Ensemble, Optimization, Rows, StudentTrainer, TargetCache, cache_targets
from ensdistill.cache import CacheIncomplete, CacheMismatch
from ensdistill.data.augmentation import ShiftImages
from ensdistill.models import MLP
from ensdistill.student import CacheAsYouGo

N = 600
SHARDS = {"shard_rows": 128, "batch_size": 100}
QUICK = Optimization(steps=160, batch_size=5, learning_rate=0.01)  # 120 steps an epoch
X = np.random.default_rng(0).normal(size=(N, 16)).astype(np.float32)
ROWS = Rows(X, np.arange(N)[::-1] * 7, np.full(N, -100))
STUDENT = partial(MLP, 16, [8], 5)
# Small integers: a linear teacher's sums are exact in any order and any batch.
PIXELS = np.random.default_rng(1).integers(0, 3, (N, 1, 8, 8)).astype(np.float32)
IMAGES = Rows(PIXELS, np.random.default_rng(2).permutation(N), np.full(N, -100))
PLAIN = lambda: nn.Sequential(nn.Flatten(), nn.Dropout(0.2), nn.Linear(64, 10))  # noqa: E731


class Lazy(torch.utils.data.Dataset):
    def __init__(self, array, changing=False):
        self.array, self.changing, self.reads = array, changing, 0

    def __len__(self):
        return len(self.array)

    def __getitem__(self, i):
        self.reads += self.changing
        return self.array[i] + self.reads // (N + 200)


class Counting(Seeing):
    """A teacher that counts the samples that it is asked about."""

    def __init__(self, limit=None):
        self.asked, self.limit = 0, limit

    def predict_logits(self, inputs):
        self.asked += len(inputs)
        assert self.limit is None or self.asked <= self.limit
        return super().predict_logits(inputs)


def networks(seed=0):
    torch.manual_seed(seed)
    return Ensemble.from_members([MLP(16, [32], 5) for _ in range(3)])


def state(trained):
    return torch.cat([p.flatten() for p in trained.module.state_dict().values()])


class Stop(Exception):
    pass


def stop(after, done, total):
    if done >= after:
        raise Stop


UINT8, VIEWS = {}, {"views": 2, "augment": ShiftImages(1), "seed": 5}


@pytest.mark.parametrize(
    ("options", "lazy"),
    [
        pytest.param(UINT8, False, id="uint8"),
        pytest.param(UINT8, True, id="uint8, lazy"),
        pytest.param({"codec": "fp32"}, False, id="fp32"),
        pytest.param({"codec": "counts-8", "mixture_at": 2.0, "seed": 3}, False, id="counts"),
        pytest.param(VIEWS, False, id="views"),
        pytest.param(VIEWS, True, id="views, lazy"),
    ],
)
def test_the_cache_and_the_student_are_those_of_two_steps(tmp_path, options, lazy):
    rows = Rows(Lazy(PIXELS), IMAGES.uids, IMAGES.labels) if lazy else IMAGES
    steps = Optimization(steps=64 * options.get("views", 1), batch_size=10)
    trainer = StudentTrainer(steps, temperature=2.0)
    before = cache_targets(Seeing(), rows, tmp_path / "before", **SHARDS, **options)
    expected = trainer.distill(PLAIN, rows, before, augment=options.get("augment"), workers=0)
    teachers = Counting(limit=N * options.get("views", 1) + 1 + 10 * 32)
    source = CacheAsYouGo(teachers, tmp_path / "filled", **SHARDS, **options)
    found = trainer.distill(PLAIN, rows, source, workers=0)
    assert torch.equal(state(found), state(expected))
    np.testing.assert_array_equal(found.losses, expected.losses)
    assert contents(tmp_path / "filled") == contents(tmp_path / "before")
    teachers.limit = 0  # the finished cache is read
    again = trainer.distill(PLAIN, rows, source, workers=0)
    assert torch.equal(state(again), state(expected))


def test_a_training_that_is_killed_goes_on_with_the_same_bits(tmp_path):
    """In the first epoch, and after it; networks round differently in other batches."""
    trainer, train = StudentTrainer(QUICK), {}
    for name in ("whole", "killed"):
        source = CacheAsYouGo(networks(), tmp_path / name, **SHARDS)
        train[name] = partial(
            trainer.distill, STUDENT, ROWS, source, checkpoint=tmp_path / f"{name}.c", checkpoint_every=32
        )
    whole = train["whole"]()
    for after in (32, 64, 128):
        with pytest.raises(Stop):
            train["killed"](progress=partial(stop, after))
        finished = (tmp_path / "killed" / "manifest.json").exists()
        assert finished == (after == 128)
        if not finished:
            with pytest.raises(CacheIncomplete, match="has not finished"):
                TargetCache.open(tmp_path / "killed")
    steps = []
    resumed = train["killed"](progress=lambda done, total: steps.append(done))
    assert steps == [160]
    assert torch.equal(state(resumed), state(whole))
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_rows_that_are_there_are_not_asked_for_again(tmp_path):
    """By a training of another seed, after one that ended before its first epoch did."""
    teachers = Counting()
    source = CacheAsYouGo(teachers, tmp_path / "cache", **SHARDS)
    short = StudentTrainer(Optimization(steps=30, batch_size=10))
    short.distill(PLAIN, IMAGES, source)
    assert teachers.asked == 300
    assert not (tmp_path / "cache" / "manifest.json").exists()
    short.distill(PLAIN, IMAGES, source)  # the same 300 rows
    assert teachers.asked == 300
    StudentTrainer(QUICK).distill(PLAIN, IMAGES, source, seed=1)
    cache_targets(Seeing(), IMAGES, tmp_path / "before", **SHARDS)
    assert contents(tmp_path / "cache") == contents(tmp_path / "before")


def test_a_row_that_was_half_written_is_asked_for_again(tmp_path):
    short = StudentTrainer(Optimization(steps=30, batch_size=10))
    for name in ("damaged", "sound"):
        source = CacheAsYouGo(networks(), tmp_path / name, **SHARDS)
        short.distill(STUDENT, ROWS, source)
        marks = np.memmap(tmp_path / name / "draft.marks", "<u8", "r+", shape=(N, 2))
        assert (marks[:, 1] != 0).sum() == 300
        if name == "damaged":
            there = np.flatnonzero(marks[:, 1])[[3, 50, 77]]
            logits = np.memmap(tmp_path / name / "draft.logits", "<f4", "r+", shape=(N, 3, 5))
            logits[there[:2], 1, 2] += 1e-3
            marks[there[2]] = 0
        short.distill(STUDENT, ROWS, source)
        StudentTrainer(QUICK).distill(STUDENT, ROWS, source, seed=1)
    assert contents(tmp_path / "damaged") == contents(tmp_path / "sound")


def test_rows_of_another_plan_are_not_taken_for_its_own(tmp_path):
    short = StudentTrainer(Optimization(steps=30, batch_size=10))
    short.distill(STUDENT, ROWS, CacheAsYouGo(networks(1), tmp_path / "cache", **SHARDS))
    other = CacheAsYouGo(networks(2), tmp_path / "cache", **SHARDS)
    with pytest.raises(CacheMismatch, match="the folder holds a cache of something else"):
        short.distill(STUDENT, ROWS, other)
    (tmp_path / "cache" / "plan.json").unlink()  # without it, the rows could be anyone's
    StudentTrainer(QUICK).distill(STUDENT, ROWS, other)
    StudentTrainer(QUICK).distill(STUDENT, ROWS, CacheAsYouGo(networks(2), tmp_path / "new", **SHARDS))
    assert contents(tmp_path / "cache") == contents(tmp_path / "new")
    anew = CacheAsYouGo(networks(1), tmp_path / "cache", overwrite=True, **SHARDS)
    StudentTrainer(QUICK).distill(STUDENT, ROWS, anew)
    StudentTrainer(QUICK).distill(STUDENT, ROWS, CacheAsYouGo(networks(1), tmp_path / "one", **SHARDS))
    assert contents(tmp_path / "cache") == contents(tmp_path / "one")


def test_a_cache_that_another_process_finishes_is_read(tmp_path):
    teachers = Counting(limit=64 * 5)  # of this block and the next
    source = CacheAsYouGo(teachers, tmp_path / "cache", **SHARDS)

    def finish(done, total):
        if done == 32:
            cache_targets(Seeing(), IMAGES, tmp_path / "cache", **SHARDS)

    trained = StudentTrainer(QUICK).distill(PLAIN, IMAGES, source, progress=finish)
    before = cache_targets(Seeing(), IMAGES, tmp_path / "before", **SHARDS)
    assert torch.equal(state(trained), state(StudentTrainer(QUICK).distill(PLAIN, IMAGES, before)))


def test_bad_arguments_are_refused_before_any_work(tmp_path):
    cache_targets(Seeing(), IMAGES, tmp_path / "other", codec="fp16")
    teachers = Counting(limit=0)
    distill = StudentTrainer(QUICK, temperature=12.0).distill
    with pytest.raises(CacheMismatch, match="codec: the cache has 'fp16', expected 'uint8'"):
        distill(PLAIN, IMAGES, CacheAsYouGo(teachers, tmp_path / "other"))
    with pytest.raises(ValueError, match=r"temperature: 12\.0, but the cache .*/new holds .* up to 10 only"):
        distill(PLAIN, IMAGES, CacheAsYouGo(teachers, tmp_path / "new"))
    with pytest.raises(ValueError, match=r"temperature: 12\.0, but the cache .*/new2 holds the mixture at 2"):
        distill(PLAIN, IMAGES, CacheAsYouGo(teachers, tmp_path / "new2", codec="topk-3", mixture_at=2.0))
    with pytest.raises(ValueError, match="augment: expected an augmentation, because 2 views"):
        distill(PLAIN, IMAGES, CacheAsYouGo(teachers, tmp_path / "new3", views=2))
    with pytest.raises(ValueError, match=r"pass it to CacheAsYouGo\(augment=\.\.\.\), and none to distill"):
        distill(PLAIN, IMAGES, CacheAsYouGo(teachers, tmp_path / "new3"), augment=ShiftImages(1))
    with pytest.raises(ValueError, match="views: expected a positive integer; got 0"):
        CacheAsYouGo(teachers, tmp_path / "new3", views=0)
    with pytest.raises(ValueError, match="path: expected one on this machine; got s3://bucket"):
        CacheAsYouGo(teachers, "s3://bucket/cache")


def test_a_full_disk_is_an_error_before_any_work(tmp_path, monkeypatch):
    def full(descriptor, start, size):
        raise OSError(errno.ENOSPC, "No space left on device")

    source = CacheAsYouGo(Counting(limit=0), tmp_path / "cache", shard_rows=128)
    with monkeypatch.context() as patched:
        patched.setattr(os, "posix_fallocate", full)
        with pytest.raises(
            OSError, match=rf"draft\.logits: no room for its {4 * 10 * N} bytes .*: free some"
        ):
            StudentTrainer(QUICK).distill(PLAIN, IMAGES, source)
    source.ensemble.limit = None
    StudentTrainer(QUICK).distill(PLAIN, IMAGES, source)
    assert len(TargetCache.open(tmp_path / "cache")) == N


def test_samples_that_change_between_reads_are_refused(tmp_path):
    changing = Rows(Lazy(PIXELS, changing=True), IMAGES.uids, IMAGES.labels)
    source = CacheAsYouGo(Seeing(), tmp_path / "cache", shard_rows=128)
    with pytest.raises(CacheMismatch, match=r"^inputs: uid \d+ .* is not what|^inputs: uid \d+ is not what"):
        StudentTrainer(QUICK).distill(PLAIN, changing, source, workers=0)
