"""The interface of a method: a loss, its conditions and its part of a checkpoint's fingerprint."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from torch import Tensor, nn

from ensdistill.cache import TargetCache
from ensdistill.common.source import Used
from ensdistill.data import Rows

if TYPE_CHECKING:
    from ensdistill.student.batches import Batch
    from ensdistill.student.inputs import Inputs
    from ensdistill.student.sources import TargetSource


@dataclass(frozen=True, eq=False)
class Start:
    """What a method's own module can be made from, before the first step.

    Parameters
    ----------
    student : Module
        With its first weights, in eval mode, on the CPU.
    factory : callable
        Makes another student, with other first weights.
    inputs : Tensor [2, ...], or dict of str to Tensor
        The student's inputs of two rows.
    members, classes : int
        K and C of the targets.
    """

    student: nn.Module
    factory: Callable[[], nn.Module]
    inputs: Inputs
    members: int
    classes: int


@runtime_checkable
class StudentLoss(Protocol):
    """A loss of :class:`~ensdistill.student.trainer.StudentTrainer`.

    Any callable with the signature of ``__call__`` serves. A class that derives from this one can also refuse
    a training before it begins, and decide which checkpoints it resumes from. A loss keeps no state between
    calls: a checkpoint would not hold it.

    A cache that holds the mixture of several members alone gives a loss one target [1, B, C], at the cache's
    temperature, in place of the members' logits. A loss without the attribute ``takes_mixture = True`` is
    refused there.

    A method with more needs than outputs and targets states them: ``layers`` are the names of the student's
    modules whose outputs ``batch.features`` holds by name; :meth:`companion` makes a module that trains
    along, which ``batch.own`` holds; :meth:`network` changes the student's factory; :meth:`for_source` reads
    the source of the targets.

    Examples
    --------
    >>> class MeanSquaredError(StudentLoss):
    ...     def __call__(self, outputs, targets, labels, batch):
    ...         return (outputs - targets.to_logits().mean(0)).square().mean()
    """

    takes_mixture: bool = False
    layers: Sequence[str] = ()

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
            The inputs, the uids, the number of the step, the factor for means over labelled rows under
            torchrun, and the features and the module that the method asked for.

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

    def for_source(self, source: TargetCache | TargetSource) -> StudentLoss:
        """The loss for the targets of one source, or one with what it read there; by default the same."""
        return self

    def network(self, factory: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
        """The factory of the student that is trained, made from the caller's; by default the same.

        The student has to return logits [N, C]. A result that is a ``functools.partial`` of a module class,
        with the caller's factory as an argument, can be saved.
        """
        return factory

    def companion(self, start: Start) -> nn.Module | None:
        """A module that trains along with the student and ends with the training; by default none.

        Its parameters are in the student's optimiser, and its state is in the checkpoints. torch's generator
        is seeded before the call.
        """
        return None

    @property
    def has_companion(self) -> bool:
        """Whether :meth:`companion` makes a module; by default wherever a class has this method of its own.

        Settings are checked by it before there is a student, of which :meth:`companion` needs the layers.
        """
        return type(self).companion is not StudentLoss.companion

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
