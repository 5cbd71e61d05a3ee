"""A student as one file for other programs: ONNX, from raw inputs to probabilities and labels."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

_HOME = {
    "Exported": "exporting",
    "to_onnx": "exporting",
    "OnnxStudent": "running",
    "run_onnx": "running",
    "figures": "measuring",
}

__all__ = ["Exported", "OnnxStudent", "figures", "run_onnx", "to_onnx"]

if TYPE_CHECKING:
    from ensdistill.student.export.exporting import Exported, to_onnx
    from ensdistill.student.export.measuring import figures
    from ensdistill.student.export.running import OnnxStudent, run_onnx


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    except ModuleNotFoundError as error:
        if error.name not in ("onnx", "onnxruntime"):
            raise
        raise ModuleNotFoundError(
            f"export: an ONNX file needs {error.name}: pip install 'ensdistill[export]'", name=error.name
        ) from error
