"""A preprocess that does not take rows of the pool or of the test set is refused before any model is trained."""

from __future__ import annotations

import numpy as np
import pandas as pd
import polars as pl
import pytest
from job_helpers import flat, run, write_job
from sklearn.preprocessing import OneHotEncoder
from torch import nn

from ensdistill.data import Rows, Split
from ensdistill.data.preprocess import ModuleTransform, Named, fitted
from ensdistill.data.samples import Lazy, as_samples
from ensdistill.job.rows_check import check_rows


def split_of(labelled, pool, test):
    def rows(inputs, first):
        samples = as_samples(inputs)
        return Rows(samples, np.arange(len(samples)) + first, np.zeros(len(samples), np.int64))

    return Split(rows(labelled, 0), rows(pool, 10**6).without_labels(), rows(test, 2 * 10**6), ("a", "b"))


def square_root(batch):
    if (batch < 0).any():
        raise ArithmeticError("negative")
    return np.sqrt(batch)


def longer(batch):
    return batch[batch[:, 0] < 5]


def strict(frame):
    return fitted(OneHotEncoder(sparse_output=False), frame)


FRAME = pd.DataFrame({"size": ["S", "L"] * 3, "city": ["Rome", "Oslo"] * 3})


@pytest.mark.parametrize("library", [pd.DataFrame, pl.DataFrame])
@pytest.mark.parametrize("part", ["pool", "test rows"])
def test_the_row_and_the_column_of_an_unknown_category_are_named(library, part):
    cities = ["Rome"] * 9000
    cities[4500] = cities[8000] = "Paris"
    other = library({"size": ["S"] * 9000, "city": cities})
    known = library(FRAME.to_dict("list"))
    parts = (known, other, known) if part == "pool" else (known, known, other)
    split = split_of(*parts)
    message = rf"does not take row 4500 of the {part} \(column 'city' holds 'Paris'\): .*unknown categories.*'Paris'"
    with pytest.raises(ValueError, match=message):
        check_rows(strict(known), split, pool=True)
    if part == "pool":  # nothing is asked about it
        check_rows(strict(known), split, pool=False)


def test_the_column_of_an_array_is_named_and_a_lost_row_is_one():
    good, bad = np.ones((3, 2)), np.ones((6000, 2))
    bad[5000, 1] = -1
    with pytest.raises(ValueError, match=r"row 5000 of the test rows \(column 1 holds -1.0\): negative"):
        check_rows(Named(square_root), split_of(good, good, bad), pool=True)
    bad = np.ones((6, 2))
    bad[4, 0] = 7
    with pytest.raises(ValueError, match=r"row 4 of the test rows \(column 0 .*expected 1 rows .*; got 0"):
        check_rows(Named(longer), split_of(good, good, bad), pool=True)


class Counted:
    def __init__(self, rows):
        self.rows, self.read = rows, 0

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        self.read += 1
        return self.rows[index]


def test_a_few_lazy_rows_are_tried_and_a_few_by_a_module():
    many = Counted(np.ones((3000, 2), np.float32))
    check_rows(Named(square_root), split_of(np.ones((3, 2), np.float32), many, Lazy(many)), pool=True)
    assert 2 * 128 <= many.read < 300
    seen = []

    class Module(nn.Module):
        def forward(self, batch):
            seen.append(len(batch))
            return batch

    rows = np.ones((3000, 2), np.float32)
    check_rows(ModuleTransform(Module()), split_of(rows, rows, rows), pool=True)
    assert seen == [128, 128]


def table_job(tmp_path, members, student, **change):
    generator = np.random.default_rng(0)
    rows = pd.DataFrame(
        {"city": generator.choice(["Rome", "Oslo"], 90), "x": generator.normal(size=90).round(6)}
    ).assign(y=lambda frame: np.where(frame.x > 0, "hot", "cold"))
    rows.to_csv(tmp_path / "rows.csv", index=False)
    rows[:30].assign(x=np.arange(30) + 0.5, city=["Paris", *["Rome"] * 29]).to_csv(
        tmp_path / "test.csv", index=False
    )
    estimator = {"class_path": "sklearn.naive_bayes.GaussianNB"}
    return write_job(
        tmp_path,
        {
            "data": {
                "class_path": "Table",
                "init_args": {
                    "path": str(tmp_path / "rows.csv"), "test_path": str(tmp_path / "test.csv"), "target": "y"
                },
            },
            "teachers.members": [
                {"class_path": "SklearnMembers", "init_args": {"estimator": estimator, "preprocess": members}}
            ],
            "cache.transfer.synthetic": [],
            "distill.students": {
                "small": {"model": "MLP", "optimization": {"steps": 10, "batch_size": 32}, "preprocess": student}
            },
        } | change,
    )  # fmt: skip


STRICT = {"class_path": "sklearn.preprocessing.OneHotEncoder", "init_args": {"sparse_output": False}}


@pytest.mark.parametrize(
    ("members", "student", "where"),
    [
        (STRICT, "auto", "teachers.members.0.init_args.preprocess: gaussiannb: Transformer"),
        ("auto", STRICT, "distill.students.small.preprocess: Transformer"),
    ],
)
def test_a_job_tries_the_test_rows_before_any_work(tmp_path, members, student, where):
    status, _, err = run("run", table_job(tmp_path, members, student))
    assert status == 2
    assert where in flat(err)
    assert "does not take row 0 of the test rows (column 'city' holds 'Paris')" in flat(err)
    assert "(seed 0)" in flat(err)
    assert not list((tmp_path / "runs").rglob("seed-*"))
