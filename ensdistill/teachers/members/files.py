"""Saved members: a folder with ``member.json`` (written last) and its arrays. Loading builds only trusted classes and never unpickles."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ensdistill.common.files import read_json
from ensdistill.teachers.members.base import FORMAT, Loader, Member, content_of
from ensdistill.teachers.members.boosted import LIBRARIES, load_boosted
from ensdistill.teachers.members.estimator import load_sklearn
from ensdistill.teachers.members.function import load_array
from ensdistill.teachers.members.module import load_torch
from ensdistill.teachers.members.onnx import load_onnx

LOADERS: dict[str, Loader] = {"torch": load_torch, "sklearn": load_sklearn, "array": load_array, "onnx": load_onnx}
LOADERS |= dict.fromkeys(LIBRARIES, load_boosted)


def load_member(folder: Path | str, trusted: Sequence[str] = ()) -> Member:
    """A saved member, checked against its fingerprint.

    Parameters
    ----------
    folder : path
    trusted : sequence of str
        Class paths that may be built beside torch's, this package's and scikit-learn's own.

    Raises
    ------
    ValueError
        Nothing complete is there, it needs a class that is not trusted, it is damaged, or a newer version wrote it.
    ImportError
        It needs a library that is not installed.
    """
    folder = Path(folder)
    about = read_json(folder / "member.json")
    if not isinstance(about, dict) or not isinstance(about.get("name"), str):
        raise ValueError(f"{folder}: no saved member (member.json is missing or is none)")
    if about.get("format") != FORMAT:
        raise ValueError(f"{folder}: format {about.get('format')!r}; this version reads {FORMAT}")
    if about.get("kind") not in LOADERS:
        raise ValueError(f"{folder}: unknown kind {about.get('kind')!r}; expected one of {', '.join(LOADERS)}")
    try:
        member = LOADERS[about["kind"]](folder, about, tuple(trusted))
    except (ValueError, ImportError):
        raise
    except Exception as error:  # the libraries raise many kinds for a damaged file; none of them names it
        raise ValueError(f"{folder}: cannot be loaded ({type(error).__name__}: {error})") from error
    if content_of(member) != about.get("fingerprint"):
        raise ValueError(f"{folder}: the files are not those that were saved (the fingerprint differs)")
    return member
