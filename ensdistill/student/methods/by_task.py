"""The distillation loss of each task."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ensdistill.cache import TargetCache
from ensdistill.common.tasks import task_of
from ensdistill.loss.regression import RegressionSettings
from ensdistill.loss.settings import Impl, LossSettings
from ensdistill.student.methods.moment_targets import MomentTargets
from ensdistill.student.methods.one_member import OneMember
from ensdistill.student.methods.own import name_of
from ensdistill.student.methods.protocol import StudentLoss
from ensdistill.student.methods.soft_labels import SoftLabels
from ensdistill.student.methods.soft_targets import SoftTargets, name_of_source

if TYPE_CHECKING:
    from ensdistill.student.sources import TargetSource


def loss_by_task(
    settings: LossSettings | RegressionSettings | StudentLoss,
    cache: TargetCache | TargetSource,
    member: str | None,
    impl: Impl = "fused",
) -> StudentLoss:
    """The loss against a source's targets, by its task; ``member`` names the only one that counts. Without
    it a loss is returned as it is; with it the loss receives the targets of that member alone.

    Raises
    ------
    ValueError
        A setting of another task, a member that the source does not have, or one beside a loss that has
        weights of members, needs several of them, or is of another task than classification.
    """
    if not isinstance(settings, LossSettings | RegressionSettings):
        if member is None:
            return settings
        if isinstance(settings, SoftTargets):
            if settings.weights is not None:
                raise ValueError(
                    f"member: expected none beside {name_of(settings)} with weights of members; got "
                    f"{member!r}: leave the weights out"
                )
            if type(settings) in (SoftTargets, SoftLabels):
                # Its own weights select the member, without a copy of the member's logits.
                return settings.of_member(settings.settings, cache, member, settings.impl)
        if task_of(cache) != "classification":
            raise ValueError(
                f"member: {member!r}, but {name_of(settings)} receives the targets of all members; select "
                "the member in the loss, or pass LossSettings"
            )
        return OneMember.of(settings, cache, member)
    task = task_of(cache)
    if task == "regression":
        own = RegressionSettings.of(settings) if isinstance(settings, LossSettings) else settings
        return MomentTargets.of_member(own, cache, member)
    if isinstance(settings, RegressionSettings):
        raise ValueError(
            f"loss: RegressionSettings are of the task regression; {name_of_source(cache)} is of the task "
            f"{task}: pass LossSettings"
        )
    kind = SoftLabels if task == "multilabel" else SoftTargets
    return kind.of_member(settings, cache, member, impl)
