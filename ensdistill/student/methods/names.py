"""Methods by name, as YAML and ``method=`` have them."""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from functools import partial
from typing import Any

from ensdistill.loss.regression import RegressionSettings
from ensdistill.loss.settings import LossSettings
from ensdistill.student.methods.alpha_divergence import AlphaDivergence
from ensdistill.student.methods.correlation import Correlation
from ensdistill.student.methods.decoupled import Decoupled
from ensdistill.student.methods.distribution import DistributionDistillation
from ensdistill.student.methods.heads import Heads
from ensdistill.student.methods.hints import Hints
from ensdistill.student.methods.method import check_number
from ensdistill.student.methods.mix import Mix
from ensdistill.student.methods.multi_level import MultiLevel
from ensdistill.student.methods.mutual import Mutual
from ensdistill.student.methods.own import as_student_loss, given_loss
from ensdistill.student.methods.protocol import StudentLoss
from ensdistill.student.methods.proxy_dirichlet import ProxyDirichlet
from ensdistill.student.methods.relational import Relational
from ensdistill.student.methods.soft_targets import SoftTargets
from ensdistill.student.methods.squared_logits import SquaredLogits
from ensdistill.student.methods.standardised import Standardised
from ensdistill.student.methods.weighted import WeightedTeachers


def soft(fixed: dict[str, Any], **settings: Any) -> StudentLoss:
    """The distillation loss by keywords of LossSettings, some of which the method's name sets."""
    if double := sorted(fixed.keys() & settings.keys()):
        raise ValueError(f"{double[0]}: expected none, because the method's name sets {fixed[double[0]]!r}")
    return SoftTargets(LossSettings(**fixed, **settings))


_KL: dict[str, dict[str, Any]] = {
    "kd": {},
    "reverse_kl": {"divergence": "reverse_kl"},
    "jsd": {"divergence": "jsd"},
    "tvd": {"divergence": "tvd"},
    "labels": {"alpha": 0.0},
}
METHODS: dict[str, Callable[..., StudentLoss]] = {
    **{name: partial(soft, fixed) for name, fixed in _KL.items()},
    "alpha_divergence": AlphaDivergence,
    "mse": SquaredLogits,
    "standardised": Standardised,
    "dkd": Decoupled,
    "dist": Correlation,
    "mlkd": MultiLevel,
    "weighted": WeightedTeachers,
    "rkd": Relational,
    "hints": Hints,
    "mutual": Mutual,
    "proxy_dirichlet": ProxyDirichlet,
    "endd": DistributionDistillation,
    "hydra": Heads,
}


def build(given: Any, argument: str = "method") -> StudentLoss:
    """The loss that a method's description stands for.

    Parameters
    ----------
    given : str, mapping, or callable
        The name of a method of this package or the import path of your own; or a mapping of such names, each
        to its weight in a sum, or to its settings, among which ``weight`` may be. A loss is itself.
    argument : str
        The argument that an error message names.

    Raises
    ------
    ValueError
        An unknown name, or a setting out of its range.
    TypeError
        Another type, or a setting that the method does not have.

    Examples
    --------
    >>> build("dkd").beta
    8.0
    >>> build({"kd": {"temperature": 4.0}, "dist": 0.5}).weights
    (1.0, 0.5)
    """
    if isinstance(given, str):
        given = {given: {}}
    if not isinstance(given, Mapping):
        return as_student_loss(given)
    if not given:
        raise ValueError(f"{argument}: expected at least one method; got none")
    parts, weights = [], []
    for name, value in given.items():
        part, weight = _part(argument, str(name), value)
        parts.append(part)
        weights.append(weight)
    if not any(weights):
        raise ValueError(f"{argument}: expected a weight above 0; got {dict(given)!r}")
    return parts[0] if weights == [1.0] else Mix(tuple(parts), tuple(weights))


def method_or_loss(
    method: Any, loss: Any, keywords: dict[str, Any]
) -> LossSettings | RegressionSettings | StudentLoss:
    """A trainer's ``method``, or its ``loss`` where it has none; see
    :func:`ensdistill.student.methods.own.given_loss`.

    Raises
    ------
    TypeError
        Both.
    """
    if method is None:
        return given_loss(loss, keywords)
    if loss is not None or keywords:
        given = ", ".join(["loss"] * (loss is not None) + list(keywords))
        raise TypeError(
            f"method: expected none beside {given}; got {method!r}: pass the settings of kd as "
            "method={'kd': {'temperature': 2.0}}"
        )
    return build(method)


def _part(argument: str, name: str, value: Any) -> tuple[StudentLoss, float]:
    """One method of a mix, and its weight."""
    where = f"{argument}.{name}"
    plain = value is None or isinstance(value, Mapping)
    settings: dict[str, Any] = dict(value or {}) if plain else {"weight": value}
    weight = check_number(f"{where}.weight", settings.pop("weight", 1.0))
    make = METHODS.get(name) or _own(argument, name)
    if make in METHODS.values() and (strange := [key for key in settings if key not in settings_of(make)]):
        known = ", ".join(["weight", *settings_of(make)])
        raise TypeError(f"{where}.{strange[0]}: expected one of {known}; got {settings[strange[0]]!r}")
    if missing := [key for key in needed_by(make) if key not in settings]:
        raise TypeError(f"{where}: expected settings for {' and '.join(missing)}; got {settings or 'none'}")
    if make in (Standardised, Mutual) and "of" in settings:
        settings["of"] = build(settings["of"], f"{where}.of")
    try:
        return as_student_loss(make(**settings)), weight
    except (TypeError, ValueError) as error:
        own = str(error).partition(":")[0] in settings
        raise type(error)(f"{where}.{error}" if own else f"{where}: {error}") from error


def settings_of(make: Any) -> list[str]:
    """The settings of a method of this package."""
    if isinstance(make, partial):
        return [f.name for f in fields(LossSettings) if f.name not in make.args[0]]
    own = [f.name for f in fields(make)] if is_dataclass(make) else []
    return [name for name in own if not (make is Heads and name == "weights")]


def needed_by(make: Any) -> list[str]:
    """The settings that a method of this package has no default for."""
    if make not in METHODS.values() or not inspect.isclass(make):
        return []
    own = inspect.signature(make).parameters.values()
    return [one.name for one in own if one.default is one.empty]


def _own(argument: str, path: str) -> Callable[..., Any]:
    """What makes the method that an import path names: a class, or a function that is one."""
    module, _, name = path.rpartition(".")
    near = difflib.get_close_matches(path, METHODS, 1)
    if not module:
        meant = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(
            f"{argument}: expected one of {', '.join(METHODS)}, or the import path of your own; got "
            f"{path!r}{meant}"
        )
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"{argument}: expected the import path of a method, package.module.name; got {path!r} ({error})"
        ) from error
    return found if inspect.isclass(found) else lambda: found
