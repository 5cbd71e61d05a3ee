"""Students of a job that learn by hints: the member whose layer they learn, and its preprocess."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from ensdistill.data import Split
from ensdistill.data.preprocess import Preprocess
from ensdistill.job.config import DistillConfig
from ensdistill.job.method_config import loss_of
from ensdistill.job.prepared import prepare
from ensdistill.job.run_folder import RunFolder
from ensdistill.job.shrinking import best_network
from ensdistill.job.student_config import StudentConfig
from ensdistill.job.unit import Unit
from ensdistill.loss.settings import LossSettings
from ensdistill.student.inputs import Preparation, takes_ids
from ensdistill.student.methods import Mix, Start, StudentLoss
from ensdistill.student.methods.hints import Hints
from ensdistill.student.preconditions import build_student
from ensdistill.teachers import Ensemble
from ensdistill.teachers.members import Member, Preprocessed
from ensdistill.teachers.members.module import is_plain
from ensdistill.teachers.members.preprocessed import inner
from ensdistill.teachers.recipes import Recipe, SklearnMembers, TorchMembers


def hints_of(loss: LossSettings | StudentLoss) -> Hints | None:
    """The part of a loss that needs a teacher's layer; None where there is none."""
    parts = loss.parts if isinstance(loss, Mix) else (loss,)
    return next((part for part in parts if isinstance(part, Hints)), None)


def with_teacher(loss: LossSettings | StudentLoss, teacher: nn.Module | None) -> LossSettings | StudentLoss:
    """The loss whose hints are of this module; any other, and of None, as it is."""
    if teacher is None or isinstance(loss, LossSettings):
        return loss
    if isinstance(loss, Mix):
        parts = [replace(part, teacher=teacher) if isinstance(part, Hints) else part for part in loss.parts]
        return replace(loss, parts=tuple(parts))
    return replace(loss, teacher=teacher) if isinstance(loss, Hints) else loss


def hinting_member(run: RunFolder, unit: Unit) -> Member | None:
    """The member that gives hints to the student of a unit: the one that its method names, or the network of
    least held-out loss; None for a student without hints.

    Raises
    ------
    ValueError
        The ensemble has no member of this name, or it is no torch module.
    """
    distill = run.config.distill
    hints = hints_of(loss_of(distill.students[unit.student], distill))
    if hints is None:
        return None
    teachers = Unit("teachers", unit.seed)
    ensemble, record = Ensemble.load(run.of(teachers) / "ensemble", run.trusted), run.record(teachers)
    networks = [one.name for one in ensemble.members if _is_module(one)]
    name = hints.member or best_network(ensemble, record.get("held_out_nll") or {}, _is_module)
    if name not in ensemble.names:
        raise ValueError(_expected(unit.student, hints.member, ensemble.names, networks))
    found: Member = ensemble.members[ensemble.names.index(name)]
    if not _is_module(found):
        raise ValueError(_expected(unit.student, hints.member, ensemble.names, networks))
    return found


def module_of(member: Member | None) -> nn.Module | None:
    """The network of a member with or without a preprocess."""
    own: Any = None if member is None else inner(member)
    return None if own is None else own.module


def hinted_student(student: StudentConfig, member: Member | None) -> StudentConfig:
    """The settings of a student with the preprocess of the member that gives it hints, whose inputs the two
    share; without one as they are.

    Raises
    ------
    ValueError
        The student is made from a member with another preprocess.
    """
    if member is None:
        return student
    own = member.preprocess if isinstance(member, Preprocessed) else None
    before = student.preprocess  # that of the member that the student is made from, if it is
    if before != "auto" and _print(own) != _print(before):
        raise ValueError(
            f"method.hints.member: expected a member with the preprocess of the one that the student is made "
            f"from; {member.name} has another: name the member of shrink"
        )
    return replace(student, preprocess=own)


def check_hints(name: str, distill: DistillConfig, recipes: Sequence[Recipe], split: Split) -> None:
    """Refuse, before the teachers are trained, hints of a member that is no torch module, and layers whose
    shapes do not fit: a new network of each recipe that may be chosen is run on two rows.

    Raises
    ------
    ValueError
        Names the setting, and the member or the layer.
    """
    student, where = distill.students[name], f"distill.students.{name}."
    loss = loss_of(student, distill)
    hints = hints_of(loss)
    if hints is None:
        return
    if student.preprocess != "auto":
        raise ValueError(
            f"{where}preprocess: expected auto with hints, whose teacher takes the student's inputs, so that "
            f"the student has its preprocess; got {student.preprocess!r}"
        )
    names = [member for recipe in recipes for member in recipe.names()]
    tried = [one for one in recipes if hints.member in (None, *one.names())]
    # A member that exists already is looked at when the ensemble has been made of all.
    if not tried or all(isinstance(one, SklearnMembers) for one in tried):
        networks = [own for one in recipes if isinstance(one, TorchMembers) for own in one.names()]
        raise ValueError(_expected(name, hints.member, names, networks))
    for recipe in tried:
        if not isinstance(recipe, TorchMembers) or student.model is None:
            continue
        teacher = prepare(recipe.model, recipe.preprocess, split, 0, variance=recipe.variance)
        own = prepare(student.model, teacher.preprocess, split, 0)
        try:
            network = build_student(
                own.factory, split.labelled, len(split.classes), own.preprocess, student.weights, split.task
            )
            inputs = Preparation(own.preprocess, takes_ids(network))(split.labelled.inputs[:2])
            start = Start(network.eval(), own.factory, inputs, len(names), len(split.classes))
            replace(hints, teacher=teacher.factory()).companion(start)
        except (ValueError, TypeError) as error:
            raise ValueError(f"{where}method.hints.{error} (member {recipe.names()[0]})") from error


def _print(preprocess: Preprocess | None) -> str | None:
    return None if preprocess is None else preprocess.fingerprint()


def _is_module(member: Any) -> bool:
    return is_plain(inner(member))


def _expected(student: str, member: str | None, names: Sequence[str], networks: Sequence[str]) -> str:
    """The message on a member that can't give hints."""
    got = f"{member!r} of {', '.join(names)}" if member else f"{', '.join(names)}, which are none"
    remedy = f"name one of {', '.join(networks)}" if networks else "add TorchMembers, or leave hints out"
    return (
        f"distill.students.{student}.method.hints.member: expected a member that is a torch module, whose "
        f"layer the student learns; got {got}: {remedy}"
    )
