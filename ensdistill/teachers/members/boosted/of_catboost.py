"""Models of CatBoost, saved as cbm."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ensdistill.common.tasks import Task
from ensdistill.teachers.members.base import Blob
from ensdistill.teachers.members.boosted.library import Library
from ensdistill.teachers.members.categories import with_categories

OBJECTIVES: dict[Task, tuple[str, ...]] = {
    "classification": ("Logloss", "CrossEntropy", "Focal", "MultiClass", "MultiClassOneVsAll"),
    "multilabel": ("MultiLogloss", "MultiCrossEntropy"),
    "regression": (
        "RMSE",
        "MAE",
        "Huber",
        "Lq",
        "LogCosh",
        "MAPE",
        "Poisson",
        "Quantile",
        "Tweedie",
        "MultiRMSE",
        "RMSEWithUncertainty",
    ),
}
# Losses whose predictions are no raw scores, as CatBoostRegressor's own ``predict`` has them.
_KINDS = {"Poisson": "Exponent", "Tweedie": "Exponent", "RMSEWithUncertainty": "RMSEWithUncertainty"}


class CatBoost(Library):
    """``CatBoostClassifier`` or ``CatBoost``."""

    name, file, objectives = "catboost", "model.cbm", OBJECTIVES
    wrapper: ClassVar[dict[Task, tuple[str, ...]]] = {
        "classification": ("CatBoostClassifier", "CatBoost"),
        "multilabel": ("CatBoostClassifier", "CatBoost"),
        "regression": ("CatBoostRegressor", "CatBoost"),
    }
    pickled = ("catboost.core.CatBoostClassifier", "__model")

    def __init__(self, model: Any, blob: Blob | None = None, task: Task = "classification") -> None:
        self.model = model
        self.classes = model.classes_
        self.objective = _loss(model)
        self.one_against_rest = self.objective == "MultiClassOneVsAll"
        self.check(task, "loss function")
        self.came_from(blob)

    @classmethod
    def of_several_labels(cls, model: Any) -> bool:
        return _loss(model) in OBJECTIVES["multilabel"]

    @property
    def booster(self) -> Any:
        return self.model

    @property
    def features(self) -> int:
        return len(self.model.feature_names_)

    @property
    def names(self) -> list[str] | None:
        found = list(self.model.feature_names_)
        return None if found == [str(i) for i in range(len(found))] else found

    @property
    def words(self) -> set[str] | None:
        places = [*self.model.get_cat_feature_indices(), *self.model.get_text_feature_indices()]
        return {self.model.feature_names_[i] for i in places}

    def written(self) -> Blob:
        return _written(self.model)

    def probabilities(self, inputs: Any) -> np.ndarray:
        return np.asarray(self.model.predict(self._table(inputs), prediction_type="Probability"))

    def scores(self, inputs: Any) -> np.ndarray:
        return np.asarray(self.model.predict(self._table(inputs), prediction_type="RawFormulaVal"))

    def moments(self, inputs: Any) -> tuple[np.ndarray, np.ndarray | None]:
        kind = _KINDS.get(self.objective, "RawFormulaVal")
        found = np.asarray(self.model.predict(self._table(inputs), prediction_type=kind))
        return (found[:, 0], found[:, 1]) if kind == "RMSEWithUncertainty" else (found, None)

    def _table(self, inputs: Any) -> Any:
        if not isinstance(inputs, np.ndarray):
            return inputs
        return with_categories(inputs, self.model.get_cat_feature_indices())

    @classmethod
    def load(cls, blob: Blob, options: dict[str, Any], classes: Sequence[Any] | None, task: Task) -> CatBoost:
        return cls(_read(blob), blob, task)

    @classmethod
    def answering(cls, blob: Blob) -> Blob:
        # The metadata hold the training's parameters, its date and an id; predictions read the classes and
        # the loss.
        model = _read(blob)
        metadata = model.get_metadata()
        loss = json.dumps(model.get_all_params()["loss_function"])
        kept = [f"{key}: {metadata[key]}" for key in sorted(metadata.keys()) if key == "class_params"]
        for key in list(metadata.keys()):
            del metadata[key]
        return "\n".join([loss, *kept]).encode() + _written(model)


def _read(blob: Blob) -> Any:
    import catboost

    model = catboost.CatBoost()
    model.load_model(blob=blob, format="cbm")
    return model


def _written(model: Any) -> Blob:
    with tempfile.TemporaryDirectory() as folder:
        model.save_model(f"{folder}/model.cbm", format="cbm")
        return Path(folder, "model.cbm").read_bytes()


def _loss(model: Any) -> str:
    """The name of the loss that a fitted model has learned."""
    return str(model.get_all_params()["loss_function"]).partition(":")[0]
