"""A member for each label, or for each number, as one member."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ensdistill.common.fingerprint import digest
from ensdistill.common.tasks import Task, task_of
from ensdistill.teachers.members.base import (
    Member,
    as_classes,
    content_of,
    own_source,
    write_description,
    wrong_task,
)
from ensdistill.teachers.members.moments import Moments, moments_of
from ensdistill.teachers.members.skops_content import unchanged


class ColumnsMember:
    """Members of one column each, side by side: classifiers of two classes, or regressors of one number.

    Parameters
    ----------
    members : sequence of Member
        In the order of the columns. A classifier's second class is the label that applies.
    name : str
    classes : sequence of str
        Names of the labels, or of the numbers.
    task : {"multilabel", "regression"}

    Raises
    ------
    ValueError
        Members of another number or task.

    Examples
    --------
    >>> from sklearn.linear_model import LinearRegression
    >>> from ensdistill.teachers.members import SklearnMember
    >>> x = np.array([[0.0], [1.0]])
    >>> each = [SklearnMember(LinearRegression().fit(x, a * x[:, 0]), task="regression") for a in (1, 2)]
    >>> ColumnsMember(each, name="both", classes=["a", "b"], task="regression").predict_moments(x + 2).mean
    array([[2., 4.],
           [3., 6.]])
    """

    def __init__(self, members: Sequence[Member], *, name: str, classes: Sequence[str], task: Task) -> None:
        self.members, self.name, self.task = tuple(members), name, task
        self.classes: tuple[str, ...] | None = as_classes(name, classes)
        own: Task = "regression" if task == "regression" else "classification"
        wrong = [one.name for one in self.members if task_of(one) != own]
        if task == "classification" or wrong or len(self.members) != len(classes):
            raise ValueError(
                f"members: {name}: expected {len(classes)} of the task {own}, one for each column; got "
                f"{len(self.members)}" + (f", of which {wrong[0]} is of another task" if wrong else "")
            )

    @property
    def parameters(self) -> int:
        """Those of all members."""
        return sum(one.parameters for one in self.members)

    @property
    def bytes(self) -> int:
        """Those of all members."""
        return sum(one.bytes for one in self.members)

    def predict_logits(self, inputs: Any) -> np.ndarray:
        """Log-odds, float32 [N, C]: the differences of each classifier's two logits."""
        if self.task == "regression":
            raise wrong_task(self.name, self.task, "predict_logits")
        columns = []
        for one in self.members:
            logits = one.predict_logits(inputs)
            if logits.shape[1] != 2:
                raise ValueError(f"{one.name}: expected logits of two classes; got {list(logits.shape)}")
            columns.append(logits[:, 1] - logits[:, 0])
        return np.stack(columns, axis=1).astype(np.float32)

    def predict_moments(self, inputs: Any) -> Moments:
        """Means, float64 [N, D], and variances where all members give them."""
        if self.task != "regression":
            raise wrong_task(self.name, self.task, "predict_moments")
        parts = [moments_of(one, inputs) for one in self.members]
        variances = [variance for _, variance in parts if variance is not None]
        every = len(variances) == len(parts)
        return Moments(
            np.concatenate([mean for mean, _ in parts], axis=1),
            np.concatenate(variances, axis=1) if every else None,
        )

    def fingerprint(self) -> str:
        """Digest of the members' own."""
        return digest(["columns", self.task, self.classes, [m.fingerprint() for m in self.members]])

    def fingerprint_parts(self) -> dict[str, str]:
        """Digests of the members by column."""
        names = self.classes or ()
        parts = {name: one.fingerprint() for name, one in zip(names, self.members, strict=True)}
        return parts | own_source(self)

    def saved_content(self) -> str:
        """Digest of the saved files' content."""
        return digest(["columns", self.task, self.classes, [content_of(m) for m in self.members]])

    def untrusted(self, trusted: Sequence[str] = ()) -> list[str]:
        """The types and classes that loading has to trust in addition to ``trusted``."""
        found = [m.untrusted(trusted) for m in self.members if hasattr(m, "untrusted")]
        return sorted({name for names in found for name in names})

    def save(self, folder: Path | str) -> None:
        """Write a folder for each member, ``column-0`` and so on, and ``member.json``."""
        with unchanged():
            for place, one in enumerate(self.members):
                one.save(Path(folder) / f"column-{place}")
            write_description(folder, self, "columns")
