"""Boosted trees of XGBoost, LightGBM and CatBoost as members, each in its library's own file format.

The model's own probabilities decide. Its raw scores are logits already, which no rounding to zero has touched, so they are taken where
rows of the batch show that their softmax is what the library answers. It is not for a random forest or one class against the rest.
"""

from __future__ import annotations

import json
import tempfile
import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ensdistill.common.files import write_bytes
from ensdistill.common.fingerprint import digest
from ensdistill.teachers.members.base import (
    SMOOTHING,
    Blob,
    align,
    arranged,
    as_float32,
    batches,
    check_smoothing,
    flat,
    to_logits,
    two_logits,
    warned_already,
    write_about,
)

COMPARED_ROWS = 256  # of each batch, on which raw scores and probabilities are compared
TOLERANCE = {np.dtype(np.float32): 1e-5}  # of a probability, by its dtype; 1e-6 for others


class _Library(ABC):
    """One library's model, ``model`` as it was given, and how it is asked and saved."""

    name: ClassVar[str]
    file: ClassVar[str]
    wrapper: ClassVar[tuple[str, ...]]
    """Names of the library's classes that are taken."""

    model: Any
    objective: str
    classes: Sequence[Any] | None = None
    one_against_rest = False
    """Probabilities of each class alone, which do not sum to one."""

    @abstractmethod
    def __init__(self, model: Any, blob: Blob | None = None) -> None: ...

    @property
    @abstractmethod
    def booster(self) -> Any:
        """The library's own booster, of which the file is made."""

    @property
    @abstractmethod
    def features(self) -> int:
        """Columns that it was fitted to."""

    @abstractmethod
    def probabilities(self, inputs: np.ndarray) -> np.ndarray:
        """The library's own answer to [N, F]: [N, C], or [N] of the second of two classes."""

    @abstractmethod
    def scores(self, inputs: np.ndarray) -> np.ndarray:
        """Raw scores for [N, F]: [N, C], or a binary margin [N]."""

    @abstractmethod
    def written(self) -> Blob:
        """The booster in the library's own format."""

    def came_from(self, blob: Blob | None) -> None:
        """Note the file it was read from, if it was: a library may write other bytes of the same trees."""
        self._first = self.written()
        self._file = self._first if blob is None else blob

    @property
    def blob(self) -> Blob:
        now = self.written()  # it may have been trained further, or anew
        return self._file if now == self._first else now

    @classmethod
    @abstractmethod
    def load(cls, blob: Blob, options: dict[str, Any]) -> _Library: ...

    def options(self) -> dict[str, Any]:
        """What prediction needs beyond the file."""
        return {}

    def check(self, objectives: Sequence[str], what: str = "objective") -> None:
        """Raise ValueError for a model that is no classifier, or whose class changes the library's own answer."""
        kind = type(self.model)
        if self.objective not in objectives:
            raise ValueError(f"estimator: expected a {self.name} classifier, {', '.join(objectives)}; got the {what} {self.objective}")
        if not {cls.__name__ for cls in kind.__mro__} & set(self.wrapper):
            raise ValueError(f"estimator: expected {' or '.join(self.wrapper)}; got {kind.__name__}: pass the booster that it holds")
        for method in ("predict", "predict_proba"):
            if not getattr(getattr(self.model, method, None), "__module__", self.name).startswith(self.name):
                raise ValueError(
                    f"estimator: {kind.__name__} has a {method} of its own, which would not be saved with the booster; "
                    "make it a member by CallableMember(estimator.predict_proba, output='probabilities', ...)"
                )


class _XGBoost(_Library):
    name, file, wrapper = "xgboost", "model.ubj", ("XGBClassifier", "Booster")
    softmax = ("multi:softprob", "multi:softmax", "binary:logistic", "binary:logitraw", "binary:hinge")

    def __init__(self, model: Any, blob: Blob | None = None) -> None:
        self.model = model
        self.is_classifier = hasattr(model, "predict_proba")
        self.classes = getattr(model, "classes_", None)
        learner = json.loads(self.booster.save_config())["learner"]
        self.objective = learner["objective"]["name"]
        self.check(self.softmax)
        if int(learner["learner_model_param"]["num_target"]) > 1:
            raise ValueError("estimator: expected one class for each row; got an XGBoost model of several labels (multi-label)")
        if self.is_classifier and self.objective == "binary:logitraw":
            raise ValueError(
                "estimator: XGBClassifier.predict_proba gives no probabilities for the objective binary:logitraw; pass "
                "estimator.get_booster(), whose margin is a logit"
            )
        self.came_from(blob)

    @property
    def booster(self) -> Any:
        return self.model.get_booster() if hasattr(self.model, "get_booster") else self.model

    @property
    def features(self) -> int:
        return int(self.booster.num_features())

    @property
    def missing(self) -> float:
        value = getattr(self.model, "missing", None)
        return np.nan if value is None else float(value)

    def written(self) -> Blob:
        return bytes(self.booster.save_raw("ubj"))

    def probabilities(self, inputs: np.ndarray) -> np.ndarray:
        if self.is_classifier:
            return np.asarray(self.model.predict_proba(inputs))
        if self.objective in ("multi:softmax", "binary:logitraw"):  # a booster answers with the class, or with the margin
            return _softmax(self.scores(inputs)).astype(np.float32)
        return np.asarray(self.booster.predict(self._matrix(inputs)))

    def scores(self, inputs: np.ndarray) -> np.ndarray:
        if self.is_classifier:
            return np.asarray(self.model.predict(inputs, output_margin=True))
        return np.asarray(self.booster.predict(self._matrix(inputs), output_margin=True))

    def _matrix(self, inputs: np.ndarray) -> Any:
        from xgboost import DMatrix

        names, types = self.booster.feature_names, self.booster.feature_types
        return DMatrix(inputs, feature_names=names, feature_types=types, enable_categorical=types is not None)

    @classmethod
    def load(cls, blob: Blob, options: dict[str, Any]) -> _XGBoost:
        from xgboost import Booster, XGBClassifier

        if not options["classifier"]:
            booster = Booster()
            booster.load_model(bytearray(blob))
            return cls(booster, blob)
        missing = np.nan if options["missing"] is None else float(options["missing"])
        model = XGBClassifier(missing=missing)
        model.load_model(bytearray(blob))
        return cls(model, blob)

    def options(self) -> dict[str, Any]:
        missing = None if np.isnan(self.missing) else self.missing if np.isfinite(self.missing) else str(self.missing)
        return {"missing": missing, "classifier": self.is_classifier}  # JSON has neither NaN nor infinity


class _LightGBM(_Library):
    name, file, wrapper = "lightgbm", "model.txt", ("LGBMClassifier", "Booster")
    early: dict[str, Any]

    def __init__(self, model: Any, blob: Blob | None = None) -> None:
        self.model = model
        self.classes = getattr(model, "classes_", None)
        # Parameters of the estimator that change what it predicts, and that the file does not hold.
        given = model.get_params() if hasattr(model, "get_params") else {}
        self.early = {key: value for key, value in given.items() if key.startswith("pred_early_stop")}
        self.came_from(blob)
        settings = next((line for line in self._file.decode().splitlines() if line.startswith("objective=")), "objective=none")
        self.objective, *rest = settings.removeprefix("objective=").split()
        slopes = [float(word.removeprefix("sigmoid:")) for word in rest if word.startswith("sigmoid:")]
        self.slope = slopes[0] if slopes and self.objective == "binary" else 1.0
        self.one_against_rest = self.objective == "multiclassova"
        self.check(("binary", "cross_entropy", "multiclass", "multiclassova"))

    @property
    def booster(self) -> Any:
        return getattr(self.model, "booster_", self.model)

    @property
    def features(self) -> int:
        return int(self.booster.num_feature())

    def written(self) -> Blob:
        return self.booster.model_to_string().encode()

    def probabilities(self, inputs: np.ndarray) -> np.ndarray:
        return self._ask(getattr(self.model, "predict_proba", self.model.predict), inputs)

    def scores(self, inputs: np.ndarray) -> np.ndarray:
        return self._ask(self.model.predict, inputs, raw_score=True) * self.slope

    def _ask(self, method: Any, inputs: np.ndarray, **more: Any) -> np.ndarray:
        with warnings.catch_warnings():
            # LightGBM names the columns of arrays by itself, and then warns of arrays that have no such names.
            warnings.filterwarnings("ignore", "X does not have valid feature names")
            return np.asarray(method(inputs, **more, **self.early))

    @classmethod
    def load(cls, blob: Blob, options: dict[str, Any]) -> _LightGBM:
        from lightgbm import Booster

        loaded = cls(Booster(model_str=blob.decode()), blob)
        loaded.early = options
        return loaded

    def options(self) -> dict[str, Any]:
        return self.early


class _CatBoost(_Library):
    name, file, wrapper = "catboost", "model.cbm", ("CatBoostClassifier", "CatBoost")

    def __init__(self, model: Any, blob: Blob | None = None) -> None:
        self.model = model
        self.classes = model.classes_
        self.objective = str(model.get_all_params()["loss_function"]).partition(":")[0]
        self.one_against_rest = self.objective == "MultiClassOneVsAll"
        self.check(("Logloss", "CrossEntropy", "Focal", "MultiClass", "MultiClassOneVsAll"), "loss function")
        self.came_from(blob)

    @property
    def booster(self) -> Any:
        return self.model

    @property
    def features(self) -> int:
        return len(self.model.feature_names_)

    def written(self) -> Blob:
        with tempfile.TemporaryDirectory() as folder:
            self.model.save_model(f"{folder}/model.cbm", format="cbm")
            return Path(folder, "model.cbm").read_bytes()

    def probabilities(self, inputs: np.ndarray) -> np.ndarray:
        return np.asarray(self.model.predict(inputs, prediction_type="Probability"))

    def scores(self, inputs: np.ndarray) -> np.ndarray:
        return np.asarray(self.model.predict(inputs, prediction_type="RawFormulaVal"))

    @classmethod
    def load(cls, blob: Blob, options: dict[str, Any]) -> _CatBoost:
        from catboost import CatBoost

        model = CatBoost()
        model.load_model(blob=blob, format="cbm")
        return cls(model, blob)


LIBRARIES: dict[str, type[_Library]] = {"xgboost": _XGBoost, "lightgbm": _LightGBM, "catboost": _CatBoost}


def library_of(value: Any) -> str | None:
    """Whose boosted trees these are; None for anything else. Imports nothing."""
    roots = [cls.__module__.partition(".")[0] for cls in type(value).__mro__]
    return next((name for name in LIBRARIES if name in roots), None)


class BoostedMember:
    """A fitted XGBoost, LightGBM or CatBoost classifier, or the library's own booster.

    The model's own ``predict_proba`` (``predict`` of a booster) is called with the rows as they come, in their dtype; only samples of more
    than one axis are flattened to [N, features]. Where the softmax of its raw scores is the same, on up to 256 rows of each batch (to 1e-6
    in float64, 1e-5 in float32), the logits are the raw scores; else they are log(p + smoothing). Probabilities of one class against the
    rest are divided by their sum. Saved as the library saves it: UBJ (XGBoost), text (LightGBM), cbm (CatBoost).

    Parameters
    ----------
    estimator : ``XGBClassifier``, ``LGBMClassifier``, ``CatBoostClassifier``, or their ``Booster`` / ``CatBoost``
        A booster of XGBoost answers with all its rounds, as its ``predict`` does; the classifier stops at its best iteration.
    name : str, optional
        The estimator's class name in lower case by default.
    classes, columns : sequence of str, optional
        Names of the outputs, to which the estimator's ``classes_`` are aligned, and names of these (see
        :class:`ensdistill.teachers.members.SklearnMember`).
    smoothing : float
        Added to probabilities before the logarithm, for models that are no softmax of their scores.
    batch_size : int
        Rows predicted at once.

    Raises
    ------
    ValueError
        Not fitted, no classifier, of several labels for each row, a class with a ``predict_proba`` of its own, or it knows other classes.
        When it is asked: rows with another number of columns than it was fitted to.
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
    ) -> None:
        library = library_of(estimator)
        self.name = name or type(estimator).__name__.lower()
        if library is None:
            raise TypeError(f"estimator: expected a model of {', '.join(LIBRARIES)}; got {type(estimator).__name__}")
        if not _is_fitted(estimator):
            raise ValueError(f"estimator: {self.name} is not fitted; call its fit first")
        model = LIBRARIES[library](estimator)
        aligned = align(self.name, _labels(model), classes, columns, partly=True)
        self._use(model, None if columns is None else list(columns), check_smoothing(smoothing), batch_size)
        self.classes, self._columns = aligned

    def _use(self, model: _Library, columns: list[str] | None, smoothing: float, batch_size: int) -> None:
        self._model, self._known, self.own_columns = model, _labels(model), columns
        self.smoothing, self.batch_size = smoothing, batch_size

    @property
    def parameters(self) -> int:
        """Not counted: the libraries do not tell. 0."""
        return 0

    @property
    def bytes(self) -> int:
        """Bytes of the saved file."""
        return len(self._model.blob)

    def predict_logits(self, inputs: np.ndarray) -> np.ndarray:
        features = flat(inputs)
        if features.ndim != 2 or features.shape[1] != self._model.features:
            raise ValueError(f"inputs: {self.name} was fitted to {self._model.features} features (columns); got {list(inputs.shape)}")
        if len(features) == 0:
            if self.classes is None:
                raise ValueError(f"inputs: {self.name} cannot tell the number of classes without a row")
            return np.zeros((0, len(self.classes)), np.float32)
        use_scores = self._scores_agree(np.ascontiguousarray(features[:: -(-len(features) // COMPARED_ROWS)]))
        ask = self._from_scores if use_scores else self._from_probabilities
        logits = np.concatenate([ask(np.ascontiguousarray(x)) for x in batches(features, self.batch_size)])
        width = logits.shape[1] if self._known is None else len(self._known)
        expected = len(self.classes) if self._columns is None and self.classes is not None else width
        if logits.shape != (len(inputs), expected):
            raise ValueError(f"{self.name}: expected outputs [{len(inputs)}, {expected}], one for each class; got {list(logits.shape)}")
        return as_float32(arranged(logits, self._columns, self.smoothing))

    def _scores_agree(self, inputs: np.ndarray) -> bool:
        """Whether the softmax of the raw scores is what the library answers for these rows."""
        own = self._probabilities(inputs)
        scores = _softmax(self._model.scores(inputs))
        return own.shape == scores.shape and bool(np.abs(own - scores).max() <= TOLERANCE.get(own.dtype, 1e-6))

    def _from_scores(self, inputs: np.ndarray) -> np.ndarray:
        return _two_columns(self._model.scores(inputs))

    def _from_probabilities(self, inputs: np.ndarray) -> np.ndarray:
        return to_logits(self._probabilities(inputs), self.smoothing)

    def _probabilities(self, inputs: np.ndarray) -> np.ndarray:
        p = self._model.probabilities(inputs)
        if p.ndim == 1:
            p = np.stack([1 - p, p], axis=1)
        if self._model.one_against_rest:
            p = p / p.sum(1, keepdims=True)
        # Fitted to rows of one class only, the libraries answer for a second one that does not exist.
        return p[:, :1] if self._known is not None and len(self._known) == 1 and p.shape[1] == 2 else p

    def fingerprint(self) -> str:
        model = self._model
        return digest([model.name, model.blob, model.options(), self._known, self.own_columns, self.smoothing, self.classes])

    def save(self, folder: Path | str) -> None:
        write_bytes(Path(folder) / self._model.file, self._model.blob)
        more = {"options": self._model.options(), "known": self._known, "columns": self.own_columns}
        write_about(folder, self, self._model.name, **more, smoothing=self.smoothing, batch_size=self.batch_size)


def load_boosted(folder: Path, about: dict[str, Any], trusted: tuple[str, ...]) -> BoostedMember:
    """A saved model, read by its library: data, never code."""
    library = LIBRARIES[about["kind"]]
    blob = (folder / library.file).read_bytes()
    try:
        model = library.load(blob, about["options"])
    except ImportError:
        raise
    except Exception as error:  # the libraries raise many kinds for a damaged file; none of them names it
        raise ValueError(f"{folder}: {library.name} can't read {library.file} ({error})") from error
    model.classes = about["known"]
    member = BoostedMember.__new__(BoostedMember)
    member.name, columns = about["name"], about["columns"]
    member._use(model, columns, about["smoothing"], about["batch_size"])
    with warned_already():
        member.classes, member._columns = align(member.name, model.classes, about["classes"], columns, partly=True)
    return member


def _labels(model: _Library) -> list[Any] | None:
    """The model's ``classes_`` as plain values; None where it has none."""
    return None if model.classes is None or len(model.classes) == 0 else np.asarray(model.classes).tolist()


def _two_columns(scores: np.ndarray) -> np.ndarray:
    """Logits [N, C] of raw scores: of a binary margin, [N] or [N, 1], two."""
    return two_logits(scores.reshape(-1)) if scores.ndim == 1 or scores.shape[1] == 1 else scores


def _softmax(scores: np.ndarray) -> np.ndarray:
    from scipy.special import softmax

    p: np.ndarray = softmax(_two_columns(scores).astype(np.float64), axis=1)
    return p


def _is_fitted(estimator: Any) -> bool:
    for method in ("__sklearn_is_fitted__", "is_fitted"):
        if callable(getattr(estimator, method, None)):
            return bool(getattr(estimator, method)())
    return True  # a library's own booster is made by training
