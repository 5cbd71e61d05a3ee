"""An exported graph compared with the student that it was made of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx

from ensdistill.data.samples import as_samples
from ensdistill.student.export.graph import OTHERWISE
from ensdistill.student.export.running import OnnxStudent


def compared(
    model: onnx.ModelProto,
    samples: Any,
    expected: np.ndarray,
    files: Mapping[str, bytes],
    tolerance: float | None,
) -> float:
    """The largest absolute difference of a probability, for all rows at once and for some rows one by one.

    Raises
    ------
    ValueError
        It is beyond the tolerance, or a row gives other probabilities by itself; names the row.
    """
    runner = OnnxStudent(model.SerializeToString(), files)
    _, found = runner.run(samples)
    if found.shape != expected.shape:
        raise ValueError(
            f"export: expected probabilities {list(expected.shape)}; the graph's are {found.shape}"
        )
    held = as_samples(samples)
    single = np.unique(np.linspace(0, len(expected) - 1, min(8, len(expected))).astype(int))
    alone = np.concatenate([runner.run(held[slice(int(i), int(i) + 1)])[1] for i in single])
    differences = np.abs(found - expected).max(1)
    differences[single] = np.maximum(differences[single], np.abs(alone - expected[single]).max(1))
    worst = int(differences.argmax())
    largest = float(differences[worst])
    if tolerance is not None and not largest <= tolerance:
        raise ValueError(
            f"export: the graph's probabilities differ from the student's by {largest:.2g}, beyond "
            f"{tolerance:g}, in row {worst} ({(differences > tolerance).sum()} of {len(expected)} rows): the "
            f"conversion isn't exact for this student: {OTHERWISE}"
        )
    return largest
