"""Fitted scikit-learn estimators as members."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property, partial
from pathlib import Path
from types import FunctionType
from typing import Any, Literal

import numpy as np

from ensdistill.common.files import write_bytes
from ensdistill.common.fingerprint import digest
from ensdistill.common.source import source_digest
from ensdistill.teachers.members.base import (
    SMOOTHING,
    SUM_TOLERANCE,
    Blob,
    align,
    arranged,
    as_float32,
    batches,
    check_smoothing,
    check_width,
    flat,
    to_logits,
    two_logits,
    warned_already,
    write_about,
)
from ensdistill.common.skops_files import load_skops, skops_content, untrusted_types

Output = Literal["auto", "probability", "decision"]


class SklearnMember:
    """A fitted scikit-learn classifier, or a regressor that was fitted to one column per class.

    The estimator's own ``predict_proba`` (or ``decision_function``) is called with the rows as they come, in their dtype; only samples of
    more than one axis are flattened to [N, features].

    Parameters
    ----------
    estimator : fitted estimator
    name : str, optional
        The estimator's class name in lower case by default.
    classes : sequence of str, optional
        Names of the outputs. The estimator's ``classes_`` are aligned to them: by name, or as indices where they are integers of which
        none is a name. Classes that it was fitted without get probability 0, and a warning names them.
        By default its ``classes_`` as strings.
    columns : sequence of str, optional
        Names of the estimator's own classes, in the order of its ``classes_``, where these are not the names themselves.
    output : {"auto", "probability", "decision"}
        ``predict_proba`` (as log(p + smoothing)), or ``decision_function`` (``predict`` of a regressor); auto takes the first it has.
    smoothing : float
        Added to probabilities before the logarithm.
    batch_size : int
        Rows predicted at once.

    Raises
    ------
    ValueError
        The estimator is not fitted, cannot give that output, was fitted to several labels for each row, has a ``decision_function`` of
        pairs of classes (``decision_function_shape="ovo"``), or knows other classes.

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
    ) -> None:
        from sklearn.base import is_regressor
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
        scores = "predict" if is_regressor(estimator) else "decision_function"
        # A regressor that was fitted to one-hot rows predicts probabilities, if the caller says so.
        chances = ("predict_proba", "predict") if scores == "predict" else ("predict_proba",)
        methods = {"auto": ("predict_proba", scores), "probability": chances, "decision": (scores,)}[output]
        self.method = next((m for m in methods if hasattr(estimator, m)), None)
        if self.method is None:
            raise ValueError(f"output: {self.name} has no {' or '.join(methods)}")
        self.output: Output = "probability" if self.method == "predict_proba" or output == "probability" else "decision"
        self._stated = output != "auto"
        known = getattr(estimator, "classes_", None)
        if getattr(estimator, "multilabel_", False) or (isinstance(known, list) and any(np.ndim(labels) for labels in known)):
            raise self._several_labels()
        if self.method == "decision_function" and answers_in_pairs(estimator):
            raise ValueError(
                f"decision_function_shape: {self.name}: expected 'ovr', one column for each class; got 'ovo', whose columns are pairs of "
                "classes. Set it on the fitted SVC or NuSVC: svc.set_params(decision_function_shape='ovr') needs no new fit"
            )
        self.own_columns = None if columns is None else list(columns)
        self.classes, self._columns = align(self.name, known, classes, columns, partly=True)
        self._count = None if known is None else len(known)
        self._has_one_label: bool | None = None  # for each row, as its predict has shown
        # Digests of what it is written as just after it was read from a file, and of that file: other versions of the libraries write
        # something else of the same estimator.
        self._came_from: tuple[str, str] | None = None

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
        # Asked for often, and writing a forest takes half a second.
        return self._archive()[2:]

    def predict_logits(self, inputs: np.ndarray) -> np.ndarray:
        features = flat(inputs)
        expected = getattr(self.estimator, "n_features_in_", None)
        if expected is not None and features.ndim == 2 and features.shape[1] != expected:
            raise ValueError(f"inputs: {self.name} was fitted to {expected} features (columns); got {features.shape[1]}")
        if len(features) == 0:
            if self.classes is None:
                raise ValueError(f"inputs: {self.name} cannot tell the number of classes without a row")
            return np.zeros((0, len(self.classes)), np.float32)
        self._check_one_label(features[:1])
        method = getattr(self.estimator, str(self.method))
        answers = [method(x) for x in batches(features, self.batch_size)]
        if isinstance(answers[0], list):
            raise self._several_labels()
        scores = self._one_column_each(np.concatenate([np.asarray(answer) for answer in answers]))
        if self._count is None:
            check_width(self.name, scores, len(inputs), self.classes)
        elif scores.shape != (len(inputs), self._count):
            raise ValueError(f"{self.name}: expected outputs [{len(inputs)}, {self._count}], one for each class; got {list(scores.shape)}")
        if self.output == "probability":
            scores = to_logits(scores, self.smoothing)
        return as_float32(arranged(scores, self._columns, self.smoothing))

    def _one_column_each(self, scores: np.ndarray) -> np.ndarray:
        """The same scores, [N, C]; a binary margin as two columns."""
        if self.method == "predict" and (scores.ndim == 1 or scores.shape[1] == 1):
            raise ValueError(
                f"{self.name}: expected a regressor that was fitted to one column for each class; it answers with one number a row, "
                "which is no logit: fit a classifier, or the regressor to 2 * np.eye(C)[labels] - 1"
            )
        if self.method == "predict" and not self._stated and (np.abs(scores.sum(1) - 1) <= SUM_TOLERANCE).all():
            raise ValueError(
                f"output: {self.name}: the rows that predict returns sum to 1, as those of a regressor fitted to np.eye(C)[labels]. "
                "output='probability' takes them for probabilities, output='decision' for scores that are calibrated as logits"
            )
        if scores.ndim == 1 and self.method == "decision_function":
            if self._count is None and len(self.classes or ()) != 2:
                raise ValueError(
                    f"{self.name}: decision_function gives one number for a row, and the estimator has no classes_; if it is a margin "
                    "between two classes, name both: classes=[where it is negative, where it is positive]"
                )
            return two_logits(scores)
        return scores

    def _check_one_label(self, row: np.ndarray) -> None:
        if self._has_one_label is None and self.method != "predict" and hasattr(self.estimator, "predict"):
            self._has_one_label = np.ndim(self.estimator.predict(row)) == 1
        if self._has_one_label is False:
            raise self._several_labels()

    def _several_labels(self) -> ValueError:
        return ValueError(
            f"estimator: {self.name} was fitted to several labels for each row (multi-label or multi-output): expected one class for each "
            "row; fit one classifier for each label"
        )

    def fingerprint(self) -> str:
        return self._print(self._archive()[1])

    def _print(self, now: str) -> str:
        """The fingerprint, of the digest of what it is written as: the file's that it was read from, if it was not refitted since."""
        first, file = self._came_from or (now, now)
        parts = ["sklearn", file if now == first else now, self.output, self.smoothing, self.classes, self.own_columns]
        return digest([*parts, *([code] if (code := own_code(self.estimator)) else [])])

    def _archive(self) -> tuple[Blob, str, int, int]:
        """The .skops file, the digest of its content, and the count and bytes of its numbers; anew, because it may have been refitted."""
        import skops.io

        blob = skops.io.dumps(self.estimator)
        return (blob, *skops_content(blob))

    def untrusted(self, trusted: Sequence[str] = ()) -> list[str]:
        """The types beside ``trusted`` that whoever loads it has to trust."""
        return untrusted_types(self._archive()[0], trusted)

    def save(self, folder: Path | str) -> None:
        blob, now, *_ = self._archive()
        write_bytes(Path(folder) / "estimator.skops", blob)
        more = {"output": self.output, "columns": self.own_columns, "smoothing": self.smoothing, "batch_size": self.batch_size}
        write_about(folder, self, "sklearn", self._print(now), **more)


def own_code(estimator: Any) -> dict[str, str | None]:
    """Digests of the code that an estimator holds and no .skops file does: functions and classes outside of scikit-learn, by name."""
    found: dict[str, str | None] = {}
    values = [estimator, *(estimator.get_params(deep=True).values() if hasattr(estimator, "get_params") else ())]
    for value in values:
        code = value.func if isinstance(value, partial) else value
        code = code if isinstance(code, FunctionType | type) else type(code)
        if code.__module__.partition(".")[0] not in ("sklearn", "numpy", "scipy", "builtins"):
            found[f"{code.__module__}.{code.__qualname__}"] = source_digest(code)
    return found


def answers_in_pairs(estimator: Any) -> bool:
    """Whether the columns of a fitted estimator's ``decision_function`` are pairs of classes: an SVC's, or one's that it hands on."""
    from sklearn.ensemble import BaggingClassifier

    if getattr(estimator, "decision_function_shape", "ovr") == "ovo" and len(getattr(estimator, "classes_", ())) > 2:
        return True
    parts = [getattr(estimator, name, None) for name in ("best_estimator_", "estimator_", "final_estimator_", "estimator")]
    parts += [step for _, step in getattr(estimator, "steps", ())[-1:]]
    parts += estimator.estimators_ if isinstance(estimator, BaggingClassifier) else []
    return any(answers_in_pairs(part) for part in parts if part is not None)


def load_sklearn(folder: Path, about: dict[str, Any], trusted: tuple[str, ...]) -> SklearnMember:
    """A saved estimator, built of trusted types only."""
    blob = (folder / "estimator.skops").read_bytes()
    estimator = load_skops(blob, trusted, folder)
    options = {key: about[key] for key in ("output", "smoothing", "batch_size")}
    with warned_already():
        member = SklearnMember(estimator, name=about["name"], classes=about["classes"], columns=about.get("columns"), **options)
    member._came_from = member._archive()[1], skops_content(blob)[0]
    return member
