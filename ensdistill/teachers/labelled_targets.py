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
from ensdistill.common.tasks import Task
from ensdistill.data import batches as b
from ensdistill.data.tasks import UNKNOWN, task_of_labels
from ensdistill.teachers.members.inputs import as_batch
from ensdistill.teachers.members.moments import Moments


class LabelledTargets:
    """An ensemble that gives the rows of some uids other predictions than its members' own.

    ``cache_targets`` takes it in place of the ensemble. Three kinds of targets are usual:

    - *in sample*: the members' own; the ensemble itself, without this class.
    - *out of fold*: ``held_out``, of members that did not learn from the row
      (:func:`ensdistill.teachers.train_ensemble` returns them).
    - *mixed*: the members' own, mixed with the label: ``(1 - share) * softmax(z) + share * one_hot(label)``
      for each member. At temperature 1 the mixture of probabilities is then mixed in the same way. Of several
      labels each probability is mixed with the label, where it is known; of a regression the means are mixed
      with the numbers, and variances stay.

    Parameters
    ----------
    ensemble : Ensemble or RegressionEnsemble
    uids : ndarray [L], int64
        Of the labelled rows, as they are in the transfer set.
    held_out : ndarray [K, L, C], or Moments [K, L, D], optional
        Raw logits, without temperatures, or the moments of regressors, in the order of ``uids``.
    labels : ndarray, optional
        Of the rows, in the form of the ensemble's task (see :mod:`ensdistill.data.tasks`); needed with
        ``share``.
    share : float
        In [0, 1).

    Raises
    ------
    ValueError
        Shapes that do not fit, a member without held-out predictions (NaN), a share without labels, or
        neither held-out predictions nor a share.

    Examples
    --------
    >>> from ensdistill.models import MLP
    >>> from ensdistill.teachers import Ensemble
    >>> ensemble = Ensemble.from_members([MLP(4, [], 3)])
    >>> x, uids = np.zeros((2, 4), np.float32), np.array([0, 1])
    >>> mixed = LabelledTargets(ensemble, uids[:1], labels=np.array([2]), share=0.5)
    >>> z = mixed.for_uids(uids, uids).predict_logits(x)
    >>> bool(torch.softmax(z[0, 0], 0)[2] > 0.5), torch.equal(z[0, 1], ensemble.predict_logits(x)[0, 1])
    (True, True)
    """

    def __init__(
        self,
        ensemble: Any,
        uids: np.ndarray,
        *,
        held_out: np.ndarray | Moments | None = None,
        labels: np.ndarray | None = None,
        share: float = 0.0,
    ) -> None:
        if not 0 <= share < 1:
            raise ValueError(f"share: expected a number of at least 0 and below 1; got {share}")
        if held_out is None and share == 0:
            raise ValueError(
                "held_out, share: expected one of them; without either, pass the ensemble itself"
            )
        if held_out is not None:
            _check_held_out(ensemble, uids, held_out)
        if share and (
            labels is None or len(labels) != len(uids) or task_of_labels(labels) != _task_of(ensemble)
        ):
            got = "none" if labels is None else f"{labels.dtype} {list(labels.shape)}"
            raise ValueError(
                f"labels: expected [{len(uids)}], one for each uid, in the form of the task "
                f"{_task_of(ensemble)}; got {got}"
            )
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
        names: tuple[str, ...] = self.ensemble.names
        return names

    @property
    def classes(self) -> tuple[str, ...] | None:
        classes: tuple[str, ...] | None = self.ensemble.classes
        return classes

    @property
    def combiner(self) -> str:
        return str(self.ensemble.combiner)

    @property
    def task(self) -> Task:
        return _task_of(self.ensemble)

    def calibrated(self, moments: Moments) -> Moments:
        """The members' moments after the calibration of an ensemble of regressors; see
        :meth:`ensdistill.teachers.RegressionEnsemble.calibrated`."""
        mean, variance = self.ensemble.calibrated(moments)
        return Moments(mean, variance)

    def predict_logits(self, inputs: Any) -> Tensor:
        """The ensemble's own logits: which rows are labelled is known by :meth:`for_uids` alone."""
        logits: Tensor = self.ensemble.predict_logits(inputs)
        return logits

    def predict_moments(self, inputs: Any) -> Moments:
        """The ensemble's own moments, of regressors."""
        mean, variance = self.ensemble.predict_moments(inputs)
        return Moments(mean, variance)

    def for_uids(self, uids: np.ndarray, among: np.ndarray | None = None) -> _Asked:
        """The targets for the samples of these uids, in their order."""
        nearest = np.minimum(np.searchsorted(self.uids, uids, sorter=self._order), len(self.uids) - 1)
        places = self._order[nearest]
        return _Asked(self, uids, among, np.where(self.uids[places] == uids, places, -1))

    def fingerprint(self) -> dict[str, Any]:
        """The ensemble's, and a digest of the labelled rows' targets."""
        held_out: Any = self.held_out
        if isinstance(held_out, Moments):
            held_out = list(held_out)
        about = [self.uids, held_out, self.labels if self.share else None, self.share]
        return {**self.ensemble.fingerprint(), "labelled": digest(about)}


class _Asked(LabelledTargets):
    """The targets of some uids; ``places`` are those among the labelled rows, -1 for others."""

    def __init__(
        self, targets: LabelledTargets, uids: np.ndarray, among: np.ndarray | None, places: np.ndarray
    ) -> None:
        self.__dict__.update(vars(targets))
        self.asked, self.among, self.places = uids, among, places

    @property
    def _labelled(self) -> np.ndarray:
        return np.flatnonzero(self.places >= 0)

    def predict_logits(self, inputs: Any) -> Tensor:
        """float32 [K, N, C]."""
        labelled = self._labelled
        if self.held_out is None:
            logits: Tensor = self.ensemble.for_uids(self.asked, self.among).predict_logits(inputs)
        else:
            assert isinstance(self.held_out, np.ndarray)
            logits = self._with_held_out(as_batch(inputs), labelled, self.held_out)
        if self.share and self.labels is not None:
            labels = torch.from_numpy(self.labels[self.places[labelled]])
            mix = _mixed_labels if self.task == "multilabel" else _mixed
            logits[:, labelled] = mix(logits[:, labelled], labels, self.share)
        return logits

    def predict_moments(self, inputs: Any) -> Moments:
        """Means and variances, float64 [K, N, D]."""
        labelled = self._labelled
        mean, variance = self.ensemble.for_uids(self.asked, self.among).predict_moments(inputs)
        if isinstance(self.held_out, Moments):
            mean[:, labelled] = self.held_out.mean[:, self.places[labelled]]
            if variance is not None and self.held_out.variance is not None:
                variance[:, labelled] = self.held_out.variance[:, self.places[labelled]]
        if self.share and self.labels is not None:
            numbers = self.labels[self.places[labelled]]
            mean[:, labelled] = (1 - self.share) * mean[:, labelled] + self.share * numbers
        return Moments(mean, variance)

    def _with_held_out(self, batch: Any, labelled: np.ndarray, held_out: np.ndarray) -> Tensor:
        """Held-out logits of the labelled rows, the members' own of the others."""
        others = np.flatnonzero(self.places < 0)
        logits = torch.empty((len(self.ensemble), len(self.places), held_out.shape[2]))
        known = self.ensemble.apply_temperatures(held_out[:, self.places[labelled]])
        logits[:, labelled] = torch.from_numpy(known)
        if len(others):
            asked = self.ensemble.for_uids(self.asked[others], self.among)
            logits[:, others] = asked.predict_logits(b.take(batch, others))
        return logits


def _task_of(ensemble: Any) -> Task:
    task: Task = getattr(ensemble, "task", "classification")
    return task


def _check_held_out(ensemble: Any, uids: np.ndarray, held_out: np.ndarray | Moments) -> None:
    regression = _task_of(ensemble) == "regression"
    if isinstance(held_out, Moments) != regression:
        kind = "Moments of regressors" if regression else "logits"
        raise ValueError(f"held_out: expected {kind}; got {type(held_out).__name__}")
    values = held_out.mean if isinstance(held_out, Moments) else held_out
    if values.shape[:2] != (len(ensemble), len(uids)):
        raise ValueError(
            f"held_out: expected [{len(ensemble)}, {len(uids)}, C], members and labelled rows; got "
            f"{list(values.shape)}"
        )
    if (unknown := np.isnan(values).any((1, 2))).any():
        names = [name for name, nan in zip(ensemble.names, unknown, strict=True) if nan]
        raise ValueError(
            f"held_out: expected logits of every member; {', '.join(names)} may have been trained on the "
            "labelled rows, and has none: choose in_sample or mixed targets"
        )


def _mixed(logits: Tensor, labels: Tensor, share: float) -> Tensor:
    """log((1 - share) * softmax(z) + share * one_hot), float32 [K, N, C]."""
    p = torch.softmax(logits.double(), -1)
    hot = torch.nn.functional.one_hot(labels, p.shape[-1]).to(p.dtype)
    return torch.log((1 - share) * p + share * hot).float()


def _mixed_labels(log_odds: Tensor, labels: Tensor, share: float) -> Tensor:
    """Log-odds of (1 - share) * sigmoid(z) + share * label, where the label is known; float32 [K, N, C]."""
    z = log_odds.double()
    # Both probabilities by a sum, because 1 - p has no digits left where p is near 1.
    applies, not_so = torch.sigmoid(z), torch.sigmoid(-z)
    hot = labels.clamp(min=0).double()
    mixed = torch.log((1 - share) * applies + share * hot) - torch.log(
        (1 - share) * not_so + share * (1 - hot)
    )
    return torch.where(labels == UNKNOWN, z, mixed).float()
