"""Estimators of scikit-learn as parts of a graph."""

from __future__ import annotations

from typing import Any

import numpy as np

from ensdistill.student.export.converted import converted
from ensdistill.student.export.graph import DOUBLE, FLOAT, OF_ESTIMATORS, Graph
from ensdistill.student.export.transformers import transform
from ensdistill.student.export.values import Values
from ensdistill.teachers.members import SklearnMember
from ensdistill.teachers.members.estimator_outputs import outputs_of

# Their scores are x W + b. They are computed in float64 here, as scikit-learn does.
_LINEAR = (
    "LogisticRegression",
    "LogisticRegressionCV",
    "LinearDiscriminantAnalysis",
    "LinearSVC",
    "RidgeClassifier",
    "RidgeClassifierCV",
    "SGDClassifier",
    "Perceptron",
    "PassiveAggressiveClassifier",
)
_LINEAR_REGRESSORS = (
    "LinearRegression",
    "Ridge",
    "RidgeCV",
    "Lasso",
    "LassoCV",
    "ElasticNet",
    "ElasticNetCV",
    "HuberRegressor",
    "LinearSVR",
    "SGDRegressor",
)
_INEXACT = {
    "HistGradientBoostingClassifier": "its thresholds are float64, which the converted trees round",
    "HistGradientBoostingRegressor": "its thresholds are float64, which the converted trees round",
    "KNeighborsRegressor": "it holds the training rows, and orders equal distances in its own way",
    "KNeighborsClassifier": "it holds the training rows, and orders equal distances in its own way",
    "RadiusNeighborsClassifier": "it holds the training rows",
}


def numbers(graph: Graph, member: SklearnMember, values: Values) -> str:
    """The means that a regressor predicts, float64 [N, D].

    Raises
    ------
    ValueError
        ONNX can't express the estimator, or its variances; names it.
    """
    if member._spread is not None:
        raise ValueError(
            f"export: ONNX can't express the deviations of {type(member.estimator).__name__}: {OF_ESTIMATORS}"
        )
    estimator, values = last_step(graph, member.estimator, values)
    if type(estimator).__name__ == "MultiOutputRegressor" and type(estimator).__module__.startswith(
        "sklearn."
    ):
        each = [scores(graph, one, "predict", values) for one in estimator.estimators_]
        return graph.join([graph.op("Reshape", one, graph.constant([-1, 1])) for one in each])
    found = scores(graph, estimator, "predict", values)
    return graph.op("Reshape", found, graph.constant([-1, outputs_of(estimator) or 1]))


def logits(graph: Graph, member: SklearnMember, values: Values) -> str:
    """The member's logits [N, C'], float64, in its estimator's own order of classes.

    Raises
    ------
    ValueError
        ONNX can't express the estimator; names it.
    """
    found = scores(graph, member.estimator, member.method or "", values)
    if member.output == "probability":
        return graph.op("Log", graph.op("Add", found, graph.constant(member.smoothing, np.float64)))
    return found


def last_step(graph: Graph, estimator: Any, values: Values) -> tuple[Any, Values]:
    """The last step of a pipeline, and its input; any other estimator as it is."""
    while type(estimator).__name__ == "Pipeline" and type(estimator).__module__.startswith("sklearn."):
        for _, step in estimator.steps[:-1]:
            values = transform(graph, step, values)
        estimator = estimator.steps[-1][1]
    return estimator, values


def scores(graph: Graph, estimator: Any, method: str, values: Values) -> str:
    """Probabilities or scores by ``method``, float64 [N, C]; the scores of a margin as two columns."""
    estimator, values = last_step(graph, estimator, values)
    name = type(estimator).__name__
    if type(estimator).__module__.partition(".")[0] in ("xgboost", "lightgbm", "catboost"):
        raise ValueError(f"export: {name} keeps its own format, its library's: {OF_ESTIMATORS}")
    if name in _INEXACT:
        raise ValueError(f"export: {name} keeps its own format, because {_INEXACT[name]}: {OF_ESTIMATORS}")
    own = type(estimator).__module__.startswith("sklearn.")
    if own and name == "VotingClassifier" and method == "predict_proba":
        return _votes(graph, estimator, values)
    if own and name == "DummyClassifier" and estimator.strategy == "prior" and method == "predict_proba":
        return constant_rows(graph, values, np.asarray(estimator.class_prior_, np.float64))
    if own and name in _LINEAR_REGRESSORS and method == "predict":
        return _products(graph, estimator, values)
    if own and name in _LINEAR and _is_plain(estimator, method):
        return _linear(graph, estimator, method == "predict_proba", values)
    return _converted(graph, estimator, method, values)


def constant_rows(graph: Graph, values: Values, row: np.ndarray) -> str:
    """The same row [C] for each sample, float64 [N, C]."""
    given = values.matrix if values.matrix is not None else values.columns[0].tensor
    count = graph.op("Gather", graph.op("Shape", given), graph.constant([0]), axis=0)
    shape = graph.op("Concat", count, graph.constant([len(row)]), axis=0)
    return graph.op("Expand", graph.constant(row[None]), shape)


def _votes(graph: Graph, estimator: Any, values: Values) -> str:
    """The weighted mean of the parts' probabilities; all parts have the same classes."""
    parts = [scores(graph, part, "predict_proba", values) for part in estimator.estimators_]
    weights = (
        np.ones(len(parts)) if estimator.weights is None else np.array(estimator._weights_not_none, float)
    )
    total = ""
    for part, weight in zip(parts, weights / weights.sum(), strict=True):
        share = graph.op("Mul", part, graph.constant(weight, np.float64))
        total = graph.op("Add", total, share) if total else share
    return total


def _is_plain(estimator: Any, method: str) -> bool:
    """Whether its probabilities are a softmax or sigmoids of its scores."""
    if method == "predict_proba" and type(estimator).__name__ == "SGDClassifier":
        return bool(estimator.loss == "log_loss")
    return method in ("predict_proba", "decision_function")


def _products(graph: Graph, estimator: Any, values: Values) -> str:
    """x W + b, float64 [N, C]."""
    x = values.numbers(graph, estimator)
    weights = np.atleast_2d(np.asarray(estimator.coef_, np.float64))
    offset = np.asarray(estimator.intercept_, np.float64).reshape(1, -1)
    scores = graph.op("MatMul", x, graph.constant(np.ascontiguousarray(weights.T)))
    return graph.op("Add", scores, graph.constant(offset))


def _linear(graph: Graph, estimator: Any, probabilities: bool, values: Values) -> str:
    """Probabilities or scores, float64 [N, C]."""
    scores = _products(graph, estimator, values)
    if len(np.atleast_2d(estimator.coef_)) == 1:
        scores = _margin(graph, scores)
    elif probabilities and (type(estimator).__name__ == "SGDClassifier" or _one_against_rest(estimator)):
        each = graph.op("Sigmoid", scores)
        return graph.op("Div", each, graph.op("ReduceSum", each, graph.constant([1]), keepdims=1))
    return graph.op("Softmax", scores, axis=1) if probabilities else scores


def _one_against_rest(estimator: Any) -> bool:
    name = type(estimator).__name__
    return name.startswith("LogisticRegression") and (
        getattr(estimator, "multi_class", "auto") == "ovr" or estimator.solver == "liblinear"
    )


def _margin(graph: Graph, margin: str) -> str:
    """The two scores of a margin [N, 1]: see `ensdistill.teachers.members.base.two_logits`."""
    half = graph.op("Mul", margin, graph.constant(0.5))
    return graph.join([graph.op("Neg", half), half])


def _converted(graph: Graph, estimator: Any, method: str, values: Values) -> str:
    """Probabilities or scores, float64 [N, C]; the scores of a margin as two columns."""
    x = graph.cast(values.numbers(graph, estimator), FLOAT)
    options: dict[int, Any] | None = None
    if method != "predict":
        settings = {"zipmap": False}
        if method == "decision_function":
            settings["raw_scores"] = True
        options = {id(estimator): settings}
    model = converted(estimator, values.width, np.float32, graph.opset, options)
    scores = graph.cast(graph.append(model, {"X": x})[-1], DOUBLE)
    count = len(getattr(estimator, "classes_", ()))
    if method == "decision_function" and count == 2:
        shape = [d.dim_value for d in model.graph.output[-1].type.tensor_type.shape.dim]
        if len(shape) < 2 or shape[-1] != 2:
            margin = graph.op("Reshape", scores, graph.constant([-1, 1]))
        else:
            margin = graph.op("Gather", scores, graph.constant([1]), axis=1)
        return _margin(graph, margin)
    return scores
