"""Data sets: anything with ``split(seed) -> Split``, and the built-in ones."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from ensdistill.common.errors import WrongArgument
from ensdistill.common.tasks import Task, check_task
from ensdistill.data.files import read_array
from ensdistill.data.labels import as_labels
from ensdistill.data.multilabel import as_multilabels
from ensdistill.data.quantities import as_numbers
from ensdistill.data.rows import UNLABELLED, check_finite
from ensdistill.data.splits import DTYPES, NUMBERS, Split, stratified_split


@runtime_checkable
class Dataset(Protocol):
    """A data set; a config names its class by ``data.class_path``."""

    def split(self, seed: int) -> Split: ...


@dataclass(frozen=True)
class Digits:
    """scikit-learn's 1797 handwritten digits: float32 [N, 1, 8, 8] in 0..1, ten classes.

    Parameters
    ----------
    labelled, pool : int
        Rows with labels, and rows without; the rest are test rows.

    Examples
    --------
    >>> split = Digits().split(seed=0)
    >>> len(split.labelled), len(split.pool), len(split.test)
    (200, 900, 697)
    """

    labelled: int = 200
    pool: int = 900

    def split(self, seed: int) -> Split:
        from sklearn.datasets import load_digits

        digits = load_digits()
        inputs = (digits.images / 16).astype(np.float32)[:, None]
        classes = [str(name) for name in digits.target_names]
        return stratified_split(
            inputs,
            digits.target.astype(np.int64),
            classes,
            labelled=self.labelled,
            pool=self.pool,
            test=None,
            seed=seed,
        )


@dataclass(frozen=True)
class ArrayDataset:
    """Your own arrays, from files: ``.npy``, ``.npz`` or ``.safetensors``.

    Parameters
    ----------
    inputs : path
        Numbers [N, ...], of a floating-point, integer or boolean dtype, which estimators and boosters are
        fitted to as they are. Torch modules get their float32 values.
    labels : path
        Labels [N]: class indices from 0 (integers, or floats that are whole numbers), or names (strings,
        booleans). -100 stands for rows without a label, which go to the pool. Or, by ``task``, [N, C] of 0
        and 1 (NaN or -1 where unknown), or numbers [N] or [N, D] (NaN where unknown).
    labelled : int
        Rows whose labels may be used.
    pool : int
        Labelled rows that are used without their labels.
    test : int, optional
        Rows for the report alone; all that are left by default.
    classes : list of str, optional
        Class names by index; by default the labels' own names, or "0", "1", ... Of other tasks the names of
        the columns of labels.
    task : {"classification", "multilabel", "regression"}
    inputs_name, labels_name : str, optional
        Of the array in a file that holds several.

    Raises
    ------
    ValueError
        (by ``split``) The files do not hold arrays as described above.
    """

    inputs: Path
    labels: Path
    labelled: int
    pool: int = 0
    test: int | None = None
    classes: list[str] | None = None
    inputs_name: str | None = None
    labels_name: str | None = None
    task: Task = "classification"

    def __post_init__(self) -> None:
        check_task(self.task)

    def split(self, seed: int) -> Split:
        # Mapped where the format allows it, not read: only the rows of a part are copied.
        inputs = _open("inputs", self.inputs, self.inputs_name)
        labels = _open("labels", self.labels, self.labels_name)
        if inputs.dtype not in DTYPES or inputs.ndim < 2:
            got = f"{inputs.dtype} {list(inputs.shape)}"
            raise ValueError(f"inputs: expected {NUMBERS} [N, ...] in {self.inputs}; got {got}")
        found, names = self._labels(labels)
        check_finite(f"inputs: {self.inputs}", inputs)
        return stratified_split(
            inputs, found, names, labelled=self.labelled, pool=self.pool, test=self.test, seed=seed
        )

    def _labels(self, labels: np.ndarray) -> tuple[np.ndarray, tuple[str, ...]]:
        """The labels as rows hold them, and their names."""
        argument = f"labels: {self.labels}"
        wanted = None if self.classes is None else tuple(self.classes)
        if self.task == "classification":
            return as_labels(labels, wanted, indices=True, unlabelled=UNLABELLED, argument=argument)
        found = (as_multilabels if self.task == "multilabel" else as_numbers)(labels, argument=argument)
        names = tuple(map(str, range(found.shape[1]))) if wanted is None else wanted
        if len(names) != found.shape[1]:
            raise ValueError(
                f"classes: expected {found.shape[1]} names, one for each column; got {list(names)}"
            )
        return found, names


def _open(argument: str, path: Path, name: str | None) -> np.ndarray:
    path = Path(path)
    if path.suffix in (".npz", ".safetensors"):
        try:
            return read_array(path, name)
        except ValueError as error:
            head, _, text = str(error).partition(": ")
            where = f"{argument}_name" if head == "name" else argument
            raise ValueError(f"{where}: {text}") from error
    if name is not None:
        raise ValueError(
            f"{argument}_name: expected no name, because a .npy file holds one array; got {name!r}"
        )
    try:
        with path.open("rb") as file:
            start = file.read(len(np.lib.format.MAGIC_PREFIX))
    except FileNotFoundError as error:
        raise WrongArgument(f"{argument}: there is no file {path}") from error
    if start != np.lib.format.MAGIC_PREFIX:
        raise ValueError(
            f"{argument}: expected a .npy file of numbers, as numpy.save writes it; got {path}, which "
            f"begins with {start!r}. A text table "
            f'becomes one by numpy.save("{path.stem}.npy", numpy.loadtxt("{path.name}", delimiter=",", '
            'skiprows=1, dtype="float32"))'
        )
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        fault = "it holds Python objects" if "object" in str(error).lower() else str(error)
        raise ValueError(f"{argument}: {path} is not a .npy file of numbers ({fault})") from error
