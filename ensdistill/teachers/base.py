"""Common to ensembles of all tasks: their members, how these are chosen, and the ensemble as a folder."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from pathlib import Path
from typing import Any, Self

import numpy as np

from ensdistill.common.tasks import Task
from ensdistill.teachers import storage
from ensdistill.teachers.members import Member
from ensdistill.teachers.members.base import parts_of
from ensdistill.teachers.members.function import members_for
from ensdistill.teachers.members.inputs import as_batch
from ensdistill.teachers.timing import member_seconds
from ensdistill.teachers.validation import normalised


class BaseEnsemble:
    """Weighted members of one task. See :class:`ensdistill.teachers.Ensemble` and
    :class:`ensdistill.teachers.RegressionEnsemble`."""

    members: tuple[Member, ...]
    classes: tuple[str, ...] | None
    weights: np.ndarray
    task: Task

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(member.name for member in self.members)

    @property
    def parameters(self) -> int:
        return sum(member.parameters for member in self.members)

    @property
    def bytes(self) -> int:
        return sum(member.bytes for member in self.members)

    def __len__(self) -> int:
        return len(self.members)

    def for_uids(self, uids: np.ndarray, among: np.ndarray | None = None) -> Self:
        """The same ensemble for these samples: members with stored predictions return those of these uids.

        Itself, where no member needs uids. Arguments as in ``ArrayMember.for_uids``; ``among`` is ``uids`` by
        default.
        """
        members = members_for(self.members, uids, uids if among is None else among)
        if members == self.members:
            return self
        asked = copy(self)
        asked.members = members
        return asked

    def only(self, *names: str) -> Self:
        """An ensemble of these members, calibrated as here, with their weights' ratios; this one stays.
        ValueError where there is no such member, or no name."""
        kept = np.flatnonzero(np.isin(self.names, names))
        if len(kept) < max(1, len(set(names))):
            raise ValueError(f"name: expected one of {', '.join(self.names)}; got {', '.join(names)}")
        own = self.weights[kept]
        return self._of(kept, normalised(own if own.any() else None, len(kept)))

    def weighted(self) -> Self:
        """The same mixture without members of weight 0."""
        return self.only(*np.array(self.names)[self.weights > 0])

    def _of(self, kept: np.ndarray, weights: np.ndarray) -> Self:
        """An ensemble of the members ``kept``, calibrated as here, with these weights."""
        raise NotImplementedError

    def seconds(self, inputs: Any, repeats: int = 5) -> np.ndarray:
        """Seconds of each member's prediction for ``inputs``: the median of ``repeats``, float64 [K]."""
        return member_seconds(self.members, as_batch(inputs), repeats)

    def fingerprint(self) -> dict[str, Any]:
        """Digests of all that its targets depend on, as JSON; ``parts`` are those of each member."""
        members = {member.name: member.fingerprint() for member in self.members}
        parts = {member.name: own for member in self.members if (own := parts_of(member))}
        return {"members": members, "parts": parts, **self.settings()}

    def settings(self) -> dict[str, Any]:
        """The settings beside the members, and all that was fitted; JSON-able."""
        raise NotImplementedError

    def save(self, folder: Path | str) -> None:
        """Write the ensemble to a folder: ``members/<name>/`` and, last, ``ensemble.json``. It takes the
        place of one that is there.

        Raises
        ------
        ValueError, TypeError
            A member that can't be saved (a module without a factory, a function); the folder is then as it
            was before.
        """
        storage.save(self, folder)

    @classmethod
    def load(cls, folder: Path | str, trusted: Sequence[str] = ()) -> Self:
        """A saved ensemble, every member checked against the digest saved with it.

        Other versions of torch, scikit-learn or a class's source may load it; `fingerprint` then differs.

        Parameters
        ----------
        folder : path
        trusted : sequence of str
            Class paths that may be built beside torch's, this package's and scikit-learn's own.

        Raises
        ------
        ValueError
            Nothing complete is there, a newer version wrote it, a class is not trusted, or a file is damaged.
        """
        found: Self = storage.load(cls, folder, trusted)
        return found
