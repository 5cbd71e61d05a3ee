"""A training's folder: its checkpoints, what refuses one, and errors of losses that are not finite."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from small_student import ROWS, STUDENT, X, small_cache
from torch import nn

from ensdistill import EnsembleLogits, Optimization, Rows, StudentTrainer
from ensdistill.common.checkpoint import CheckpointMismatch, differences
from ensdistill.job.run_folder import resumed_or_anew
from ensdistill.models import MLP
from ensdistill.student import Validation

SHORT = Optimization(steps=300, batch_size=24, learning_rate=0.1, schedule="constant")

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return small_cache(tmp_path_factory.mktemp("folder"))


class Stop(Exception):
    pass


def stop_at(step):
    def progress(done, total):
        if done >= step:
            raise Stop

    return progress


def names(folder):
    return sorted(file.name for file in folder.glob("*.safetensors"))


def same(one, other):
    pairs = zip(one.module.parameters(), other.module.parameters(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def test_the_folder_keeps_the_newest_checkpoints_and_the_best_weights(cache, tmp_path):
    trainer, folder = StudentTrainer(SHORT, ema=0.9), tmp_path / "made" / "training"
    train = partial(
        trainer.distill, STUDENT, ROWS, cache, validation=Validation(rows=0.2, every=32, metric="nll")
    )
    whole = train()
    into = partial(train, folder=folder, keep_last=3, checkpoint_every=32)
    with pytest.raises(Stop):
        into(progress=stop_at(160))
    assert names(folder) == ["best.safetensors", *(f"checkpoint-{n:09d}.safetensors" for n in (96, 128, 160))]
    # Without the newest it goes on from the one before, to the same bits.
    (folder / "checkpoint-000000160.safetensors").unlink()
    (folder / "best.safetensors").unlink()
    steps = []
    resumed = into(progress=lambda done, _: steps.append(done))
    assert steps[0] == 160
    assert same(resumed, whole)
    assert resumed.evaluations == whole.evaluations
    assert names(folder)[1:] == [f"checkpoint-{n:09d}.safetensors" for n in (224, 256, 288)]
    best = load_file(folder / "best.safetensors")
    assert best.keys() == whole.module.state_dict().keys()
    for name, value in whole.module.state_dict().items():
        assert torch.equal(best[name], value)
    with safe_open(folder / "best.safetensors", "pt") as file:
        assert json.loads(file.metadata()["ensdistill_choice"]) == whole.record()["choice"]


def test_the_best_file_is_written_again_after_a_resume(cache, tmp_path):
    """It may be newer than the checkpoint that the training goes on from, or lost."""
    train = partial(
        StudentTrainer(SHORT).distill,
        STUDENT,
        ROWS,
        cache,
        validation=Validation(rows=0.2, every=64),
        folder=tmp_path,
        checkpoint_every=64,
    )
    with pytest.raises(Stop):
        train(progress=stop_at(96))
    before = (tmp_path / "best.safetensors").read_bytes()
    (tmp_path / "best.safetensors").write_bytes(b"of another time")
    with pytest.raises(Stop):
        train(progress=stop_at(96))
    assert (tmp_path / "best.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"keep_last": 2}, "^keep_last: 2 checkpoints need a folder"),
        ({"folder": "f", "keep_last": 0}, "^keep_last: expected an integer of at least 1; got 0"),
        ({"folder": "f", "checkpoint": "c"}, "^checkpoint: got c and folder=f, which holds checkpoints too"),
        ({"folder": __file__}, "^folder: expected a folder, .*test_student_folder.py is a file"),
    ],
    ids=["no folder", "none kept", "both", "a file"],
)
def test_places_that_cannot_hold_checkpoints_are_refused(cache, arguments, message):
    with pytest.raises(ValueError, match=message):
        StudentTrainer(SHORT).distill(STUDENT, ROWS, cache, **arguments)


def test_a_refused_checkpoint_names_each_field_that_differs(cache, tmp_path):
    begin = partial(StudentTrainer(SHORT).distill, STUDENT, ROWS, cache, seed=1, folder=tmp_path)
    with pytest.raises(Stop):
        begin(checkpoint_every=32, progress=stop_at(32))
    file = tmp_path / "checkpoint-000000032.safetensors"
    kept = file.read_bytes()

    def fields_of(train):
        with pytest.raises(CheckpointMismatch) as refused:
            train(folder=tmp_path)
        assert str(refused.value).startswith(f"checkpoint: {file} is of another training:\n")
        return re.findall(r"^  (.+?)(?::| differs?$)", str(refused.value), re.M)

    def changed(trainer, rows=ROWS, seed=1, **more):
        return fields_of(partial(trainer.distill, STUDENT, rows, cache, seed=seed, **more))

    labels = Rows(X, ROWS.uids, (ROWS.labels + 1) % 5)
    validation = Validation(rows=Rows(X + 1, ROWS.uids + 999, ROWS.labels), patience=3)
    assert changed(StudentTrainer(replace(SHORT, learning_rate=0.2))) == ["optimization.learning_rate"]
    assert changed(StudentTrainer(SHORT, alpha=0.5)) == ["loss.settings.alpha"]
    assert changed(StudentTrainer(SHORT, mixed_precision="bf16")) == ["mixed_precision"]
    assert changed(StudentTrainer(SHORT, ema=0.9)) == ["ema"]
    assert changed(StudentTrainer(SHORT), labels) == ["rows.labels"]
    seeds = changed(StudentTrainer(SHORT), seed=2)
    assert set(seeds) > {"seed"}
    assert all(name.startswith("first weights.") for name in seeds if name != "seed")
    assert all("validation" in name for name in changed(StudentTrainer(SHORT), validation=validation))
    wider = partial(StudentTrainer(SHORT).distill, partial(MLP, 16, [9], 5), ROWS, cache, seed=1)
    assert fields_of(wider)[0] == "student.layers"
    direct = partial(StudentTrainer(SHORT).direct, STUDENT, ROWS, classes=5, seed=1)
    assert fields_of(direct)[0].startswith("targets")
    assert file.read_bytes() == kept


def test_differences_are_named_leaf_by_leaf():
    before = {"a": 1, "b": {"c": [1, 2], "d": "x"}, "e": [{"f": 1}, {"f": 2}], "old": None}
    now = {"a": 1, "b": {"c": [1, 3], "d": "x"}, "e": [{"f": 1}, {"f": 3}], "new": True}
    assert differences(before, now) == [
        "b.c: the checkpoint has [1, 2], now [1, 3]",
        "e[1].f: the checkpoint has 2, now 3",
        "new: the checkpoint has nothing, now True",
        "old: the checkpoint has None, now nothing",
    ]
    assert differences(now, now) == []


def test_a_job_starts_anew_where_its_settings_have_changed(cache, tmp_path):
    file, steps = tmp_path / "checkpoint.safetensors", []
    with pytest.raises(Stop):
        StudentTrainer(SHORT).distill(
            STUDENT, ROWS, cache, checkpoint=file, checkpoint_every=32, progress=stop_at(64)
        )
    train = partial(StudentTrainer(SHORT, temperature=3.0).distill, STUDENT, ROWS, cache)
    trained = resumed_or_anew(partial(train, progress=lambda done, _: steps.append(done)), file)
    assert steps[0] == 32
    assert same(trained, train())


class BreaksAfter(nn.Linear):
    """Its outputs are NaN in the step after so many."""

    def __init__(self, steps):
        super().__init__(16, 5)
        self.left = steps

    def forward(self, x):
        if self.training:
            self.left -= 1
        return super().forward(x) * (float("nan") if self.left < 0 else 1.0)


def test_the_likeliest_cause_of_a_loss_that_is_not_finite_is_named():
    quick = Optimization(100, 24, learning_rate=0.01)
    x = X.copy()
    x[30, 3] = 3e38
    fast = StudentTrainer(replace(quick, learning_rate=5.0))
    with pytest.raises(FloatingPointError, match=r"extreme input: uid 90 holds a value of 3e\+38; clean or"):
        fast.direct(STUDENT, Rows(x, ROWS.uids * 3, ROWS.labels), classes=5)
    with pytest.raises(FloatingPointError, match=r"at step 1 of 100; .* look at the student's first weights"):
        StudentTrainer(quick).direct(partial(BreaksAfter, 0), ROWS, classes=5)
    huge = StudentTrainer(Optimization(100, 24, learning_rate=1e30))
    with pytest.raises(FloatingPointError, match=r"likeliest cause is the learning rate: lower .*\(1e\+30\)"):
        huge.direct(STUDENT, ROWS, classes=5)

    with pytest.raises(
        FloatingPointError, match=r"likeliest cause is the target of uid 40, which is not fini"
    ):
        StudentTrainer(quick, loss=squared).distill(STUDENT, ROWS, BrokenTargets())


class OfFields(nn.Module):
    """A student of two single numbers, whose outputs are NaN in training."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 5)

    def forward(self, height, width):
        found = self.linear(torch.stack([height, width], 1))
        return found * float("nan") if self.training else found


def test_the_likeliest_cause_is_named_for_fields_of_single_numbers():
    height, width = X[:, 0].copy(), X[:, 1].copy()
    fields = {"height": height, "width": width}
    trainer = StudentTrainer(Optimization(40, 150))
    with pytest.raises(FloatingPointError, match=r"at step 1 of 40; .* look at the student's first weights"):
        trainer.direct(OfFields, Rows(fields, ROWS.uids, ROWS.labels), classes=5)
    width[7] = 1e5
    with pytest.raises(FloatingPointError, match="extreme input: uid 7 holds a value of 100000 in 'width'"):
        trainer.direct(OfFields, Rows(fields, ROWS.uids, ROWS.labels), classes=5)


def squared(outputs, targets, labels, batch):
    return (outputs - targets.to_logits().mean(0)).square().mean()


class BrokenTargets:
    """A source of targets, of which that of uid 40 is not finite."""

    names, weights, combiner, temperature, max_temperature = ("a",), np.ones(1), "prob", None, None
    classes, versions, needs_samples, compared = 5, None, False, "none"

    def for_rows(self, rows, augment):
        return self

    def of(self, uids, epochs, samples):
        logits = torch.zeros(1, len(uids), 5)
        logits[:, torch.from_numpy(uids == 40)] = float("nan")
        return EnsembleLogits(logits)

    def fingerprint(self):
        return ["broken"]

    def close(self):
        pass


def test_the_last_good_checkpoint_is_named_and_kept(tmp_path):
    train = partial(StudentTrainer(Optimization(100, 24)).direct, partial(BreaksAfter, 70), ROWS, classes=5)
    with pytest.raises(FloatingPointError, match="at step 71 of 100") as failed:
        train(folder=tmp_path, checkpoint_every=32)
    file = tmp_path / "checkpoint-000000064.safetensors"
    assert str(failed.value).endswith(f"; the last good checkpoint, of step 64, is kept in {file}")
    assert names(tmp_path) == [file.name]
