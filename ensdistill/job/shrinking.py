"""The stage ``shrink``: the student that begins as a smaller copy of a member."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from ensdistill.common.describe import module_factory, module_recipe
from ensdistill.common.files import write_bytes
from ensdistill.common.tasks import Task
from ensdistill.data import Split
from ensdistill.data.preprocess import load_preprocess
from ensdistill.job.prepared import prepare
from ensdistill.job.student_config import StudentConfig
from ensdistill.student.inputs import Preparation, call, takes_ids
from ensdistill.student.preconditions import build_student
from ensdistill.student.shrink import Shrink, Shrunk, shrink
from ensdistill.student.shrink.shrinking import check_codes
from ensdistill.student.trainer import Precision
from ensdistill.teachers.members import Preprocessed, TorchMember
from ensdistill.teachers.members.module import is_plain
from ensdistill.teachers.recipes import Recipe, SklearnMembers, TorchMembers

WEIGHTS, PREPROCESS = "weights.safetensors", "preprocess"
HARDLY = 1e-9  # of all weights


def shrink_member(
    settings: Shrink, ensemble: Any, losses: Mapping[str, float | None], split: Split, folder: Path
) -> dict[str, Any]:
    """Shrink the member that the settings name, or the best network, into ``folder``; return the record's
    entries.

    Parameters
    ----------
    settings : Shrink
    ensemble : Ensemble
    losses : mapping of str to float or None
        Held-out losses of the members, where they have some.
    split : Split
        Its labelled rows are the samples by which layers are followed.
    folder : path
    """
    member = ensemble.members[ensemble.names.index(chosen_member(settings, ensemble, losses))]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # new layers are made before they get the member's weights
        made = shrink(member, settings, split.labelled.inputs)
        variance = has_variance(made, split)
    shutil.rmtree(folder / PREPROCESS, ignore_errors=True)
    if made.preprocess is not None:
        made.preprocess.save(folder / PREPROCESS)
    state = {name: value.contiguous().clone() for name, value in made.weights.items()}
    write_bytes(folder / WEIGHTS, save(state))
    return {"recipe": module_recipe(made.factory), "member": member.name, "variance": variance}


def chosen_member(settings: Shrink, ensemble: Any, losses: Mapping[str, float | None]) -> str:
    """The name of the member that is shrunk.

    Raises
    ------
    ValueError
        The ensemble has no member of this name, or no network.
    """
    names: Sequence[str] = ensemble.names
    if settings.member is not None:
        if settings.member not in names:
            raise ValueError(f"shrink.member: expected one of {', '.join(names)}; got {settings.member!r}")
        return settings.member
    found = best_network(ensemble, losses, _is_network)
    if found is None:
        raise ValueError(
            f"shrink: expected a member that is a torch network; the ensemble has {', '.join(names)}, which "
            "are none: add TorchMembers, or give the student a model"
        )
    return found


def best_network(
    ensemble: Any, losses: Mapping[str, float | None], is_network: Callable[[Any], bool]
) -> str | None:
    """The name of the network of least held-out loss among the members with weight; where none has a loss,
    of the largest weight. None of an ensemble without networks."""
    names: Sequence[str] = ensemble.names
    networks = [name for name, member in zip(names, ensemble.members, strict=True) if is_network(member)]
    weights = dict(zip(names, ensemble.weights, strict=True))

    def worth(name: str) -> tuple[bool, float, float]:
        loss = losses.get(name)
        return weights[name] == 0, float("inf") if loss is None else loss, -float(weights[name])

    return min(networks, key=worth) if networks else None


def _is_network(member: Any) -> bool:
    own = member.member if isinstance(member, Preprocessed) else member
    return is_plain(own) and own.recipe is not None and "class_path" in own.recipe


def has_variance(made: Shrunk, split: Split) -> bool:
    """Whether a student of numbers predicts variances, too: it has two outputs for each number."""
    if split.task != "regression":
        return False
    network = made.factory().eval()
    network.load_state_dict(dict(made.weights))
    first = Preparation(made.preprocess, takes_ids(network))(split.labelled.inputs[:2])
    with torch.no_grad():
        return int(call(network, first).shape[1]) == 2 * len(split.classes)


def shrunk_student(
    student: StudentConfig, record: Mapping[str, Any], folder: Path, trusted: Sequence[str]
) -> StudentConfig:
    """The settings of a student whose member has been shrunk: its model, first weights and preprocess."""
    preprocess = None
    if (folder / PREPROCESS).exists():
        preprocess = load_preprocess(folder / PREPROCESS, tuple(trusted))
    about = student.description or f"{record['member']}: {student.shrink}"
    return replace(
        student,
        shrink=None,
        model=module_factory(record["recipe"]),
        weights=folder / WEIGHTS,
        preprocess=preprocess,
        description=about,
        variance=record["variance"],
    )


def check_shrink(
    name: str,
    settings: Shrink,
    recipes: Sequence[Recipe],
    split: Split,
    task: Task,
    precision: Precision = "no",
) -> None:
    """Refuse, before the teachers are trained, a student whose member is none, or can't be shrunk: a new
    network of each recipe that may be chosen is shrunk and run on two rows. Codes that torch can't compute in
    the training's precision are refused as well.

    Raises
    ------
    ValueError
        Names the setting, and the member, the layer, or the operation that the machine lacks.
    ImportError
        A package that a way needs is not installed.
    """
    try:
        check_codes(settings, precision=precision)
    except ValueError as error:
        raise ValueError(f"distill.students.{name}.{error}") from error
    names = [member for recipe in recipes for member in recipe.names()]
    if settings.member is not None and settings.member not in names:
        raise ValueError(
            f"distill.students.{name}.shrink.member: expected one of {', '.join(names)}; got "
            f"{settings.member!r}"
        )
    # Which layers pruning leaves empty depends on trained weights, so new ones lose hardly any.
    shapes = settings if settings.prune is None else replace(settings, prune=HARDLY)
    tried = [one for one in recipes if settings.member in (None, *one.names())]
    # A member that exists already is looked at when the ensemble has been made of all.
    if all(isinstance(one, SklearnMembers) for one in tried):
        raise ValueError(
            f"distill.students.{name}.shrink: expected a member that is a torch network; "
            f"{settings.member or ', '.join(names)} is none: add TorchMembers, or give the student a model"
        )
    for recipe in tried:
        if isinstance(recipe, TorchMembers):
            prepared = prepare(recipe.model, recipe.preprocess, split, 0, variance=recipe.variance)
            factory: Callable[[], Any] = prepared.factory
            output: Any = "auto"
            member: Any = TorchMember(factory(), name=recipe.name, factory=factory, output=output, task=task)
            if prepared.preprocess is not None:
                member = Preprocessed(member, prepared.preprocess)
            try:
                made = shrink(member, shapes, split.labelled.inputs[:2])
                build_student(
                    made.factory, split.labelled, len(split.classes), made.preprocess, made.weights, task
                )
            except (ValueError, TypeError) as error:
                raise ValueError(f"distill.students.{name}.{error}") from error
