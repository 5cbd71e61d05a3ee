"""An exported ``.pt2`` file as a student; torch runs it."""

from __future__ import annotations

import base64
import json
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ensdistill.data.preprocess import Preprocess, load_preprocess
from ensdistill.student.serving.base import Predictor
from ensdistill.student.serving.student import check_format, settings_of
from ensdistill.teachers.members.moments import Moments

CONTENT = "ensdistill.json"
LOADER = "torch.export.load"


class ProgramPredictor(Predictor):
    """The student in a file that :func:`ensdistill.student.serving.as_torch.to_torch` made.

    Parameters
    ----------
    path : path
    trusted : sequence of str
        Has to name ``torch.export.load``, which can run code that is in a file.

    Raises
    ------
    ValueError
        No such file, none that ensdistill exported, one of a newer version (names it), or the loader is not
        trusted.
    """

    parameters = 0

    def __init__(self, path: Path | str, trusted: Sequence[str] = ()) -> None:
        path = Path(path)
        content = _content(path)
        about = check_format(content.get("student"), path)
        if LOADER not in trusted:
            raise ValueError(
                f"path: {path}: reading a .pt2 file can run code that is in it, because {LOADER} unpickles. "
                f"If you made it or know it, pass trusted=[{LOADER!r}] (on the command line --trust {LOADER})"
            )
        super().__init__(**settings_of(about))
        self._run: Any = torch.export.load(path).module()
        self._dtypes: Any = content["dtypes"]
        self._preprocess = _preprocess(content["preprocess"], trusted)
        self.bytes = path.stat().st_size

    def _moments(self, batch: Any) -> Moments:
        values, count = self._logits(batch), len(self.classes)
        return Moments(values[:, :count], values[:, count:] if values.shape[1] > count else None)

    def _logits(self, batch: Any) -> np.ndarray:
        prepared = batch if self._preprocess is None else self._preprocess(batch)
        if isinstance(self._dtypes, dict):
            given: Any = {name: _tensor(prepared[name], dtype) for name, dtype in self._dtypes.items()}
        else:
            given = _tensor(prepared, self._dtypes)
        with torch.no_grad():
            logits: np.ndarray = self._run(given).numpy()
        return logits


def _tensor(values: Any, dtype: str) -> torch.Tensor:
    tensor = values if isinstance(values, torch.Tensor) else torch.from_numpy(np.array(values))
    return tensor.to(getattr(torch, dtype))


def _content(path: Path) -> dict[str, Any]:
    """The description in a file, which is read as a zip archive: nothing is unpickled."""
    if not path.is_file():
        raise ValueError(f"path: there is no file {str(path)!r}")
    try:
        with zipfile.ZipFile(path) as archive:
            name = next((one for one in archive.namelist() if one.endswith(f"/{CONTENT}")), None)
            content = None if name is None else json.loads(archive.read(name))
    except (zipfile.BadZipFile, ValueError) as error:
        raise ValueError(f"path: {path} is no .pt2 file ({error})") from error
    if not isinstance(content, dict):
        raise ValueError(
            f"path: {path}: expected a student that ensdistill exported; there is no {CONTENT} in it"
        )
    return content


def _preprocess(files: dict[str, str] | None, trusted: Sequence[str]) -> Preprocess | None:
    if files is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        for name, text in files.items():
            place = (Path(folder) / name).resolve()
            if not place.is_relative_to(Path(folder).resolve()):
                raise ValueError(f"preprocess: expected files below one folder; got {name!r}")
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(base64.b64decode(text))
        return load_preprocess(Path(folder), trusted)
