"""The member of boosted trees.

The model's own probabilities decide. Its raw scores are logits already, which no rounding to zero has
touched. So the raw scores are taken where their softmax equals the library's probabilities on rows of the
batch. It differs for a random forest, or for one class against the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import expit

from ensdistill.common.files import write_bytes
from ensdistill.common.fingerprint import digest
from ensdistill.common.tasks import Task, check_task
from ensdistill.data import BadRows
from ensdistill.data.batches import describe
from ensdistill.teachers.members.base import (
    SMOOTHING,
    align,
    arranged,
    as_float32,
    check_earlier_order,
    check_smoothing,
    flat,
    own_source,
    task_parts,
    to_logits,
    warned_already,
    write_description,
    wrong_task,
)
from ensdistill.teachers.members.boosted.libraries import LIBRARIES, is_fitted, library_of
from ensdistill.teachers.members.boosted.library import Library, softmax_of_scores, two_columns
from ensdistill.teachers.members.inputs import batches, columns_of, count, kind, refused, take
from ensdistill.teachers.members.moments import Moments, as_moments, check_moments, split_moments
from ensdistill.teachers.members.needs import needed
from ensdistill.teachers.members.sigmoids import log_odds

COMPARED_ROWS = 256  # of each batch, on which raw scores and probabilities are compared
TOLERANCE = {np.dtype(np.float32): 1e-5}  # of a probability, by its dtype; 1e-6 for others


class BoostedMember:
    """A fitted XGBoost, LightGBM or CatBoost model, or the library's own booster: a classifier; by ``task`` a
    multi-label classifier or a regressor.

    The model's own ``predict_proba`` (``predict`` of a booster) is called with the rows as they come, in
    their dtype. Only samples of more than one axis are flattened to [N, features]. The logits are the raw
    scores where the softmax of these is the same on up to 256 rows of each batch (to 1e-6 in float64, 1e-5 in
    float32). Elsewhere they are log(p + smoothing). Probabilities of one class against the rest are divided
    by their sum. A member is saved in the library's own format: UBJ (XGBoost), text (LightGBM), cbm
    (CatBoost).

    Parameters
    ----------
    estimator : ``XGBClassifier``, ``LGBMClassifier``, ``CatBoostClassifier``, ``Booster`` or ``CatBoost``
        A booster of XGBoost predicts with all its rounds, as its ``predict`` does; the classifier stops at
        its best iteration.
    name : str, optional
        The estimator's class name in lower case by default.
    classes, columns : sequence of str, optional
        Names of the outputs, to which the estimator's ``classes_`` are aligned, and names of these (see
        :class:`ensdistill.teachers.members.SklearnMember`).
    smoothing : float
        Added to probabilities before the logarithm, for models that are no softmax of their scores.
    batch_size : int
        Rows predicted at once.
    task : {"classification", "multilabel", "regression"}
        ``multilabel``: XGBoost's ``binary:logistic`` with several targets and CatBoost's ``MultiLogloss``.
        Log-odds are the raw scores where the sigmoid of these is the library's probability. ``regression``:
        the output of the model's ``predict``, and CatBoost's variances of ``RMSEWithUncertainty``.

    Raises
    ------
    ValueError
        Not fitted, of another task, a class with a ``predict_proba`` of its
        own, or a model of other classes. ``predict_logits`` raises it for rows with another number of columns
        than at the fit.
    """

    def __init__(
        self,
        estimator: Any,
        *,
        name: str | None = None,
        classes: Sequence[str] | None = None,
        columns: Sequence[str] | None = None,
        smoothing: float = SMOOTHING,
        batch_size: int = 65536,
        task: Task = "classification",
    ) -> None:
        library = library_of(estimator)
        self.name = name or type(estimator).__name__.lower()
        if library is None:
            raise TypeError(
                f"estimator: expected a model of {', '.join(LIBRARIES)}; got {type(estimator).__name__}"
            )
        if not is_fitted(estimator):
            raise ValueError(f"estimator: {self.name} is not fitted; call its fit first")
        model = LIBRARIES[library](estimator, task=check_task(task))
        if task != "classification":
            model.classes = None  # the labels, or numbers, have no names of their own
            if columns is not None:
                raise ValueError(
                    f"columns: {self.name}: expected none for the task {task}; got {list(columns)}"
                )
        aligned = align(self.name, _labels(model), classes, columns, partly=True)
        self._use(model, None if columns is None else list(columns), check_smoothing(smoothing), batch_size)
        self.classes, self._columns = aligned

    def _use(self, model: Library, columns: list[str] | None, smoothing: float, batch_size: int) -> None:
        self._model, self._labels, self.own_columns = model, _labels(model), columns
        self.smoothing, self.batch_size, self.task = smoothing, batch_size, model.task

    @property
    def library(self) -> str:
        """``xgboost``, ``lightgbm`` or ``catboost``."""
        return self._model.name

    @property
    def parameters(self) -> int:
        """0: the libraries do not count them."""
        return 0

    @property
    def bytes(self) -> int:
        """Bytes of the saved file."""
        return len(self._model.blob)

    def predict_logits(self, inputs: Any) -> np.ndarray:
        """Logits, float32 [N, C], for an array [N, ...], or for a frame with the columns of the fit."""
        if self.task == "regression":
            raise wrong_task(self.name, self.task, "predict_logits")
        return self._answered(inputs)

    def predict_moments(self, inputs: Any) -> Moments:
        """Means and variances, float64 [N, D], of a regressor; inputs as for ``predict_logits``."""
        if self.task != "regression":
            raise wrong_task(self.name, self.task, "predict_moments")
        values = self._answered(inputs)
        found = split_moments(self.name, values, "mean_and_variance" if self._gives_variances else "mean")
        return check_moments(found, self.name, count(inputs), self.classes)

    def _answered(self, inputs: Any) -> np.ndarray:
        if kind(inputs) == "table":
            return self._of_table(inputs)
        if not isinstance(inputs, np.ndarray):
            raise TypeError(
                f"inputs: {self.name} takes an array or a frame; got a batch of kind {kind(inputs)!r}: give "
                "it a preprocess, Ensemble.from_members([(model, preprocess)])"
            )
        return self._logits(flat(inputs), list(inputs.shape))

    def _of_table(self, frame: Any) -> np.ndarray:
        """Logits for a frame, by the names of its columns. An error of the library names them."""
        table = table_for(self.name, self._model, frame)
        try:
            return self._logits(table, list(table.shape))
        except (MemoryError, BadRows):
            raise
        except Exception as error:  # of the library
            raise refused(self.name, table, error) from error

    def _logits(self, features: Any, shape: list[int]) -> np.ndarray:
        if features.ndim != 2 or features.shape[1] != self._model.features:
            fitted = f"{self.name} was fitted to {self._model.features} features (columns)"
            raise ValueError(f"inputs: {fitted}; got {shape}")
        if len(features) == 0:
            if self.classes is None:
                raise ValueError(f"inputs: {self.name} cannot find the number of classes without a row")
            return np.zeros((0, len(self.classes) * (1 + self._gives_variances)), np.float32)
        if self.task == "regression":
            return np.concatenate([self._moments(_contiguous(x)) for x in batches(features, self.batch_size)])
        compared = _contiguous(take(features, slice(None, None, -(-len(features) // COMPARED_ROWS))))
        predict = self._from_scores if self._scores_agree(compared) else self._from_probabilities
        logits = np.concatenate([predict(_contiguous(x)) for x in batches(features, self.batch_size)])
        width = logits.shape[1] if self._labels is None else len(self._labels)
        expected = len(self.classes) if self._columns is None and self.classes is not None else width
        if logits.shape != (len(features), expected):
            rows = f"[{len(features)}, {expected}], one for each class"
            raise ValueError(f"{self.name}: expected outputs {rows}; got {list(logits.shape)}")
        return as_float32(arranged(logits, self._columns, self.smoothing))

    def _scores_agree(self, inputs: Any) -> bool:
        """Whether the softmax (or sigmoid) of the raw scores equals the library's probabilities for these
        rows."""
        own = self._probabilities(inputs)
        if self.task == "multilabel":
            scores = expit(self._model.scores(inputs).astype(np.float64))
        else:
            scores = softmax_of_scores(self._model.scores(inputs))
        return own.shape == scores.shape and bool(
            np.abs(own - scores).max() <= TOLERANCE.get(own.dtype, 1e-6)
        )

    def _from_scores(self, inputs: Any) -> np.ndarray:
        scores = self._model.scores(inputs)
        return scores if self.task == "multilabel" else two_columns(scores)

    def _from_probabilities(self, inputs: Any) -> np.ndarray:
        convert = log_odds if self.task == "multilabel" else to_logits
        return convert(self._probabilities(inputs), self.smoothing)

    def _moments(self, inputs: Any) -> np.ndarray:
        """Means, float64 [N, D], or [N, 2 D] with the variances after them."""
        found = as_moments(self.name, *self._model.moments(inputs))
        return np.concatenate([part for part in found if part is not None], axis=1)

    @property
    def _gives_variances(self) -> bool:
        return self._model.objective == "RMSEWithUncertainty"

    def _probabilities(self, inputs: Any) -> np.ndarray:
        p = self._model.probabilities(inputs)
        if self.task == "multilabel":
            return p
        if p.ndim == 1:
            p = np.stack([1 - p, p], axis=1)
        if self._model.one_against_rest:
            p = p / p.sum(1, keepdims=True)
        # Fitted to rows of one class only, the libraries return a second column, for a class that does not
        # exist.
        return p[:, :1] if self._labels is not None and len(self._labels) == 1 and p.shape[1] == 2 else p

    def fingerprint(self) -> str:
        """Digest of the trees and settings on which predictions depend."""
        return digest([self._model.name, self.fingerprint_parts()])

    def fingerprint_parts(self) -> dict[str, str]:
        """Digests of the fingerprint's parts, by name."""
        model = self._model
        return {
            "trees": digest(model.answering(model.blob)),
            "settings": digest([model.options(), self.smoothing]),
            "classes": digest([self._labels, self.own_columns, self.classes]),
            **task_parts(self.task),
            **own_source(self),
        }

    def saved_content(self) -> str:
        """Digest of the saved files' content, training parameters included."""
        model = self._model
        more: list[Any] = [self._labels, self.own_columns, self.smoothing, self.classes]
        more += task_parts(self.task).values()
        return digest([model.name, model.blob, model.options(), *more])

    def earlier_contents(self, folder: Path, description: dict[str, Any]) -> list[str]:
        """`saved_content` as earlier versions computed it, without ``columns`` and with fewer options."""
        more = [description.get(key) for key in ("options", "known", "smoothing", "classes")]
        return [digest([self._model.name, self._model.blob, *more])]

    def save(self, folder: Path | str) -> None:
        """Write the model in its library's own format, and ``member.json``."""
        write_bytes(Path(folder) / self._model.file, self._model.blob)
        more = {"options": self._model.options(), "known": self._labels, "columns": self.own_columns}
        more["needs"] = needed([self._model.name])
        write_description(
            folder, self, self._model.name, **more, smoothing=self.smoothing, batch_size=self.batch_size
        )

    @classmethod
    def load(cls, folder: Path, description: dict[str, Any], trusted: tuple[str, ...]) -> BoostedMember:
        """A saved member; its library reads the file as data."""
        library = LIBRARIES[description["kind"]]
        blob = (folder / library.file).read_bytes()
        try:
            task = description.get("task", "classification")
            model = library.load(blob, description["options"], description["known"], task)
        except ImportError:
            raise
        except Exception as error:  # many kinds, without the file's name
            raise ValueError(f"{folder}: {library.name} can't read {library.file} ({error})") from error
        model.classes = description["known"]
        check_earlier_order(folder, description, _labels(model))
        member = cls.__new__(cls)
        member.name, columns = description["name"], description.get("columns")
        member._use(model, columns, description["smoothing"], description["batch_size"])
        with warned_already():
            aligned = align(member.name, model.classes, description["classes"], columns, partly=True)
        member.classes, member._columns = aligned
        return member


def table_for(name: str, model: Library, frame: Any) -> Any:
    """A frame's columns in the order of the fit, as a pandas frame that the model's library takes.

    Raises
    ------
    ValueError
        A column is missing, or holds texts where the model was fitted to numbers; names member and column.
    """
    import narwhals.stable.v2 as nw

    given = nw.from_native(frame, eager_only=True)
    names = model.names
    if names is None:
        return model.table(given.to_pandas())
    # LightGBM writes a space in a column's name as "_".
    own = {str(column).replace(" ", "_"): column for column in given.columns}
    spelled = set(given.columns)
    chosen = [column if column in spelled else own.get(column, column) for column in names]
    table = columns_of(name, frame, chosen, pandas=True)
    words = model.words
    types = describe(table)["columns"]
    for column, known in zip(chosen, names, strict=True):
        found = types[column]
        if words is not None and found in ("text", "category") and known not in words:
            raise ValueError(
                f"inputs: {name}: column {column!r}: expected numbers, as at the fit; got {found}: convert "
                "the column"
            )
    return model.table(table)


def _contiguous(features: Any) -> Any:
    return np.ascontiguousarray(features) if isinstance(features, np.ndarray) else features


def _labels(model: Library) -> list[Any] | None:
    """The model's ``classes_`` as plain values; None where it has none."""
    return None if model.classes is None or len(model.classes) == 0 else np.asarray(model.classes).tolist()
