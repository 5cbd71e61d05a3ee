"""The interface of a method: a loss, its conditions and its part of a checkpoint's fingerprint."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from torch import Tensor

from ensdistill.cache import TargetCache
from ensdistill.common.source import Used
from ensdistill.data import Rows

if TYPE_CHECKING:
    from ensdistill.student.batches import Batch
    from ensdistill.student.sources import TargetSource


@runtime_checkable
class StudentLoss(Protocol):
    """A loss of :class:`~ensdistill.student.trainer.StudentTrainer`.

    Any callable with the signature of ``__call__`` serves. A class that derives from this one can also refuse
    a training before it begins, and decide which checkpoints it resumes from. A loss keeps no state between
    calls: a checkpoint would not hold it.

    A cache that holds the mixture of several members alone gives a loss one target [1, B, C], at the cache's
    temperature, in place of the members' logits. A loss without the attribute ``takes_mixture = True`` is
    refused there.

    Examples
    --------
    >>> class MeanSquaredError(StudentLoss):
    ...     def __call__(self, outputs, targets, labels, batch):
    ...         return (outputs - targets.to_logits().mean(0)).square().mean()
    """

    def __call__(self, outputs: Tensor, targets: Any, labels: Tensor, batch: Batch) -> Tensor:
        """The loss of one batch.

        Parameters
        ----------
        outputs : Tensor [B, C], float32
            The student's logits, with a gradient; of a regression [B, D] or [B, 2 D], in standardised units.
        targets : one of :mod:`ensdistill.loss.targets`, or None
            The cache's rows, as stored; ``to_logits()`` returns [K, B, C] (K = 1 where the cache holds the
            mixture only). Of a regression they are ``Moments``, in standardised units. None where the
            student is trained on labels alone.
        labels : Tensor [B], int64
            -100 where the label is unknown. Of multi-label rows int8 [B, C], -1 where unknown; of a
            regression float32 [B, D], in standardised units, NaN where unknown.
        batch : Batch
            The inputs, the uids, the number of the step, and the factor for means over labelled rows under
            torchrun.

        Returns
        -------
        Tensor [], floating point
            A mean over the rows: the trainer averages the gradients of all processes, whose shares of a batch
            are equally large.
        """
        ...

    def check(self, rows: Rows, classes: int, cache: TargetCache | TargetSource | None) -> None:
        """Raise ValueError for rows or a cache that this loss cannot be computed from. By default all are
        accepted."""

    def fingerprint(self) -> Any:
        """Data for :func:`ensdistill.common.fingerprint.digest`: a checkpoint of a loss with other data is
        not resumed.

        By default the code of the loss and the values of its attributes.
        """
        return code_and_values(self)


def check_takes_mixture(loss: StudentLoss, name: str, source: TargetCache | TargetSource) -> None:
    """Raise ValueError for a loss that may need the members, and targets that hold their mixture alone."""
    count, at = len(source.names), source.temperature
    if at is None or count == 1 or getattr(loss, "takes_mixture", False):
        return
    path = getattr(source, "path", None)
    held = type(source).__name__ if path is None else f"the cache {path}"
    raise ValueError(
        f"loss: {name} receives the targets of members, but {held} holds the mixture of its {count} members "
        f"at temperature {at} only, as one target; build it again without mixture_at, or set "
        f"{name}.takes_mixture = True if the loss is meant for the mixture"
    )


def code_and_values(loss: Any) -> Any:
    """The code of a callable, and the values of its attributes or of its closure, as data for a digest."""
    used = Used()
    content = used.refer(loss, "loss")
    return [content, used.parts]
