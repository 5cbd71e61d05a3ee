"""Boosted trees of XGBoost, LightGBM and CatBoost as members, each through its library's own scores and its own file format.

Their raw scores are logits already, which no rounding to zero has touched, so probabilities are asked for only where the model is no
softmax of its scores.
"""

from __future__ import annotations

import re
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ensdistill.files import write_bytes
from ensdistill.fingerprint import digest
from ensdistill.members.base import Blob, align, batches, check_smoothing, check_width, flat, to_logits, two_logits, write_about


class _Library(ABC):
    """One library's model: ``booster`` is what predicts, ``blob`` its file."""

    booster: Any

    name: ClassVar[str]
    file: ClassVar[str]
    classes: Sequence[Any] | None = None

    @abstractmethod
    def __init__(self, model: Any, blob: Blob | None = None) -> None: ...

    @abstractmethod
    def scores(self, inputs: np.ndarray) -> tuple[np.ndarray, bool]:
        """Logits [N, C] or a binary margin [N], or (True) probabilities, for float32 [N, F]."""

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


class _XGBoost(_Library):
    name, file = "xgboost", "model.ubj"
    softmax = ("multi:softprob", "multi:softmax", "binary:logistic", "binary:logitraw")

    def __init__(self, model: Any, blob: Blob | None = None) -> None:
        import json

        import xgboost

        self.booster = model if isinstance(model, xgboost.Booster) else model.get_booster()
        self.missing = float(getattr(model, "missing", np.nan))
        self.classes = getattr(model, "classes_", None)
        objective = json.loads(self.booster.save_config())["learner"]["objective"]["name"]
        if objective not in self.softmax:
            raise ValueError(f"estimator: expected an XGBoost classifier, {', '.join(self.softmax)}; got the objective {objective}")
        self.came_from(blob)

    def written(self) -> Blob:
        return bytes(self.booster.save_raw("ubj"))

    def scores(self, inputs: np.ndarray) -> tuple[np.ndarray, bool]:
        from xgboost import DMatrix

        best = self.booster.attr("best_iteration")  # of early stopping
        rounds = (0, int(best) + 1) if best is not None else (0, 0)
        data = DMatrix(inputs, missing=self.missing)
        return self.booster.predict(data, output_margin=True, iteration_range=rounds, validate_features=False), False

    @classmethod
    def load(cls, blob: Blob, options: dict[str, Any]) -> _XGBoost:
        from xgboost import Booster

        booster = Booster()
        booster.load_model(bytearray(blob))
        loaded = cls(booster, blob)
        loaded.missing = np.nan if options["missing"] is None else float(options["missing"])
        return loaded

    def options(self) -> dict[str, Any]:
        return {"missing": None if np.isnan(self.missing) else self.missing}  # JSON has no NaN


class _LightGBM(_Library):
    name, file = "lightgbm", "model.txt"

    def __init__(self, model: Any, blob: Blob | None = None) -> None:
        import lightgbm

        self.booster = model if isinstance(model, lightgbm.Booster) else model.booster_
        self.classes = getattr(model, "classes_", None)
        self.came_from(blob)
        found = re.search(rb"^objective=(\w+)(?:.*sigmoid:([\d.e+-]+))?", self._file, re.MULTILINE)
        self.objective, self.slope = (found[1].decode(), float(found[2] or 1)) if found else ("none", 1.0)
        if self.objective not in ("binary", "multiclass", "multiclassova"):
            raise ValueError(f"estimator: expected a LightGBM classifier, binary or multiclass; got the objective {self.objective}")

    def written(self) -> Blob:
        return self.booster.model_to_string().encode()

    def scores(self, inputs: np.ndarray) -> tuple[np.ndarray, bool]:
        if self.objective == "multiclassova":  # a sigmoid for each class
            return np.asarray(self.booster.predict(inputs, validate_features=False)), True
        scores = np.asarray(self.booster.predict(inputs, raw_score=True, validate_features=False))
        return scores * self.slope if self.objective == "binary" else scores, False

    @classmethod
    def load(cls, blob: Blob, options: dict[str, Any]) -> _LightGBM:
        from lightgbm import Booster

        return cls(Booster(model_str=blob.decode()), blob)


class _CatBoost(_Library):
    name, file = "catboost", "model.cbm"

    def __init__(self, model: Any, blob: Blob | None = None) -> None:
        self.booster = model
        self.classes = model.classes_
        self.objective = str(model.get_all_params()["loss_function"])
        if self.objective not in ("Logloss", "CrossEntropy", "MultiClass", "MultiClassOneVsAll"):
            raise ValueError(f"estimator: expected a CatBoost classifier, Logloss or MultiClass; got the loss function {self.objective}")
        self.came_from(blob)

    def written(self) -> Blob:
        with tempfile.TemporaryDirectory() as folder:
            self.booster.save_model(f"{folder}/model.cbm", format="cbm")
            return Path(folder, "model.cbm").read_bytes()

    def scores(self, inputs: np.ndarray) -> tuple[np.ndarray, bool]:
        if self.objective == "MultiClassOneVsAll":
            p = self.booster.predict(inputs, prediction_type="Probability")
            return p / p.sum(1, keepdims=True), True
        return self.booster.predict(inputs, prediction_type="RawFormulaVal"), False

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

    Inputs are flattened to float32 [N, features]. Saved as the library saves it: UBJ (XGBoost), text (LightGBM), cbm (CatBoost).

    Parameters
    ----------
    estimator : ``XGBClassifier``, ``LGBMClassifier``, ``CatBoostClassifier``, or their ``Booster`` / ``CatBoost``
    name : str, optional
        The estimator's class name in lower case by default.
    classes : sequence of str, optional
        Names of the outputs, to which the estimator's ``classes_`` are aligned (see :class:`ensdistill.members.SklearnMember`).
    smoothing : float
        Added to probabilities before the logarithm, for models that are no softmax of their scores (one against the rest).
    batch_size : int
        Rows predicted at once.

    Raises
    ------
    ValueError
        Not fitted, no classifier, or it knows other classes.
    """

    def __init__(
        self,
        estimator: Any,
        *,
        name: str | None = None,
        classes: Sequence[str] | None = None,
        smoothing: float = 1e-6,
        batch_size: int = 65536,
    ) -> None:
        library = library_of(estimator)
        self.name = name or type(estimator).__name__.lower()
        if library is None:
            raise TypeError(f"estimator: expected a model of {', '.join(LIBRARIES)}; got {type(estimator).__name__}")
        if not _is_fitted(estimator):
            raise ValueError(f"estimator: {self.name} is not fitted; call its fit first")
        self._use(LIBRARIES[library](estimator), classes, smoothing, batch_size)

    def _use(self, model: _Library, classes: Sequence[str] | None, smoothing: float, batch_size: int) -> None:
        self._model, self.smoothing, self.batch_size = model, check_smoothing(smoothing), batch_size
        self._known = None if model.classes is None or len(model.classes) == 0 else np.asarray(model.classes).tolist()
        self.classes, self._columns = align(self.name, self._known, classes)

    @property
    def parameters(self) -> int:
        """Not counted: the libraries do not tell. 0."""
        return 0

    @property
    def bytes(self) -> int:
        """Bytes of the saved file."""
        return len(self._model.blob)

    def predict_logits(self, inputs: np.ndarray) -> np.ndarray:
        features = flat(inputs).astype(np.float32)
        if len(features) == 0:
            if self.classes is None:
                raise ValueError(f"inputs: {self.name} cannot tell the number of classes without a row")
            return np.zeros((0, len(self.classes)), np.float32)
        parts = [self._model.scores(np.ascontiguousarray(x)) for x in batches(features, self.batch_size)]
        scores, probabilities = np.concatenate([np.asarray(part) for part, _ in parts]), parts[0][1]
        if scores.ndim == 1 or scores.shape[1] == 1:
            scores = two_logits(scores.reshape(-1))
        if probabilities:
            scores = to_logits(scores / scores.sum(1, keepdims=True), self.smoothing)
        check_width(self.name, scores, len(inputs), self.classes)
        return (scores if self._columns is None else scores[:, self._columns]).astype(np.float32)

    def fingerprint(self) -> str:
        return digest([self._model.name, self._model.blob, self._model.options(), self._known, self.smoothing, self.classes])

    def save(self, folder: Path | str) -> None:
        write_bytes(Path(folder) / self._model.file, self._model.blob)
        more = {"options": self._model.options(), "known": self._known, "smoothing": self.smoothing, "batch_size": self.batch_size}
        write_about(folder, self, self._model.name, **more)


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
    member.name = about["name"]
    member._use(model, about["classes"], about["smoothing"], about["batch_size"])
    return member


def _is_fitted(estimator: Any) -> bool:
    for method in ("__sklearn_is_fitted__", "is_fitted"):
        if callable(getattr(estimator, method, None)):
            return bool(getattr(estimator, method)())
    return True  # a library's own booster is made by training
