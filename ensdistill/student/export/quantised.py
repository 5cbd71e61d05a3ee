"""A graph whose weights have eight bits."""

from __future__ import annotations

import copy
import logging
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from ensdistill.student.export.running import OnnxStudent, values_of

CALIBRATED_ROWS = 512


def quantised(
    model: onnx.ModelProto,
    samples: Any,
    expected: np.ndarray,
    files: Mapping[str, bytes],
    unit: np.ndarray | float = 1.0,
) -> onnx.ModelProto:
    """The model with int8 weights, by onnxruntime.

    Activations are quantised at each call (dynamic), or by scales that the given rows decide (static):
    whichever has the smaller Kullback-Leibler divergence from ``expected`` on these rows (of a regression the
    smaller mean square, in ``unit``). Convolutions are
    static, because onnxruntime runs dynamic ones several times slower than those in float32.

    Raises
    ------
    ValueError
        No layer of the model has a form with eight bits.
    """
    from onnxruntime.quantization.onnx_model import ONNXModel

    plain = ONNXModel(copy.deepcopy(model))
    plain.replace_gemm_with_matmul()  # Gemm has no dynamic form
    plain.clean_initializers()
    layers = _layers(plain.model)
    if not layers:
        raise ValueError(
            "int8: expected a graph with a matrix product or a convolution in float32; this one has none "
            "whose weights can have eight bits"
        )
    found = [_static(plain.model, layers, samples, files)]
    if all(node.op_type != "Conv" for node in layers):
        found.append(_dynamic(plain.model, layers))
    return min(found, key=lambda made: _divergence(made, samples, expected, files, unit))


def _dynamic(model: onnx.ModelProto, nodes: list[onnx.NodeProto]) -> onnx.ModelProto:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    return _made(
        model,
        lambda source, target: quantize_dynamic(
            source,
            target,
            op_types_to_quantize=sorted({node.op_type for node in nodes}),
            nodes_to_quantize=[node.name for node in nodes],
            weight_type=QuantType.QInt8,
        ),
    )


def _static(
    model: onnx.ModelProto, nodes: list[onnx.NodeProto], samples: Any, files: Mapping[str, bytes]
) -> onnx.ModelProto:
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

    student = OnnxStudent(model.SerializeToString(), files)
    tensors = student.tensors(student.alike(samples))

    class Rows(CalibrationDataReader):
        """Some of the given rows, in one batch."""

        batches = iter([{name: x[:CALIBRATED_ROWS] for name, x in tensors.items()}])

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.batches, None)

    return _made(
        model,
        lambda source, target: quantize_static(
            source,
            target,
            Rows(),
            op_types_to_quantize=sorted({node.op_type for node in nodes}),
            nodes_to_quantize=[node.name for node in nodes],
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            per_channel=True,
        ),
    )


def _layers(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """Matrix products, convolutions and lookups in float32 whose weights are constants."""
    constants = model.graph.initializer
    weights = {c.name for c in constants if c.data_type == onnx.TensorProto.FLOAT and len(c.dims) > 1}
    places = {"MatMul": 1, "Conv": 1, "Gather": 0}
    return [
        node
        for node in model.graph.node
        if node.op_type in places and node.input[places[node.op_type]] in weights
    ]


def _made(model: onnx.ModelProto, quantise: Any) -> onnx.ModelProto:
    """The model as onnxruntime quantises its file, with the same metadata."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with tempfile.TemporaryDirectory() as folder:
            source, target = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
            onnx.save(model, source)
            quantise(source, target)
            made = onnx.load(target)
    finally:
        logging.disable(level)
    del made.metadata_props[:]
    made.metadata_props.extend(copy.deepcopy(entry) for entry in model.metadata_props)
    return made


def _divergence(
    model: onnx.ModelProto,
    samples: Any,
    expected: np.ndarray,
    files: Mapping[str, bytes],
    unit: np.ndarray | float,
) -> float:
    student = OnnxStudent(model.SerializeToString(), files)
    found = values_of(student.run(samples), student.task)
    if student.task == "regression":
        return float(np.square((found - expected) / unit).mean())
    if student.task == "multilabel":
        expected, found = (np.stack([1 - x, x], -1).reshape(-1, 2) for x in (expected, found))
    p, q = (np.maximum(x.astype(np.float64), 1e-12) for x in (expected, found))
    return float((p * np.log(p / q)).sum(1).mean())
