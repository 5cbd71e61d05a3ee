"""The ensemble as a cache needs it: a protocol, and how it predicts for the samples of some uids."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ensdistill.common.tasks import task_of
from ensdistill.data import BadRows, Rows

if TYPE_CHECKING:
    from ensdistill.data.augmentation import Augmentation

Predict = Callable[[Any, np.ndarray], Any]
"""From a batch of M samples and their uids [M] to the logits of each member."""


class Ensemble(Protocol):
    """The attributes and methods of an ensemble that a cache uses."""

    weights: np.ndarray

    @property
    def names(self) -> Sequence[str]: ...

    @property
    def classes(self) -> Sequence[str] | None: ...

    @property
    def combiner(self) -> str: ...

    def predict_logits(self, inputs: Any) -> Any:
        """Calibrated logits, float32 [K, N, C] (of sequences [K, N, L, C]): an array or a tensor."""

    def fingerprint(self) -> dict[str, Any]:
        """Plain JSON that changes with the logits: members, weights, combiner, calibration."""

    # An ensemble whose members hold stored predictions also has
    #     for_uids(uids: ndarray [M], among: ndarray [N]) -> Ensemble
    # which predicts for the samples of these uids, in this order, of a set of which ``among`` are all uids in
    # the set's order. It returns itself where no member needs uids.


def predictor(ensemble: Ensemble, rows: Rows, augment: Augmentation | None) -> Predict:
    """A function of some rows' inputs and uids that returns the members' logits for them. An error that lies
    in single rows names the uid of the first, and has the uids as its rows.

    Raises
    ------
    ValueError
        A member with stored predictions has none for a row, holds them in an order that may not be that of
        the rows, or would have to predict for augmented inputs.
    TypeError
        The ensemble wraps one with such members and has no ``for_uids`` of its own.
    """
    if (task := task_of(ensemble)) != "classification":
        raise ValueError(
            "ensemble: expected classifiers, whose targets a cache and a student take; got an ensemble of "
            f"the task {task}"
        )
    for_uids = getattr(ensemble, "for_uids", None)
    owner = getattr(for_uids, "__self__", ensemble)  # another object, where ``ensemble`` delegates to it
    if for_uids is None or for_uids(rows.uids, rows.uids) is owner:
        return lambda inputs, uids: _predict(ensemble, inputs, uids)
    if owner is not ensemble:
        raise TypeError(
            f"ensemble: {type(ensemble).__name__} passes on the for_uids of a {type(owner).__name__} with "
            "stored answers, whose predictions would take the place of its own; give it a method "
            "for_uids(uids, among)"
        )
    if augment is not None:
        raise ValueError(
            f"augment: a member with stored answers has none for augmented inputs; got {augment!r}. "
            "ArrayMember(inputs, ...) finds answers by their inputs, augmented ones among them"
        )
    return lambda inputs, uids: _predict(for_uids(uids, rows.uids), inputs, uids)


def class_names(ensemble: Ensemble, predict: Predict, rows: Rows) -> list[str]:
    """The classes' names; numbers where the ensemble has no names."""
    if ensemble.classes is not None:
        return list(ensemble.classes)
    return list(map(str, range(np.shape(predict(rows.inputs[:1], rows.uids[:1]))[-1])))


def _predict(ensemble: Ensemble, inputs: Any, uids: np.ndarray) -> Any:
    """``predict_logits``, or its form that leaves logits on a GPU, where one class defines both.

    The ``predict_logits`` of a subclass, or of an instance, takes precedence.
    """
    owner = next((cls for cls in type(ensemble).__mro__ if "predict_logits" in vars(cls)), None)
    whole = (
        owner is not None
        and "predict_logits_on_device" in vars(owner)
        and "predict_logits" not in vars(ensemble)
    )
    predict = ensemble.predict_logits_on_device if whole else ensemble.predict_logits  # type: ignore[attr-defined]
    try:
        return predict(inputs)
    except BadRows as error:  # its rows are positions in this batch
        bad = uids[error.rows]
        raise BadRows(f"{error}; that row has uid {bad[0]}", bad) from error
