"""An exported graph compared with the student that it was made of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx

from ensdistill.data import BadRows
from ensdistill.data.samples import as_samples
from ensdistill.student.export.graph import OTHERWISE
from ensdistill.student.export.running import OnnxStudent, values_of


def compared(
    model: onnx.ModelProto,
    samples: Any,
    expected: np.ndarray,
    files: Mapping[str, bytes],
    tolerance: float | None,
    unit: np.ndarray | float = 1.0,
) -> float:
    """The largest absolute difference of a probability, for all rows at once and for some rows one by one.

    ``expected`` are the probabilities [N, C]; or the means and variances side by side, whose differences are
    counted in ``unit``.

    Raises
    ------
    ValueError
        It is beyond the tolerance, or a row gives other probabilities by itself; names the row.
    """
    held = as_samples(samples)
    single = np.unique(np.linspace(0, len(expected) - 1, min(8, len(expected))).astype(int))
    try:
        runner = OnnxStudent(model.SerializeToString(), files)
        found = values_of(runner.run(samples), runner.task)
        alone = np.concatenate(
            [values_of(runner.run(held[slice(int(i), int(i) + 1)]), runner.task) for i in single]
        )
    except BadRows:
        raise
    except Exception as error:  # onnxruntime raises many kinds
        reason = str(error).strip().splitlines()[0][:300]
        raise ValueError(f"export: onnxruntime can't run the graph ({reason}): {OTHERWISE}") from error
    noun = "means or variances" if runner.task == "regression" else "probabilities"
    if found.shape != expected.shape:
        shapes = f"{list(expected.shape)}; the graph's are {list(found.shape)}"
        raise ValueError(f"export: expected {noun} {shapes}")
    together = (np.abs(found - expected) / unit).max(1)
    apart = (np.abs(alone - expected[single]) / unit).max(1)
    largest = float(max(together.max(), apart.max()))
    if tolerance is None or largest <= tolerance:
        return largest
    if together.max() <= tolerance:
        row = int(single[apart.argmax()])
        raise ValueError(
            f"export: row {row} has other {noun} by itself than among {len(expected)} rows, by "
            f"{largest:.2g}: expected a student whose answer for a row depends on that row alone"
        )
    rows = f"{(together > tolerance).sum()} of {len(found)} rows"
    beyond = f"beyond {tolerance:g}, in row {together.argmax()} ({rows})"
    raise ValueError(
        f"export: the graph's {noun} differ from the student's by {largest:.2g}, {beyond}: the "
        f"conversion isn't exact for this student: {OTHERWISE}"
    )
