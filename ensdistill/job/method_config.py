"""The methods of a job's students, and their checks against the other settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch import nn

from ensdistill.common.fingerprint import digest
from ensdistill.common.tasks import Task
from ensdistill.loss.settings import DEFAULTS, LossSettings, digest_parts
from ensdistill.student.methods import Mix, Standardised, StudentLoss, build, temperatures_of
from ensdistill.student.methods.heads import Heads
from ensdistill.student.methods.mutual import Mutual
from ensdistill.student.methods.weighted import WeightedTeachers
from ensdistill.student.preconditions import hindrance

if TYPE_CHECKING:
    from ensdistill.job.config import CacheConfig, DistillConfig
    from ensdistill.job.student_config import StudentConfig

MethodSetting = str | dict[str, Any]
"""A method's name, or names with weights or settings; see :func:`ensdistill.student.methods.build`."""


def check_described(method: Any, loss: LossSettings | None, where: str = "") -> None:
    """Raise ValueError for a method that cannot be built, or one beside settings of the loss."""
    if method is None:
        return
    if not isinstance(method, str | Mapping):
        raise ValueError(
            f"{where}method: expected a method's name, or names with weights or settings; got {method!r}"
        )
    if loss not in (None, DEFAULTS):
        raise ValueError(
            f"{where}method: expected none beside {where}loss, the settings of kd; got {method!r}: give kd "
            "its settings there, as method: {kd: {temperature: 2.0}}"
        )
    try:
        build(method)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}{error}") from error


def loss_of(student: StudentConfig, distill: DistillConfig) -> LossSettings | StudentLoss:
    """What a student is trained by: its own method or loss, or else those of all students."""
    if student.method is not None:
        return build(student.method)
    if student.loss is not None:
        return student.loss
    return distill.loss if distill.method is None else build(distill.method)


def loss_of_member(student: StudentConfig, distill: DistillConfig) -> LossSettings | StudentLoss:
    """What it is trained by from one member: the same, but kd where the method needs several."""
    own = loss_of(student, distill)
    return DEFAULTS if getattr(own, "least_members", 1) > 1 else own


def temperatures(student: StudentConfig, distill: DistillConfig) -> tuple[float, ...]:
    """The temperatures at which a student reads the targets."""
    own = loss_of(student, distill)
    return (own.temperature,) if isinstance(own, LossSettings) else tuple(temperatures_of(own))


def with_heads(
    student: StudentConfig, distill: DistillConfig, factory: Callable[[], nn.Module]
) -> Callable[[], nn.Module] | None:
    """Return the factory of a network with several heads, if the method is hydra or has it as a part, or
    else None. Two heads show whether the network ends with a linear layer."""
    own = loss_of(student, distill)
    for part in own.parts if isinstance(own, Mix) else (own,):
        if isinstance(part, Heads):
            return replace(part, weights=(1.0,) * part.least_members).network(factory)
    return None


def digest_of_loss(student: StudentConfig, distill: DistillConfig) -> list[Any]:
    """The loss as data for a digest; of loss settings as before methods existed."""
    own = loss_of(student, distill)
    return digest_parts(own) if isinstance(own, LossSettings) else ["method", digest(own.fingerprint())]


def check_methods(distill: DistillConfig, cache: CacheConfig) -> None:
    """Raise ValueError for a method that an estimator cannot learn by, or that the cache does not serve."""
    for name, student in distill.students.items():
        own = loss_of(student, distill)
        if isinstance(own, LossSettings):
            continue
        where = "distill.method" if student.method is None else f"distill.students.{name}.method"
        if student.generations > 1 and getattr(own, "least_members", 1) > 1:
            raise ValueError(
                f"distill.students.{name}.generations: expected 1 with {where}, which keeps how several "
                f"members differ, because a generation has one teacher; got {student.generations}: choose "
                "kd, or leave generations out"
            )
        if student.estimator is not None or student.searched:
            kind = "an estimator" if student.estimator is not None else "searched for"
            raise ValueError(
                f"{where}: expected none for distill.students.{name}, which is {kind} and learns by kd; set "
                "the method of the other students under their own names"
            )
        if student.compile and (reason := hindrance(own)):
            raise ValueError(
                f"distill.students.{name}.compile: expected False with {where}, which {reason}; got "
                f"{student.compile!r}: leave it out, or choose another method"
            )
        made_at = cache.mixture_at
        if made_at is None:
            continue
        if not own.takes_mixture:
            raise ValueError(
                f"cache.mixture_at: expected none with {where}, which needs the members; got {made_at}: "
                "leave mixture_at out, or choose kd"
            )
        if other := [t for t in temperatures_of(own) if t != made_at]:
            raise ValueError(
                f"cache.mixture_at: expected the temperature of {where}, {other[0]:g}, because a mixture at "
                f"one temperature serves no other; got {made_at:g}: leave mixture_at out"
            )


def check_members_and_task(distill: DistillConfig, members: int, task: Task, selected: bool = False) -> None:
    """Raise ValueError for a method of another task, or one that needs other members.

    Parameters
    ----------
    distill : DistillConfig
    members : int
        The number that the settings name; 0 where they are yet to be planned.
    task : str
    selected : bool
        Whether the cache may hold fewer.
    """
    for name, student in distill.students.items():
        own = loss_of(student, distill)
        if isinstance(own, LossSettings):
            continue
        where = "distill.method" if student.method is None else f"distill.students.{name}.method"
        if task != "classification":
            raise ValueError(f"{where}: expected none for the task {task}, which has distill.loss alone")
        if 0 < members < (least := getattr(own, "least_members", 1)):
            raise ValueError(
                f"{where}: expected at least {least} members, whose differences it keeps; teachers.members "
                f"has {members}: add members, or choose kd"
            )
        for weights in _given_weights(own):
            if members and (weights > members or (weights < members and not selected)):
                raise ValueError(
                    f"{where}: expected a weight for each of the {members} members; got {weights}: change "
                    "weights, or choose by: confidence"
                )


def _given_weights(loss: Any) -> list[int]:
    """How many weights of members the settings give to a method, and to each of its parts."""
    if isinstance(loss, WeightedTeachers):
        return [] if loss.weights is None else [len(loss.weights)]
    inner = loss.parts if isinstance(loss, Mix) else ()
    inner = (loss.of,) if isinstance(loss, Mutual | Standardised) else inner
    return [count for one in inner for count in _given_weights(one)]
