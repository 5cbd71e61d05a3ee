"""An exported ``.onnx`` file as a student; onnxruntime runs it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ensdistill.student.export.running import OnnxStudent
from ensdistill.student.serving.base import Predictor


class OnnxPredictor(Predictor):
    """The student in a file that :func:`ensdistill.student.export.to_onnx` made.

    Parameters
    ----------
    path : path
        Files that the student needs, such as ``tokenizer.json``, stand beside it.

    Raises
    ------
    ValueError
        No such file, none that ensdistill exported, or one of a newer version (names it).
    ImportError
        onnxruntime is not installed.
    """

    parameters = 0  # onnxruntime does not count them

    def __init__(self, path: Path | str) -> None:
        self._runner = OnnxStudent(Path(path))
        meta = self._runner.about
        # The graph divides its logits by the temperature itself.
        super().__init__(meta["classes"], meta["labels"], meta["samples"], meta["temperature"], meta["about"])
        self.bytes = self._runner.bytes

    def _logits(self, batch: Any) -> np.ndarray:
        probabilities = self._runner.run(batch)[1]
        return np.log(np.maximum(probabilities, np.finfo(np.float32).tiny))
