"""Estimators of several labels, and a member for each label or number, as parts of a graph."""

from __future__ import annotations

from typing import Any

import numpy as np

from ensdistill.student.export import estimators
from ensdistill.student.export.graph import DOUBLE, OF_ESTIMATORS, Graph
from ensdistill.student.export.values import Values
from ensdistill.teachers.members import BoostedMember, ColumnsMember, SklearnMember


def columns(graph: Graph, member: ColumnsMember, values: Values) -> str:
    """Log-odds of labels, or means, float64 [N, C], of a member for each.

    Raises
    ------
    ValueError
        One of the members has no ONNX form; names it.
    """
    parts = []
    for one in member.members:
        if isinstance(one, BoostedMember):
            raise ValueError(
                f"export: BoostedMember {one.name} keeps its own format, XGBoost's, LightGBM's or "
                f"CatBoost's: {OF_ESTIMATORS}"
            )
        if not isinstance(one, SklearnMember):
            raise ValueError(
                f"export: ONNX can't express {type(one).__name__} {one.name}, the member of one column: "
                f"{OF_ESTIMATORS}"
            )
        if member.task == "regression":
            parts.append(estimators.numbers(graph, one, values))
            continue
        logits = estimators.logits(graph, one, values)
        order = [0, 1] if one._columns is None else one._columns.tolist()
        no, yes = (graph.op("Gather", logits, graph.constant([place]), axis=1) for place in order)
        parts.append(graph.op("Sub", yes, no))
    return graph.join(parts)


def log_odds(graph: Graph, member: SklearnMember, values: Values) -> str:
    """Log-odds, float64 [N, C], of one estimator of several labels.

    Raises
    ------
    ValueError
        ONNX can't express the estimator; names it.
    """
    estimator, values = estimators.last_step(graph, member.estimator, values)
    if member.output != "probability":
        if len(np.atleast_2d(getattr(estimator, "coef_", np.zeros((1, 1))))) < 2:
            raise ValueError(
                f"export: ONNX can't express several labels of {type(estimator).__name__}: {OF_ESTIMATORS}"
            )
        return estimators.scores(graph, estimator, str(member.method), values)
    p = _probabilities(graph, estimator, values)
    applies = graph.op("Log", graph.op("Add", p, graph.constant(np.float64(member.smoothing))))
    lacks = graph.op("Log", graph.op("Sub", graph.constant(np.float64(1 + member.smoothing)), p))
    return graph.op("Sub", applies, lacks)


def _probabilities(graph: Graph, estimator: Any, values: Values) -> str:
    """The probabilities that labels apply, float64 [N, C]."""
    name, own = type(estimator).__name__, type(estimator).__module__.startswith("sklearn.")
    if own and name in ("MultiOutputClassifier", "OneVsRestClassifier"):
        return graph.join([_applies(graph, one, values) for one in estimator.estimators_])
    if own and name == "ClassifierChain":
        raise ValueError(
            f"export: ONNX can't express ClassifierChain, of which a label's model takes earlier labels: "
            f"{OF_ESTIMATORS}"
        )
    found = estimators.scores(graph, estimator, "predict_proba", values)
    known = getattr(estimator, "classes_", None)
    if not isinstance(known, list):
        return found
    # skl2onnx writes the forests' probabilities as [C, N, 2].
    p = graph.op("Squeeze", graph.op("Gather", found, graph.constant([1]), axis=2), graph.constant([2]))
    p = graph.op("Transpose", p, perm=[1, 0])
    constant = np.array([float(np.max(one)) if len(one) == 1 else np.nan for one in known])
    if np.isnan(constant).all():
        return p
    return graph.op("Where", graph.constant(np.isnan(constant)[None]), p, graph.constant(constant[None]))


def _applies(graph: Graph, estimator: Any, values: Values) -> str:
    """The probability [N, 1] that one label applies, of a classifier of its own."""
    if type(estimator).__name__ == "_ConstantPredictor":  # of OneVsRestClassifier
        return estimators.constant_rows(graph, values, np.array([float(estimator.y_[0])]))
    known = np.asarray(estimator.classes_).tolist()
    if not set(known) <= {0, 1}:
        raise ValueError(f"export: expected labels that are 0 or 1; got {known}")
    if known == [1] or known == [0]:
        return estimators.constant_rows(graph, values, np.array([float(known[0])]))
    found = estimators.scores(graph, estimator, "predict_proba", values)
    return graph.cast(graph.op("Gather", found, graph.constant([1]), axis=1), DOUBLE)
