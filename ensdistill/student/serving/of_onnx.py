"""An exported ``.onnx`` file as a student; onnxruntime runs it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ensdistill.student.export.running import OnnxStudent
from ensdistill.student.serving.base import Predictor
from ensdistill.student.serving.student import settings_of
from ensdistill.teachers.members.moments import Moments


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
        # The graph divides its logits by the temperature itself, and calibrates variances.
        super().__init__(**settings_of(meta))
        self.bytes = self._runner.bytes

    def _logits(self, batch: Any) -> np.ndarray:
        p = self._runner.run(batch)[1]
        tiny = np.finfo(np.float32).tiny
        if self.task == "multilabel":
            exact = p.astype(np.float64)
            logits: np.ndarray = np.log(np.maximum(exact, tiny)) - np.log(np.maximum(1 - exact, tiny))
            return logits.astype(np.float32)
        return np.log(np.maximum(p, tiny))

    def predict(self, samples: Any) -> np.ndarray:
        """As of every student; labels at their thresholds are those of the graph."""
        if self.task != "multilabel":
            return super().predict(samples)
        found = self._in_parts(samples, lambda batch: self._runner.run(batch)[0])
        return np.concatenate(found).astype(np.int8)

    def _moments(self, batch: Any) -> Moments:
        return Moments(*self._runner.run(batch))
