"""``Ensemble.train`` into a folder: kept, resumed and refused; and the view of its progress."""

import functools
import io
import re
import time

import numpy as np
import pytest
import torch
from rich.console import Console
from sklearn.calibration import CalibratedClassifierCV
from sklearn.decomposition import PCA
from sklearn.ensemble import (
    AdaBoostClassifier,
    ExtraTreesClassifier,
    GradientBoostingClassifier,
    HistGradientBoostingClassifier,
    RandomForestClassifier,
    StackingClassifier,
    VotingClassifier,
)
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.gaussian_process import GaussianProcessClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from sklearn.svm import SVC
from test_ensemble_train import train
from torch import nn

from ensdistill.common.optimization import Optimization
from ensdistill.data import Rows
from ensdistill.models import CNN, MLP
from ensdistill.teachers import Ensemble, planning
from ensdistill.teachers.stack import Status
from ensdistill.teachers.training_view import TrainingView


def test_a_training_on_disk_is_the_same_and_is_kept(digits, tmp_path, monkeypatch):
    options = {"factory": [MLP, ExtraTreesClassifier(5)], "members": 4, "way": "one_by_one"}
    memory = train(digits, **options)
    disk = train(digits, folder=tmp_path, **options)
    assert disk.fingerprint() == memory.fingerprint()
    loaded = Ensemble.load(tmp_path)
    assert torch.equal(loaded.predict_logits(digits.test.inputs), memory.predict_logits(digits.test.inputs))
    assert not (tmp_path / "training").exists()
    monkeypatch.setattr(
        "ensdistill.teachers.networks.train_stack", lambda *a, **k: pytest.fail("trained again")
    )
    monkeypatch.setattr("ensdistill.teachers.estimators.fit", lambda jobs, *a: pytest.fail("fitted again"))
    assert train(digits, folder=tmp_path, **options).fingerprint() == memory.fingerprint()


FOREST, LOGISTIC = RandomForestClassifier(3), LogisticRegression(max_iter=50)
COMMON = [
    KNeighborsClassifier(),
    KNeighborsClassifier(algorithm="ball_tree", metric="manhattan"),
    HistGradientBoostingClassifier(max_iter=2),
    GradientBoostingClassifier(n_estimators=2, max_depth=2),
    AdaBoostClassifier(n_estimators=2),
    MLPClassifier((4,), max_iter=3),
    MLPClassifier((4,), max_iter=3, solver="sgd"),
    CalibratedClassifierCV(GaussianNB(), cv=2),
    CalibratedClassifierCV(GaussianNB(), cv=2, method="isotonic"),
    VotingClassifier([("a", FOREST), ("b", GaussianNB())], voting="soft"),
    StackingClassifier([("a", FOREST), ("b", GaussianNB())], cv=2),
    GridSearchCV(GaussianNB(), {"var_smoothing": [1e-9, 1e-3]}, cv=2),
    make_pipeline(StandardScaler(), PCA(5), LOGISTIC),
    GaussianProcessClassifier(),
    SVC(),
]


@pytest.mark.parametrize("estimator", COMMON, ids=lambda e: type(e).__name__)
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_common_estimators_are_trained_into_a_folder(digits, tmp_path, estimator):
    few = digits.labelled.take(
        np.concatenate([np.flatnonzero(digits.labelled.labels == c)[:6] for c in range(10)])
    )
    trained = Ensemble.train(estimator, few, members=1, folder=tmp_path)
    loaded = Ensemble.load(tmp_path)
    np.testing.assert_array_equal(
        loaded.predict_proba(digits.test.inputs), trained.predict_proba(digits.test.inputs)
    )


class Own(GaussianNB):
    """Has an attribute of a class of its own in some cases."""

    def __init__(self, grow=False):
        super().__init__()
        self.grow = grow

    def fit(self, x, y):
        if self.grow:
            self.grown_ = Own()
            self.other_ = Grown()
        return super().fit(x, y)


class Grown:
    pass


def test_members_that_a_folder_would_not_give_back_are_refused_at_once(digits, tmp_path):
    own = f"{__name__}.Own"
    train(digits, make_pipeline(StandardScaler(), Own()), members=1, folder=tmp_path / "own")
    with pytest.raises(ValueError, match="not trusted"):
        Ensemble.load(tmp_path / "own")
    assert Ensemble.load(tmp_path / "own", trusted=[own]).names == ("pipeline-1",)
    unwritable = make_pipeline(FunctionTransformer(lambda x: x), Own())
    with pytest.raises(
        ValueError, match=r"factory: pipeline-1: can't be saved in the folder without pickle: .*<lambda>"
    ):
        train(digits, unwritable, members=1, folder=tmp_path / "lambda")
    with pytest.raises(
        ValueError,
        match=r"own-1: fitted, it holds types that are not trusted.*Grown.*Ensemble.load\(folder, trusted=",
    ):
        train(digits, Own(grow=True), members=3, method="bagging", folder=tmp_path / "grown")


def test_another_training_in_the_same_folder_takes_its_place(digits, tmp_path):
    first = train(digits, folder=tmp_path)
    more = train(digits, folder=tmp_path, members=6)
    other = train(digits, folder=tmp_path, seed=1)
    assert more.fingerprint()["members"].items() >= first.fingerprint()["members"].items()
    assert not set(other.fingerprint()["members"].values()) & set(more.fingerprint()["members"].values())
    assert Ensemble.load(tmp_path).fingerprint() == other.fingerprint()


class Stop(Exception):
    pass


@pytest.mark.parametrize(
    ("method", "way"),
    [
        ("bagging", "stacked"),
        ("bagging", "one_by_one"),
        ("snapshot", "side_by_side"),
        pytest.param("bagging", "side_by_side", marks=pytest.mark.slow),
        pytest.param("snapshot", "stacked", marks=pytest.mark.slow),
        pytest.param("snapshot", "one_by_one", marks=pytest.mark.slow),
    ],
)
def test_an_interrupted_training_goes_on(digits, tmp_path, monkeypatch, way, method):
    monkeypatch.setattr(
        planning, "TorchMembers", functools.partial(planning.TorchMembers, checkpoint_every=128)
    )
    options = {
        "factory": CNN,
        "members": 3,
        "method": method,
        "way": way,
        "optimization": Optimization(steps=256, batch_size=8),
    }

    def interrupt(status):
        if status.step >= 192 and (way != "one_by_one" or method == "snapshot" or "cnn-2" in status.names):
            raise Stop

    with pytest.raises(Stop):
        train(digits, folder=tmp_path, progress=interrupt, **options)
    seen = []
    resumed = train(digits, folder=tmp_path, progress=seen.append, **options)
    assert not [s for s in seen if "cnn-1" in s.names and s.step <= 128 and s.steps == 256]
    whole = train(digits, **options)
    assert resumed.fingerprint()["members"] == whole.fingerprint()["members"]


def test_factories_that_cannot_be_written_down_are_refused_before_training(digits, tmp_path):
    with pytest.raises(
        ValueError,
        match=(
            r"factory: member-1: expected a module class, or functools\.partial of one with plain arguments"
        ),
    ):
        train(digits, lambda: MLP(), folder=tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_loss_that_explodes_names_the_member(digits):
    with pytest.raises(FloatingPointError, match=r"mlp-1: the loss is (nan|inf) at step \d+ of 120"):
        train(digits, members=1, optimization=Optimization(steps=120, learning_rate=1e30))


def test_fewer_rows_than_a_batch(digits):
    few = digits.labelled.take(np.unique(digits.labelled.labels, return_index=True)[1])
    ensemble = Ensemble.train(
        functools.partial(nn.Linear, 64, 10),
        Rows(few.inputs.reshape(10, -1), few.uids, few.labels),
        members=2,
    )
    assert (ensemble.predict_proba(few.inputs.reshape(10, -1)).argmax(1) == few.labels).all()


def test_the_view_shows_every_member(digits):
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=120)
    with TrainingView(["a", "b"], console) as view:
        view(Status(("a",), 32, 128, np.array([1.5]), np.array([0.25])))
        time.sleep(0.05)
        view(Status(("a",), 64, 128, np.array([0.75]), np.array([0.5])))
        console.print(view._table())
    shown = out.getvalue()
    for words in ("64/128", "0.7500", "50.0%", "waiting"):
        assert words in shown
    rate = float(view._cells("a")[4])
    assert 100 < rate < 640  # 32 steps in the 0.05 s since the first, or a little more
    assert view._cells("a")[5] == "0:00"
    view(Status(("a",), 128, 128, np.array([0.75]), np.array([0.5])))
    done = view._cells("a")[1:]
    time.sleep(0.05)
    assert view._cells("a")[1:] == done


def test_without_a_terminal_there_are_lines(digits, capsys):
    train(digits, members=2, progress=True)
    shown = capsys.readouterr().err
    assert shown.startswith("2 of 2 members trained, ")
    assert "mean loss" in shown


def test_the_view_shows_whose_the_others_are_until_they_are_done():
    out, finished = io.StringIO(), set()
    console = Console(file=out, force_terminal=True, width=120)
    view = TrainingView(["a", "b", "c"], console, ranks={"b": 1}, finished=finished.__contains__)
    assert [view._cells(name)[1] for name in "abc"] == ["waiting", "rank 1", "waiting"]
    with view:
        view(Status(("a",), 8, 8, np.array([0.25]), np.array([1.0])))
        finished |= {"b"}
    assert [view._cells(name)[1] for name in "abc"] == ["8/8", "done", "waiting"]
    assert re.search(r"2 of 3 members trained, [\d.]+ s, mean loss of 1 of them 0\.2500", out.getvalue())
    view(
        Status(("b",), 4, 8, np.array([0.5]), np.array([1.0]))
    )  # finished once, and trained again for the sake of others
    assert view._cells("b")[1] == "4/8"
    view._line()
    assert "1 of 3 members trained" in out.getvalue()


def test_an_address_that_a_call_sets_is_no_part_of_a_vectoriser(tmp_path):
    """scikit-learn keeps the address of the stop words that it has checked, and another process has another."""
    texts, labels = ["red fox", "blue hen", "red hen", "blue fox"] * 5, np.arange(20) % 2
    model = make_pipeline(TfidfVectorizer(), LogisticRegression()).fit(texts, labels)
    ensemble = Ensemble.from_members([model])
    ensemble.save(tmp_path / "before")
    before = ensemble.fingerprint()
    model[0]._stop_words_id = 1
    assert ensemble.fingerprint() == before
    ensemble.save(tmp_path / "after")
    ensemble.predict_proba(texts)
    assert ensemble.fingerprint() == before
    for folder in ("before", "after"):
        assert Ensemble.load(tmp_path / folder).fingerprint() == before
