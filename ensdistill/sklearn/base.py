"""Common to the classifier and the regressor: their parameters, ``fit``, and the folder of a fitted one."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, Self

import numpy as np
from sklearn.base import BaseEstimator, clone
from sklearn.utils import check_random_state, estimator_html_repr
from sklearn.utils.validation import check_is_fitted

from ensdistill.common.optimization import Optimization
from ensdistill.data.samples import form as samples_form
from ensdistill.loss.settings import LossSettings
from ensdistill.sklearn import storage
from ensdistill.sklearn.fitting import fit, settings_of
from ensdistill.sklearn.inputs import check_fit, kept_on_error, shape_of, split_of
from ensdistill.sklearn.teachers import takes_gaps
from ensdistill.student.serving import Student
from ensdistill.teachers.base import BaseEnsemble


class Distilled(BaseEstimator):
    """An ensemble of teachers, distilled into one student. See
    :class:`ensdistill.sklearn.DistilledClassifier` for the parameters."""

    _numbers = False  # whether y holds those of a regression

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
        minutes: float | None = None,
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
        y : array-like
            Of a classifier labels of any kind [N]; or [N, C] with 0 and 1 (NaN where unknown), of which any
            number apply to a row. Of a regressor numbers [N] or [N, D].
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
        data, form = check_fit(self, X, y, X_unlabeled, sample_weight, self._takes_gaps(), self._numbers)
        seed = self._seed()
        split, reason = split_of(data, self.validation_fraction, seed)
        settings = settings_of(self, split)
        if reason and self.validation_fraction is not None:
            warnings.warn(f"validation_fraction: there is no report, because {reason}", stacklevel=4)
        fitted = fit(settings, split, seed, not reason, self._done)
        self._form, self._is_flat = form, data.labels.ndim == 1 or len(shape_of(y)) < 2
        self._set_outputs(data.values, data.labels)
        self.ensemble_, self.report_, self.search_ = fitted.ensemble, fitted.report, fitted.search
        self.student_ = Student(
            fitted.student, data.classes, data.values.tolist(), samples_form(split.labelled.inputs)
        )
        self.retained_gain_ = None if fitted.report is None else fitted.report.retained_gain
        return self

    def _set_outputs(self, values: np.ndarray, labels: np.ndarray) -> None:
        """Keep the classes, or the number of outputs, of a fit."""
        raise NotImplementedError

    def save(self, folder: Path | str) -> None:
        """Write the fitted estimator to a folder: ``ensemble``, ``student`` and, last, a JSON file.
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
        """A saved estimator, which predicts as before.

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
        kept = ("teachers",) if self.prefit or isinstance(self.teachers, BaseEnsemble) else ()
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
            print(f"[{type(self).__name__}] {stage}: {seconds:.1f} s", flush=True)
