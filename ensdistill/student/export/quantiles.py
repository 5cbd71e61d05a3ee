"""Numbers to quantiles, as `sklearn.preprocessing.QuantileTransformer` has them."""

from __future__ import annotations

from typing import Any

import numpy as np

from ensdistill.student.export.graph import INT64, Graph
from ensdistill.student.export.scaling import clipped, row
from ensdistill.student.export.values import Values, numbers

BOUND = 1e-7  # scikit-learn's BOUNDS_THRESHOLD
_BLOCK = 32  # quantiles that are compared at once
# Wichura (1988), "Algorithm AS 241: The Percentage Points of the Normal Distribution", PPND16: numerator and
# denominator near the middle, and in the tails down to exp(-25).
_MIDDLE = (
    [3.3871328727963666080e0, 1.3314166789178437745e2, 1.9715909503065514427e3, 1.3731693765509461125e4,
     4.5921953931549871457e4, 6.7265770927008700853e4, 3.3430575583588128105e4, 2.5090809287301226727e3],
    [1.0, 4.2313330701600911252e1, 6.8718700749205790830e2, 5.3941960214247511077e3,
     2.1213794301586595867e4, 3.9307895800092710610e4, 2.8729085735721942674e4, 5.2264952788528545610e3],
)  # fmt: skip
_TAIL = (
    [1.42343711074968357734e0, 4.63033784615654529590e0, 5.76949722146069140550e0, 3.64784832476320460504e0,
     1.27045825245236838258e0, 2.41780725177450611770e-1, 2.27238449892691845833e-2,
     7.74545014278341407640e-4],
    [1.0, 2.05319162663775882187e0, 1.67638483018380384940e0, 6.89767334985100004550e-1,
     1.48103976427480074590e-1, 1.51986665636164571966e-2, 5.47593808499534494600e-4,
     1.05075007164441684324e-9],
)  # fmt: skip


def quantile(graph: Graph, scaler: Any, values: Values) -> Values:
    """The share of rows at most as large, or the quantile of the normal distribution that has this share.

    scikit-learn takes the mean of two interpolations, from below and from above, which differ at repeated
    quantiles alone. So each distinct quantile has a value of its own, and one where the line to the next one
    begins. The place among the quantiles is found in two steps: the block of ``_BLOCK`` quantiles, then the
    place within.
    """
    tables = [
        _knots(quantiles, scaler.references_, scaler.output_distribution == "uniform")
        for quantiles in np.asarray(scaler.quantiles_, np.float64).T
    ]
    longest = max(len(table) for table in tables)
    blocks = -(-longest // _BLOCK)
    # The last knot repeats to the end of its last block; x is never beyond it.
    padded = np.stack(
        [np.concatenate([t, np.repeat(t[-1:], blocks * _BLOCK - len(t), axis=0)]) for t in tables]
    )
    padded[:, :, 0] = np.where(
        np.arange(blocks * _BLOCK) < np.array([[len(t)] for t in tables]), padded[:, :, 0], np.inf
    )
    width = values.width
    x = values.numbers(graph, scaler)
    low, high = (row(graph, [table[i, 0] for table in tables]) for i in (0, -1))
    inside = graph.op("Where", graph.op("Less", x, low), low, x)
    inside = graph.op("Where", graph.op("Greater", inside, high), high, inside)
    inside = graph.op("Unsqueeze", inside, graph.constant([2]))
    starts = graph.constant(padded[None, :, ::_BLOCK, 0])  # [1, width, blocks]
    block = _last_at_most(graph, starts, inside)
    block = graph.op("Add", block, graph.constant(np.arange(width)[None] * blocks))
    within = graph.op("Gather", graph.constant(padded[:, :, 0].reshape(-1, _BLOCK)), block, axis=0)
    place = graph.op(
        "Add", _last_at_most(graph, within, inside), graph.op("Mul", block, graph.constant(_BLOCK))
    )
    knots = [
        graph.op("Gather", graph.constant(padded[:, :, part].reshape(-1)), place, axis=0) for part in range(4)
    ]
    inside = graph.op("Squeeze", inside, graph.constant([2]))
    line = graph.op("Mul", knots[3], graph.op("Sub", inside, knots[0]))
    made = graph.op("Where", graph.op("Equal", inside, knots[0]), knots[1], graph.op("Add", knots[2], line))
    made = graph.op("Where", graph.op("IsNaN", x), x, made)
    if scaler.output_distribution == "normal":
        first, last = (row(graph, scaler.quantiles_[i]) for i in (0, -1))
        above = graph.op("Greater", graph.op("Add", x, graph.constant(BOUND)), last)
        below = graph.op("Less", graph.op("Sub", x, graph.constant(BOUND)), first)
        made = graph.op("Where", above, graph.constant(1.0), made)
        made = normal(graph, graph.op("Where", below, graph.constant(0.0), made))
    return numbers(made, width)


def _knots(quantiles: np.ndarray, references: np.ndarray, bounded: bool) -> np.ndarray:
    """[K, 4]: distinct quantile, value there, value just above, slope to the next.

    ``bounded``: the first quantile is 0 and the last one 1, however often they repeat.
    """
    places, first = np.unique(quantiles, return_index=True)
    last = np.append(first[1:], len(quantiles)) - 1
    below, above = references[first], references[last]
    at = (below + above) / 2
    if bounded:
        at[-1] = 1.0
        at[0] = 0.0  # also where all quantiles are equal
    if len(places) == 1:  # everything beyond is 1
        places, at, above, below = (
            np.append(places, np.nextafter(places, np.inf)), np.append(at[:1], 1.0), np.ones(2), np.ones(2),
        )  # fmt: skip
    slopes = np.append((below[1:] - above[:-1]) / np.diff(places), 0.0)
    return np.stack([places, at, above, slopes], 1)


def _last_at_most(graph: Graph, sorted_values: str, x: str) -> str:
    """int64 [N, width]: the last position of a value that is at most x; 0 where x is missing."""
    at_most = graph.cast(graph.op("LessOrEqual", sorted_values, x), INT64)
    count = graph.op("ReduceSum", at_most, graph.constant([2]), keepdims=0)
    place = graph.op("Sub", count, graph.constant(1))
    return graph.op("Max", place, graph.constant(0))


def normal(graph: Graph, share: str) -> str:
    """The quantile of the normal distribution; scikit-learn's own bounds keep it finite."""
    bounded = clipped(graph, share, BOUND - np.spacing(1), 1 - (BOUND - np.spacing(1)))
    centred = graph.op("Sub", bounded, graph.constant(0.5))
    square = graph.op("Sub", graph.constant(0.180625), graph.op("Mul", centred, centred))
    middle = graph.op("Mul", centred, _ratio(graph, square, *_MIDDLE))
    nearer = graph.op("Min", bounded, graph.op("Sub", graph.constant(1.0), bounded))
    root = graph.op("Sqrt", graph.op("Neg", graph.op("Log", nearer)))
    tail = _ratio(graph, graph.op("Sub", root, graph.constant(1.6)), *_TAIL)
    tail = graph.op("Mul", graph.op("Sign", centred), tail)
    inner = graph.op("LessOrEqual", graph.op("Abs", centred), graph.constant(0.425))
    return graph.op("Where", inner, middle, tail)


def _ratio(graph: Graph, x: str, numerator: list[float], denominator: list[float]) -> str:
    """The quotient of two polynomials, whose coefficients begin with that of 1."""
    values = []
    for coefficients in (numerator, denominator):
        value = graph.constant(coefficients[-1])
        for coefficient in coefficients[-2::-1]:
            value = graph.op("Add", graph.op("Mul", value, x), graph.constant(coefficient))
        values.append(value)
    return graph.op("Div", *values)
