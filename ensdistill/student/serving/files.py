"""A student in a file or folder of any of the formats in which one is saved or exported."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ensdistill.common.errors import WrongArgument
from ensdistill.student.serving.base import Predictor
from ensdistill.student.serving.student import FILE, Student


def load_student(path: Path | str, trusted: Sequence[str] = ()) -> Predictor:
    """A student, by the kind of ``path``.

    Parameters
    ----------
    path : path
        A folder with ``student.json``, an ``.onnx`` file (which onnxruntime runs) or a ``.pt2`` file, as
        ``ensdistill export`` writes them.
    trusted : sequence of str
        Class paths that may be built beside torch's, this package's and scikit-learn's own; a ``.pt2`` file
        needs ``torch.export.load``, which can run code that is in a file.

    Raises
    ------
    ValueError
        It is none of these, or was written by a newer version (names it).
    ImportError
        A library that it needs is not installed; names it.
    """
    path = Path(path)
    if path.is_file() and path.name == FILE:
        path = path.parent
    if path.is_dir():
        if not (path / FILE).is_file():
            raise WrongArgument(
                f"path: {path} holds no student: there is no {FILE}, which a run, `ensdistill export` and "
                "Student.save write last"
            )
        return Student.load(path, trusted)
    if not path.exists():
        raise WrongArgument(f"path: there is no file or folder {str(path)!r}")
    if path.suffix == ".onnx":
        from ensdistill.student.serving.of_onnx import OnnxPredictor

        return OnnxPredictor(path)
    if path.suffix == ".pt2":
        from ensdistill.student.serving.of_torch import ProgramPredictor

        return ProgramPredictor(path, trusted)
    raise WrongArgument(f"path: expected a folder with {FILE}, an .onnx or a .pt2 file; got {path.name!r}")
