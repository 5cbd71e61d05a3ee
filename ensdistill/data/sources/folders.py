"""Files in class folders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from ensdistill.data.files import in_class_folders
from ensdistill.data.partition import POOL
from ensdistill.data.sources.roles import setting
from ensdistill.data.sources.target import Target

PART_NAMES = {"train", "training", "test", "pool", "unlabelled", "val", "valid", "validation"}


def class_folders(
    path: Path, suffixes: Sequence[str], noun: str, argument: str, part: int, roles: Mapping[str, str]
) -> tuple[list[Path], list[str] | None]:
    """The files of a folder, in the order of their paths, and the classes that their folders name.

    Parameters
    ----------
    path : path
        A folder with a folder for each class; of a pool, also one that holds the files themselves.
    suffixes : sequence of str
        Of the files; others are left alone.
    noun, argument : str
        Name a file and the setting in an error message.
    part : int
        The part that the folder stands for. The names of a pool's classes are not used.
    roles : mapping
        Role -> column.

    Returns
    -------
    paths : list of Path
    names : list of str, or None

    Raises
    ------
    ValueError
        There is no such folder or file; files lie beside the class folders, or in folders that are parts
        rather than classes; or there are roles for columns, which a folder has not.
    """
    if others := [setting(role) for role in roles if role != "target"]:
        raise ValueError(f"{others[0]}: expected a table with that column; {argument} is a folder, {path}")
    try:
        paths, names = in_class_folders(path, suffixes, noun)
    except ValueError as error:
        raise ValueError(f"{argument}: {str(error).removeprefix('folder: ')}") from error
    if part == POOL:
        return paths, None
    if names is None:
        raise ValueError(
            f"{argument}: expected a folder for each class in {path}; got {noun}s without folders, which can "
            "only be a pool (pool_path)"
        )
    if set(names) <= PART_NAMES:
        raise ValueError(
            f"{argument}: expected a folder for each class; the folders of {path} look like parts: "
            f"{', '.join(sorted(set(names)))}. Give each of them a setting: path, test_path, pool_path"
        )
    return paths, names


def class_column(target: Target) -> str:
    """The one column that the names of class folders fill.

    Raises
    ------
    ValueError
        The target is not one of classes, which folders hold.
    """
    if not target.of_classes:
        raise ValueError(
            f"task: expected a table of paths or texts for a target of {target.task or 'multilabel'}; got a "
            "folder for each class"
        )
    return target.names[0]
