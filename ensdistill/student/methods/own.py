"""Methods from outside this package: a function or an object becomes a loss with all methods of the
interface."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from ensdistill.cache import TargetCache
from ensdistill.data import Rows
from ensdistill.loss.modules import DistillationLoss
from ensdistill.loss.regression import RegressionSettings
from ensdistill.loss.settings import LossSettings, check_trained, settings_of
from ensdistill.student.methods.protocol import StudentLoss, code_and_values

if TYPE_CHECKING:
    from ensdistill.student.batches import Batch
    from ensdistill.student.sources import TargetSource


class PlainLoss(StudentLoss):
    """A callable with no method of :class:`StudentLoss` but the call."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        self.function = function

    def __call__(self, outputs: Tensor, targets: Any, labels: Tensor, batch: Batch) -> Tensor:
        return self.function(outputs, targets, labels, batch)

    @property
    def takes_mixture(self) -> bool:  # type: ignore[override]
        return bool(getattr(self.function, "takes_mixture", False))

    def check(self, rows: Rows, classes: int, cache: TargetCache | TargetSource | None) -> None:
        if callable(check := getattr(self.function, "check", None)):
            check(rows, classes, cache)

    def fingerprint(self) -> Any:
        own = getattr(self.function, "fingerprint", None)
        return own() if callable(own) else code_and_values(self.function)


def given_loss(loss: Any, keywords: dict[str, Any]) -> LossSettings | RegressionSettings | StudentLoss:
    """The ``loss`` of a trainer, given as settings, as their keywords, by the name of a regression's error,
    or as a callable.

    Raises
    ------
    TypeError
        Both, an unknown keyword, or none of these.
    ValueError
        A setting out of its range.
    """
    if loss is None or isinstance(loss, LossSettings):
        settings = settings_of(loss, dict(keywords), "loss")
        check_trained("loss", settings)
        return settings
    if isinstance(loss, str):
        known = [field.name for field in fields(RegressionSettings)][1:]
        if strange := [name for name in keywords if name not in known]:
            raise TypeError(f"{strange[0]}: expected one of {', '.join(known)} beside loss={loss!r}")
        return RegressionSettings(loss, **keywords)  # type: ignore[arg-type]
    own = loss if isinstance(loss, RegressionSettings) else as_student_loss(loss)
    if keywords:
        name = type(own).__name__ if isinstance(own, RegressionSettings) else name_of(own)
        raise TypeError(
            f"loss: expected either a loss or keywords of LossSettings; got {name} and {', '.join(keywords)}"
        )
    return own


def as_student_loss(loss: Any) -> StudentLoss:
    """``loss`` with all methods of :class:`StudentLoss`.

    Raises
    ------
    TypeError
        It is a class or no callable, or a loss of another signature.
    ValueError
        It has parameters, which the trainer would not train.
    """
    if isinstance(loss, DistillationLoss):
        raise TypeError(
            "loss: a DistillationLoss takes sample weights, not a batch; pass its settings: "
            "StudentTrainer(loss=loss.settings)"
        )
    if isinstance(loss, type) or not callable(loss):
        got = (
            f"the class {loss.__name__}; pass an instance of it"
            if isinstance(loss, type)
            else type(loss).__name__
        )
        raise TypeError(
            "loss: expected LossSettings or a callable (outputs, targets, labels, batch) that returns a "
            f"scalar tensor; got {got}"
        )
    _check_signature(loss)
    if isinstance(loss, nn.Module):
        trained = [name for name, parameter in loss.named_parameters() if parameter.requires_grad]
        if trained:
            raise ValueError(
                f"loss: {type(loss).__name__} has parameters ({trained[0]}), which would not be trained: "
                "the optimiser holds the student's parameters only; let the loss's method companion() make "
                "them, make them parameters of the student, or call requires_grad_(False)"
            )
    return loss if isinstance(loss, StudentLoss) else PlainLoss(loss)


def _check_signature(loss: Callable[..., Any]) -> None:
    """Raise TypeError for a callable that does not take the four arguments of a loss."""
    try:
        signature = inspect.signature(loss)
    except (TypeError, ValueError):  # a built-in without one: the first step calls it
        return
    try:
        signature.bind(None, None, None, None)
    except TypeError as error:
        name = getattr(loss, "__name__", type(loss).__name__)
        raise TypeError(
            f"loss: expected {name} to take (outputs, targets, labels, batch); got {name}{signature}: {error}"
        ) from None


def changes_network(loss: StudentLoss) -> bool:
    """Whether a loss has a student of its own made from the caller's factory."""
    return type(loss).network is not StudentLoss.network


def name_of(loss: Any) -> str:
    """The name of a loss in a message."""
    loss = loss.function if isinstance(loss, PlainLoss) else loss
    return str(getattr(loss, "__name__", type(loss).__name__))
