"""Parts of scikit-learn that skl2onnx converts."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import onnx

from ensdistill.student.export.graph import DOUBLE, FLOAT, ML, ML_OPSET, OF_ESTIMATORS, OTHERWISE, Graph
from ensdistill.student.export.values import Values, numbers


def convert(graph: Graph, transformer: Any, values: Values) -> Values:
    """The result of a transformer of numbers, by skl2onnx, in float64.

    Raises
    ------
    ValueError
        skl2onnx can't convert it; names it.
    """
    x = values.numbers(graph, transformer)
    model = converted(transformer, values.width, np.float64, graph.opset)
    if not _runs(model):  # some of its forms mix float32 and float64
        model, x = converted(transformer, values.width, np.float32, graph.opset), graph.cast(x, FLOAT)
    result = graph.append(model, {"X": x})[0]
    width = len(transformer.get_feature_names_out()) if hasattr(transformer, "get_feature_names_out") else 0
    shape = [d.dim_value for d in model.graph.output[0].type.tensor_type.shape.dim]
    return numbers(graph.cast(result, DOUBLE), width or shape[-1])


def converted(
    part: Any, width: int, dtype: type[np.generic], opset: int, options: dict[int, Any] | None = None
) -> onnx.ModelProto:
    """A transformer or estimator whose input ``X`` is [N, width].

    Raises
    ------
    ImportError
        skl2onnx is not installed.
    ValueError
        skl2onnx can't convert it.
    """
    try:
        from skl2onnx import convert_sklearn
        from skl2onnx.common import data_types
    except ImportError as error:
        raise ImportError(
            f"export: {type(part).__name__} needs skl2onnx: pip install 'ensdistill[export]'"
        ) from error
    types = {
        np.float32: data_types.FloatTensorType,
        np.float64: data_types.DoubleTensorType,
        np.int64: data_types.Int64TensorType,
    }
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model: onnx.ModelProto = convert_sklearn(
                part,
                initial_types=[("X", types[dtype]([None, width]))],
                target_opset={"": graph_opset(opset), ML: ML_OPSET},
                options=options,
            )
    except Exception as error:  # of many kinds
        remedy = OF_ESTIMATORS if hasattr(part, "predict_proba") or hasattr(part, "predict") else OTHERWISE
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(
            f"export: ONNX can't express {type(part).__module__.split('.')[0]}'s {type(part).__name__} "
            f"(skl2onnx: {reason}): {remedy}"
        ) from error
    return model


def graph_opset(opset: int) -> int:
    """The newest opset that skl2onnx writes, up to ``opset``; operators of older ones mean the same."""
    from skl2onnx import __max_supported_opset__

    return min(opset, __max_supported_opset__)


def _runs(model: onnx.ModelProto) -> bool:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception:  # of many kinds
        return False
    return True
