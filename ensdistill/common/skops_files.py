"""Fitted scikit-learn estimators as .skops archives: safe loading."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ensdistill.common.fingerprint import digest

# Types of fitted scikit-learn estimators that skops does not trust by itself: trees, indices and their
# metrics, optimisers, kernels, splitters and the parts of composed estimators; and boosted trees, which their
# libraries read from their own formats. Each holds arrays, numbers and objects of trusted types. Neither
# building one nor predicting with it runs code from the archive, which rules out PyFuncDistance and scorers
# made of functions. The function of a functools.partial has to be trusted by itself.
TRUSTED = (
    "catboost.core.CatBoostClassifier",
    "collections.OrderedDict",
    "functools.partial",  # of a function that is trusted itself
    "lightgbm.basic.Booster",
    "lightgbm.sklearn.LGBMClassifier",
    "numpy.dtype",
    "sklearn.calibration._CalibratedClassifier",
    "sklearn.calibration._SigmoidCalibration",
    "sklearn.calibration._TemperatureScaling",
    "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor",
    *(f"sklearn.feature_selection._univariate_selection.{name}" for name in ("chi2", "f_classif")),  # of fits
    "sklearn.gaussian_process._gpc._BinaryGaussianProcessClassifierLaplace",
    *(f"sklearn.gaussian_process.kernels.{name}" for name in ("ConstantKernel", "Matern", "Product", "RBF")),
    *(f"sklearn.gaussian_process.kernels.{name}" for name in ("Sum", "WhiteKernel")),
    *(f"sklearn.metrics._dist_metrics.{name}Distance64" for name in ("Chebyshev", "Euclidean")),
    *(f"sklearn.metrics._dist_metrics.{name}Distance64" for name in ("Manhattan", "Minkowski")),
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
    "sklearn.utils.validation.check_array",  # of the categories of histogram gradient boosting
    "xgboost.core.Booster",
    "xgboost.sklearn.XGBClassifier",
)


def untrusted_types(blob: bytes, trusted: Sequence[str] = ()) -> list[str]:
    """The types in an archive that are neither trusted here nor in ``trusted``."""
    import skops.io

    return sorted({*skops.io.get_untrusted_types(data=blob)} - {*TRUSTED, *trusted})


def load_skops(blob: bytes, trusted: Sequence[str], folder: Path) -> Any:
    """The estimator of an archive, built of trusted types only; ``folder`` is for the message."""
    import skops.io

    unknown = untrusted_types(blob, trusted)
    if unknown:
        raise ValueError(
            f"{folder}: holds types that are not trusted: {unknown}. If you know them, pass trusted={unknown}"
        )
    return skops.io.loads(blob, trusted=skops.io.get_untrusted_types(data=blob))


def archive_digest(blob: bytes) -> str:
    """Digest of the content of a .skops archive, without the memory addresses in its schema and names."""
    with zipfile.ZipFile(io.BytesIO(blob)) as archive:

        def content(node: Any) -> Any:
            if isinstance(node, list):
                return [content(item) for item in node]
            if not isinstance(node, dict):
                return node
            found = {key: content(value) for key, value in node.items() if key not in ("__id__", "file")}
            return found | ({"file": digest(archive.read(node["file"]))} if "file" in node else {})

        return digest(content(json.loads(archive.read("schema.json"))))
