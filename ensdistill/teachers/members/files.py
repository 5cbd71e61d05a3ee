"""Saved members: folders with ``member.json``. Loading builds only trusted classes and never unpickles."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ensdistill.common.files import read_json
from ensdistill.data.preprocess import load_preprocess
from ensdistill.teachers.members.base import FORMAT, Loadable, Member, content_of
from ensdistill.teachers.members.boosted import LIBRARIES, BoostedMember
from ensdistill.teachers.members.columns import ColumnsMember
from ensdistill.teachers.members.estimator import SklearnMember
from ensdistill.teachers.members.function import ArrayMember
from ensdistill.teachers.members.module import TorchMember
from ensdistill.teachers.members.needs import check_needs
from ensdistill.teachers.members.onnx import OnnxMember
from ensdistill.teachers.members.preprocessed import Preprocessed
from ensdistill.teachers.members.skops_content import unchanged

KINDS: dict[str, Loadable] = {
    "torch": TorchMember,
    "sklearn": SklearnMember,
    "array": ArrayMember,
    "onnx": OnnxMember,
}
KINDS |= dict.fromkeys(LIBRARIES, BoostedMember)


def load_member(folder: Path | str, trusted: Sequence[str] = ()) -> Member:
    """A saved member, checked against its fingerprint.

    Parameters
    ----------
    folder : path
    trusted : sequence of str
        Class paths that may be built beside torch's, this package's and scikit-learn's own; a member class of
        another package among them.

    Raises
    ------
    ValueError
        The folder holds no complete member, needs a class that is not trusted, is damaged, or was written by
        a newer version.
    ImportError
        A required library is not installed.
    """
    folder = Path(folder)
    about = read_json(folder / "member.json")
    if not isinstance(about, dict) or not isinstance(about.get("name"), str):
        raise ValueError(f"{folder}: no saved member (member.json is missing, or describes none)")
    if about.get("format") != FORMAT:
        raise ValueError(
            f"{folder}: member.json has format {about.get('format')!r}; this version reads {FORMAT}. Load it "
            "with the version of ensdistill that saved it, or save the model again"
        )
    check_needs(folder, about)
    loader = _class_of(folder, about, trusted)
    with unchanged(own=about.get("class_path") is None):
        try:
            member = loader.load(folder, about, tuple(trusted))
        except (ValueError, ImportError):
            raise
        # Of a damaged file the libraries raise many kinds, without the file's name.
        except Exception as error:
            raise ValueError(f"{folder}: cannot be loaded ({type(error).__name__}: {error})") from error
        if about.get("fingerprint") not in _valid_contents(folder, member, about):
            raise ValueError(f"{folder}: the files are not those that were saved (the fingerprint differs)")
        return member


class _PreprocessedFiles:
    """Loads a member and its preprocess, each from a folder of its own."""

    @staticmethod
    def load(folder: Path, description: dict[str, Any], trusted: tuple[str, ...]) -> Preprocessed:
        preprocess = load_preprocess(folder / "preprocess", trusted)
        member = Preprocessed(load_member(folder / "model", trusted), preprocess)
        member.name = description["name"]
        return member


class _ColumnsFiles:
    """Loads the members of single columns, each from a folder of its own."""

    @staticmethod
    def load(folder: Path, description: dict[str, Any], trusted: tuple[str, ...]) -> ColumnsMember:
        classes = description["classes"]
        members = [load_member(folder / f"column-{place}", trusted) for place in range(len(classes))]
        return ColumnsMember(members, name=description["name"], classes=classes, task=description["task"])


KINDS["preprocessed"] = _PreprocessedFiles
KINDS["columns"] = _ColumnsFiles


def _valid_contents(folder: Path, member: Member, about: dict[str, Any]) -> list[str]:
    """Digests that ``member.json`` may hold for these files: today's, and those of earlier versions."""
    now = content_of(member)
    if now == about.get("fingerprint") or not hasattr(member, "earlier_contents"):
        return [now]
    earlier: list[str] = member.earlier_contents(folder, about)
    return [now, *earlier]


def _class_of(folder: Path, about: dict[str, Any], trusted: Sequence[str]) -> Loadable:
    """The member's class; one of another package is imported only if its path is trusted."""
    path, kind = about.get("class_path"), about.get("kind")
    if path is None:
        if kind not in KINDS:
            raise ValueError(f"{folder}: unknown kind {kind!r}; expected one of {', '.join(KINDS)}")
        return KINDS[kind]
    # Importing a module runs its code, so the path is judged before anything is imported.
    if path not in trusted:
        near = difflib.get_close_matches(str(path), list(trusted), 1)
        passed = f"; trusted has {near[0]!r}" if near else ""
        raise ValueError(
            f"{folder}: the member's class {path} is not trusted, because another package defines "
            f"it{passed}. If you know it, pass trusted=[{path!r}]"
        )
    module, _, name = path.rpartition(".")
    cls: Any
    try:
        cls = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"{folder}: the member's class {path} cannot be imported ({error})") from error
    if not callable(cls) or not callable(getattr(cls, "load", None)):
        raise ValueError(
            f"{folder}: {path}: expected a class with a class method load(folder, description, trusted), "
            "which returns the saved member"
        )
    found: Loadable = cls
    return found
