"""Images of any size brought to the model's own, as `ensdistill.data.preprocess.ImageTransform` does it."""

from __future__ import annotations

import numpy as np

from ensdistill.student.export.graph import DOUBLE, FLOAT, INT64, Graph


def resized(graph: Graph, pixels: str, size: int, short: int) -> str:
    """Float32 [N, C, H, W] as [N, C, size, size].

    The shorter side becomes ``short`` pixels, bilinear with antialiasing, then the centre is cropped. The
    operator Resize of onnxruntime antialiases otherwise than torch does, by up to 14 of 255, so each axis is
    a product with the matrix of its weights. Images of the model's own size skip both products.
    """
    shape = graph.op("Shape", pixels)
    height, width = (graph.op("Gather", shape, graph.constant([axis]), axis=0) for axis in (2, 3))
    both = graph.op("Concat", height, width, axis=0)
    own = graph.op("Equal", both, graph.constant([size, size]))
    apart = graph.op("ReduceMax", graph.cast(graph.op("Not", own), INT64), keepdims=0)
    same = graph.op("Equal", apart, graph.constant(0))

    def scaled() -> str:
        sides = graph.cast(both, DOUBLE)
        scale = graph.op("Div", graph.constant(float(short)), graph.op("ReduceMin", sides, keepdims=1))
        target = graph.op(
            "Max", graph.op("Round", graph.op("Mul", sides, scale)), graph.constant(float(short))
        )
        rows, columns = (_weights(graph, sides, target, axis, size) for axis in (0, 1))
        return graph.op(
            "MatMul", graph.op("MatMul", rows, pixels), graph.op("Transpose", columns, perm=[1, 0])
        )

    return graph.choose(same, FLOAT, lambda: pixels, scaled) if short == size else scaled()


def _weights(graph: Graph, sides: str, target: str, axis: int, size: int) -> str:
    """Float32 [size, length]: the share of each pixel of an axis in each pixel of the cropped result."""
    one = graph.constant(1.0)
    length = graph.op("Gather", sides, graph.constant([axis]), axis=0)
    wanted = graph.op("Gather", target, graph.constant([axis]), axis=0)
    scale = graph.op("Div", length, wanted)
    margin = graph.op(
        "Floor", graph.op("Div", graph.op("Sub", wanted, graph.constant(float(size))), graph.constant(2.0))
    )
    places = graph.op("Add", graph.constant(np.arange(size)[:, None] + 0.5), margin)
    centres = graph.op("Mul", places, scale)
    count = graph.op("Squeeze", graph.cast(length, INT64), graph.constant([0]))
    pixels = graph.op("Range", graph.constant(0), count, graph.constant(1))
    middles = graph.op("Add", graph.cast(pixels, DOUBLE), graph.constant(0.5))
    distance = graph.op("Abs", graph.op("Sub", middles, centres))
    near = graph.op("Sub", one, graph.op("Div", distance, graph.op("Max", scale, one)))
    positive = graph.op("Max", near, graph.constant(0.0))
    total = graph.op("ReduceSum", positive, graph.constant([1]), keepdims=1)
    return graph.cast(graph.op("Div", positive, total), FLOAT)
