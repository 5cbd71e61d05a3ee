"""Fitted scikit-learn estimators as members."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from types import FunctionType
from typing import Any, Literal

import numpy as np

from ensdistill.common.files import write_bytes
from ensdistill.common.fingerprint import digest
from ensdistill.common.skops_files import load_skops, untrusted_types
from ensdistill.common.source import source_digest
from ensdistill.common.tasks import Task, check_task
from ensdistill.data import BadRows
from ensdistill.teachers.members.base import (
    SMOOTHING,
    SUM_TOLERANCE,
    align,
    arranged,
    as_float32,
    check_earlier_order,
    check_smoothing,
    check_width,
    own_source,
    task_parts,
    to_logits,
    two_logits,
    warned_already,
    write_description,
    wrong_task,
)
from ensdistill.teachers.members.boosted import LIBRARIES
from ensdistill.teachers.members.estimator_inputs import features_for, readings, table_for
from ensdistill.teachers.members.estimator_outputs import (
    answers_in_pairs,
    methods_for,
    moments_by,
    of_several_labels,
    spread_of,
)
from ensdistill.teachers.members.inputs import batches, count, kind, refused, take
from ensdistill.teachers.members.moments import Moments, check_moments, split_moments
from ensdistill.teachers.members.needs import needed, of_archive
from ensdistill.teachers.members.sigmoids import as_log_odds, of_applying
from ensdistill.teachers.members.skops_content import (
    Archive,
    archive_of,
    digests_of,
    earlier_contents,
    read_archive,
)

Output = Literal["auto", "probability", "decision"]


class SklearnMember:
    """A fitted scikit-learn classifier, or a regressor that was fitted to one column per class; by ``task`` a
    multi-label classifier or a regressor.

    The estimator's own ``predict_proba`` (or ``decision_function``) is called with the rows as they come, in
    their dtype: an array, a frame (its columns by name, in the order of the fit), or a list of texts. Only
    samples of more than one axis are flattened to [N, features].

    A frame of polars or pyarrow with gaps in columns of texts is read with None or with NaN in them, as the
    categories of the estimator's encoders show. Without such a sign, it must answer both alike.

    Parameters
    ----------
    estimator : fitted estimator
    name : str, optional
        The estimator's class name in lower case by default.
    classes : sequence of str, optional
        Names of the outputs. The estimator's ``classes_`` are aligned to them: by name, or as indices where
        they are integers of which none is a name. Classes that it was fitted without get probability 0, and a
        warning names them. By default its ``classes_`` as strings.
    columns : sequence of str, optional
        Names of the estimator's own classes, in the order of its ``classes_``, if these are not the names
        themselves.
    output : {"auto", "probability", "decision"}
        ``predict_proba`` (as log(p + smoothing)), or ``decision_function`` (``predict`` of a regressor); auto
        takes the first that the estimator has. Of a regressor's task, ``auto`` alone.
    smoothing : float
        Added to probabilities before the logarithm.
    batch_size : int
        Rows predicted at once.
    task : {"classification", "multilabel", "regression"}
        ``multilabel``: the log-odds of each label, log((p + smoothing) / (1 - p + smoothing)), whether
        ``predict_proba`` returns one array or one for each label (``OneVsRestClassifier``,
        ``MultiOutputClassifier``, ``ClassifierChain``, trees, forests, neighbours, ``MLPClassifier``);
        ``decision_function`` as it is. ``regression``: the output of ``predict``, with a variance where the
        estimator has ``return_std`` (``GaussianProcessRegressor``, ``BayesianRidge``) or NGBoost's
        ``pred_dist``. ``classes`` are the names of the labels, or of the numbers.

    Raises
    ------
    ValueError
        The estimator is not fitted, lacks that output, was fitted to several labels for each row, has a
        ``decision_function`` of pairs of classes (``decision_function_shape="ovo"``), or has other classes.
        ``predict_logits`` raises it for a frame with gaps that it answers differently as None and as NaN.

    Examples
    --------
    >>> from sklearn.linear_model import LogisticRegression
    >>> x, y = np.array([[-1.0], [1.0]]), np.array(["no", "yes"])
    >>> member = SklearnMember(LogisticRegression().fit(x, y), classes=["yes", "no"])
    >>> bool(np.diff(member.predict_logits(x)[0])[0] > 0)
    True
    """

    def __init__(
        self,
        estimator: Any,
        *,
        name: str | None = None,
        classes: Sequence[str] | None = None,
        columns: Sequence[str] | None = None,
        output: Output = "auto",
        smoothing: float = SMOOTHING,
        batch_size: int = 2048,
        task: Task = "classification",
    ) -> None:
        from sklearn.exceptions import NotFittedError
        from sklearn.utils.validation import check_is_fitted

        self.name = name or type(estimator).__name__.lower()
        try:
            check_is_fitted(estimator)
        except NotFittedError as error:
            raise ValueError(f"estimator: {self.name} is not fitted; call its fit first") from error
        if output not in ("auto", "probability", "decision"):
            raise ValueError(f"output: expected auto, probability or decision; got {output!r}")
        self.estimator, self.smoothing, self.batch_size = estimator, check_smoothing(smoothing), batch_size
        self.task = check_task(task)
        methods = methods_for(self.name, estimator, self.task, output)
        self.method = next((m for m in methods if hasattr(estimator, m)), None)
        if self.method is None:
            remedy = "; sklearn.calibration.CalibratedClassifierCV adds predict_proba to a classifier"
            more = remedy if "predict_proba" in methods else ""
            raise ValueError(f"output: {self.name} has no {' or '.join(methods)}{more}")
        self.output: Output = (
            "probability" if self.method == "predict_proba" or output == "probability" else "decision"
        )
        self._stated = output != "auto"
        known = getattr(estimator, "classes_", None)
        # The form of the uncertainty that the estimator returns beside the mean.
        self._spread = spread_of(estimator) if self.task == "regression" else None
        if self.task != "classification":
            if columns is not None:
                raise ValueError(
                    f"columns: {self.name}: expected none for the task {task}; got {list(columns)}"
                )
            self.output = "auto" if self.task == "regression" else self.output
            known = None  # the labels, or numbers, have no names of their own
        if self.task == "classification" and of_several_labels(estimator):
            raise self._several_labels()
        if self.method == "decision_function" and answers_in_pairs(estimator):
            raise ValueError(
                f"decision_function_shape: {self.name}: expected 'ovr', one column for each class; got "
                "'ovo', whose columns are pairs of classes. Set it on the fitted SVC or NuSVC: "
                "svc.set_params(decision_function_shape='ovr') needs no new fit"
            )
        self.own_columns = None if columns is None else list(columns)
        self.classes, self._columns = align(self.name, known, classes, columns, partly=True)
        self._count = None if known is None else len(known)
        self._has_one_label: bool | None = None  # for each row; None until predict was called
        # The archive just after the estimator was read from a file, and the file's. They differ if other
        # versions of the libraries wrote the file.
        self._came_from: tuple[Archive, Archive] | None = None

    @property
    def parameters(self) -> int:
        """Numbers in the fitted arrays of the saved estimator."""
        return self._size[0]

    @property
    def bytes(self) -> int:
        """Bytes of those arrays."""
        return self._size[1]

    @cached_property
    def _size(self) -> tuple[int, int]:
        # Used often, and writing a forest takes half a second.
        archive = digests_of(self.estimator)
        return archive.numbers, archive.size

    def predict_logits(self, inputs: Any) -> np.ndarray:
        """Logits, float32 [N, C], for an array [N, ...], a frame with the columns of the fit, or texts."""
        if self.task == "regression":
            raise wrong_task(self.name, self.task, "predict_logits")
        return self._answered(inputs)

    def predict_moments(self, inputs: Any) -> Moments:
        """Means and variances, float64 [N, D], of a regressor; inputs as for ``predict_logits``."""
        if self.task != "regression":
            raise wrong_task(self.name, self.task, "predict_moments")
        found = split_moments(
            self.name, self._answered(inputs), "mean_and_variance" if self._spread else "mean"
        )
        return check_moments(found, self.name, count(inputs), self.classes)

    def _answered(self, inputs: Any) -> np.ndarray:
        if kind(inputs) != "table":
            return self._logits(features_for(self.name, self.estimator, inputs))
        table = table_for(self.name, self.estimator, inputs)
        found: list[np.ndarray] = []
        refusal: Exception | None = None
        for reading in readings(self.estimator, table, inputs):
            try:
                found.append(self._logits(reading))
            except (MemoryError, BadRows):
                raise
            except Exception as error:  # of the library, which takes one kind of gap alone
                refusal = error
        if not found:
            raise refused(self.name, table, refusal) from refusal
        if not all(np.allclose(logits, found[0], rtol=0, atol=1e-5) for logits in found[1:]):
            raise ValueError(
                f"inputs: {self.name}: the frame has gaps in columns of texts, which are None in polars and "
                "pyarrow and NaN in pandas, and it answers the two differently. Pass frame.to_pandas() to an "
                "estimator that was fitted to pandas; fill the gaps first for another"
            )
        return found[0]

    def _logits(self, features: Any) -> np.ndarray:
        rows = count(features)
        if rows == 0:
            if self.classes is None:
                raise ValueError(f"inputs: {self.name} cannot find the number of classes without a row")
            return np.zeros((0, len(self.classes) * (1 + (self._spread is not None))), np.float32)
        if self.task == "regression":
            parts = [
                moments_by(self.name, self.estimator, self._spread, x)
                for x in batches(features, self.batch_size)
            ]
            return np.concatenate(parts)
        if self.task == "multilabel":
            return self._log_odds(features)
        self._check_one_label(take(features, slice(1)))
        method = getattr(self.estimator, str(self.method))
        outputs = [method(x) for x in batches(features, self.batch_size)]
        if isinstance(outputs[0], list):
            raise self._several_labels()
        scores = self._one_column_each(np.concatenate([np.asarray(output) for output in outputs]))
        if self._count is None:
            check_width(self.name, scores, rows, self.classes)
        elif scores.shape != (rows, self._count):
            shape = f"[{rows}, {self._count}], one for each class"
            raise ValueError(f"{self.name}: expected outputs {shape}; got {list(scores.shape)}")
        if self.output == "probability":
            scores = to_logits(scores, self.smoothing)
        return as_float32(arranged(scores, self._columns, self.smoothing))

    def _log_odds(self, features: Any) -> np.ndarray:
        """Log-odds, float32 [N, C], of a multi-label classifier."""
        if self._has_one_label is None:
            self._has_one_label = np.ndim(self.estimator.predict(take(features, slice(1)))) == 1
        if self._has_one_label:
            raise ValueError(
                f"estimator: {self.name} was fitted to one class for each row; expected labels [N, C] at its "
                "fit for the task multilabel (MultiOutputClassifier(estimator) keeps a single label, [N, 1])"
            )
        method, known = getattr(self.estimator, str(self.method)), getattr(self.estimator, "classes_", None)
        parts = [of_applying(self.name, method(x), known) for x in batches(features, self.batch_size)]
        reading = "probabilities" if self.output == "probability" else "logits"
        found = as_log_odds(self.name, np.concatenate(parts), reading, self.smoothing)
        return check_width(self.name, found, count(features), self.classes)

    def _one_column_each(self, scores: np.ndarray) -> np.ndarray:
        """The same scores, [N, C]; a binary margin as two columns."""
        if self.method == "predict" and (scores.ndim == 1 or scores.shape[1] == 1):
            raise ValueError(
                f"{self.name}: expected a regressor that was fitted to one column for each class; it "
                "predicts one number a row, which is no logit: fit a classifier, or the regressor to 2 * "
                "np.eye(C)[labels] - 1; or state task='regression'"
            )
        if (
            self.method == "predict"
            and not self._stated
            and (np.abs(scores.sum(1) - 1) <= SUM_TOLERANCE).all()
        ):
            raise ValueError(
                f"output: {self.name}: the rows that predict returns sum to 1, as those of a regressor "
                "fitted to np.eye(C)[labels]. output='probability' takes them for probabilities, "
                "output='decision' for scores that are calibrated as logits"
            )
        if scores.ndim == 1 and self.method == "decision_function":
            if self._count is None and len(self.classes or ()) != 2:
                raise ValueError(
                    f"{self.name}: decision_function returns one number for a row, and the estimator has no "
                    "classes_; if it is a margin between two classes, name both: classes=[where it is "
                    "negative, where it is positive]"
                )
            return two_logits(scores)
        return scores

    def _check_one_label(self, row: Any) -> None:
        if self._has_one_label is None and self.method != "predict" and hasattr(self.estimator, "predict"):
            try:
                self._has_one_label = np.ndim(self.estimator.predict(row)) == 1
            except Exception:
                # predict may refuse a row that the method in use takes (a gap, say): the next batch is tried.
                return
        if self._has_one_label is False:
            raise self._several_labels()

    def _several_labels(self) -> ValueError:
        return ValueError(
            f"estimator: {self.name} was fitted to several labels for each row (multi-label or "
            "multi-output): expected one class for each row; fit one classifier for each label, or state "
            "task='multilabel'"
        )

    def fingerprint(self) -> str:
        """Digest of everything on which predictions depend; not of thread counts, verbosity and the like."""
        return digest(["sklearn", self.fingerprint_parts()])

    def fingerprint_parts(self) -> dict[str, str]:
        """Digests of the fingerprint's parts, by name; ``output`` as it is."""
        now = digests_of(self.estimator)
        first, file = self._came_from or (now, now)
        own = own_code(self.estimator, libraries=tuple(LIBRARIES))
        code = {f"source of {name}": digest(source) for name, source in own.items()}
        return {
            **(file.parts if now.parts == first.parts else now.parts),
            "output": self.output,
            "smoothing": str(self.smoothing),
            "classes": digest([self.classes, self.own_columns]),
            **task_parts(self.task),
            **code,
            **own_source(self),
        }

    def saved_content(self) -> str:
        """Digest of the saved files' content."""
        return self._content(digests_of(self.estimator))

    def earlier_contents(self, folder: Path, description: dict[str, Any]) -> list[str]:
        """`saved_content` as earlier versions computed it, without ``columns`` and own code."""
        more = [self.output, self.smoothing, description.get("classes")]
        contents = earlier_contents((folder / "estimator.skops").read_bytes())
        return [digest(["sklearn", content, *more]) for content in contents]

    def _content(self, now: Archive) -> str:
        first, file = self._came_from or (now, now)
        content = file.content if now.content == first.content else now.content
        parts = ["sklearn", content, self.output, self.smoothing, self.classes, self.own_columns]
        parts += task_parts(self.task).values()
        return digest([*parts, *([code] if (code := own_code(self.estimator)) else [])])

    def untrusted(self, trusted: Sequence[str] = ()) -> list[str]:
        """The types that loading has to trust in addition to ``trusted``."""
        import skops.io

        return untrusted_types(skops.io.dumps(self.estimator), trusted)

    def save(self, folder: Path | str) -> None:
        """Write ``estimator.skops`` and ``member.json``."""
        archive = archive_of(self.estimator)
        write_bytes(Path(folder) / "estimator.skops", archive.blob)
        more: dict[str, Any] = {"output": self.output, "columns": self.own_columns}
        more |= {"smoothing": self.smoothing, "batch_size": self.batch_size}
        more["needs"] = needed(of_archive(archive.blob))
        write_description(folder, self, "sklearn", self._content(archive), **more)

    @classmethod
    def load(cls, folder: Path, description: dict[str, Any], trusted: tuple[str, ...]) -> SklearnMember:
        """A saved estimator, built of trusted types only."""
        blob = (folder / "estimator.skops").read_bytes()
        estimator = load_skops(blob, trusted, folder)
        check_earlier_order(folder, description, getattr(estimator, "classes_", None))
        options = {key: description[key] for key in ("name", "classes", "output", "smoothing", "batch_size")}
        options["task"] = description.get("task", "classification")
        with warned_already():
            member = cls(estimator, columns=description.get("columns"), **options)
        # Without the bytes, which may be gigabytes.
        member._came_from = digests_of(estimator), replace(read_archive(blob), blob=b"")
        return member


def own_code(estimator: Any, libraries: Sequence[str] = ()) -> dict[str, str | None]:
    """Digests of code that a .skops file lacks: functions and classes of an estimator, by name.

    Code of scikit-learn and of the packages ``libraries`` is left out.
    """
    found: dict[str, str | None] = {}
    values = [
        estimator,
        *(estimator.get_params(deep=True).values() if hasattr(estimator, "get_params") else ()),
    ]
    for value in values:
        code = value.func if isinstance(value, partial) else value
        code = code if isinstance(code, FunctionType | type) else type(code)
        if code.__module__.partition(".")[0] not in ("sklearn", "numpy", "scipy", "builtins", *libraries):
            found[f"{code.__module__}.{code.__qualname__}"] = source_digest(code)
    return found
