"""An ensemble as a folder: ``members/<name>/`` and, written last, ``ensemble.json``."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ensdistill.ensemble.checks import plain_name
from ensdistill.files import read_json, write_json
from ensdistill.members import load_member

if TYPE_CHECKING:
    from ensdistill.ensemble.core import Ensemble

FORMAT = 1


def save(ensemble: Ensemble, folder: Path | str) -> None:
    """See :meth:`ensdistill.ensemble.Ensemble.save`."""
    folder = Path(folder).absolute()
    folder.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        for member in ensemble.members:
            member.save(part / plain_name(member.name, folder))
        # From here on nothing can be refused any more. Without its ensemble.json a folder that is cut short is known as such.
        (folder / "ensemble.json").unlink(missing_ok=True)
        (folder / "members").mkdir(parents=True, exist_ok=True)
        for old in (folder / "members").iterdir():  # what members were there before
            if old.name in ensemble.names or (old / "member.json").is_file():
                shutil.rmtree(old)
        for new in part.iterdir():
            os.replace(new, folder / "members" / new.name)
        write_json(folder / "ensemble.json", {"format": FORMAT, **ensemble.fingerprint()})
    finally:
        shutil.rmtree(part, ignore_errors=True)


def load(cls: type[Ensemble], folder: Path | str, trusted: Sequence[str]) -> Ensemble:
    """See :meth:`ensdistill.ensemble.Ensemble.load`."""
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"folder: there is no folder {str(folder)!r}")
    about = read_json(folder / "ensemble.json")
    if about is None:
        raise ValueError(f"folder: {folder} holds no ensemble: there is no ensemble.json, which is written last; save it again")
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        got = f"format {about.get('format')!r}" if isinstance(about, dict) else "something else"
        raise ValueError(f"{folder / 'ensemble.json'}: expected an ensemble of format {FORMAT}; got {got}")
    members = [load_member(folder / "members" / plain_name(name, folder), trusted) for name in about["members"]]
    ensemble = cls.from_members(members, weights=about["weights"], combiner=about["combiner"], classes=about["classes"])
    # As saved: normalising again could change the last bit.
    ensemble.weights = np.array(about["weights"], np.float64)
    ensemble.temperatures = np.array(about["temperatures"], np.float64)
    ensemble.temperature = float(about["temperature"])
    if about.get("vectors") is not None:
        ensemble.vectors = np.array(about["vectors"], np.float64)
    for key, value in ensemble.fingerprint().items():
        if value != about.get(key):
            raise ValueError(f"{folder}: {key} is {value!r}; ensemble.json says {about.get(key)!r}")
    return ensemble
