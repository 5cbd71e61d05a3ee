"""The tasks that estimators declare by themselves, and those that have to be stated."""

import numpy as np
import pandas as pd
import pytest
from sklearn import ensemble, neighbors
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF
from sklearn.kernel_ridge import KernelRidge

from ensdistill.common.tasks import task_of
from ensdistill.teachers.members import as_member

X = np.random.default_rng(0).normal(size=(60, 4))
NUMBERS = X[:, :2] @ [[30.0, 1.0], [5.0, -2.0]] + np.random.default_rng(1).normal(size=(60, 2))


class Untagged(RegressorMixin, BaseEstimator):
    """Predicts several numbers, which its tags do not show."""

    def fit(self, x, y):
        self.mean_, self.n_features_in_ = y.mean(0), x.shape[1]
        return self

    def predict(self, x):
        return np.tile(self.mean_, (len(x), 1))


def test_regressors_of_one_number_declare_their_task():
    one = [
        ensemble.HistGradientBoostingRegressor(max_iter=2),
        ensemble.GradientBoostingRegressor(n_estimators=2),
    ]
    more = [GaussianProcessRegressor(RBF()), neighbors.KNeighborsRegressor(), KernelRidge()]
    for estimator in one + more:
        assert task_of(as_member(estimator.fit(X, NUMBERS[:, 0]))) == "regression"
    for estimator in [*more, Untagged()]:  # two numbers could be those of two classes
        with pytest.raises(ValueError, match=r"^task: \w+ predicts 2 numbers .*state task='regression'"):
            as_member(estimator.fit(X, NUMBERS))
        assert task_of(as_member(estimator, task="classification")) == "classification"
    frame = pd.DataFrame({"x": X[:, 0], "kind": pd.Categorical(["a", "b"] * 30)})  # it takes no row of zeros
    assert task_of(as_member(one[0].fit(frame, NUMBERS[:, 0]))) == "regression"
