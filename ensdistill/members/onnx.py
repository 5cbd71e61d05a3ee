"""ONNX files as members, run by onnxruntime."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ensdistill.files import write_bytes
from ensdistill.fingerprint import digest
from ensdistill.members.base import Blob, Speech, as_classes, as_logits, batches, check_smoothing, check_width, write_about

# Output names by which exporters say what they hold (skl2onnx, torch and Hugging Face exporters).
NAMES: dict[str, Speech] = {"logits": "logits", "logit": "logits", "probabilities": "probabilities", "probs": "probabilities"}
DTYPES: dict[str, type[np.generic]] = {"tensor(float)": np.float32, "tensor(double)": np.float64, "tensor(float16)": np.float16}
DTYPES |= {"tensor(int64)": np.int64, "tensor(int32)": np.int32}


class OnnxMember:
    """An ONNX file whose first input takes a batch [N, ...] and of which one output is [N, C].

    Parameters
    ----------
    path : path
        The file is read once and kept, so what is saved is what predicts; all weights have to be inside of it.
    name : str, optional
        The file's name by default.
    output : {"auto", "logits", "probabilities"}
        What the output holds; ``auto`` goes by its name (``logits``, ``probabilities``).
    output_name : str, optional
        Which output; by default the one that is called ``logits`` or ``probabilities``, or the only one.
    classes : sequence of str, optional
    smoothing : float
        Added to probabilities before the logarithm.
    batch_size : int
        Rows predicted at once; 1 where the model was exported for one row.

    Raises
    ------
    ValueError
        Not an ONNX model that onnxruntime can run, or it can't be told which output is meant or what it holds.
    ImportError
        onnxruntime is not installed.
    """

    parameters = 0  # not counted: onnxruntime doesn't tell

    def __init__(
        self,
        path: Path | str,
        *,
        name: str | None = None,
        output: Literal["auto", "logits", "probabilities"] = "auto",
        output_name: str | None = None,
        classes: Sequence[str] | None = None,
        smoothing: float = 1e-6,
        batch_size: int = 1024,
    ) -> None:
        import onnxruntime

        path = Path(path)
        self.name = name or path.stem
        if not path.is_file():
            raise ValueError(f"path: {self.name}: there is no file {str(path)!r}")
        self.blob: Blob = path.read_bytes()
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # its warnings are for who exported the model
        try:
            self._session = onnxruntime.InferenceSession(self.blob, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # many kinds, none of which names the file
            raise ValueError(f"path: {path}: onnxruntime can't run it ({error})") from error
        inputs, outputs = self._session.get_inputs(), {o.name: o for o in self._session.get_outputs()}
        if len(inputs) != 1 or inputs[0].type not in DTYPES:
            found = ", ".join(f"{i.name} {i.type}" for i in inputs)
            raise ValueError(f"path: {self.name}: expected one input, of numbers; got {found}. A function can prepare them: CallableMember")
        self._input, self._dtype = inputs[0].name, DTYPES[inputs[0].type]
        chosen = output_name or next((o for o in outputs if o in NAMES), None) or (next(iter(outputs)) if len(outputs) == 1 else None)
        if chosen is None or chosen not in outputs:
            raise ValueError(f"output_name: {self.name}: expected one of {list(outputs)}; got {output_name!r}")
        if output == "auto" and chosen not in NAMES:
            raise ValueError(f"output: {self.name}: {chosen!r} could hold either: say output='logits' or output='probabilities'")
        if not outputs[chosen].type.startswith("tensor("):
            raise ValueError(
                f"output_name: {self.name}: expected a tensor; {chosen!r} is {outputs[chosen].type}. skl2onnx writes one with "
                "options={'zipmap': False}"
            )
        self.output_name, self.output = chosen, NAMES[chosen] if output == "auto" else output
        self.smoothing, self.batch_size = check_smoothing(smoothing), batch_size
        self.classes = as_classes(self.name, classes)

    @property
    def bytes(self) -> int:
        """Bytes of the file."""
        return len(self.blob)

    def predict_logits(self, inputs: np.ndarray) -> np.ndarray:
        if inputs.dtype.kind != np.dtype(self._dtype).kind:
            raise ValueError(f"inputs: {self.name} expects {np.dtype(self._dtype)}; got {inputs.dtype}")
        run = self._session.run
        parts = [run([self.output_name], {self._input: np.ascontiguousarray(x, self._dtype)})[0] for x in batches(inputs, self.batch_size)]
        return as_logits(check_width(self.name, np.concatenate(parts), len(inputs), self.classes), self.output, self.smoothing)

    def fingerprint(self) -> str:
        return digest(["onnx", self.blob, self.output_name, self.output, self.smoothing])

    def save(self, folder: Path | str) -> None:
        write_bytes(Path(folder) / "model.onnx", self.blob)
        more = {"output": self.output, "output_name": self.output_name, "smoothing": self.smoothing, "batch_size": self.batch_size}
        write_about(folder, self, "onnx", **more)


def load_onnx(folder: Path, about: dict[str, Any], trusted: tuple[str, ...]) -> OnnxMember:
    """A saved ONNX file."""
    options = {key: about[key] for key in ("output", "output_name", "smoothing", "batch_size")}
    return OnnxMember(folder / "model.onnx", name=about["name"], classes=about["classes"], **options)
