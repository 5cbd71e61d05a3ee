"""Texts in a table, or in the files of class folders."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ensdistill.common.tasks import Task
from ensdistill.data.labels import is_missing
from ensdistill.data.partition import Partition, Whole
from ensdistill.data.rows import BadRows
from ensdistill.data.samples import as_samples, sample_hashes
from ensdistill.data.sources import base
from ensdistill.data.sources.folders import class_column, class_folders
from ensdistill.data.sources.roles import joined_frames, read_roles, roles_of, whole_of
from ensdistill.data.sources.target import Target
from ensdistill.data.table_files import TABLES, TableFile
from ensdistill.data.uids import content_uids


@dataclass(frozen=True)
class Texts(base.Divided):
    """Strings with labels.

    Parameters
    ----------
    path : path
        A table (``.csv``, ``.tsv``, ``.jsonl``, ``.parquet``, ...) with a column of texts and one of labels;
        or a folder with a folder of ``.txt`` files (UTF-8) for each class.
    text : str
        The column of texts.
    target : str or list of str
        That of labels, or several. Rows without a label go to the pool.
    id, weight, labels, unlabelled, task, separator
        See :class:`Table`. Folders are of classes.
    test_path, pool_path : path, optional
        A table or folder of the test texts, and one of texts without labels.
    parts : Partition
        How the texts of ``path`` are divided. Its columns are those of the table.

    Raises
    ------
    ValueError
        (by ``split``) A text is missing or empty (names the row or file), or a column or label is not as
        described.

    Notes
    -----
    All texts are held in memory, as they are: nothing is stripped or changed. Needs pandas.

    Examples
    --------
    A run's settings::

        data:
          class_path: ensdistill.data.Texts
          init_args: {path: packages.csv, text: description, target: section}
    """

    path: Path
    text: str = "text"
    target: str | list[str] = "label"
    id: str | None = None
    weight: str | None = None
    labels: list[str] | None = None
    unlabelled: list[str] | None = None
    test_path: Path | None = None
    pool_path: Path | None = None
    parts: Partition = field(default_factory=Partition)
    task: Task | None = None
    separator: str | None = None

    def __post_init__(self) -> None:
        self._target()
        base.not_both_given(self.parts, self.test_path)

    def _target(self) -> Target:
        return Target(self.target, self.task, self.separator, self.labels)

    def _read(self) -> Whole:
        roles = roles_of(self.parts, target=self.target, id=self.id, weight=self.weight)
        sources = [(part, name, Path(path)) for name, part in base.FILES if (path := getattr(self, name))]
        frames = [self._listed(path, part, name, roles) for part, name, path in sources]
        frame = joined_frames(frames, [path.name for *_, path in sources])
        by_file = np.repeat(np.array([part for part, *_ in sources], np.int8), [len(one) for one in frames])
        samples = as_samples(frame[self.text].tolist())
        uids = content_uids(sample_hashes(samples))
        return whole_of(samples, frame, roles, by_file, target=self._target(), uids=uids)

    def _listed(self, path: Path, part: int, argument: str, roles: dict[str, str]) -> Any:
        """A frame of texts, labels and the columns that divide them."""
        import pandas as pd

        if path.suffix.lower() in TABLES:
            table = TableFile(path)
            table.column(self.text, "text")
            if self.text in roles.values():
                raise ValueError(
                    f"text: expected a column of its own; got {self.text!r}, which has another role"
                )
            frame = read_roles(
                table,
                [self.text],
                roles,
                part,
                unlabelled=self.unlabelled,
                text=[self.text],
                texts=self._target().texts,
            )
            _check_texts(frame[self.text].tolist(), f"{argument}: column {self.text!r} of {path}", None)
            return frame
        column = class_column(self._target())
        paths, names = class_folders(path, (".txt",), "text", argument, part, roles)
        texts = [_content(one) for one in paths]
        _check_texts(texts, argument, paths)
        return pd.DataFrame({self.text: texts, column: names})


def _content(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: expected UTF-8; got {error}") from error


def _check_texts(texts: list[Any], argument: str, paths: list[Path] | None) -> None:
    for row, text in enumerate(texts):
        where = f"row {row}" if paths is None else str(paths[row])
        if not isinstance(text, str) and not is_missing(text):
            raise BadRows(
                f"{argument}: expected strings; {where} is {text!r}, a {type(text).__name__}", np.array([row])
            )
    bad = [row for row, text in enumerate(texts) if not isinstance(text, str) or not text.strip()]
    if bad:
        where = f"that of row {bad[0]}" if paths is None else str(paths[bad[0]])
        raise BadRows(
            f"{argument}: expected texts that are not empty; {where} is ({len(bad)} such rows): leave them "
            "out",
            np.array(bad),
        )
