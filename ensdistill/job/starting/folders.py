"""A look at a folder: images or texts in class folders, parts in folders or tables, arrays."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from ensdistill.data.files import IMAGES, in_class_folders
from ensdistill.data.table_files import TABLES
from ensdistill.job.starting.found import Found, check_classes, listed

TRAIN, TEST, POOL = ("train", "training"), ("test", "testing"), ("pool", "unlabelled", "unlabeled", "unsup")
_PIXELS = np.zeros((8, 8, 3), np.uint8)


def look_at_folder(path: Path) -> Found | None:
    """Look at the class folders in a folder, or in its folders ``train`` and ``test``; None where there are
    none.

    Raises
    ------
    ValueError
        The classes are too few or too small, or files lie beside class folders.
    """
    parts = _parts(path)
    train = parts.get("path", path)
    images, texts = (_in_folders(train, suffixes) for suffixes in (IMAGES, (".txt",)))
    if not images and not texts:
        return None
    suffixes, noun = (IMAGES, "image") if images else ((".txt",), "text")
    classes = _classes(train, suffixes, noun)
    test = sum(_classes(parts["test_path"], suffixes, noun).values()) if "test_path" in parts else None
    pool = _files(parts["pool_path"], suffixes) if "pool_path" in parts else []
    samples: list[Any] = [_PIXELS] if images else ["a text"]
    given = {name: str(folder) for name, folder in ({"path": path} | parts).items()}
    facts = [("inputs", f"{noun}s in a folder for each class")]
    facts += [("left out", f"{listed(texts)}: beside the images")] if images and texts else []
    kind = "ImageFolder" if images else "Texts"
    return Found(path, {"class_path": kind, "init_args": given}, samples, classes, len(pool), test, facts)


def tables_in(path: Path) -> tuple[Path, dict[str, Path]] | None:
    """The table in a folder, or that of the training rows with those of the other parts."""
    tables = sorted(file for file in path.iterdir() if file.suffix.lower() in TABLES and file.is_file())
    train = [file for file in tables if file.stem.lower() in TRAIN]
    if len(train) == 1:
        others = [(name, file) for file in tables for name, stems in (("test", TEST), ("pool", POOL))
                  if file.stem.lower() in stems]  # fmt: skip
        return train[0], dict(others)
    return (tables[0], {}) if len(tables) == 1 else None


def _parts(path: Path) -> dict[str, Path]:
    """The folders of parts by the data sets' settings, where there is one of training rows."""
    folders = {child.name.lower(): child for child in sorted(path.iterdir()) if child.is_dir()}
    parts = {}
    for setting, names in (("path", TRAIN), ("test_path", TEST), ("pool_path", POOL)):
        if there := [folders[name] for name in names if name in folders]:
            parts[setting] = there[0]
    return parts if "path" in parts else {}


def _files(path: Path, suffixes: tuple[str, ...]) -> list[Path]:
    return [file for file in path.rglob("*") if file.suffix.lower() in suffixes and file.is_file()]


def _in_folders(path: Path, suffixes: tuple[str, ...]) -> list[str]:
    """The files that lie in folders of ``path``, as those of classes do."""
    return [file.name for file in _files(path, suffixes) if file.parent != path]


def _classes(path: Path, suffixes: tuple[str, ...], noun: str) -> dict[str, int]:
    try:
        _, names = in_class_folders(path, suffixes, noun)
    except ValueError as error:
        raise ValueError(f"path: {str(error).removeprefix('folder: ')}") from error
    if names is None:
        raise ValueError(f"path: expected a folder for each class in {path}; got {noun}s without folders")
    classes = dict(sorted(Counter(names).items()))
    if len(classes) < 2:
        raise ValueError(
            f"path: expected a folder for each of two or more classes in {path}; got one, "
            f"{next(iter(classes))!r}"
        )
    check_classes(classes, f"path: {path}")
    return classes
