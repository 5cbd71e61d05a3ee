"""The teachers as a cache needs them: a protocol, and how they are called for the samples of some uids."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ensdistill.data import Rows

if TYPE_CHECKING:
    from ensdistill.data.augmentation import Augmentation

Ask = Callable[[np.ndarray, np.ndarray], Any]
"""From inputs [M, ...] and their uids [M] to the logits of each member."""


class Ensemble(Protocol):
    """What a cache needs of its teachers."""

    weights: np.ndarray

    @property
    def names(self) -> Sequence[str]: ...

    @property
    def classes(self) -> Sequence[str] | None: ...

    @property
    def combiner(self) -> str: ...

    def predict_logits(self, inputs: np.ndarray) -> Any:
        """Calibrated logits, float32 [K, N, C] (of sequences [K, N, L, C]), as an array or a tensor on any device."""

    def fingerprint(self) -> dict[str, Any]:
        """Plain JSON that changes with whatever changes the logits: members, weights, combiner, calibration."""

    # Of an ensemble whose members hold stored answers also
    #     for_uids(uids: ndarray [M], among: ndarray [N]) -> Ensemble
    # which predicts for the samples of these uids, in this order, of a set of which ``among`` are all uids in the set's order.
    # It returns itself where no member needs uids.


def asked(ensemble: Ensemble, rows: Rows, augment: Augmentation | None) -> Ask:
    """How the ensemble is asked for the logits of some of the rows: called with their inputs and uids.

    Raises
    ------
    ValueError
        A member with stored answers has none for a row, holds them in an order that may not be that of the rows, or is asked about
        augmented inputs.
    TypeError
        The ensemble wraps one with such members and has no ``for_uids`` of its own.
    """
    for_uids = getattr(ensemble, "for_uids", None)
    owner = getattr(for_uids, "__self__", ensemble)  # another, where an object of somebody's own passes on what it hasn't
    if for_uids is None or for_uids(rows.uids, rows.uids) is owner:
        return lambda inputs, uids: _predict(ensemble, inputs)
    if owner is not ensemble:
        raise TypeError(
            f"ensemble: {type(ensemble).__name__} passes on the for_uids of a {type(owner).__name__} with stored answers, whose "
            "predictions would take the place of its own; give it a method for_uids(uids, among)"
        )
    if augment is not None:
        raise ValueError(
            f"augment: a member with stored answers has none for augmented inputs; got {augment!r}. ArrayMember(inputs, ...) finds answers "
            "by their inputs, augmented ones among them"
        )
    return lambda inputs, uids: _predict(for_uids(uids, rows.uids), inputs)


def _predict(ensemble: Ensemble, inputs: np.ndarray) -> Any:
    """``predict_logits``, or the form of it that leaves logits on a GPU, where the class that defines the one defines the other.

    A subclass or an instance with a ``predict_logits`` of its own is asked by that.
    """
    owner = next((cls for cls in type(ensemble).__mro__ if "predict_logits" in vars(cls)), None)
    whole = owner is not None and "predict_logits_on_device" in vars(owner) and "predict_logits" not in vars(ensemble)
    predict = ensemble.predict_logits_on_device if whole else ensemble.predict_logits  # type: ignore[attr-defined]
    return predict(inputs)
