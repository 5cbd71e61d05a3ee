"""A member with a preprocess of its own, which turns raw samples into the member's input."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ensdistill.common.fingerprint import digest
from ensdistill.common.tasks import task_of
from ensdistill.data import BadRows
from ensdistill.data.preprocess import Preprocess, trusted_by
from ensdistill.data.samples import Held
from ensdistill.teachers.members.base import Member, content_of, own_source, parts_of, write_description
from ensdistill.teachers.members.dtypes import cast_for
from ensdistill.teachers.members.function import ArrayMember
from ensdistill.teachers.members.inputs import advice, as_batch, count
from ensdistill.teachers.members.module import TorchMember
from ensdistill.teachers.members.moments import Moments, moments_of
from ensdistill.teachers.members.needs import needed, of_preprocess
from ensdistill.teachers.members.skops_content import unchanged


class Preprocessed:
    """A member that is asked for the preprocessed batch.

    Parameters
    ----------
    member : Member
    preprocess : Preprocess
        From a batch of raw samples to a batch that the member takes.

    Raises
    ------
    ValueError
        The member has a preprocess already, or holds stored outputs. ``predict_logits`` raises it where the
        preprocess returns another number of rows.

    Examples
    --------
    >>> from sklearn.linear_model import LogisticRegression
    >>> from sklearn.preprocessing import StandardScaler
    >>> from ensdistill.data.preprocess import Transformer
    >>> from ensdistill.teachers.members import SklearnMember
    >>> x, y = np.array([[1.0], [3.0]]), np.array([0, 1])
    >>> scaler = StandardScaler().fit(x)
    >>> model = LogisticRegression().fit(scaler.transform(x), y)
    >>> member = Preprocessed(SklearnMember(model), Transformer(scaler))
    >>> bool((np.exp(member.predict_logits(x)) - model.predict_proba(scaler.transform(x)) < 1e-5).all())
    True
    """

    def __init__(self, member: Member, preprocess: Preprocess) -> None:
        if isinstance(member, Preprocessed):
            had: Any = member
            raise ValueError(
                f"preprocess: {had.name} has one already, {type(had.preprocess).__name__}; make one of both"
            )
        if isinstance(member, ArrayMember):
            raise ValueError(
                f"preprocess: {member.name} holds stored outputs, which are found without one; got "
                f"{type(preprocess).__name__}"
            )
        self.member, self.preprocess, self.name = member, preprocess, member.name
        self.classes, self.task = member.classes, task_of(member)

    @property
    def parameters(self) -> int:
        """Those of the member within; a preprocess counts nothing."""
        return self.member.parameters

    @property
    def bytes(self) -> int:
        """Those of the member within."""
        return self.member.bytes

    def prepared(self, inputs: Any, made: dict[int, Any] | None = None) -> Any:
        """The member's own input for a batch of raw samples.

        ``made`` keeps the results for this batch, so that members with one preprocess share its work.
        """
        made = {} if made is None else made
        inputs = inputs.batch if isinstance(inputs, Held) else inputs
        if id(self.preprocess) not in made:
            try:
                made[id(self.preprocess)] = as_batch(self.preprocess(inputs))
            except ValueError as error:
                if isinstance(error, BadRows) or not (more := advice(error, inputs)):
                    raise
                raise ValueError(f"preprocess: {self.name}: {error}{more}") from error
        batch = made[id(self.preprocess)]
        if count(batch) != count(inputs):
            raise ValueError(
                f"preprocess: {self.name}: expected as many rows as there are samples, {count(inputs)}; got "
                f"{count(batch)} from {type(self.preprocess).__name__}"
            )
        return rows_for(self.member, batch)

    def predict_logits(self, inputs: Any) -> np.ndarray:
        """Logits, float32 [N, C], for a batch of N raw samples."""
        return self.member.predict_logits(self.prepared(inputs))

    def predict_moments(self, inputs: Any) -> Moments:
        """Means and variances, float64 [N, D], of a regressor for a batch of N raw samples."""
        return moments_of(self.member, self.prepared(inputs))

    def fingerprint(self) -> str:
        """Digest of the member's and the preprocess's own."""
        return digest(["preprocessed", self.member.fingerprint(), self.preprocess.fingerprint()])

    def fingerprint_parts(self) -> dict[str, str]:
        """The member's parts, and ``preprocess``."""
        parts = parts_of(self.member) or {"member": self.member.fingerprint()}
        return {**parts, "preprocess": self.preprocess.fingerprint(), **own_source(self)}

    def saved_content(self) -> str:
        """Digest of the saved files' content."""
        return digest(["preprocessed", content_of(self.member), self.preprocess.fingerprint()])

    def untrusted(self, trusted: Sequence[str] = ()) -> list[str]:
        """The types and classes that loading has to trust in addition to ``trusted``."""
        own: list[str] = self.member.untrusted(trusted) if hasattr(self.member, "untrusted") else []
        return sorted({*own, *trusted_by(self.preprocess)} - {*trusted})

    def save(self, folder: Path | str) -> None:
        """Write the folders ``model`` and ``preprocess``, and ``member.json``."""
        with unchanged():
            self.member.save(Path(folder) / "model")
            self.preprocess.save(Path(folder) / "preprocess")
            write_description(folder, self, "preprocessed", needs=needed(of_preprocess(self.preprocess)))


def rows_for(member: Member, inputs: Any) -> Any:
    """Inputs in the dtype that a torch member takes, see :func:`cast_for`; others get them as they are."""
    return cast_for(member.module, inputs) if isinstance(member, TorchMember) else inputs


def share_preprocess(members: Sequence[Member]) -> None:
    """Give members whose preprocess is the same, by its fingerprint, one object."""
    known: dict[Any, Preprocess] = {}
    for member in members:
        if isinstance(member, Preprocessed):
            key = type(member.preprocess), member.preprocess.fingerprint()
            member.preprocess = known.setdefault(key, member.preprocess)


def inner(member: Member) -> Member:
    """The member within, of one with a preprocess; any other as it is."""
    return inner(member.member) if isinstance(member, Preprocessed) else member
