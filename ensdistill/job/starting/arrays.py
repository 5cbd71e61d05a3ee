"""A look at arrays in files: inputs and labels in one archive, or in two files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ensdistill.common.errors import WrongArgument
from ensdistill.common.tasks import Task
from ensdistill.data.files import read_array
from ensdistill.data.labels import as_labels
from ensdistill.data.rows import UNLABELLED
from ensdistill.job.starting.found import TEST, Found, check_classes
from ensdistill.job.starting.targets import Labelled, look_at_labels

INPUTS = ("x", "inputs", "data", "features", "images", "x_train", "train_x", "xs")
LABELS = ("y", "labels", "label", "target", "targets", "classes", "y_train", "train_y", "ys")
FIRST = 1000  # rows by which the kind of the samples is known


def look_at_arrays(path: Path, target: str | None = None, task: Task | None = None) -> Found:
    """Look at an archive (``.npz``, ``.safetensors``) of inputs and labels, or at a ``.npy`` file of inputs
    beside one of labels.

    Parameters
    ----------
    path : Path
    target : str, optional
        The labels: the array's name, or the path of their file.
    task : str, optional
        By default that which the labels look like.

    Raises
    ------
    ValueError
        No array is certainly the inputs or the labels, or they are not as expected.
    """
    arguments: dict[str, Any] = {"inputs": str(path)}
    if path.suffix == ".npy":
        labels = Path(target) if target is not None else _beside(path)
        arguments["labels"] = str(labels)
    else:
        names = array_names(path)
        chosen = target if target is not None else _named(names, LABELS, path, "labels")
        if chosen not in names:
            raise WrongArgument(
                f"--target: expected one of the arrays of {path.name}, {', '.join(names)}; got {chosen!r}"
            )
        others = [name for name in names if name != chosen]
        inputs = others[0] if len(others) == 1 else _named(others, INPUTS, path, "inputs")
        arguments |= {"labels": str(path), "inputs_name": inputs, "labels_name": chosen}
    x = read_array(path, arguments.get("inputs_name"))
    y = read_array(Path(arguments["labels"]), arguments.get("labels_name"))
    if x.ndim < 2 or len(x) != len(y):
        raise ValueError(
            f"inputs: expected numbers [N, ...] and N labels; got {list(x.shape)} and {list(y.shape)}"
        )
    where = f"labels: {arguments['labels']}"
    found = look_at_labels(y, task, where) or _classes(y, where)
    known = sum(found.classes.values()) if found.known is None else found.known
    # `ArrayDataset` takes numbers of rows.
    arguments |= {"labelled": known - round(TEST * known), **found.arguments}
    facts = [
        *found.facts,
        ("inputs", f"{x.dtype} {list(x.shape)}"),
        ("labels", f"{arguments.get('labels_name', arguments['labels'])}"),
    ]
    data = {"class_path": "ArrayDataset", "init_args": arguments}
    more: dict[str, Any] = {"labels": found.labels, "known": found.known}
    return Found(path, data, np.asarray(x[:FIRST]), found.classes, found.without, None, facts, **more)


def _classes(y: np.ndarray, where: str) -> Labelled:
    indices, names = as_labels(y, None, indices=True, unlabelled=UNLABELLED, argument=where)
    known = indices[indices != UNLABELLED]
    classes = dict(zip(names, np.bincount(known, minlength=len(names)).tolist(), strict=True))
    if len(classes) < 2:
        raise ValueError(f"labels: expected two or more classes; all labels are {names[0]!r}")
    check_classes(classes, "labels")
    return Labelled(classes, len(indices) - len(known))


def inputs_in(folder: Path) -> Path | None:
    """The file of the inputs, or of both, in a folder of arrays; None where there is none."""
    archives = sorted(file for file in folder.glob("*.npz"))
    arrays = [file for file in sorted(folder.glob("*.npy")) if file.stem.lower() in INPUTS]
    return archives[0] if len(archives) == 1 else arrays[0] if len(arrays) == 1 else None


def array_names(path: Path) -> list[str]:
    """The arrays of an archive."""
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as archive:
                return list(archive.files)
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, "numpy") as archive:
                return list(archive.keys())
        except SafetensorError as error:
            raise ValueError(str(error)) from error
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"inputs: {path} can't be read as arrays of numbers ({error})") from error
    except Exception as error:  # zipfile's and zlib's errors have no common base
        raise ValueError(f"inputs: {path} is damaged ({error})") from error


def _beside(path: Path) -> Path:
    files = [file for file in sorted(path.parent.glob("*.npy")) if file.stem.lower() in LABELS]
    if len(files) != 1:
        raise WrongArgument(
            "--target: expected the file of the labels, --target LABELS.npy, because beside "
            f"{path.name} there is {'more than one' if files else 'none'} called {', '.join(LABELS[:4])}, ..."
        )
    return files[0]


def _named(names: list[str], known: tuple[str, ...], path: Path, role: str) -> str:
    found = [name for name in names if name.lower() in known]
    if len(found) != 1:
        way = "--target NAME" if role == "labels" else f"one called {', '.join(known[:4])}"
        raise WrongArgument(
            f"{role}: expected {way}, because {path.name} holds the arrays {', '.join(names)}"
        )
    return found[0]
