"""A method against one member of a source."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from ensdistill.cache import TargetCache
from ensdistill.data import Rows
from ensdistill.loss.targets import EnsembleLogits
from ensdistill.student.methods.protocol import Start, StudentLoss
from ensdistill.student.methods.soft_targets import check_member, weights_of_member
from ensdistill.student.methods.teachers import logits_of_members

if TYPE_CHECKING:
    from ensdistill.student.batches import Batch
    from ensdistill.student.sources import TargetSource


class OneMember(StudentLoss):
    """A method that receives one member's targets in place of all members'.

    Parameters
    ----------
    method : StudentLoss
    member : str
    index : int
        Its place among the members.
    """

    takes_mixture = False

    def __init__(self, method: StudentLoss, member: str, index: int) -> None:
        self.method, self.member, self.index = method, member, index

    @classmethod
    def of(cls, method: StudentLoss, source: TargetCache | TargetSource, member: str) -> OneMember:
        """The method against this member.

        Raises
        ------
        ValueError
            The source does not have it, or the method needs several.
        """
        index = int(weights_of_member(source, member).argmax())
        if (least := getattr(method, "least_members", 1)) > 1:
            raise ValueError(
                f"member: expected none for a method that needs {least} members or more; got {member!r}: "
                "leave it out, or choose kd"
            )
        return cls(method, member, index)

    @property
    def layers(self) -> Sequence[str]:  # type: ignore[override]
        return self.method.layers

    def __call__(self, outputs: Tensor, targets: Any, labels: Tensor, batch: Batch) -> Tensor:
        own = EnsembleLogits(logits_of_members(targets)[self.index : self.index + 1])
        return self.method(outputs, own, labels, batch)

    def check(self, rows: Rows, classes: int, cache: TargetCache | TargetSource | None) -> None:
        self.method.check(rows, classes, cache)
        if cache is not None:
            check_member(self.member, cache)

    def for_source(self, source: TargetCache | TargetSource) -> StudentLoss:
        return OneMember(self.method.for_source(source), self.member, self.index)

    def network(self, factory: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
        return self.method.network(factory)

    @property
    def has_companion(self) -> bool:
        return self.method.has_companion

    def companion(self, start: Start) -> nn.Module | None:
        return self.method.companion(replace(start, members=1))

    def fingerprint(self) -> Any:
        return ["member", self.member, self.method.fingerprint()]
