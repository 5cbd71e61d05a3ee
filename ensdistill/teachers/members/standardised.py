"""A regressor that was trained on standardised numbers, as a member that predicts in the data's units."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ensdistill.common.fingerprint import digest
from ensdistill.common.tasks import Task, task_of
from ensdistill.teachers.members.base import Member, content_of, own_source, parts_of, write_description
from ensdistill.teachers.members.moments import Moments, moments_of


class Standardised:
    """A regressor whose means are multiplied by a scale and shifted by a location.

    Parameters
    ----------
    member : Member
        Of the task regression; predicts D numbers in standardised units.
    location, scale : array-like [D]
        In the data's units; the scale is above 0.

    Raises
    ------
    ValueError
        A member of another task, or location and scale of other shapes or values.

    Examples
    --------
    >>> from ensdistill.teachers.members import ArrayMember
    >>> inner = ArrayMember(name="stored", means=np.array([[-1.0], [1.0]]), variances=np.ones((2, 1)))
    >>> mean, variance = Standardised(inner, [100.0], [10.0]).predict_moments(np.zeros((2, 3)))
    >>> mean.tolist(), variance.tolist()
    ([[90.0], [110.0]], [[100.0], [100.0]])
    """

    task: Task = "regression"

    def __init__(self, member: Member, location: Sequence[float], scale: Sequence[float]) -> None:
        if task_of(member) != "regression":
            raise ValueError(
                f"member: {member.name}: expected a member of the task regression; got {task_of(member)}"
            )
        self.member, self.name, self.classes = member, member.name, member.classes
        self.location, self.scale = (np.asarray(one, np.float64) for one in (location, scale))
        shape = self.location.shape
        fits = self.classes is None or shape == (len(self.classes),)
        good = np.isfinite(self.location).all() and (np.isfinite(self.scale) & (self.scale > 0)).all()
        if len(shape) != 1 or self.scale.shape != shape or not fits or not good:
            raise ValueError(
                f"location, scale: {member.name}: expected finite numbers [D], scales above 0; got "
                f"{self.location.tolist()} and {self.scale.tolist()}"
            )

    @property
    def parameters(self) -> int:
        """Those of the member within."""
        return self.member.parameters

    @property
    def bytes(self) -> int:
        """Those of the member within, and of location and scale."""
        return self.member.bytes + self.location.nbytes + self.scale.nbytes

    def predict_logits(self, inputs: Any) -> np.ndarray:
        """Raise TypeError: a regressor has ``predict_moments``."""
        return self.member.predict_logits(inputs)

    def predict_moments(self, inputs: Any) -> Moments:
        """Means and variances, float64 [N, D], in the data's units."""
        from ensdistill.teachers.members.preprocessed import rows_for

        mean, variance = moments_of(self.member, rows_for(self.member, inputs))
        if mean.shape[1] != len(self.scale):
            raise ValueError(
                f"{self.name}: expected {len(self.scale)} numbers for each row; got {mean.shape[1]}"
            )
        spread = None if variance is None else variance * np.square(self.scale)
        return Moments(mean * self.scale + self.location, spread)

    def fingerprint(self) -> str:
        """Digest of the member's own, and of location and scale."""
        return digest(["standardised", self.member.fingerprint(), self.location, self.scale])

    def fingerprint_parts(self) -> dict[str, str]:
        """The member's parts, and ``units``."""
        parts = parts_of(self.member) or {"member": self.member.fingerprint()}
        return {**parts, "units": digest([self.location, self.scale]), **own_source(self)}

    def saved_content(self) -> str:
        """Digest of the saved files' content."""
        return digest(["standardised", content_of(self.member), self.location, self.scale])

    def untrusted(self, trusted: Sequence[str] = ()) -> list[str]:
        """The types and classes that loading has to trust in addition to ``trusted``."""
        return self.member.untrusted(trusted) if hasattr(self.member, "untrusted") else []

    def save(self, folder: Path | str) -> None:
        """Write the folder ``model``, and ``member.json``."""
        self.member.save(Path(folder) / "model")
        units = {"location": self.location.tolist(), "scale": self.scale.tolist()}
        write_description(folder, self, "standardised", **units)
