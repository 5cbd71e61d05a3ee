"""``DistilledClassifier``: teachers, cache, student and report behind ``fit`` and ``predict``."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, Self

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.utils import check_random_state, estimator_html_repr
from sklearn.utils.validation import check_is_fitted

from ensdistill.common.optimization import Optimization
from ensdistill.data.samples import form as samples_form
from ensdistill.job.evaluate import predict
from ensdistill.loss.settings import LossSettings
from ensdistill.sklearn import storage
from ensdistill.sklearn.fitting import fit, settings_of
from ensdistill.sklearn.inputs import check_fit, check_predict, kept_on_error, split_of
from ensdistill.sklearn.teachers import takes_gaps
from ensdistill.student.serving import Student
from ensdistill.teachers import Ensemble


class DistilledClassifier(ClassifierMixin, BaseEstimator):
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
        ensemble's gain over *direct*, in NLL and in accuracy, on rows that neither teachers nor students
        learn from. See :func:`ensdistill.student.search.search_student`.
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
        In the order of ``np.unique``, which is that of the columns of ``predict_proba``.
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
    Gaps in arrays need teachers that take NaN.

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

    def __init__(
        self,
        teachers: Any = "auto",
        student: Any = "auto",
        *,
        teacher_minutes: float | None = None,
        prefit: bool = False,
        validation_fraction: float | None = 0.2,
        synthetic: Any = "auto",
        temperature: float | None = None,
        alpha: float | None = None,
        loss: LossSettings | None = None,
        optimization: Optimization | None = None,
        keep: float | None = None,
        max_latency: float | str | None = None,
        max_bytes: int | str | None = None,
        max_parameters: int | None = None,
        families: Sequence[Any] | None = None,
        minutes: float = 10.0,
        trials: int | None = None,
        random_state: Any = None,
        n_jobs: int | None = None,
        verbose: int = 0,
    ) -> None:
        self.teachers = teachers
        self.student = student
        self.teacher_minutes = teacher_minutes
        self.prefit = prefit
        self.validation_fraction = validation_fraction
        self.synthetic = synthetic
        self.temperature = temperature
        self.alpha = alpha
        self.loss = loss
        self.optimization = optimization
        self.keep = keep
        self.max_latency = max_latency
        self.max_bytes = max_bytes
        self.max_parameters = max_parameters
        self.families = families
        self.minutes = minutes
        self.trials = trials
        self.random_state = random_state
        self.n_jobs = n_jobs
        self.verbose = verbose

    def fit(self, X: Any, y: Any, X_unlabeled: Any = None, sample_weight: Any = None) -> Self:
        """Train the teachers, and the student from their predictions.

        Parameters
        ----------
        X : array-like [N, ...], frame, or list of str
        y : array-like [N]
            Labels of any kind.
        X_unlabeled : like X, optional
            Rows without a label, on which the teachers' predictions teach the student.
        sample_weight : array-like [N], optional
            Of the rows of X; a weight of 0 leaves a row out.

        Returns
        -------
        self

        Raises
        ------
        TypeError, ValueError
            Arguments that do not fit, before anything is trained. An earlier fit stays as it was.
        """
        with kept_on_error(self):
            return self._fit(X, y, X_unlabeled, sample_weight)

    def _fit(self, X: Any, y: Any, X_unlabeled: Any, sample_weight: Any) -> Self:
        data, form = check_fit(self, X, y, X_unlabeled, sample_weight, self._takes_gaps())
        seed = self._seed()
        split, reason = split_of(data, self.validation_fraction, seed)
        settings = settings_of(self, split)
        if reason and self.validation_fraction is not None:
            warnings.warn(f"validation_fraction: there is no report, because {reason}", stacklevel=3)
        fitted = fit(settings, split, seed, not reason, self._done)
        self.classes_, self._form = data.values, form
        self.ensemble_, self.report_, self.search_ = fitted.ensemble, fitted.report, fitted.search
        self.student_ = Student(
            fitted.student, data.classes, data.values.tolist(), samples_form(split.labelled.inputs)
        )
        self.retained_gain_ = None if fitted.report is None else fitted.report.retained_gain
        return self

    def predict_proba(self, X: Any) -> np.ndarray:
        """The student's probabilities, float32 [N, C], in the order of ``classes_``."""
        return np.exp(self.predict_log_proba(X))

    def predict_log_proba(self, X: Any) -> np.ndarray:
        """The logarithms of the probabilities, float32 [N, C]."""
        check_is_fitted(self)
        samples = check_predict(self, X, self._form, self._takes_gaps())
        logits = predict(self.student_.member, samples).astype(np.float64)
        logits -= logits.max(1, keepdims=True)
        found: np.ndarray = logits - np.log(np.exp(logits).sum(1, keepdims=True))
        return found.astype(np.float32)

    def predict(self, X: Any) -> np.ndarray:
        """The student's class for each sample, [N], of the labels' own kind."""
        chosen = self.predict_proba(X).argmax(1)
        found: np.ndarray = self.classes_[chosen]
        return found

    def save(self, folder: Path | str) -> None:
        """Write the fitted classifier to a folder: ``ensemble``, ``student`` and, last, ``classifier.json``.
        Nothing is pickled.

        Parameters that are objects of your own (a RandomState, a source of synthetic rows) are not written; a
        warning names them.

        Raises
        ------
        ValueError, TypeError
            A teacher or the student can't be saved; see :meth:`ensdistill.Ensemble.save`.
        """
        check_is_fitted(self)
        storage.save(self, Path(folder))

    @classmethod
    def load(cls, folder: Path | str, trusted: Sequence[str] = ()) -> Self:
        """A saved classifier, which predicts as before.

        Its ``teachers`` are the saved ensemble, so another ``fit`` keeps them; ``"auto"`` stays.

        Parameters
        ----------
        folder : path
        trusted : sequence of str
            Class paths that may be built beside torch's, this package's and scikit-learn's own.

        Raises
        ------
        ValueError
            Nothing complete is there, a newer version wrote it, or a class is not trusted.
        """
        return storage.load(cls, Path(folder), trusted)

    def __sklearn_clone__(self) -> Self:
        """An unfitted copy. Fitted teachers are shared: a clone of them would not be fitted."""
        given = self.get_params(deep=False)
        kept = ("teachers",) if self.prefit or isinstance(self.teachers, Ensemble) else ()
        made = type(self)(**{n: v if n in kept else clone(v, safe=False) for n, v in given.items()})
        if hasattr(self, "_metadata_request"):
            made._metadata_request = deepcopy(self._metadata_request)
        return made

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = self._takes_gaps()
        tags.input_tags.string = True
        tags.non_deterministic = False
        return tags

    def _html_repr(self) -> str:
        own = estimator_html_repr(self)
        report = getattr(self, "report_", None)
        return own if report is None else f"{own}{report._repr_html_()}"

    def _takes_gaps(self) -> bool:
        student = self.student
        of_student = not (hasattr(student, "fit") and hasattr(student, "get_params")) or takes_gaps([student])
        return of_student and takes_gaps(self.teachers)

    def _seed(self) -> int:
        if isinstance(self.random_state, (int, np.integer)) and self.random_state >= 0:
            return int(self.random_state)
        return int(check_random_state(self.random_state).randint(2**31 - 1))

    def _done(self, stage: str, seconds: float) -> None:
        if self.verbose:
            print(f"[DistilledClassifier] {stage}: {seconds:.1f} s", flush=True)
