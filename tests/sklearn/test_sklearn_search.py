"""``DistilledClassifier`` with a goal in place of a student."""

from unittest import mock

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.neighbors import KNeighborsClassifier
from sklearn_helpers import numbers, small

from ensdistill.models import MLP
from ensdistill.sklearn import DistilledClassifier
from ensdistill.student.search.latency import Latency

pytest.importorskip("optuna")
SEARCH = "ensdistill.student.search"


def searched(**more):
    return small([KNeighborsClassifier(15)], "auto", **{"trials": 1, "families": ["mlp"], **more})


@pytest.fixture(scope="module")
def fitted():
    x, y = numbers(1020)
    with (
        mock.patch(f"{SEARCH}.ordinary.ordinary_steps", return_value=96),
        mock.patch(f"{SEARCH}.ladders.latency_of", return_value=Latency(2e-5, "none")),
    ):
        return searched(keep=0.5, max_parameters=1000).fit(x, y), x, y


def test_the_student_is_the_one_that_the_search_found(fitted):
    model, x, y = fitted
    point = model.search_.chosen or model.search_.nearest
    assert {one.candidate for one in model.search_.points} <= {"mlp/16", "mlp/32"}  # within 1000 parameters
    assert model.student_.member.parameters == point.parameters <= 1000
    assert model.score(x, y) > 0.7
    assert "validation rows" in str(model.search_)
    # The search's teachers did not learn from the 204 rows that judged it; those of the student did.
    assert model.ensemble_.members[0].estimator.n_samples_fit_ == 1020


def test_rows_that_judge_teach_nobody():
    x, y = numbers(1020)
    taught, judged = [], []

    def search(rows, cache, *, validation, **more):
        judged.append(validation)
        raise InterruptedError

    class Watched(KNeighborsClassifier):
        def fit(self, x, y):
            taught.append(np.asarray(x))
            return super().fit(x, y)

    with mock.patch("ensdistill.sklearn.searching.search_student", search), pytest.raises(InterruptedError):
        small([Watched(5)], "auto", keep=0.5, trials=1).fit(x, y)
    known = {row.tobytes() for part in taught for row in part.astype(np.float32)}
    held = np.asarray(judged[0].inputs, np.float32)
    assert len(held) == 204
    assert len(known) == 816
    assert not known & {row.tobytes() for row in held}


def test_a_loaded_classifier_keeps_the_goal(fitted, tmp_path):
    model, x, _ = fitted
    model.save(tmp_path / "saved")
    again = DistilledClassifier.load(tmp_path / "saved")
    np.testing.assert_array_equal(again.predict_proba(x[:20]), model.predict_proba(x[:20]))
    assert (again.keep, again.max_parameters, again.families) == (0.5, 1000, ["mlp"])
    assert again.search_ is None
    assert clone(again).keep == 0.5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"keep": 1.5}, "keep: expected a share"),
        ({"max_latency": "50 parsec"}, "max_latency: expected a positive number, or a time"),
        ({"max_bytes": "many"}, "max_bytes: expected a positive number, or a size"),
        ({"max_parameters": 1.5}, "max_parameters: expected an integer"),
        ({"keep": 0.9, "minutes": -1}, "minutes: expected a positive number"),
        ({"keep": 0.9, "families": ["mpl"]}, "families: expected one of mlp"),
        ({"keep": 0.9, "student": MLP}, "student: expected 'auto' beside keep"),
        ({"keep": 0.9, "temperature": 2.0}, "temperature: expected None beside keep or max_"),
        ({"families": ["mlp"]}, "families: expected None without keep or max_"),
        ({"minutes": 5}, "minutes: expected None without keep or max_.*; got 5; .* is teacher_minutes"),
        (
            {"keep": 0.9, "minutes": 3, "trials": 5},
            "minutes: expected none beside trials.*got 3 and 5 trials",
        ),
        ({"trials": 5}, "trials: expected None without keep or max_.*; got 5"),
        (
            {"keep": 0.9},
            "keep: a search needs 203 rows that judge.*got 240 labelled rows, a pool of 0 and 0 synthetic rows",
        ),
    ],
)
def test_wrong_goals_are_refused_before_the_teachers_are_trained(settings, message):
    class Untouched(KNeighborsClassifier):
        def fit(self, x, y):
            raise AssertionError

    given = {"families": None, "student": "auto", **settings}
    with pytest.raises(ValueError, match=message):
        small([Untouched()], given.pop("student"), **given).fit(*numbers())
