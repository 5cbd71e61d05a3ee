"""The settings themselves: what they refuse, and what they work out."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
from sklearn.naive_bayes import GaussianNB
from torch import nn

from ensdistill.config import CacheConfig, Config, DistillConfig, StudentConfig, TeachersConfig
from ensdistill.data import Digits
from ensdistill.models import MLP
from ensdistill.optimization import Optimization
from ensdistill.specs import SklearnMembers


def distill(**more):
    return DistillConfig(students={"mlp": StudentConfig(MLP)}, **more)


def config(**more):
    settings = {"data": Digits(), "teachers": TeachersConfig([SklearnMembers(GaussianNB())]), "cache": CacheConfig(), "distill": distill()}
    return Config(**{**settings, **more})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": 0.0}, r"distill.temperature: expected a finite number above 0; got 0.0"),
        ({"temperature": -2.0}, r"distill.temperature: .* got -2.0"),
        ({"temperature": float("nan")}, r"distill.temperature: .* got nan"),
        ({"temperature": float("inf")}, r"distill.temperature: .* got inf"),
        ({"alpha": 1.5}, r"distill.alpha: expected 0 to 1; got 1.5"),
        ({"alpha": -0.1}, r"distill.alpha: expected 0 to 1; got -0.1"),
        ({"alpha": float("nan")}, r"distill.alpha: expected 0 to 1; got nan"),
        ({"folds": 1}, r"distill.folds: expected at least 2; got 1"),
        ({"label_smoothing": 1.0}, r"distill.label_smoothing: expected a share in \[0, 1\); got 1.0"),
        ({"label_smoothing": -0.1}, r"distill.label_smoothing: expected a share in \[0, 1\); got -0.1"),
    ],
)
def test_distill_refuses(settings, message):
    with pytest.raises(ValueError, match=message):
        distill(**settings)


def test_edges_are_legal():
    assert distill(alpha=0.0, temperature=1e-3, label_smoothing=0.0, folds=2).alpha == 0.0
    assert distill(alpha=1.0, temperature=1e3).temperature == 1e3


def test_no_student_at_all():
    with pytest.raises(ValueError, match=r"distill.students: expected at least one; got none"):
        DistillConfig(students={})


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a\\b"])
def test_a_student_is_a_folder(name):
    with pytest.raises(ValueError, match=r"distill.students: .*folder"):
        DistillConfig(students={name: StudentConfig(MLP)})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"seeds": 0}, r"seeds: expected at least 1; got 0"),
        ({"workers": -1}, r"workers: expected at least 0; got -1"),
        ({"threads": 0}, r"threads: expected at least 1; got 0"),
        ({"name": ""}, r"name: expected a name that can be a folder's; got ''"),
        ({"name": ".."}, r"name: .* got '\.\.'"),
        ({"name": "a/b"}, r"name: .* got 'a/b'"),
    ],
)
def test_the_job_refuses(settings, message):
    with pytest.raises(ValueError, match=message):
        config(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"folds": 1}, r"teachers.folds: expected at least 2; got 1"),
        ({"prior_rows": -1.0}, r"teachers.prior_rows: expected .*; got -1.0"),
        ({"members": []}, r"teachers.members: expected at least one; got none"),
    ],
)
def test_the_teachers_refuse(settings, message):
    with pytest.raises(ValueError, match=message):
        TeachersConfig(**{"members": [SklearnMembers(GaussianNB())], **settings})


def test_direct_has_the_students_budget():
    with pytest.raises(ValueError, match=r"direct\.steps: expected the student's, 30, for a fair comparison; got 20"):
        StudentConfig(MLP, Optimization(steps=30), Optimization(steps=20))
    fair = StudentConfig(MLP, Optimization(steps=30), Optimization(steps=30, batch_size=8, learning_rate=0.1, weight_decay=0.5))
    assert fair.baseline.learning_rate == 0.1
    assert StudentConfig(MLP, Optimization(steps=30)).baseline == Optimization(steps=30)


def test_a_model_has_to_be_described_without_pickling_it():
    StudentConfig(partial(MLP, hidden=[4]))
    for model in (lambda: MLP(), partial(MLP, hidden=nn.ReLU()), MLP()):
        with pytest.raises(ValueError, match=r"model: expected a module class with plain arguments; got"):
            StudentConfig(model)


@dataclass(frozen=True)
class Counting:
    calls: list

    def split(self, seed):
        self.calls.append(seed)
        return Digits().split(seed) if seed < 2 else "no split"


def test_a_split_is_made_once_and_has_to_be_one():
    data = Counting([])
    settings = config(data=data)
    first = settings.split(1)
    assert settings.split(1) is first
    assert settings.split(0) is not first
    assert data.calls == [1, 0]
    with pytest.raises(TypeError, match=r"data: Counting.split: expected an ensdistill.data.Split; got str"):
        settings.split(2)


def test_where_the_run_is():
    assert config(name="x", folder=Path("elsewhere")).run_folder == Path("elsewhere/x")
