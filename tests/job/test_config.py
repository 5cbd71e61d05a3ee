"""The settings themselves: refused ones, and those that are derived from others."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from sklearn.model_selection import train_test_split
from sklearn.naive_bayes import GaussianNB
from torch import nn

from ensdistill.common.optimization import Optimization
from ensdistill.data import Digits, Split
from ensdistill.data.preprocess import HashedNgrams, fitted
from ensdistill.job.config import CacheConfig, Config, DistillConfig, TeachersConfig
from ensdistill.job.student_config import StudentConfig
from ensdistill.loss.settings import LossSettings
from ensdistill.models import MLP
from ensdistill.teachers.recipes import SklearnMembers, TorchMembers
from tests.data.test_preprocess import tokenizer


def distill(**more):
    return DistillConfig(students={"mlp": StudentConfig(MLP)}, **more)


def config(**more):
    settings = {
        "data": Digits(),
        "teachers": TeachersConfig([SklearnMembers(GaussianNB())]),
        "cache": CacheConfig(),
        "distill": distill(),
    }
    return Config(**{**settings, **more})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss": LossSettings(reduction="none")}, r"distill.loss.reduction: expected 'mean', .* got 'none'"),
        ({"loss": LossSettings(ignore_index=-1)}, r"distill.loss.ignore_index: expected -100, .* got -1"),
        (
            {"loss": LossSettings(label_smoothing=0.1)},
            r"distill.loss.label_smoothing: is of the hard labels' cross entropy",
        ),
        ({"folds": 1}, r"distill.folds: expected at least 2; got 1"),
        ({"label_smoothing": 1.0}, r"distill.label_smoothing: expected a share in \[0, 1\); got 1.0"),
        ({"label_smoothing": -0.1}, r"distill.label_smoothing: expected a share in \[0, 1\); got -0.1"),
    ],
)
def test_distill_refuses(settings, message):
    with pytest.raises(ValueError, match=message):
        distill(**settings)


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_copies_are_allowed_by_a_share(share):
    with pytest.raises(ValueError, match=r"max_test_copies: expected a share of the test rows, 0 to 1; got"):
        config(max_test_copies=share)
    assert config(max_test_copies=1.0).max_test_copies == 1.0


def test_edges_are_legal():
    assert (
        distill(loss=LossSettings(alpha=0.0, temperature=1e-3), label_smoothing=0.0, folds=2).loss.alpha
        == 0.0
    )
    assert distill(loss=LossSettings(alpha=1.0, temperature=1e3)).loss.temperature == 1e3


def lengths(batch):
    return np.array([[len(text)] for text in batch], np.float32)


def test_a_students_preprocess_is_named_in_every_way(tmp_path):
    own = tokenizer()
    own.enable_truncation(7)
    own.save(str(tmp_path / "tokenizer.json"))
    texts = ["a text", "another one"]
    for setting, width in (
        ("auto", None),
        (None, None),
        (HashedNgrams(), None),
        (f"{__name__}.lengths", 1),
        (str(tmp_path), 7),
        (str(tmp_path / "tokenizer.json"), 7),
    ):
        student = StudentConfig(MLP, preprocess=setting)
        assert student.preprocess is setting
        made = fitted(student.preprocess, texts)
        if width:
            result = made(texts)
            assert (result["input_ids"] if isinstance(result, dict) else result).shape == (2, width)
    with pytest.raises(
        ValueError, match=r"preprocess: expected auto, null, .* got 'autoo'. Did you mean 'auto'"
    ):
        StudentConfig(MLP, preprocess="autoo")


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
    with pytest.raises(
        ValueError, match=r"direct\.steps: expected the student's, 30, for a fair comparison; got 20"
    ):
        StudentConfig(MLP, Optimization(steps=30), Optimization(steps=20))
    assert StudentConfig(MLP, Optimization(steps=30), Optimization()).baseline.steps == "auto"  # by the folds
    assert StudentConfig(MLP, Optimization(), Optimization(steps=20)).baseline.steps == 20
    fair = StudentConfig(
        MLP, Optimization(steps=30), Optimization(steps=30, batch_size=8, learning_rate=0.1, weight_decay=0.5)
    )
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
    with pytest.raises(
        ValueError, match=r"^data: Counting\.split\(seed=2\): expected an ensdistill\.data\.Split; got str$"
    ):
        settings.split(2)


class Broken:
    def __init__(self, how):
        self.how = how

    def split(self, seed):
        if self.how == "index":
            return np.arange(3)[np.arange(9)]
        if self.how == "library":
            return train_test_split(np.arange(3), train_size=9)
        if self.how == "empty":
            raise RuntimeError
        split = Digits(labelled=20, pool=20).split(seed)
        return Split(split.labelled, split.pool, split.labelled, split.classes)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (
            "index",
            r"IndexError: index 3 is out of bounds for axis 0 with size 3 \(.*test_config\.py, line \d+\)$",
        ),
        ("library", r"ValueError: train_size=9 should be .*\(.*test_config\.py, line \d+\)$"),
        ("empty", r"RuntimeError: +\(.*test_config\.py, line \d+\)$"),
        ("leak", r"labelled and test: expected no common row; uid \d+ is in both \(20 such rows\)$"),
    ],
)
def test_a_split_that_fails_is_about_the_data(how, message):
    with pytest.raises(ValueError, match=r"(?s)^data: Broken\.split\(seed=4\): " + message):
        config(data=Broken(how)).split(4)
    with pytest.raises(ValueError, match=r"^data: Digits\.split\(seed=0\): labelled=5: expected at least 10"):
        config(data=Digits(labelled=5)).split(0)


def test_members_of_one_name():
    cnns = TorchMembers(MLP, count=2, name="cnn")
    with pytest.raises(
        ValueError, match=r"^teachers\.members: expected different names; 2 are called 'cnn-1'"
    ):
        TeachersConfig([cnns, SklearnMembers(GaussianNB(), name="cnn-1")])
    TeachersConfig([cnns, SklearnMembers(GaussianNB(), name="cnn-3")])
    with pytest.raises(ValueError, match=r"; 2 are called 'mlp-1'; give each its own init_args\.name"):
        TeachersConfig([TorchMembers(MLP), TorchMembers(MLP)])


def test_where_the_run_is():
    assert config(name="x", folder=Path("elsewhere")).run_folder == Path("elsewhere/x")
