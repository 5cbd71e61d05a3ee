"""``DistilledClassifier``: teachers, cache, student and report behind ``fit`` and ``predict``."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.base import ClassifierMixin
from sklearn.utils.validation import check_is_fitted

from ensdistill.sklearn.base import Distilled
from ensdistill.sklearn.inputs import check_predict
from ensdistill.sklearn.teachers import takes_several
from ensdistill.student.serving.base import sigmoid
from ensdistill.teachers.predict import outputs_of


class DistilledClassifier(ClassifierMixin, Distilled):
    """An ensemble of teachers, distilled into one student, which predicts.

    Parameters
    ----------
    teachers : "auto", list, or Ensemble
        Estimators of scikit-learn, XGBoost, LightGBM or CatBoost, torch module classes, recipes of
        ``ensdistill.teachers.recipes``, or tuples (name, one of these). They are trained, calibrated and
        weighed by folds of the rows. ``"auto"``: of tables and arrays [N, F] boosted trees, forests and
        networks within a budget of ``teacher_minutes``, reduced to those that a greedy selection takes
        (:func:`ensdistill.teachers.auto.auto_plan`); of texts linear models and networks; of images
        [N, channels, height, width] networks. An :class:`ensdistill.Ensemble` is kept with its temperatures
        and weights.
    student : "auto", module class, functools.partial of one, or classifier
        The network's arguments ``inputs`` and ``outputs`` follow from the data. XGBoost, LightGBM and
        CatBoost are trained with the student's loss. A classifier of scikit-learn learns the ensemble's
        probabilities by weights of rows, or by its regressor on their log-odds: see
        :class:`ensdistill.student.trees.TreeStudent`.
    teacher_minutes : float, optional
        The budget of ``teachers="auto"`` for tables and arrays, of one core and by a rule of cost: 4 by
        default. The same rows and minutes make the same ensemble on every machine.
    prefit : bool
        Whether the teachers are fitted already: they are kept, and ``clone`` keeps them too. They are
        calibrated and weighed by the rows of ``fit``, which they must not have seen before.
    validation_fraction : float or None
        Share of the rows that are held out, for the judgement alone. None: no row is, and there is no report,
        which saves the time of the models that the student is compared with.
    synthetic : "auto", None, or list
        Sources of rows that the ensemble labels for the student, of ``ensdistill.data.transfer``; ``"auto"``:
        MUNGE for tables, unless there are many unlabelled rows.
    temperature, alpha : float, optional
        Of the student's loss; see :class:`ensdistill.loss.settings.LossSettings`.
    loss : LossSettings, optional
        In place of these two.
    optimization : Optimization, optional
        Of a student that is a network. By default its steps, batch size and learning rate are found; see
        :mod:`ensdistill.student.automatic`.
    keep : float, optional
        In place of a student: a search finds the smallest one that keeps this share, such as 0.95, of the
        ensemble's gain over *direct*, in NLL and in accuracy (of several labels in BCE and in mAP), on rows
        that neither teachers nor students learn from. See :func:`ensdistill.student.search.search_student`.
    max_latency, max_bytes, max_parameters : optional
        The student's largest time of one row (``"50us"``), size (``"200kB"``) and number of parameters;
        without ``keep`` the search finds the student within them that keeps the most.
    families : list of str, optional
        Kinds of students that are searched, such as ``["mlp", "boosted"]``; all that fit X by default.
    minutes : float
        Of the search; half of them is *direct*'s.
    trials : int, optional
        So many trials of the student and as many of *direct*, in place of the minutes; only with ``keep`` or
        ``max_*``.
    random_state : int, RandomState or None
    n_jobs : int, optional
        Estimators that are fitted at once.
    verbose : int
        1 prints the seconds of each stage, 2 shows the training of the teachers as well.

    Attributes
    ----------
    classes_ : ndarray [C]
        In the order of ``np.unique``, which is that of the columns of ``predict_proba``. Of y with several
        columns their names, or their numbers.
    multilabel_ : bool
        Whether y had several columns.
    ensemble_ : Ensemble
        The teachers, calibrated and weighed.
    student_ : ensdistill.student.serving.Student
        The student by itself: it takes raw samples, and is saved and exported without the teachers.
    report_ : Report or None
        The judgement on the held-out rows; ``print(report_)`` shows it.
    retained_gain_ : dict or None
        The share of the ensemble's gain over direct training that the student kept, by metric (``accuracy``,
        ``nll``, ``brier``), with intervals.
    search_ : SearchResult or None
        Of ``keep`` and ``max_*``; ``print(search_)`` shows the frontier of size against the share that is
        kept. None where the student was given, and after ``load``.
    n_features_in_ : int
    feature_names_in_ : ndarray of str
        Where X is a frame.

    Notes
    -----
    Inputs are arrays, frames of pandas, polars or pyarrow with categories and gaps, or lists of strings.
    Gaps in arrays need teachers that take NaN. Labels of several columns need teachers that take them: see
    :class:`ensdistill.teachers.recipes.SklearnMembers`.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.ensemble import ExtraTreesClassifier
    >>> from sklearn.linear_model import LogisticRegression
    >>> x, y = load_iris(return_X_y=True)
    >>> teachers = [ExtraTreesClassifier(50), LogisticRegression(max_iter=1000)]
    >>> model = DistilledClassifier(teachers, validation_fraction=None, random_state=0).fit(x, y)
    >>> bool(model.score(x, y) > 0.9), model.ensemble_.names
    (True, ('extratreesclassifier', 'logisticregression'))
    """

    def _set_outputs(self, values: np.ndarray, labels: np.ndarray) -> None:
        self.classes_, self.multilabel_ = values, labels.ndim == 2
        if self.multilabel_ and all(name.isdigit() for name in values.tolist()):
            self.classes_ = values.astype(np.int64)

    def predict_proba(self, X: Any) -> np.ndarray:
        """The student's probabilities, float32 [N, C], in the order of ``classes_``; of several labels those
        of each by itself."""
        if self._is_multilabel():
            return sigmoid(self._logits(X))
        return np.exp(self.predict_log_proba(X))

    def predict_log_proba(self, X: Any) -> np.ndarray:
        """The logarithms of the probabilities, float32 [N, C]."""
        if self._is_multilabel():
            return -np.logaddexp(0.0, -self._logits(X).astype(np.float64)).astype(np.float32)
        logits = self._logits(X).astype(np.float64)
        logits -= logits.max(1, keepdims=True)
        found: np.ndarray = logits - np.log(np.exp(logits).sum(1, keepdims=True))
        return found.astype(np.float32)

    def predict(self, X: Any) -> np.ndarray:
        """The student's class for each sample, [N], of the labels' own kind; of several labels int64 [N, C],
        1 for those that apply."""
        if self._is_multilabel():
            return (self._logits(X) > 0).astype(np.int64)
        chosen = self.predict_proba(X).argmax(1)
        found: np.ndarray = self.classes_[chosen]
        return found

    def _is_multilabel(self) -> bool:
        check_is_fitted(self)
        return bool(self.multilabel_)

    def _logits(self, X: Any) -> np.ndarray:
        check_is_fitted(self)
        samples = check_predict(self, X, self._form, self._takes_gaps())
        logits: np.ndarray = outputs_of(self.student_.member, samples)
        return logits

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = self._teach_several()
        return tags

    def _teach_several(self) -> bool:
        """Whether the teachers take labels of several columns, as far as their tags show."""
        return takes_several(self.teachers)
