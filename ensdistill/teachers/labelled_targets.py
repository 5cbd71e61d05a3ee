"""Targets of labelled rows.

Members that learned from a row are surer of it than of others, so a student may be given other targets there
than the members' own.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ensdistill.common.fingerprint import digest
from ensdistill.data import batches as b
from ensdistill.teachers.ensemble import Ensemble
from ensdistill.teachers.members.inputs import as_batch


class LabelledTargets:
    """An ensemble that gives the rows of some uids other logits than its members' own.

    ``cache_targets`` takes it in place of the ensemble. Three kinds of targets are usual:

    - *in sample*: the members' own; the ensemble itself, without this class.
    - *out of fold*: ``held_out``, of members that did not learn from the row
      (:func:`ensdistill.teachers.train_ensemble` returns them).
    - *mixed*: the members' own, mixed with the label: ``(1 - share) * softmax(z) + share * one_hot(label)``
      for each member. At temperature 1 the mixture of probabilities is then mixed in the same way.

    Parameters
    ----------
    ensemble : Ensemble
    uids : ndarray [L], int64
        Of the labelled rows, as they are in the transfer set.
    held_out : ndarray [K, L, C], optional
        Raw logits, without temperatures, in the order of ``uids``.
    labels : ndarray [L], int64, optional
        Class indices; needed with ``share``.
    share : float
        In [0, 1).

    Raises
    ------
    ValueError
        Shapes that do not fit, a member without held-out logits (NaN), a share without labels, or neither
        held-out logits nor a share.

    Examples
    --------
    >>> from ensdistill.models import MLP
    >>> ensemble = Ensemble.from_members([MLP(4, [], 3)])
    >>> x, uids = np.zeros((2, 4), np.float32), np.array([0, 1])
    >>> mixed = LabelledTargets(ensemble, uids[:1], labels=np.array([2]), share=0.5)
    >>> z = mixed.for_uids(uids, uids).predict_logits(x)
    >>> bool(torch.softmax(z[0, 0], 0)[2] > 0.5), torch.equal(z[0, 1], ensemble.predict_logits(x)[0, 1])
    (True, True)
    """

    def __init__(
        self,
        ensemble: Ensemble,
        uids: np.ndarray,
        *,
        held_out: np.ndarray | None = None,
        labels: np.ndarray | None = None,
        share: float = 0.0,
    ) -> None:
        if not 0 <= share < 1:
            raise ValueError(f"share: expected a number of at least 0 and below 1; got {share}")
        if held_out is None and share == 0:
            raise ValueError(
                "held_out, share: expected one of them; without either, pass the ensemble itself"
            )
        if held_out is not None and held_out.shape[:2] != (len(ensemble), len(uids)):
            raise ValueError(
                f"held_out: expected [{len(ensemble)}, {len(uids)}, C], members and labelled rows; got "
                f"{list(held_out.shape)}"
            )
        if held_out is not None and (unknown := np.isnan(held_out).any((1, 2))).any():
            names = [name for name, nan in zip(ensemble.names, unknown, strict=True) if nan]
            raise ValueError(
                f"held_out: expected logits of every member; {', '.join(names)} may have been trained on the "
                "labelled rows, and has none: choose in_sample or mixed targets"
            )
        if share and (labels is None or labels.shape != (len(uids),)):
            got = "none" if labels is None else list(labels.shape)
            raise ValueError(f"labels: expected [{len(uids)}], one for each uid; got {got}")
        self.weights = ensemble.weights
        self.ensemble, self.uids, self.held_out, self.labels, self.share = (
            ensemble,
            uids,
            held_out,
            labels,
            share,
        )
        self._order = np.argsort(uids)

    @property
    def names(self) -> tuple[str, ...]:
        return self.ensemble.names

    @property
    def classes(self) -> tuple[str, ...] | None:
        return self.ensemble.classes

    @property
    def combiner(self) -> str:
        return self.ensemble.combiner

    def predict_logits(self, inputs: Any) -> Tensor:
        """The ensemble's own logits: which rows are labelled is known by :meth:`for_uids` alone."""
        return self.ensemble.predict_logits(inputs)

    def for_uids(self, uids: np.ndarray, among: np.ndarray | None = None) -> _Asked:
        """The targets for the samples of these uids, in their order."""
        nearest = np.minimum(np.searchsorted(self.uids, uids, sorter=self._order), len(self.uids) - 1)
        places = self._order[nearest]
        return _Asked(self, uids, among, np.where(self.uids[places] == uids, places, -1))

    def fingerprint(self) -> dict[str, Any]:
        """The ensemble's, and a digest of the labelled rows' targets."""
        about = [self.uids, self.held_out, self.labels if self.share else None, self.share]
        return {**self.ensemble.fingerprint(), "labelled": digest(about)}


class _Asked:
    """The targets of some uids; ``places`` are those among the labelled rows, -1 for others."""

    def __init__(
        self, targets: LabelledTargets, uids: np.ndarray, among: np.ndarray | None, places: np.ndarray
    ) -> None:
        self.targets, self.uids, self.among, self.places = targets, uids, among, places

    def predict_logits(self, inputs: Any) -> Tensor:
        """float32 [K, N, C]."""
        targets, labelled = self.targets, np.flatnonzero(self.places >= 0)
        if targets.held_out is None:
            logits = targets.ensemble.for_uids(self.uids, self.among).predict_logits(inputs)
        else:
            logits = self._with_held_out(as_batch(inputs), labelled, targets.held_out)
        if targets.share and targets.labels is not None:
            labels = torch.from_numpy(targets.labels[self.places[labelled]])
            logits[:, labelled] = _mixed(logits[:, labelled], labels, targets.share)
        return logits

    def _with_held_out(self, batch: Any, labelled: np.ndarray, held_out: np.ndarray) -> Tensor:
        """Held-out logits of the labelled rows, the members' own of the others."""
        ensemble, others = self.targets.ensemble, np.flatnonzero(self.places < 0)
        logits = torch.empty((len(ensemble), len(self.places), held_out.shape[2]))
        known = ensemble.apply_temperatures(held_out[:, self.places[labelled]])
        logits[:, labelled] = torch.from_numpy(known)
        if len(others):
            asked = ensemble.for_uids(self.uids[others], self.among)
            logits[:, others] = asked.predict_logits(b.take(batch, others))
        return logits


def _mixed(logits: Tensor, labels: Tensor, share: float) -> Tensor:
    """log((1 - share) * softmax(z) + share * one_hot), float32 [K, N, C]."""
    p = torch.softmax(logits.double(), -1)
    hot = torch.nn.functional.one_hot(labels, p.shape[-1]).to(p.dtype)
    return torch.log((1 - share) * p + share * hot).float()
