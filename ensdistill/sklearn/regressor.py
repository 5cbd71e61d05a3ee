"""``DistilledRegressor``: the same for numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.base import RegressorMixin
from sklearn.utils.validation import check_is_fitted

from ensdistill.sklearn.base import Distilled
from ensdistill.sklearn.inputs import check_predict
from ensdistill.teachers.members import Moments
from ensdistill.teachers.predict import outputs_of


class DistilledRegressor(RegressorMixin, Distilled):
    """An ensemble of regressors, distilled into one student, which predicts.

    The parameters are those of :class:`ensdistill.sklearn.DistilledClassifier`, with regressors in the place
    of classifiers. A network learns the ensemble's mean on standardised numbers; a ``StudentConfig`` with
    ``variance`` learns its variance, too. ``keep`` is a share of the gain in NLL and in RMSE. ``temperature``
    is for classes alone.

    Attributes
    ----------
    n_outputs_ : int
        Numbers of a row.
    ensemble_ : RegressionEnsemble
        The teachers, calibrated and weighed.
    student_, report_, retained_gain_, n_features_in_, feature_names_in_
        See :class:`ensdistill.sklearn.DistilledClassifier`; the metrics are ``rmse``, ``nll`` and so on.

    Examples
    --------
    >>> from sklearn.datasets import load_diabetes
    >>> from sklearn.ensemble import ExtraTreesRegressor
    >>> from sklearn.linear_model import Ridge
    >>> x, y = load_diabetes(return_X_y=True)
    >>> teachers = [ExtraTreesRegressor(50, min_samples_leaf=3), Ridge(0.1)]
    >>> model = DistilledRegressor(teachers, validation_fraction=None, random_state=0).fit(x, y)
    >>> bool(model.score(x, y) > 0.4), model.ensemble_.names, model.predict(x[:2]).shape
    (True, ('extratreesregressor', 'ridge'), (2,))
    """

    _numbers = True

    def _set_outputs(self, values: np.ndarray, labels: np.ndarray) -> None:
        self.n_outputs_ = len(values)

    def predict(self, X: Any) -> np.ndarray:
        """The student's numbers, float64 [N], or [N, D] where y had two axes."""
        mean = self.predict_distribution(X).mean
        return mean[:, 0] if self._is_flat else mean

    def predict_distribution(self, X: Any) -> Moments:
        """The student's means and variances, float64 [N, D]; the variances are None where the student
        predicts means alone."""
        check_is_fitted(self)
        samples = check_predict(self, X, self._form, self._takes_gaps())
        found: Moments = outputs_of(self.student_.member, samples)
        return found
