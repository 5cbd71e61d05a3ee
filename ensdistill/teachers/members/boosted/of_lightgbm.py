"""Models of LightGBM, saved as text."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from ensdistill.common.tasks import Task
from ensdistill.teachers.members.base import Blob
from ensdistill.teachers.members.boosted.library import Library, texts_as_categories

CUSTOM = "none"  # as the library calls a function of the user's own, whose predictions are raw scores

OBJECTIVES: dict[Task, tuple[str, ...]] = {
    "classification": ("binary", "cross_entropy", "multiclass", "multiclassova"),
    "multilabel": (),  # the library has none
    "regression": (
        "regression",
        "regression_l1",
        "huber",
        "fair",
        "poisson",
        "quantile",
        "mape",
        "gamma",
        "tweedie",
        CUSTOM,
    ),
}


class LightGBM(Library):
    """``LGBMClassifier`` or ``Booster``."""

    name, file, objectives = "lightgbm", "model.txt", OBJECTIVES
    wrapper: ClassVar[dict[Task, tuple[str, ...]]] = {
        "classification": ("LGBMClassifier", "Booster"),
        "multilabel": (),
        "regression": ("LGBMRegressor", "Booster"),
    }
    pickled = ("lightgbm.basic.Booster", "_handle")

    def __init__(self, model: Any, blob: Blob | None = None, task: Task = "classification") -> None:
        self.model = model
        self.classes = getattr(model, "classes_", None)
        # The file lacks these parameters of the estimator, and they change its predictions.
        given = model.get_params() if hasattr(model, "get_params") else {}
        self.early = {key: value for key, value in given.items() if key.startswith("pred_early_stop")}
        self.came_from(blob)
        lines = self._file.decode().splitlines()
        settings = next((line for line in lines if line.startswith("objective=")), f"objective={CUSTOM}")
        self.objective, *rest = settings.removeprefix("objective=").split()
        slopes = [float(word.removeprefix("sigmoid:")) for word in rest if word.startswith("sigmoid:")]
        self.slope = slopes[0] if slopes and self.objective == "binary" else 1.0
        self.one_against_rest = self.objective == "multiclassova"
        if self.objective == CUSTOM and task == "classification":
            raise ValueError(
                "estimator: it was fitted by an objective of its own, so LightGBM predicts raw scores: state "
                "task='regression' for numbers; for logits CallableMember(model.predict, output='logits', "
                "...), or 'margin' for one score of two classes"
            )
        self.check(task)

    @property
    def booster(self) -> Any:
        return getattr(self.model, "booster_", self.model)

    @property
    def features(self) -> int:
        return int(self.booster.num_feature())

    @property
    def names(self) -> list[str] | None:
        found = list(self.booster.feature_name())
        return None if found == [f"Column_{i}" for i in range(len(found))] else found

    @property
    def words(self) -> set[str] | None:
        # Found in the bytes, because a file of trees may be large.
        start = self._file.find(b"\nfeature_infos=")
        line = self._file[start + 1 : self._file.find(b"\n", start + 1)] if start >= 0 else b""
        infos = line.decode().partition("=")[2].split()
        if len(infos) != self.features:
            return None
        # Numbers have a range; of a column with a single value it is not known.
        return {name for name, info in zip(self.booster.feature_name(), infos, strict=True) if info[0] != "["}

    def table(self, frame: Any) -> Any:
        return texts_as_categories(frame)

    def written(self) -> Blob:
        return self.booster.model_to_string().encode()

    def probabilities(self, inputs: Any) -> np.ndarray:
        return self._predict(getattr(self.model, "predict_proba", self.model.predict), inputs)

    def moments(self, inputs: Any) -> tuple[np.ndarray, None]:
        return self._predict(self.model.predict, inputs), None

    def scores(self, inputs: Any) -> np.ndarray:
        return self._predict(self.model.predict, inputs, raw_score=True) * self.slope

    def _predict(self, method: Any, inputs: Any, **more: Any) -> np.ndarray:
        with warnings.catch_warnings():
            # LightGBM names the columns of arrays by itself, and then warns about arrays without such names.
            warnings.filterwarnings("ignore", "X does not have valid feature names")
            return np.asarray(method(inputs, **more, **self.early))

    @classmethod
    def load(cls, blob: Blob, options: dict[str, Any], classes: Sequence[Any] | None, task: Task) -> LightGBM:
        from lightgbm import Booster

        loaded = cls(Booster(model_str=blob.decode()), blob, task)
        loaded.early = options
        return loaded

    @classmethod
    def answering(cls, blob: Blob) -> Blob:
        # The parameters of the training stand in a section of their own, which predictions never read.
        before, _, section = blob.partition(b"\nparameters:")
        return before + section.partition(b"end of parameters")[2]

    @classmethod
    def keywords(cls) -> frozenset[str] | None:
        import lightgbm

        aliases = getattr(lightgbm.basic, "_ConfigAliases", None)  # private; may be missing
        listed: dict[str, list[str]] = getattr(aliases, "_get_all_param_aliases", dict)()
        found = {name for names in listed.values() for name in names}
        return frozenset({*lightgbm.LGBMClassifier().get_params(), *listed, *found})

    def options(self) -> dict[str, Any]:
        return self.early
