"""Fitted scikit-learn estimators as .skops archives: their content without what changes from process to process, and safe loading."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ensdistill.common.fingerprint import digest

# What fitted scikit-learn estimators are made of beyond what skops itself trusts: trees, indices and their metrics, optimisers, kernels,
# splitters and the parts of composed estimators; and boosted trees inside of them, which their libraries read from their own formats.
# Each holds arrays, numbers and other objects of trusted types, and neither building nor asking it runs anything it was given (which rules
# out PyFuncDistance and scorers made of functions). The function that a functools.partial calls has to be trusted by itself.
TRUSTED = (
    "catboost.core.CatBoostClassifier",
    "collections.OrderedDict",
    "functools.partial",
    "lightgbm.basic.Booster",
    "lightgbm.sklearn.LGBMClassifier",
    "functools.partial",  # of a function that is trusted itself
    "numpy.dtype",
    "sklearn.calibration._CalibratedClassifier",
    "sklearn.calibration._SigmoidCalibration",
    "sklearn.calibration._TemperatureScaling",
    "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor",
    *(f"sklearn.feature_selection._univariate_selection.{name}" for name in ("chi2", "f_classif")),  # called in a fit only
    "sklearn.gaussian_process._gpc._BinaryGaussianProcessClassifierLaplace",
    *(f"sklearn.gaussian_process.kernels.{name}" for name in ("ConstantKernel", "Matern", "Product", "RBF", "Sum", "WhiteKernel")),
    *(f"sklearn.metrics._dist_metrics.{name}Distance64" for name in ("Chebyshev", "Euclidean", "Manhattan", "Minkowski")),
    "sklearn.metrics._scorer._PassthroughScorer",
    "sklearn.model_selection._split.KFold",
    "sklearn.model_selection._split.StratifiedKFold",
    "sklearn.multiclass._ConstantPredictor",
    "sklearn.neighbors._ball_tree.BallTree",
    "sklearn.neighbors._kd_tree.KDTree",
    "sklearn.neural_network._stochastic_optimizers.AdamOptimizer",
    "sklearn.neural_network._stochastic_optimizers.SGDOptimizer",
    "sklearn.tree._tree.Tree",
    "sklearn.utils._bunch.Bunch",
    "sklearn.utils.validation.check_array",
    "xgboost.core.Booster",
    "xgboost.sklearn.XGBClassifier",
    "sklearn.utils.validation.check_array",  # of the categories of histogram gradient boosting
)


TREES_OF_NEIGHBOURS = ("sklearn.neighbors._kd_tree", "sklearn.neighbors._ball_tree")


def _without_counters(state: Any) -> Any:
    """A tree's state without the numbers of trims, leaves, splits and calls: its queries count them, so every prediction changes them."""
    return [*state[:7], *state[11:]] if isinstance(state, list) and len(state) == 13 else state


def skops_content(blob: bytes) -> tuple[str, int, int]:
    """Digest, count and bytes of what a .skops archive holds, without the memory addresses that its schema and file names carry."""
    with zipfile.ZipFile(io.BytesIO(blob)) as archive:
        found = _Content(archive)
        return digest(found.of(json.loads(archive.read("schema.json")))), found.numbers, found.bytes


class _Content:
    """Reads an archive's files one after the other: a forest's are gigabytes."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        self.archive, self.numbers, self.bytes = archive, 0, 0

    def of(self, node: Any) -> Any:
        """A node of the schema with digests of its files' content in the place of their names."""
        if isinstance(node, list):
            return [self.of(item) for item in node]
        if not isinstance(node, dict):
            return node
        if node.get("__module__") in TREES_OF_NEIGHBOURS and isinstance(node.get("content"), dict):
            node = {**node, "content": {**node["content"], "content": _without_counters(node["content"].get("content"))}}
        plain = {key: self.of(value) for key, value in node.items() if key not in ("__id__", "file")}
        return plain | ({"file": self._file(node["file"])} if "file" in node else {})

    def _file(self, name: str) -> str:
        data = self.archive.read(name)
        if not name.endswith(".npy"):
            return digest(data)
        array = np.load(io.BytesIO(data), allow_pickle=False)
        # Field by field: a tree's nodes have padding bytes, which hold whatever memory held.
        fields = [array[field] for field in array.dtype.names] if array.dtype.names else [array]
        self.numbers, self.bytes = self.numbers + sum(f.size for f in fields), self.bytes + array.nbytes
        return digest(fields)


def untrusted_types(blob: bytes, trusted: Sequence[str] = ()) -> list[str]:
    """The types that an archive needs and that nobody trusts."""
    import skops.io

    return sorted({*skops.io.get_untrusted_types(data=blob)} - {*TRUSTED, *trusted})


def load_skops(blob: bytes, trusted: Sequence[str], folder: Path) -> Any:
    """The estimator of an archive, built of trusted types only; ``folder`` is for the message."""
    import skops.io

    unknown = untrusted_types(blob, trusted)
    if unknown:
        raise ValueError(f"{folder}: holds types that are not trusted: {unknown}. If you know them, pass trusted={unknown}")
    return skops.io.loads(blob, trusted=skops.io.get_untrusted_types(data=blob))
