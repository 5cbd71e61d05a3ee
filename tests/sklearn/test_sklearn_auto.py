"""``teachers="auto"``: a planned ensemble of which those members stay that a selection takes."""

import numpy as np
import pytest
from sklearn.dummy import DummyClassifier
from sklearn.ensemble import ExtraTreesClassifier
from sklearn.linear_model import LogisticRegression
from sklearn_helpers import small, table

from ensdistill.teachers.auto import plan
from ensdistill.teachers.auto.portfolio import Entry
from ensdistill.teachers.recipes import SklearnMembers


def entry(name, estimator, seconds):
    return Entry(name, ({},), lambda n, *_: SklearnMembers(estimator, name=n), lambda *_: seconds)


@pytest.fixture(autouse=True)
def few(monkeypatch):
    made = [
        ("constant", DummyClassifier(), 0.1),
        ("trees", ExtraTreesClassifier(20, min_samples_leaf=3), 0.1),
    ]
    made.append(("dear", LogisticRegression(), 4.0))
    monkeypatch.setattr(plan, "PORTFOLIO", tuple(entry(*one) for one in made))


def test_members_within_the_minutes_are_trained_and_those_with_weight_stay():
    x, y = table()
    model = small("auto", teacher_minutes=0.5, n_jobs=1).fit(x, y)
    assert model.ensemble_.names == ("trees",)  # the constant one has no weight
    assert model.ensemble_.weights.tolist() == [1.0]
    assert model.score(x, y) > 0.6


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"teachers": "auto", "teacher_minutes": 0.0},
            "^teacher_minutes: expected a finite number above 0; got 0.0",
        ),
        (
            {"teachers": "auto", "teacher_minutes": 0.001},
            r"^teacher_minutes: expected at least 0.0084, the time of the cheapest",
        ),
        (
            {"teachers": [LogisticRegression()], "teacher_minutes": 1.0},
            "^teacher_minutes: expected None, because only teachers='auto'",
        ),
    ],
)
def test_minutes_that_do_not_fit_are_refused(given, message):
    x, y = np.random.default_rng(0).normal(size=(60, 2)), np.arange(60) % 2
    with pytest.raises(ValueError, match=message):
        small(**given).fit(x, y)


def test_minutes_of_samples_that_are_no_table_are_refused():
    texts = ["good film", "bad film"] * 20
    with pytest.raises(
        ValueError, match=r"^teacher_minutes: expected None, because only teachers='auto' of a table"
    ):
        small("auto", "auto", teacher_minutes=1.0).fit(texts, [1, 0] * 20)


def test_minutes_of_fitted_teachers_are_refused():
    x, y = np.random.default_rng(0).normal(size=(60, 2)), np.arange(60) % 2
    with pytest.raises(
        ValueError, match=r"^teacher_minutes: expected None, because the teachers are fitted already"
    ):
        small([LogisticRegression().fit(x, y)], prefit=True, teacher_minutes=1.0).fit(x, y)
