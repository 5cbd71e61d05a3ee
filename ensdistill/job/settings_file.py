"""``run.yaml`` of a run folder: all settings of the run, and the files that they came from."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from ensdistill.common import files

NAME = "run.yaml"
_MADE_FROM = "# made from: "
# Settings that decide on the results; the others say how and where they are made.
_DECISIVE = ("data", "teachers", "cache", "distill")


def keep_settings(folder: Path, settings: str, sources: Sequence[Path], notes: Sequence[str] = ()) -> None:
    """Write ``run.yaml``.

    Parameters
    ----------
    folder : Path
        The run's.
    settings : str
        YAML.
    sources : sequence of Path
        The files that the settings came from; where that is this ``run.yaml``, those of before stay.
    notes : sequence of str
        Comments at the beginning.
    """
    made_from = _relative(folder, sources)
    if made_from == [NAME]:
        made_from = sources_of(folder)
        notes = _notes_of(folder)
    head = ["# The settings of this run. Each run writes this file anew: change a copy under another name."]
    head += [f"{_MADE_FROM}{json.dumps(made_from, ensure_ascii=False)}"] if made_from else []
    text = "\n".join([*head, *(f"# {' '.join(note.split())}" for note in notes), settings])
    if _read(folder) != text:
        files.write_bytes(folder / NAME, text.encode())


def read_settings(folder: Path) -> dict[str, Any]:
    """The settings in ``run.yaml``; empty where there is none that can be read."""
    try:
        found = yaml.safe_load(_read(folder))
    except yaml.YAMLError:
        found = None
    return found if isinstance(found, dict) else {}


def sources_of(folder: Path) -> list[str]:
    """The files that a run's settings came from, relative to its folder."""
    lines = [line for line in _read(folder).splitlines() if line.startswith(_MADE_FROM)]
    try:
        found = json.loads(lines[0].removeprefix(_MADE_FROM)) if lines else []
    except ValueError:  # changed by hand
        return []
    return [str(path) for path in found] if isinstance(found, list) else []


def check_same_source(folder: Path, settings: str, sources: Sequence[Path]) -> None:
    """Refuse to run other settings from other files in a folder.

    The same file may have changed: its stages are then made again. Results of another file would be replaced
    without a word.

    Raises
    ------
    ValueError
        The folder's run came from another file, and its settings differ.
    """
    before, now = sources_of(folder), _relative(folder, sources)
    if not before or now in (before, [NAME]):
        return
    old, new = read_settings(folder), yaml.safe_load(settings)
    differing = [name for name in _DECISIVE if old.get(name) != new.get(name)]
    if differing:
        raise ValueError(
            f"name: {folder} holds the run of {', '.join(_absolute(folder, before))}, whose settings differ "
            f"({', '.join(differing)}): choose another name (--name {folder.name}-2), or remove the folder"
        )


def _relative(folder: Path, sources: Sequence[Path]) -> list[str]:
    # Relative paths stay true where a project is moved or copied as a whole.
    return [Path(os.path.relpath(path, folder)).as_posix() for path in sources]


def _absolute(folder: Path, sources: Sequence[str]) -> list[str]:
    return [os.path.relpath(os.path.normpath(folder / path)) for path in sources]


def _notes_of(folder: Path) -> list[str]:
    lines = _read(folder).splitlines()[1:]
    comments = [line for line in lines if line.startswith("# ") and not line.startswith(_MADE_FROM)]
    return [line.removeprefix("# ") for line in comments]


def _read(folder: Path) -> str:
    try:
        return (folder / NAME).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""
