"""A student's optimisation: any optimiser and schedule, parameter groups, clipping, accumulation.

:class:`StudentOptimization` stands beside :class:`Optimization`, which members' training shares, because a
run's digests are made of that class's code: what only students can do must not make trained members stale.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from fnmatch import fnmatchcase
from typing import Any, Literal

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR, ReduceLROnPlateau, SequentialLR

from ensdistill.common.adamw import AdamW
from ensdistill.common.describe import class_path, describe
from ensdistill.common.optimization import Optimization
from ensdistill.common.scalars import plain_fields, real, whole

# Arguments of an optimiser that have a field of their own.
_OF_FIELDS = {"lr": "learning_rate", "weight_decay": "weight_decay"}


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters with a learning rate or a weight decay of their own.

    Parameters
    ----------
    parameters : str
        A pattern of names as ``named_parameters()`` has them: ``*`` stands for any text, dots included, ``?``
        for one character, ``[ab]`` for one of these. ``encoder.*``, ``*.bias``.
    learning_rate : float
        A factor of ``optimization.learning_rate``, at every step of the schedule; 0 leaves the parameters as
        they are.
    weight_decay : float, optional
        In place of ``optimization.weight_decay``.
    """

    parameters: str
    learning_rate: float = 1.0
    weight_decay: float | None = None

    def __post_init__(self) -> None:
        plain_fields(self)
        if not isinstance(self.parameters, str) or not self.parameters:
            raise ValueError(
                f"groups: parameters: expected a pattern of parameter names, such as '*.bias'; got "
                f"{self.parameters!r}"
            )
        for name, value in (("learning_rate", self.learning_rate), ("weight_decay", self.weight_decay)):
            if value is not None and not (real(value) and 0 <= value < math.inf):
                raise ValueError(f"groups: {name}: expected a number of at least 0; got {value!r}")


@dataclass(frozen=True)
class StudentOptimization(Optimization):
    """Everything that can be set about a student's optimisation: the fields of :class:`Optimization`, and
    those below.

    Parameters
    ----------
    weight_decay : float
        As there; 0.02 by default.
    optimizer : class of Optimizer, or functools.partial of one, optional
        In place of AdamW. ``learning_rate`` and ``weight_decay`` are its ``lr`` and ``weight_decay``; the
        other arguments stand in the partial. In YAML class_path and init_args.
    schedule : {"one_cycle", "cosine", "constant"}, class of LRScheduler, or functools.partial of one
        A class's schedule begins after the warm-up, and takes one step after each step of the optimiser. A
        ``T_max`` that is not given is the number of steps after the warm-up, as is ``total_steps`` of
        OneCycleLR, whose ``max_lr`` is then the learning rate. ``one_cycle`` cycles the first
        momentum of optimisers that have one.
    groups : sequence of ParameterGroup
        Parameters with a learning rate or a weight decay of their own. A parameter belongs to the first group
        whose pattern its name matches; all others have the settings above.
    clip_norm : float, optional
        Gradients whose norm, over all parameters and processes, is larger are scaled down to it, as
        :func:`torch.nn.utils.clip_grad_norm_` does. By default they are not, but for a student that predicts
        variances, whose gradients are scaled down to 1.
    accumulate : int
        The parts into which each process divides its rows of a batch: they go through the model one after the
        other, in the memory of one, and their gradients are added. The loss is that of the whole batch.

    Raises
    ------
    TypeError
        An optimiser or a schedule that is no such class.
    ValueError
        A value outside the ranges above; an argument of the optimiser that has a field of its own; an
        optimiser that calls the loss by itself, or a schedule that needs a measurement.

    Examples
    --------
    >>> import torch
    >>> settings = StudentOptimization(
    ...     steps=100,
    ...     learning_rate=0.1,
    ...     weight_decay=1e-4,
    ...     optimizer=functools.partial(torch.optim.SGD, momentum=0.9),
    ...     schedule=torch.optim.lr_scheduler.CosineAnnealingLR,
    ...     groups=[ParameterGroup("*bias", weight_decay=0.0)],
    ...     clip_norm=1.0,
    ... )
    >>> optimizer, scheduler = settings.build_for(torch.nn.Linear(2, 2))
    >>> [group["weight_decay"] for group in optimizer.param_groups]
    [0.0001, 0.0]
    """

    weight_decay: float = 0.02
    schedule: Literal["one_cycle", "cosine", "constant"] | Callable[[Any], LRScheduler] = "cosine"  # type: ignore[assignment]
    optimizer: Callable[[Any], Optimizer] | None = None
    groups: tuple[ParameterGroup, ...] = ()
    clip_norm: float | None = None
    accumulate: int = 1

    def __post_init__(self) -> None:
        named = self.schedule if isinstance(self.schedule, str) else "constant"
        Optimization(**{**_shared(self), "schedule": named})  # its checks
        plain_fields(self)
        object.__setattr__(self, "groups", _groups(self.groups))
        if self.clip_norm is not None and not (real(self.clip_norm) and 0 < self.clip_norm < math.inf):
            raise ValueError(f"optimization.clip_norm: expected a positive number; got {self.clip_norm!r}")
        if not whole(self.accumulate) or self.accumulate < 1:
            raise ValueError(f"optimization.accumulate: expected at least 1; got {self.accumulate!r}")
        if not isinstance(self.schedule, str):
            _check_schedule(self.schedule)
        if self.optimizer is not None:
            _check_optimizer(self.optimizer)
        if not self.decays and (self.weight_decay or any(group.weight_decay for group in self.groups)):
            raise ValueError(
                f"optimization.weight_decay: {_name(self.optimizer)} has no weight decay; set weight_decay=0"
            )

    @property
    def decays(self) -> bool:
        """Whether the optimiser has a weight decay."""
        return (
            self.optimizer is None or "weight_decay" in inspect.signature(_class(self.optimizer)).parameters
        )

    @property
    def extras(self) -> dict[str, Any]:
        """The changed settings that :class:`Optimization` does not have, by name."""
        own = [f for f in fields(self) if f.name not in _SHARED]
        found = {f.name: value for f in own if (value := getattr(self, f.name)) != _default(f)}
        return found if isinstance(self.schedule, str) else {"schedule": self.schedule, **found}

    def plain(self) -> Optimization:
        """The same settings as an :class:`Optimization`, which members' training takes.

        Raises
        ------
        ValueError
            Settings that only a student's training has.
        """
        refuse_extras(self)
        return Optimization(**_shared(self))

    def __eq__(self, other: object) -> bool:
        """Without extras it equals an :class:`Optimization` of the same settings. Partials of the same class
        and arguments are equal."""
        if type(other) not in (Optimization, StudentOptimization):
            return NotImplemented
        assert isinstance(other, Optimization)
        return _compared(self) == _compared(other)

    def __hash__(self) -> int:
        if not self.extras:
            return hash(self.plain())
        return hash((*(value for value in _shared(self).values() if not callable(value)), *self.extras))

    def __fingerprint__(self) -> Any:
        return {**_shared(self), **{name: describe(value) for name, value in self.extras.items()}}

    def __description__(self) -> Any:
        """See :func:`ensdistill.common.describe.describe`: without extras that of :class:`Optimization`, so
        that earlier runs stay complete."""
        base = describe(Optimization(**{**_shared(self), "schedule": "constant"}))
        base["fields"] |= {name: describe(value) for name, value in _shared(self).items()}
        extras = self.extras
        return {**base, "extras": describe(extras)} if extras else base

    def build_for(self, model: nn.Module) -> tuple[Optimizer, LRScheduler]:
        """The optimiser of a model's parameters and its scheduler, which is stepped once after every step of
        the optimiser.

        Raises
        ------
        ValueError
            A group without a parameter, or an optimiser that does not take these parameters or arguments; a
            number that is still ``auto``.
        """
        self.check_numbers()
        if not self.extras.keys() - {"clip_norm", "accumulate"}:
            return self.build(model.parameters())
        groups = self._parameters(model)
        rate = {"lr": self.learning_rate} | ({"weight_decay": self.weight_decay} if self.decays else {})
        make = functools.partial(AdamW, fused=True) if self.optimizer is None else self.optimizer
        try:
            optimizer = make(groups, **rate)
        except (TypeError, ValueError) as error:
            raise ValueError(f"optimization.optimizer: {_name(self.optimizer)}: {error}") from error
        return optimizer, self._scheduler(optimizer)

    def _parameters(self, model: nn.Module) -> list[dict[str, Any]]:
        """The model's parameters as the groups of an optimiser, the ones without a pattern first."""
        found: list[list[Tensor]] = [[] for _ in range(len(self.groups) + 1)]
        names = []
        for name, parameter in model.named_parameters():
            names.append(name)
            at = (i for i, group in enumerate(self.groups, 1) if fnmatchcase(name, group.parameters))
            found[next(at, 0)].append(parameter)
        made = [{"params": found[0]}] if found[0] else []
        for group, parameters in zip(self.groups, found[1:], strict=True):
            if not parameters:
                raise ValueError(
                    f"optimization.groups: {group.parameters!r} matches no parameter that is left by the "
                    f"groups before it; the model has {', '.join(names[:8])}{', ...' if names[8:] else ''}"
                )
            own: dict[str, Any] = {"params": parameters, "lr": self.learning_rate * group.learning_rate}
            if group.weight_decay is not None:
                own["weight_decay"] = group.weight_decay
            made.append(own)
        return made

    def _one_cycle(self, optimizer: Optimizer, left: int) -> dict[str, Any]:
        """The arguments of OneCycleLR that the settings leave out, for ``left`` steps after the warm-up."""
        given = getattr(self.schedule, "keywords", {})
        found: dict[str, Any] = {}
        if "max_lr" not in given:
            found["max_lr"] = [float(group["lr"]) for group in optimizer.param_groups]
        if "total_steps" not in given and "epochs" not in given:
            found["total_steps"] = max(2, left)
        if (total := given.get("total_steps")) is not None and total < left:
            raise ValueError(
                f"optimization.schedule: OneCycleLR: total_steps: expected at least {left}, the steps after "
                f"the warm-up; got {total}: leave it out, and it is {left}"
            )
        return found

    def _scheduler(self, optimizer: Optimizer) -> LRScheduler:
        warmup = round(self.warmup * self.steps)
        if self.schedule == "one_cycle":
            # See Optimization.build for the two exceptions of short trainings.
            total = max(2, self.steps)
            share = self.warmup * (1 - 1e-9) if self.warmup * total == 1 else float(self.warmup)
            defaults = optimizer.defaults
            momentum = bool(defaults.get("betas") or defaults.get("momentum"))
            rates = [float(group["lr"]) for group in optimizer.param_groups]
            return OneCycleLR(
                optimizer, max_lr=rates, total_steps=total, pct_start=share, cycle_momentum=momentum
            )
        if isinstance(self.schedule, str):
            return LambdaLR(optimizer, self._factor)
        known = inspect.signature(self.schedule).parameters
        left = max(1, self.steps - warmup)
        missing = "T_max" in known and known["T_max"].default is inspect.Parameter.empty
        length: dict[str, Any] = {"T_max": left} if missing else {}
        if getattr(self.schedule, "func", self.schedule) is OneCycleLR:
            length = self._one_cycle(optimizer, left)

        def make() -> LRScheduler:
            try:
                return self.schedule(optimizer, **length)  # type: ignore[operator]
            except (TypeError, ValueError) as error:
                raise ValueError(f"optimization.schedule: {_name(self.schedule)}: {error}") from error

        if warmup == 0:
            return make()
        rise = LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / warmup))
        return SequentialLR(optimizer, [rise, make()], [warmup])


_SHARED = tuple(field.name for field in fields(Optimization))


def as_student(optimization: Optimization) -> StudentOptimization:
    """An :class:`Optimization` as the same settings of a student's training.

    >>> as_student(Optimization(steps=5)).accumulate
    1
    """
    if isinstance(optimization, StudentOptimization):
        return optimization
    if type(optimization) is not Optimization:
        raise TypeError(
            f"optimization: expected an Optimization or a StudentOptimization; got "
            f"{class_path(type(optimization))}"
        )
    return StudentOptimization(**_shared(optimization))


def student_settings(optimization: Optimization) -> StudentOptimization:
    """An optimisation's settings of clipping and accumulation; the defaults for one that has none."""
    return optimization if isinstance(optimization, StudentOptimization) else StudentOptimization()


def build_optimizer(optimization: Optimization, model: nn.Module) -> tuple[Optimizer, LRScheduler]:
    """The optimiser of a model's parameters and its scheduler."""
    if isinstance(optimization, StudentOptimization):
        return optimization.build_for(model)
    return optimization.build(model.parameters())


def refuse_extras(optimization: Optimization, argument: str = "optimization") -> None:
    """Raise ValueError for settings that only a student's training has."""
    if isinstance(optimization, StudentOptimization) and (extras := optimization.extras):
        raise ValueError(
            f"{argument}: members are trained by AdamW and a schedule by name; got "
            f"{', '.join(f'{name}={_shown(value)}' for name, value in extras.items())}: leave "
            f"{', '.join(extras)} out, which only a student's training has"
        )


def _shared(optimization: Optimization) -> dict[str, Any]:
    return {name: getattr(optimization, name) for name in _SHARED}


def _compared(optimization: Optimization) -> dict[str, Any]:
    values = {**_shared(optimization), **student_settings(optimization).extras}
    return {name: describe(value) for name, value in values.items()}


def _default(field: Any) -> Any:
    return field.default if field.default_factory is MISSING else field.default_factory()


def _groups(given: Any) -> tuple[ParameterGroup, ...]:
    if isinstance(given, (str, Mapping)) or not isinstance(given, Sequence):
        raise TypeError(f"optimization.groups: expected a list of ParameterGroup; got {type(given).__name__}")
    if wrong := [group for group in given if not isinstance(group, ParameterGroup)]:
        raise TypeError(
            f"optimization.groups: expected a list of ParameterGroup; got {type(wrong[0]).__name__}"
        )
    return tuple(given)


def _class(factory: Any) -> Any:
    return factory.func if isinstance(factory, functools.partial) else factory


def _name(factory: Any) -> str:
    return "AdamW" if factory is None else str(getattr(_class(factory), "__name__", factory))


def _shown(value: Any) -> str:
    return _name(value) if callable(value) else repr(value)


def _check_class(argument: str, value: Any, base: type) -> None:
    """Raise TypeError unless ``value`` is a class of this kind or a partial of one with plain keywords."""
    cls, positional = _class(value), isinstance(value, functools.partial) and bool(value.args)
    if positional or not (inspect.isclass(cls) and issubclass(cls, base)):
        got = class_path(cls if inspect.isclass(cls) else type(value))
        got += " with positional arguments" if positional else ""
        raise TypeError(
            f"optimization.{argument}: expected a class of {base.__name__}, or functools.partial of one with "
            f"arguments by name; got {got}"
        )
    try:
        describe(value)
    except TypeError as error:
        raise TypeError(
            f"optimization.{argument}: expected {cls.__name__} with arguments that are plain data, which a "
            f"checkpoint's fingerprint is made of ({error})"
        ) from error


def _check_optimizer(optimizer: Any) -> None:
    _check_class("optimizer", optimizer, Optimizer)
    cls, given = _class(optimizer), getattr(optimizer, "keywords", {})
    for name, field in _OF_FIELDS.items():
        if name in given:
            raise ValueError(
                f"optimization.optimizer: {cls.__name__}: {name}={given[name]} is given by the field "
                f"{field}; set optimization.{field} and leave {name} out"
            )
    known = inspect.signature(cls.step).parameters
    if "closure" in known and known["closure"].default is inspect.Parameter.empty:
        raise ValueError(
            f"optimization.optimizer: {cls.__name__} computes the loss by itself, several times a "
            "step (closure), which this trainer does not offer; choose an optimiser that needs gradients "
            "only"
        )


def _check_schedule(schedule: Any) -> None:
    _check_class("schedule", schedule, LRScheduler)
    if issubclass(_class(schedule), ReduceLROnPlateau):
        raise ValueError(
            "optimization.schedule: ReduceLROnPlateau waits for a measurement, which a step does not have; "
            "choose a schedule of the number of steps"
        )
