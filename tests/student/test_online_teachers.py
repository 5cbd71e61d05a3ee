"""Teachers that predict during a student's training: the same targets as a cache's, and endless versions."""

import time
from functools import partial
from itertools import combinations

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.ensemble import RandomForestClassifier
from torch import nn
from view_helpers import N, Seeing

from ensdistill import (
    ArrayMember,
    Ensemble,
    Optimization,
    Rows,
    StudentTrainer,
    TargetCache,
    cache_targets,
)
from ensdistill.data.augmentation import ShiftImages
from ensdistill.models import MLP
from ensdistill.student import CacheAsYouGo, OnlineTeachers

QUICK = Optimization(steps=70, batch_size=24, learning_rate=0.01)
X = np.random.default_rng(0).normal(size=(N, 16)).astype(np.float32)
ROWS = Rows(X, np.arange(N)[::-1] * 7, np.where(np.arange(N) % 3 == 0, -100, np.arange(N) % 5))
STUDENT = partial(MLP, 16, [8], 5)
# Small integers: a linear teacher's sums are exact in any order and any batch.
PIXELS = np.random.default_rng(1).integers(0, 8, (N, 1, 8, 8)).astype(np.float32)
IMAGES = Rows(PIXELS, np.arange(N) * 3 + 1, np.arange(N) % 10)


def small_cnn():
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Dropout(0.2), nn.Flatten(), nn.Linear(144, 10))


class Lazy(torch.utils.data.Dataset):
    def __init__(self, array):
        self.array = array

    def __len__(self):
        return len(self.array)

    def __getitem__(self, i):
        return self.array[i]


def networks():
    torch.manual_seed(0)
    return Ensemble.from_members([MLP(16, [8], 5) for _ in range(3)], weights=[0.5, 0.3, 0.2])


def state(trained):
    return torch.cat([p.flatten() for p in trained.module.state_dict().values()])


class Recorder:
    """A loss that keeps the inputs and targets of each step."""

    def __init__(self):
        self.seen = []

    def __call__(self, outputs, targets, labels, batch):
        self.seen.append((batch.uids, batch.inputs.clone(), targets.to_logits().clone()))
        return (outputs - targets.to_logits().mean(0)).square().mean()

    def fingerprint(self):
        return "recorder"


@pytest.mark.parametrize("alpha", [1.0, 0.5])
def test_online_teachers_train_the_student_of_a_cache_in_fp32(tmp_path, alpha):
    trainer = StudentTrainer(QUICK, temperature=2.0, alpha=alpha)
    ensemble = networks()
    cache = cache_targets(ensemble, ROWS, tmp_path / "cache", codec="fp32")
    online = trainer.distill(STUDENT, ROWS, OnlineTeachers(ensemble), seed=3)
    # Matrix products of other batches round differently: 1e-7 of a logit, carried through 70 steps.
    torch.testing.assert_close(
        state(online), state(trainer.distill(STUDENT, ROWS, cache, seed=3)), atol=1e-5, rtol=1e-5
    )
    exact, images = OnlineTeachers(Seeing()), tmp_path / "images"
    cached = trainer.distill(small_cnn, IMAGES, cache_targets(Seeing(), IMAGES, images, codec="fp32"))
    assert torch.equal(state(trainer.distill(small_cnn, IMAGES, exact)), state(cached))


def test_targets_are_those_of_the_samples_as_the_members_take_them():
    """Lazy samples, preprocessed for the student only, in few and in many calls of the members."""
    ensemble, found = networks(), []
    for rows, teachers in (
        (ROWS, OnlineTeachers(ensemble)),
        (Rows(Lazy(X), ROWS.uids, ROWS.labels), OnlineTeachers(ensemble, batch_size=7)),
    ):
        recorder = Recorder()
        trainer = StudentTrainer(QUICK, recorder)
        trainer.distill(STUDENT, rows, teachers, preprocess=Doubled(), workers=0)
        found.append(recorder.seen)
        for uids, inputs, logits in recorder.seen[::10]:
            at = (N - 1) - uids // 7
            np.testing.assert_array_equal(inputs.numpy(), 2 * X[at])
            expected = ensemble.predict_logits(X[at])
            torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)
    assert all(
        torch.equal(a[1], b[1]) and torch.allclose(a[2], b[2], atol=1e-5) for a, b in zip(*found, strict=True)
    )


class Doubled:
    def __call__(self, batch):
        return 2 * np.asarray(batch)

    def fingerprint(self):
        return "doubled"


def test_members_get_frames_and_uids(tmp_path):
    """A forest takes a frame as it is; stored answers are found by uids, of which a block has some twice."""
    frame = pd.DataFrame(X, columns=[f"column {i}" for i in range(16)])
    rows, labels = Rows(frame, ROWS.uids, ROWS.labels), np.arange(N) % 5
    forest = RandomForestClassifier(5, random_state=0).fit(frame, labels)
    stored = np.random.default_rng(3).normal(size=(N, 5)).astype(np.float32)
    ensemble = Ensemble.from_members([forest, ArrayMember(name="stored", logits=stored, uids=rows.uids)])
    train = partial(StudentTrainer(QUICK).distill, STUDENT, rows, preprocess=Numbers())
    cached = train(cache=cache_targets(ensemble, rows, tmp_path / "cache", codec="fp32"))
    assert torch.equal(state(train(cache=OnlineTeachers(ensemble))), state(cached))
    filled = CacheAsYouGo(ensemble, tmp_path / "filled", codec="fp32")
    assert torch.equal(state(train(cache=filled)), state(cached))


class Numbers:
    def __call__(self, frame):
        return frame.to_numpy()

    def fingerprint(self):
        return "numbers"


class Counting(Seeing):
    """A teacher that counts its samples, and refuses to be asked by two threads at once."""

    def __init__(self):
        self.asked, self.busy = 0, False

    def predict_logits(self, inputs):
        assert not self.busy
        self.busy = True
        time.sleep(0.001)
        self.asked += len(inputs)
        self.busy = False
        return super().predict_logits(inputs)


@pytest.mark.parametrize(
    ("lazy", "augment"), [(False, None), (True, None), (False, ShiftImages(1)), (True, ShiftImages(1))]
)
def test_each_sample_of_a_step_is_asked_for_once(lazy, augment):
    rows = Rows(Lazy(PIXELS), IMAGES.uids, IMAGES.labels) if lazy else IMAGES
    teachers = Counting()
    StudentTrainer(QUICK).distill(
        small_cnn, rows, OnlineTeachers(teachers, augment=augment, batch_size=100), workers=0
    )
    assert teachers.asked == 70 * 24


def test_every_epoch_has_versions_of_its_own():
    def train(seed, training_seed=0):
        recorder = Recorder()
        teachers = OnlineTeachers(Seeing(), augment=ShiftImages(2), seed=seed)
        StudentTrainer(QUICK, recorder).distill(small_cnn, IMAGES, teachers, seed=training_seed)
        return recorder.seen

    seen = train(seed=4)
    versions = {}
    for uids, inputs, logits in seen:
        assert torch.equal(logits[0], torch.from_numpy(Seeing().predict_logits(inputs.numpy())[0]))
        for uid, pixels in zip(uids.tolist(), inputs, strict=True):
            versions.setdefault(uid, []).append(pixels.numpy().tobytes())
    # 18 epochs and two thirds of 25 possible shifts, drawn at random: 13 different ones on average.
    different = np.mean([len(set(one)) for one in versions.values()])
    assert 12 < different < 15
    assert {len(one) for one in versions.values()} == {18, 19}
    again, other = train(seed=4), train(seed=5)
    assert all(torch.equal(a[1], b[1]) for a, b in zip(seen, again, strict=True))
    assert not any(torch.equal(a[1], b[1]) for a, b in zip(seen, other, strict=True))
    # Versions belong to a sample and an epoch, whatever the order of the batches.
    first = {u: p for uids, inputs, _ in seen[:3] for u, p in zip(uids.tolist(), inputs, strict=True)}
    shuffled = train(seed=4, training_seed=9)
    for uids, inputs, _ in shuffled[:3]:
        for uid, pixels in zip(uids.tolist(), inputs, strict=True):
            assert uid not in first or torch.equal(first[uid], pixels)


def test_a_cache_of_as_many_versions_as_epochs_trains_the_same_student(tmp_path):
    trainer, shifts = StudentTrainer(QUICK), ShiftImages(1)
    cache = cache_targets(
        Seeing(), IMAGES, tmp_path / "cache", codec="fp32", views=19, augment=shifts, seed=5
    )
    cached = trainer.distill(small_cnn, IMAGES, cache, augment=shifts)
    online = trainer.distill(small_cnn, IMAGES, OnlineTeachers(Seeing(), augment=shifts, seed=5))
    assert torch.equal(state(online), state(cached))
    named = trainer.distill(
        small_cnn, IMAGES, OnlineTeachers(Seeing(), augment=shifts, seed=5), augment=ShiftImages(1)
    )
    assert torch.equal(state(named), state(cached))


class Stop(Exception):
    pass


def stop(done, total):
    if done >= 32:
        raise Stop


@pytest.mark.parametrize("augment", [None, ShiftImages(2)], ids=["plain", "changed"])
def test_a_killed_training_goes_on_with_the_same_bits(tmp_path, augment):
    file, trainer = tmp_path / "c.safetensors", StudentTrainer(QUICK)
    torch.manual_seed(0)
    ensemble = Ensemble.from_members([nn.Sequential(nn.Flatten(), nn.Linear(64, 10)) for _ in range(2)])
    train = partial(
        trainer.distill, small_cnn, IMAGES, OnlineTeachers(ensemble, augment=augment), checkpoint=file
    )
    with pytest.raises(Stop):
        train(checkpoint_every=32, progress=stop)
    steps = []
    resumed = train(progress=lambda done, total: steps.append(done))
    assert steps == [64, 70]
    assert resumed.cost.steps == 38
    assert torch.equal(state(resumed), state(train(checkpoint=None)))


def test_a_checkpoint_belongs_to_its_members_and_versions():
    ensemble = networks()
    sources = (
        OnlineTeachers(ensemble),
        OnlineTeachers(ensemble.only(ensemble.names[0])),
        OnlineTeachers(ensemble, augment=ShiftImages(1)),
        OnlineTeachers(ensemble, augment=ShiftImages(2)),
        OnlineTeachers(ensemble, augment=ShiftImages(2), seed=1),
        OnlineTeachers(ensemble, batch_size=8),
    )
    prints = [source.for_rows(ROWS, None).fingerprint() for source in sources]
    assert all(one != other for one, other in combinations(prints, 2))
    assert prints[0] == OnlineTeachers(networks()).for_rows(ROWS, None).fingerprint()


def test_validation_compares_with_the_teachers(tmp_path):
    """Rows that are held out are predicted online, by a cache as you go as well, which has the others alone."""
    trainer, ensemble = StudentTrainer(QUICK, temperature=2.0), networks()
    cache = cache_targets(ensemble, ROWS, tmp_path / "cache", codec="fp32")
    sources = (
        cache,
        OnlineTeachers(ensemble),
        CacheAsYouGo(ensemble, tmp_path / "filled", codec="fp32"),
    )
    scores = []
    for source in sources:
        trained = trainer.distill(STUDENT, ROWS, source, validation=0.2)
        assert trained.evaluations
        scores.append([one.student.kl for one in trained.evaluations])
    np.testing.assert_allclose(scores[1:], [scores[0]] * 2, rtol=1e-4)
    filled = TargetCache.open(tmp_path / "filled")
    assert len(filled) == 72
    assert set(filled.uids) < set(ROWS.uids)


def test_one_member_is_distilled():
    ensemble = networks()
    name = ensemble.names[1]
    trainer = StudentTrainer(QUICK)
    one = trainer.distill(STUDENT, ROWS, OnlineTeachers(ensemble), member=name)
    alone = trainer.distill(STUDENT, ROWS, OnlineTeachers(ensemble.only(name)))
    torch.testing.assert_close(state(one), state(alone), atol=1e-5, rtol=1e-5)


def test_the_cost_of_a_step_is_divided():
    cost = StudentTrainer(QUICK).distill(STUDENT, ROWS, OnlineTeachers(networks())).cost
    assert cost.steps == 70
    assert 0 < cost.making < cost.seconds
    assert 0 < cost.waited < cost.seconds
    assert "ms, and the student waited for targets and inputs for" in str(cost)


class Broken(Seeing):
    def predict_logits(self, inputs):
        logits = super().predict_logits(inputs)
        logits[0, -1, 3] = np.nan
        return logits


class Uneven(Seeing):
    def predict_logits(self, inputs):
        return super().predict_logits(inputs).astype(np.float64)


def test_bad_teachers_are_refused(tmp_path):
    distill = partial(StudentTrainer(QUICK).distill, small_cnn, IMAGES)
    with pytest.raises(ValueError, match=r"member 'a' gave nan for uid \d+, class 3"):
        distill(OnlineTeachers(Broken()))
    with pytest.raises(TypeError, match=r"predict_logits: expected float32 logits; got float64"):
        distill(OnlineTeachers(Uneven()))
    with pytest.raises(ValueError, match=r"pass it to OnlineTeachers\(augment=\.\.\.\), and none to distill"):
        distill(OnlineTeachers(Seeing()), augment=ShiftImages(1))
    with pytest.raises(ValueError, match=r"augment: OnlineTeachers changes the inputs itself, by Shift"):
        distill(OnlineTeachers(Seeing(), augment=ShiftImages(2)), augment=ShiftImages(1))
    with pytest.raises(TypeError, match=r"cache: expected a TargetCache, or another source .*; got Seeing"):
        distill(Seeing())
    with pytest.raises(ValueError, match=r"seed: expected an integer from 0 to 2\*\*63 - 1; got -1"):
        OnlineTeachers(Seeing(), seed=-1)
    with pytest.raises(ValueError, match=r"batch_size: expected a positive integer; got 0"):
        OnlineTeachers(Seeing(), batch_size=0)
    with pytest.raises(ValueError, match="member: expected one of a; got 'b'"):
        distill(OnlineTeachers(Seeing()), member="b")
    stored = Ensemble.from_members(
        [ArrayMember(name="a", logits=np.zeros((N, 10), np.float32), uids=IMAGES.uids)]
    )
    with pytest.raises(ValueError, match="a member with stored answers has none for augmented inputs"):
        distill(OnlineTeachers(stored, augment=ShiftImages(1)))
