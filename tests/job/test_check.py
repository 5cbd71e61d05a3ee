"""Settings and data that cannot end well are refused, if possible before any work."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from job_helpers import job_file, run, stamps, succeed, write_job

from ensdistill.data import Digits, Split
from ensdistill.data.augmentation import ShiftImages
from ensdistill.data.transfer import Mixup


@pytest.mark.parametrize(
    "change", [{"teachers.folds": 60}, {"teachers.members.0.init_args.model.init_args.outputs": 7}]
)
def test_impossible_settings_are_refused_before_any_work(tmp_path, change):
    status, _, _ = run("distill", write_job(tmp_path, change))
    assert status == 2
    assert not list(tmp_path.glob("runs/tiny/seed-*"))


def test_copies_of_training_rows_among_the_test_rows_are_refused_then_allowed_and_counted(copy, monkeypatch):
    split = Digits.split

    def leaking(self: Digits, seed: int) -> Split:
        whole = split(self, seed)
        inputs = whole.test.inputs.copy()
        inputs[:30] = np.concatenate([whole.labelled.inputs[:20], whole.pool.inputs[:10]])
        return replace(whole, test=replace(whole.test, inputs=inputs))

    monkeypatch.setattr(Digits, "split", leaking)
    before = stamps(copy)
    status, _, err = run("run", job_file(copy))
    assert status == 1
    err = err.replace("\n", " ")
    assert (
        "data: seed 0: 30 of 1597 test rows (1.9%) equal rows that are trained on (20 of them labelled, 10 "
        "of them pool)" in err
    )
    assert "set max_test_copies to 0.019" in err
    assert stamps(copy) == before
    out = " ".join(succeed("run", job_file(copy), "--max_test_copies", "0.019").split())
    report = json.loads((copy / "report.json").read_text())
    assert {name: report["copies"][name] for name in ("test", "labelled", "pool", "synthetic")} == {
        "test": 30,
        "labelled": 20,
        "pool": 10,
        "synthetic": 0,
    }
    assert "30 test rows equal rows that are trained on: 20 labelled, 10 of the pool." in out
    assert "Without the 30 test rows that equal rows trained on" in out
    assert report["without_copies"]["small"]["models"]["ensemble"] != report["models"]["ensemble"]


class Oracle(Mixup):
    """A synthetic source that gives back test rows."""

    def make(self, base: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        return Digits(100, 100).split(0).test.inputs[:40]


def test_synthetic_rows_that_equal_test_rows_are_refused(copy):
    file = write_job(
        copy.parents[1],
        {"cache.transfer.synthetic": [{"class_path": "test_check.Oracle", "init_args": {"rows": 40}}]},
    )
    status, _, err = run("cache", "build", file)
    assert status == 1
    assert (
        "seed 0 · cache: data: seed 0: 40 of 1597 test rows (2.5%) equal rows that are trained on (40 of "
        "them synthetic)" in (err.replace("\n", " "))
    )
    assert not (copy / "seed-0" / "cache" / "stage.json").exists()


def test_folds_that_copies_make_impossible_are_not_begun(tmp_path, monkeypatch):
    split = Digits.split

    def few(self: Digits, seed: int) -> Split:
        whole = split(self, seed)
        inputs, zeros = whole.labelled.inputs.copy(), whole.labelled.labels == 0
        inputs[zeros] = inputs[zeros][0]
        return replace(whole, labelled=replace(whole.labelled, inputs=inputs))

    monkeypatch.setattr(Digits, "split", few)
    status, _, err = run("distill", write_job(tmp_path))
    assert status == 2
    assert (
        "teachers.folds: 2 folds are too many: equal rows stay in one fold, and the copies of class 0 would "
        "all" in err.replace("\n", " ")
    )
    assert not list(tmp_path.glob("runs/tiny/seed-*"))


class NoShift(ShiftImages):
    def apply(self, inputs: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
        raise ValueError(f"inputs: NoShift wants other rows; got {list(inputs.shape)}")


NO_SHIFT = {"class_path": "test_check.NoShift"}
NO_DATA = {
    "class_path": "ensdistill.data.ArrayDataset",
    "init_args": {"inputs": "no.npy", "labels": "no.npy", "labelled": 5},
}


@pytest.mark.parametrize(
    ("status", "change", "message"),
    [
        (
            2,
            {"distill.students.small.model.init_args.outputs": 7},
            "model: MLP: expected 10 outputs per sample, one for each class",
        ),
        (
            2,
            {"teachers.members.0.init_args.model.init_args.outputs": 7},
            "teachers.members.0 (mlp): model: MLP: expected 10 outputs",
        ),
        (
            2,
            {"teachers.folds": 60},
            "teachers.folds: expected at most 10, because 10 of the labelled rows of seed 0 are of class "
            "'0'; got 60",
        ),
        (
            2,
            {"cache.codec": "topk-11", "cache.mixture_at": 1},
            "cache.codec: topk-11 needs at least 11 classes; got 10",
        ),
        (2, {"cache.augment": NO_SHIFT}, "cache.augment: inputs: NoShift wants other rows; got [2, 1, 8, 8]"),
        (2, {"distill.folds": 60}, "distill.folds: expected at most 10, because 10 of the labelled rows"),
        (
            1,  # the rows are too few, whatever the settings
            {"data.init_args.labelled": 10},
            "data: 1 of the labelled rows of seed 0 are of class '0'; expected at least 2 of each class",
        ),
        (2, {"data.init_args.labelled": 1800}, "data: Digits.split(seed=0): labelled=1800"),
        (
            1,  # in the work
            {"distill.students.small.optimization.learning_rate": 1e30},
            "student: the loss is nan at step",
        ),
        (2, {"data": NO_DATA}, "inputs: there is no file no.npy"),
    ],
)
def test_settings_that_only_the_work_can_refute(copy, status, change, message):
    file = write_job(copy.parents[1], change)
    found, out, err = run("distill", file)
    assert (found, out) == (status, "")
    assert message in err.replace("\n", " ")
    assert "Traceback" not in err
