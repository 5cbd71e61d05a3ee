"""Hints from the layers of a teacher that is here."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ensdistill.cache import TargetCache
from ensdistill.common.fingerprint import digest
from ensdistill.student.companion import check_layers, feature, features_of
from ensdistill.student.inputs import Inputs, call
from ensdistill.student.methods.method import Method
from ensdistill.student.methods.protocol import Start, StudentLoss
from ensdistill.student.methods.teachers import mean_of

if TYPE_CHECKING:
    from ensdistill.student.batches import Batch
    from ensdistill.student.sources import TargetSource


@dataclass(frozen=True, eq=False)
class Hints(Method):
    """Half the squared distance of a teacher's layer from a layer of the student, through a regressor.

    The regressor, a linear layer (1 × 1 for feature maps), trains along and ends with the training. The mean
    over all numbers of a layer takes the place of the paper's sum, so that the layer's size does not count.
    Of several pairs of layers the loss is the mean of theirs; each has its regressor.
    Outputs have no part: mix it with another method, ``{kd: 1, hints: {weight: 0.1, ...}}``.

    Parameters
    ----------
    student_layer, teacher_layer : str or sequence of str
        Names of modules, as ``named_modules()`` has them; of several pairs as many of each.
    teacher : Module, optional
        It takes the student's inputs. By default the member ``member`` of online teachers.
    member : str, optional
        The name of a member of :class:`~ensdistill.student.OnlineTeachers`; by default the first.

    References
    ----------
    Romero et al., "FitNets: Hints for Thin Deep Nets", ICLR 2015.

    Examples
    --------
    >>> Hints("1", "3", teacher=nn.Sequential(nn.Flatten(), nn.Linear(4, 8))).layers
    ('1',)
    >>> Hints(["1", "3"], ["1", "4"]).pairs
    (('1', '1'), ('3', '4'))
    """

    student_layer: str | Sequence[str]
    teacher_layer: str | Sequence[str]
    teacher: nn.Module | None = field(default=None, repr=False)
    member: str | None = None

    def __post_init__(self) -> None:
        for name in ("student_layer", "teacher_layer"):
            object.__setattr__(self, name, _names(name, getattr(self, name)))
        own, other = (1 if isinstance(x, str) else len(x) for x in (self.student_layer, self.teacher_layer))
        if own != other:
            raise ValueError(
                f"teacher_layer: expected as many layers as student_layer has, {own}, each the hint of one; "
                f"got {other}"
            )
        if self.teacher is not None and not isinstance(self.teacher, nn.Module):
            raise TypeError(f"teacher: expected a torch.nn.Module; got {type(self.teacher).__name__}")

    @property
    def pairs(self) -> tuple[tuple[str, str], ...]:
        """The layers of the student, each with the teacher's layer that it learns."""
        sides = [[x] if isinstance(x, str) else x for x in (self.student_layer, self.teacher_layer)]
        return tuple(zip(*sides, strict=True))

    @property
    def layers(self) -> tuple[str, ...]:  # type: ignore[override]
        return tuple(dict.fromkeys(student for student, _ in self.pairs))

    def for_source(self, source: TargetCache | TargetSource) -> StudentLoss:
        # A copy: online teachers may predict with the member on another thread while its layers are read.
        if self.teacher is not None:
            return replace(self, teacher=deepcopy(self.teacher))
        ensemble = getattr(source, "ensemble", None)
        if ensemble is None:
            raise ValueError(
                f"teacher: expected a module, because {type(source).__name__} has no members to compute "
                "hints; pass Hints(..., teacher=module), or train with OnlineTeachers(ensemble)"
            )
        names = list(ensemble.names)
        if self.member is not None and self.member not in names:
            raise ValueError(f"member: expected one of {', '.join(names)}; got {self.member!r}")
        found = ensemble.members[names.index(self.member or names[0])]
        module = getattr(found, "module", None)
        if not isinstance(module, nn.Module):
            raise ValueError(
                f"member: expected a torch module that takes the student's inputs; {found.name} is a "
                f"{type(found).__name__}: name another member, or pass Hints(..., teacher=module)"
            )
        return replace(self, teacher=deepcopy(module))

    def companion(self, start: Start) -> nn.Module:
        check_layers(start.student, self.layers, "student_layer")
        with features_of(start.student, self.layers, always=True) as features, torch.no_grad():
            call(start.student, start.inputs)
        hints = self.of_teacher(start.inputs)
        made = [
            _regressor(pair, feature(features, pair[0], "student_layer"), hint)
            for pair, hint in zip(self.pairs, hints, strict=True)
        ]
        return made[0] if len(made) == 1 else nn.ModuleList(made)

    def of_teacher(self, inputs: Inputs) -> list[Tensor]:
        """The teacher's layers for some inputs, one of each pair, without a gradient."""
        teacher = self.teacher
        assert teacher is not None
        layers = [name for _, name in self.pairs]
        before, first = teacher.training, next(iter(inputs.values())) if isinstance(inputs, dict) else inputs
        teacher.to(first.device).eval()
        try:
            check_layers(teacher, layers, "teacher_layer")
            with features_of(teacher, list(dict.fromkeys(layers)), always=True) as features, torch.no_grad():
                call(teacher, inputs)
        except (RuntimeError, TypeError) as error:
            raise ValueError(
                f"teacher: {type(teacher).__name__} does not take the student's inputs ({error}); hints need "
                "a teacher and a student with the same preprocess"
            ) from error
        finally:
            teacher.train(before)
        return [feature(features, name, "teacher_layer") for name in layers]

    def __call__(self, outputs: Tensor, targets: Any, labels: Tensor, batch: Batch) -> Tensor:
        own: Any = batch.own
        assert own is not None
        regressors = list(own) if len(self.pairs) > 1 else [own]
        rows = []
        for (name, _), hint, regressor in zip(
            self.pairs, self.of_teacher(batch.inputs), regressors, strict=True
        ):
            found = regressor(feature(batch.features, name))
            rows.append((found - hint).square().flatten(1).mean(1) / 2)
        return mean_of(torch.stack(rows).mean(0), batch.weights)

    def fingerprint(self) -> Any:
        state = {} if self.teacher is None else dict(self.teacher.state_dict())
        return ["hints", self.student_layer, self.teacher_layer, self.member, digest(state)]


def _names(argument: str, value: Any) -> str | tuple[str, ...]:
    """The name of one module, or the names of several."""
    several = isinstance(value, Sequence) and not isinstance(value, str)
    names = tuple(value) if several else (value,)
    if not names or not all(isinstance(name, str) and name for name in names):
        raise ValueError(f"{argument}: expected the name of a module, or a list of names; got {value!r}")
    return names if len(names) > 1 else names[0]


def _regressor(pair: tuple[str, str], student: Tensor, teacher: Tensor) -> nn.Module:
    """What maps a layer of the student [N, S, ...] to the size of the teacher's [N, T, ...]."""
    fits = student.ndim == teacher.ndim and student.shape[2:] == teacher.shape[2:]
    if not fits or student.ndim not in (2, 3, 4, 5):
        raise ValueError(
            "student_layer, teacher_layer: expected outputs of equal shape but for the second dimension, "
            f"which a regressor fits; got {list(student.shape)} of {pair[0]!r} and {list(teacher.shape)} of "
            f"{pair[1]!r}: choose layers of equal sides"
        )
    widths = student.shape[1], teacher.shape[1]
    if student.ndim == 2:
        return nn.Linear(*widths)
    kind = {3: nn.Conv1d, 4: nn.Conv2d, 5: nn.Conv3d}[student.ndim]
    return kind(*widths, 1)
