"""Models of XGBoost, saved as UBJ."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import numpy as np

from ensdistill.common.tasks import Task
from ensdistill.teachers.members.base import Blob
from ensdistill.teachers.members.boosted.library import Library, softmax_of_scores, texts_as_categories

OBJECTIVES: dict[Task, tuple[str, ...]] = {
    "classification": (
        "multi:softprob",
        "multi:softmax",
        "binary:logistic",
        "binary:logitraw",
        "binary:hinge",
    ),
    "multilabel": ("binary:logistic",),
    "regression": (
        "reg:squarederror",
        "reg:squaredlogerror",
        "reg:pseudohubererror",
        "reg:absoluteerror",
        "reg:quantileerror",
        "reg:gamma",
        "reg:tweedie",
        "count:poisson",
    ),
}


class XGBoost(Library):
    """``XGBClassifier``, which predicts up to its best iteration, or ``Booster``, with all its rounds."""

    name, file, objectives = "xgboost", "model.ubj", OBJECTIVES
    wrapper: ClassVar[dict[Task, tuple[str, ...]]] = {
        "classification": ("XGBClassifier", "Booster"),
        "multilabel": ("XGBClassifier", "Booster"),
        "regression": ("XGBRegressor", "Booster"),
    }
    pickled = ("xgboost.core.Booster", "handle")

    def __init__(self, model: Any, blob: Blob | None = None, task: Task = "classification") -> None:
        self.model = model
        self.is_classifier = hasattr(model, "predict_proba")
        self.classes = getattr(model, "classes_", None)
        self.objective, outputs = _learned(self.booster)
        self.check(task)
        several = outputs > 1
        if several and self.objective == "reg:quantileerror":
            raise ValueError(
                f"estimator: expected one number for each row; got an XGBoost model of {outputs} quantiles "
                "of a number: fit one for the quantile that counts (quantile_alpha=0.5), or take its "
                "column by CallableMember(lambda x: estimator.predict(x)[:, 1], task='regression', ...)"
            )
        if several and task == "classification":
            raise ValueError(
                "estimator: expected one class for each row; got an XGBoost model of several labels "
                "(multi-label): state task='multilabel'"
            )
        if task == "multilabel" and not several:
            raise ValueError("estimator: expected an XGBoost model of several labels; got one of two classes")
        if self.is_classifier and self.objective == "binary:logitraw":
            raise ValueError(
                "estimator: XGBClassifier.predict_proba returns margins for the objective binary:logitraw; "
                "pass estimator.get_booster(), whose margin is a logit"
            )
        self.came_from(blob)

    @classmethod
    def of_several_labels(cls, model: Any) -> bool:
        objective, outputs = _learned(model.get_booster() if hasattr(model, "get_booster") else model)
        return objective in OBJECTIVES["multilabel"] and outputs > 1

    @property
    def booster(self) -> Any:
        return self.model.get_booster() if hasattr(self.model, "get_booster") else self.model

    @property
    def features(self) -> int:
        return int(self.booster.num_features())

    @property
    def names(self) -> list[str] | None:
        found: list[str] | None = self.booster.feature_names
        return found

    @property
    def words(self) -> set[str] | None:
        types = self.booster.feature_types or []
        return {name for name, kind in zip(self.names or [], types, strict=False) if kind == "c"}

    def table(self, frame: Any) -> Any:
        # Models of earlier versions hold no categories: codes would be those of this frame's own values.
        kept = hasattr(self.booster, "get_categories") and any(
            values is not None for _, values in self.booster.get_categories(export_to_arrow=True).to_arrow()
        )
        return texts_as_categories(frame) if kept else frame

    @property
    def missing(self) -> float:
        """The value that stands for a missing one."""
        value = getattr(self.model, "missing", None)
        return np.nan if value is None else float(value)

    def written(self) -> Blob:
        return bytes(self.booster.save_raw("ubj"))

    def probabilities(self, inputs: Any) -> np.ndarray:
        if self.is_classifier:
            return np.asarray(self.model.predict_proba(inputs))
        if self.objective in ("multi:softmax", "binary:logitraw"):  # it predicts classes or margins
            return softmax_of_scores(self.scores(inputs)).astype(np.float32)
        return np.asarray(self.booster.predict(self._matrix(inputs)))

    def scores(self, inputs: Any) -> np.ndarray:
        if self.is_classifier:
            return np.asarray(self.model.predict(inputs, output_margin=True))
        return np.asarray(self.booster.predict(self._matrix(inputs), output_margin=True))

    def moments(self, inputs: Any) -> tuple[np.ndarray, None]:
        if hasattr(self.model, "get_booster"):
            return np.asarray(self.model.predict(inputs)), None
        return np.asarray(self.booster.predict(self._matrix(inputs))), None

    def _matrix(self, inputs: Any) -> Any:
        from xgboost import DMatrix

        names, types = self.booster.feature_names, self.booster.feature_types
        return DMatrix(inputs, feature_names=names, feature_types=types, enable_categorical=types is not None)

    @classmethod
    def load(cls, blob: Blob, options: dict[str, Any], classes: Sequence[Any] | None, task: Task) -> XGBoost:
        from xgboost import Booster, XGBClassifier, XGBRegressor

        # Files of earlier versions lack "classifier"; only the classifier has names of classes.
        if not (options.get("classifier", classes is not None) or options.get("regressor")):
            booster = Booster()
            booster.load_model(bytearray(blob))
            return cls(booster, blob, task)
        missing = np.nan if options["missing"] is None else float(options["missing"])
        model = (XGBRegressor if options.get("regressor") else XGBClassifier)(missing=missing)
        model.load_model(bytearray(blob))
        return cls(model, blob, task)

    @classmethod
    def unpickled(cls, state: Blob) -> Blob:
        from xgboost import Booster

        booster = Booster()
        booster.__setstate__({"handle": bytearray(state)})  # the trees, with the training's configuration
        return bytes(booster.save_raw("ubj"))

    @classmethod
    def keywords(cls) -> frozenset[str] | None:
        import xgboost

        data = xgboost.DMatrix(np.zeros((2, 1)), [0, 1])
        known = set(xgboost.XGBClassifier().get_params())
        for booster in ("gbtree", "dart", "gblinear"):  # each has parameters of its own
            trained = xgboost.train(
                {"booster": booster, "objective": "binary:logistic", "nthread": 1}, data, 1
            )
            known |= set(_names(json.loads(trained.save_config())))
        return frozenset(known)

    def options(self) -> dict[str, Any]:
        missing = (
            None
            if np.isnan(self.missing)
            else self.missing
            if np.isfinite(self.missing)
            else str(self.missing)
        )
        # JSON has neither NaN nor infinity.
        found = {"missing": missing, "classifier": self.is_classifier}
        own = hasattr(self.model, "get_booster") and not self.is_classifier
        return found | ({"regressor": True} if own else {})


def _names(config: Any) -> Iterator[str]:
    """The keys of a booster's configuration, at every depth."""
    for key, value in config.items() if isinstance(config, dict) else ():
        yield key
        yield from _names(value)


def _learned(booster: Any) -> tuple[str, int]:
    """The name of the objective, and the count of the outputs, of a trained booster."""
    learner = json.loads(booster.save_config())["learner"]
    return learner["objective"]["name"], int(learner["learner_model_param"]["num_target"])
