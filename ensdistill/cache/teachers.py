"""The ensemble as a cache needs it: a protocol, and how it predicts for the samples of some uids."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ensdistill.cache.standard import Moments
from ensdistill.common.tasks import task_of
from ensdistill.data import BadRows, Rows

if TYPE_CHECKING:
    from ensdistill.data.augmentation import Augmentation

Predict = Callable[[Any, np.ndarray], Any]
"""From a batch of M samples and their uids [M] to the logits of each member, or their moments (a pair)."""


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

    # An ensemble with the attribute ``task`` = "multilabel" predicts log-odds. One of "regression" has, in
    # place of ``predict_logits``,
    #     predict_moments(inputs) -> (means, variances or None), float [K, N, D] in the data's units
    # and may have
    #     calibrated(moments) -> the same after calibration
    # so that the law of total variance gives the mixture's variance.
    # An ensemble of sequences may have
    #     predict_parts(inputs) -> iterable of float32 [K, M, C]
    # the logits at the positions that count, of all sequences in order, which are then encoded part by part:
    # a part need not stay as it is once the next one is asked for.
    # An ensemble whose members hold stored predictions also has
    #     for_uids(uids: ndarray [M], among: ndarray [N]) -> Ensemble
    # which predicts for the samples of these uids, in this order, of a set of which ``among`` are all uids in
    # the set's order. It returns itself where no member needs uids.


def predictor(ensemble: Ensemble, rows: Rows, augment: Augmentation | None) -> Predict:
    """A function of some rows' inputs and uids that returns the members' logits for them, or moments of
    regressors. An error that lies in single rows names the uid of the first, and has the uids as its rows.

    Raises
    ------
    ValueError
        A member with stored predictions has none for a row, holds them in an order that may not be that of
        the rows, or would have to predict for augmented inputs.
    TypeError
        The ensemble wraps one with such members and has no ``for_uids`` of its own.
    """
    ask = _moments if task_of(ensemble) == "regression" else _predict
    for_uids = getattr(ensemble, "for_uids", None)
    owner = getattr(for_uids, "__self__", ensemble)  # another object, where ``ensemble`` delegates to it
    if for_uids is None or for_uids(rows.uids, rows.uids) is owner:
        return lambda inputs, uids: ask(ensemble, inputs, uids)
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
    return lambda inputs, uids: ask(for_uids(uids, rows.uids), inputs, uids)


def class_names(ensemble: Ensemble, predict: Predict, rows: Rows) -> list[str]:
    """The names of classes, labels or numbers; positions where the ensemble has no names."""
    if ensemble.classes is not None:
        return list(ensemble.classes)
    found = predict(rows.inputs[:1], rows.uids[:1])
    return list(map(str, range(np.shape(found[0] if isinstance(found, tuple) else found)[-1])))


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
    return _named(predict, inputs, uids)


def _named(predict: Callable[[Any], Any], inputs: Any, uids: np.ndarray) -> Any:
    try:
        return predict(inputs)
    except BadRows as error:  # its rows are positions in this batch
        bad = uids[error.rows]
        raise BadRows(f"{error}; that row has uid {bad[0]}", bad) from error


def _moments(ensemble: Any, inputs: Any, uids: np.ndarray) -> Moments:
    """The members' moments after calibration, checked."""
    found = _named(ensemble.predict_moments, inputs, uids)
    calibrated = getattr(ensemble, "calibrated", None)
    mean, variance = found if calibrated is None else calibrated(found)
    source, names = "ensemble.predict_moments", list(ensemble.names)
    parts = [np.asarray(mean), np.asarray(mean if variance is None else variance)]
    shape, sound = (len(names), len(uids)), all(part.dtype.kind == "f" for part in parts)
    if not sound or parts[0].ndim != 3 or parts[0].shape[:2] != shape or parts[1].shape != parts[0].shape:
        got = " and ".join(f"{part.dtype} {list(part.shape)}" for part in parts)
        raise ValueError(
            f"{source}: expected means and variances (or None), each float [members, samples, numbers] = "
            f"[{shape[0]}, {shape[1]}, D]; got {got}"
        )
    for kind, part in zip(("mean", "variance"), parts, strict=True):
        wrong = ~np.isfinite(part)
        if kind == "variance" and variance is not None:
            wrong |= part < 0
        if wrong.any():
            k, n, d = np.argwhere(wrong)[0]
            raise BadRows(
                f"{source}: expected finite means, and variances of at least 0; member {names[k]!r} gave "
                f"the {kind} {part[k, n, d]:g} for uid {int(uids[n])}, number {d} ({int(wrong.sum())} such "
                "values in this batch)",
                uids[[n]],
            )
    return parts[0].astype(np.float64), None if variance is None else parts[1].astype(np.float64)
