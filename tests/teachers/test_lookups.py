"""Members that look up the rows that they were fitted to."""

import numpy as np
import pytest
from sklearn.calibration import CalibratedClassifierCV
from sklearn.ensemble import BaggingClassifier, RandomForestClassifier, VotingClassifier
from sklearn.gaussian_process import GaussianProcessClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.neighbors import KNeighborsClassifier, RadiusNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from ensdistill.models import MLP
from ensdistill.teachers import looks_up
from ensdistill.teachers.members import as_member

X = np.random.default_rng(0).normal(size=(40, 3))
Y = (X[:, 0] > 0).astype(int)


class TabICLLike(LogisticRegression):
    """Stands for the library's own, which need not be installed."""


TabICLLike.__name__ = "TabICLClassifier"

THOSE_THAT_DO = {
    "neighbours": KNeighborsClassifier(3),
    "radius": RadiusNeighborsClassifier(9.0),
    "gaussian process": GaussianProcessClassifier(),
    "pipeline": make_pipeline(StandardScaler(), KNeighborsClassifier(3)),
    "search": GridSearchCV(KNeighborsClassifier(), {"n_neighbors": [1, 3]}, cv=2),
    "bagging": BaggingClassifier(KNeighborsClassifier(3), 2, random_state=0),
    "voting": VotingClassifier([("a", LogisticRegression()), ("b", KNeighborsClassifier(3))], voting="soft"),
    "calibrated": CalibratedClassifierCV(KNeighborsClassifier(3), cv=2),
    "in-context": TabICLLike(),
}


@pytest.mark.parametrize("name", THOSE_THAT_DO)
def test_members_that_look_rows_up(name):
    member = as_member(THOSE_THAT_DO[name].fit(X, Y))
    assert looks_up(member)
    assert looks_up(as_member((THOSE_THAT_DO[name], StandardScaler().fit(X))))


@pytest.mark.parametrize("estimator", [LogisticRegression(), RandomForestClassifier(3)])
def test_members_that_do_not(estimator):
    assert not looks_up(as_member(estimator.fit(X, Y)))
    assert not looks_up(as_member(MLP(3, [4], 2)))
    assert not looks_up(as_member(np.zeros((3, 2))))
