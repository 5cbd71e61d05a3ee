"""From the parameter ``teachers`` to a calibrated and weighed ensemble."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import Pipeline
from sklearn.utils import get_tags
from torch import nn

from ensdistill.common.optimization import Optimization
from ensdistill.common.random import derive_seed
from ensdistill.common.tasks import Task
from ensdistill.data import Rows, Split
from ensdistill.data.copies import stratified_folds
from ensdistill.data.tasks import has_gaps
from ensdistill.job.config import TeachersConfig
from ensdistill.job.predictions import HeldOut
from ensdistill.job.stages import best_member, held_out_losses
from ensdistill.teachers import Ensemble, train_ensemble
from ensdistill.teachers.auto import MINUTES, auto_plan, facts_of
from ensdistill.teachers.base import BaseEnsemble
from ensdistill.teachers.jobs import TrainingRows
from ensdistill.teachers.members import Member, Preprocessed, as_member, default_name, inner
from ensdistill.teachers.members.base import is_member
from ensdistill.teachers.members.boosted import library_of
from ensdistill.teachers.prepared import prepare_recipes
from ensdistill.teachers.recipes import Recipe, SklearnMembers, TorchMembers
from ensdistill.teachers.requirements import check_weights
from ensdistill.teachers.stack.fitting import is_estimator
from ensdistill.teachers.train import Training, train
from ensdistill.teachers.validation import named_by_index

SUSPICIOUS = 50  # rows without any error, from which on fitted teachers may have been fitted to them


@dataclass(frozen=True)
class Taught:
    """The teachers of one fit.

    Parameters
    ----------
    ensemble : Ensemble or RegressionEnsemble
    best : str
        The member of least loss on rows that it was not trained on.
    held_out : ndarray [K, N, C], float32, Moments [K, N, D], or None
        Raw logits, or moments, for the labelled rows, of members that did not see them.
    """

    ensemble: Any
    best: str
    held_out: Any


def train_teachers(
    teachers: Any,
    split: Split,
    seed: int,
    *,
    minutes: float | None,
    default: TeachersConfig | None,
    preprocess: Any,
    optimization: Optimization,
    n_jobs: int | None,
    progress: bool,
) -> Taught:
    """Train the members, calibrated and weighed by their predictions on folds of the labelled rows.

    Parameters
    ----------
    teachers : "auto", or list
    split : Split
    seed : int
    minutes : float or None
        The budget of ``"auto"`` for tables and arrays [N, F].
    default : TeachersConfig or None
        That of ``"auto"`` for other samples; None where these have none.
    preprocess, optimization
        Of module classes in the list.
    n_jobs : int or None
        Estimators that are fitted at once.
    progress : bool
    """
    folds = _folds(split.labelled, len(split.classes), seed)
    planned = isinstance(teachers, str) and _is_numbers(split)
    if minutes is not None and not planned:
        raise ValueError(
            "teacher_minutes: expected None, because only teachers='auto' of a table or an array [N, F] has "
            f"a budget; got {minutes!r}"
        )
    if isinstance(teachers, str):
        if teachers != "auto" or default is None:
            raise ValueError(f"teachers: expected 'auto', a list or an Ensemble; got {teachers!r}")
        recipes: Sequence[Recipe] = default.recipes
        if planned:
            budget = MINUTES if minutes is None else minutes
            recipes = _planned(split, budget, max(2, folds))
    else:
        recipes = _recipes(teachers, preprocess, optimization)
    recipes = [
        replace(one, n_jobs=n_jobs) if isinstance(one, SklearnMembers) and one.n_jobs is None else one
        for one in recipes
    ]
    if folds < 2:
        return _without_folds(recipes, split, seed, progress)
    more: dict[str, Any] = {"select": planned, "progress": progress or None}
    ensemble, held_out = train_ensemble(
        recipes, split.labelled, split.classes, folds=folds, seed=seed, **more
    )
    if planned:
        own = HeldOut(held_out, split.labelled.labels).of_members(ensemble.weights > 0)
        held_out, ensemble = own, ensemble.weighted()
    losses = held_out_losses(ensemble, held_out, split.labelled.labels)
    complete = held_out if HeldOut(held_out, split.labelled.labels).judged.all() else None
    return Taught(ensemble, best_member(ensemble, losses), complete)


def _planned(split: Split, minutes: float, folds: int) -> Sequence[Recipe]:
    """The recipes of ``teachers="auto"``; its errors name the estimator's parameter."""
    rows = split.labelled
    kind: dict[str, Any] = {"task": split.task, "gaps": has_gaps(rows.labels)}
    try:
        plan = auto_plan(rows.inputs, len(split.classes), minutes=minutes, folds=folds, **kind)
        return plan.recipes
    except (TypeError, ValueError) as error:
        if str(error).startswith("minutes:"):
            raise type(error)(f"teacher_{error}") from None
        raise


def _is_numbers(split: Split) -> bool:
    """Whether the samples are a table or an array [N, F]."""
    try:
        facts_of(split.labelled.inputs, len(split.classes))
    except ValueError:
        return False
    return True


def fitted_teachers(teachers: Any, split: Split) -> Taught:
    """Teachers that are fitted already: calibrated and weighed by the labelled rows, unless they are an
    Ensemble, which keeps its temperatures and weights.

    Raises
    ------
    ValueError
        A teacher is not fitted, or has other classes.
    """
    rows, task = split.labelled, split.task
    ensemble: Any
    if isinstance(teachers, BaseEnsemble):
        if teachers.task != task:
            raise ValueError(
                f"teachers: expected an ensemble of the task {task}, as y is; got one of {teachers.task}"
            )
        ensemble = _with_classes(teachers, split.classes)
        raw = _raw(ensemble, rows.inputs)
    else:
        named = _numbered([_item(one) for one in _listed(teachers)])
        ensemble = Ensemble.from_members(
            [_fitted(name, one, split.classes, task) for name, one in named],
            classes=split.classes,
            task=task,
        )
        raw = _raw(ensemble, rows.inputs)
        if task == "classification":
            _warn_of_no_error(ensemble, raw, rows)
        ensemble.calibrate(raw, rows.labels, sample_weight=rows.weights)
        ensemble.weigh(raw, rows.labels, sample_weight=rows.weights)
    return Taught(ensemble, best_member(ensemble, held_out_losses(ensemble, raw, rows.labels)), None)


def _raw(ensemble: Any, inputs: Any) -> Any:
    """The members' logits without temperatures, or the moments of regressors."""
    return ensemble.predict_moments(inputs) if ensemble.task == "regression" else ensemble.raw_logits(inputs)


def takes_several(teachers: Any) -> bool:
    """Whether all teachers take labels of several columns, or several numbers, as far as their tags show."""
    if isinstance(teachers, str):
        return True
    if isinstance(teachers, BaseEnsemble):
        return teachers.task != "classification"
    listed = isinstance(teachers, (list, tuple)) and len(teachers) > 0
    return listed and all(_model_takes_several(_item(one)[1]) for one in teachers)


def _model_takes_several(value: Any) -> bool:
    value = getattr(value, "estimator", value) if not is_estimator(value) else value
    cls = getattr(value, "func", value)
    if isinstance(cls, type) and issubclass(cls, nn.Module):
        return True
    try:
        tags = get_tags(value)
    except (AttributeError, TypeError, ValueError):
        return False
    several = tags.classifier_tags is not None and tags.classifier_tags.multi_label
    return bool(several or tags.target_tags.multi_output)


def takes_gaps(teachers: Any) -> bool:
    """Whether all teachers take NaN in arrays, as far as their tags show."""
    if isinstance(teachers, str):
        return True
    if isinstance(teachers, BaseEnsemble):
        return all(_model_takes_gaps(inner(member)) for member in teachers.members)
    return isinstance(teachers, (list, tuple)) and all(_model_takes_gaps(_item(one)[1]) for one in teachers)


def _model_takes_gaps(value: Any) -> bool:
    for name in ("estimator", "booster"):  # of a recipe or a member
        value = getattr(value, name, value) if not is_estimator(value) else value
    if isinstance(value, FrozenEstimator):
        value = value.estimator
    cls = getattr(value, "func", value)  # of a functools.partial
    if library_of(value) is not None or (isinstance(cls, type) and issubclass(cls, nn.Module)):
        return True  # a module class gets a preprocess that fills gaps
    if isinstance(value, Pipeline):
        return _model_takes_gaps(value.steps[0][1])
    try:
        return bool(get_tags(value).input_tags.allow_nan)
    except (AttributeError, TypeError, ValueError):
        return False


def _listed(teachers: Any) -> list[Any]:
    if not isinstance(teachers, (list, tuple)):
        raise TypeError(
            "teachers: expected 'auto', a list of estimators, of (name, estimator) or of recipes, or an "
            f"Ensemble; got {type(teachers).__name__}"
        )
    if not teachers:
        raise ValueError("teachers: expected at least one; got an empty list")
    return list(teachers)


def _item(value: Any) -> tuple[str | None, Any]:
    """The name and the model of an item of the list. A tuple (model, preprocess) is a model."""
    named = isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], str)
    if named and not value[0].endswith(".onnx"):
        return value[0], value[1]
    return None, value


def _numbered(items: list[tuple[str | None, Any]]) -> list[tuple[str, Any]]:
    """Unnamed items are called after their kind, with numbers where several are of one."""
    kinds = [name or _called(value) for name, value in items]
    seen: dict[str, int] = {}
    found = []
    for (name, value), kind in zip(items, kinds, strict=True):
        seen[kind] = seen.get(kind, 0) + 1
        several = name is None and kinds.count(kind) > 1
        found.append((f"{kind}-{seen[kind]}" if several else kind, value))
    return found


def _called(value: Any) -> str:
    value = getattr(value, "func", value)  # of a functools.partial
    if isinstance(value, FrozenEstimator):
        value = value.estimator
    if is_member(value) or isinstance(value, Recipe):
        return str(value.name)
    return value.__name__.lower() if isinstance(value, type) else default_name(value)


def _recipes(teachers: Any, preprocess: Any, optimization: Optimization) -> list[Recipe]:
    found: list[Recipe] = []
    for name, value in _numbered([_item(one) for one in _listed(teachers)]):
        cls = getattr(value, "func", value)
        if isinstance(value, Recipe):
            found.append(value)
        elif isinstance(value, (FrozenEstimator, nn.Module, BaseEnsemble, tuple)):
            raise ValueError(
                f"teachers: {name} is fitted already: pass prefit=True, or an estimator or a module class "
                "that is to be trained"
            )
        elif is_estimator(value):
            found.append(SklearnMembers(value, name=name))
        elif isinstance(cls, type) and issubclass(cls, nn.Module):
            found.append(TorchMembers(value, 1, name, optimization=optimization, preprocess=preprocess))
        else:
            raise TypeError(
                f"teachers: expected estimators, module classes, functools.partial of these, or recipes; got "
                f"{type(value).__name__}"
            )
    return found


def _folds(rows: Rows, classes: int, seed: int) -> int:
    """As many folds as the rows allow, up to five; below two where they allow none."""
    most = len(rows)
    if rows.task == "classification":
        most = int(np.bincount(rows.labels, minlength=classes).min())
    for folds in range(min(5, most), 1, -1):
        try:
            stratified_folds(rows.inputs, rows.labels, folds, derive_seed("folds", seed), rows.groups)
            return folds
        except ValueError:  # equal rows stay in one fold
            continue
    return 0


def _without_folds(recipes: Sequence[Recipe], split: Split, seed: int, progress: bool) -> Taught:
    rows, classes = split.labelled, split.classes
    lacking = "there are too few different rows for folds"
    if rows.task == "classification":
        rare = classes[int(np.bincount(rows.labels, minlength=len(classes)).argmin())]
        lacking = f"class {rare!r} has too few different rows for folds"
    warnings.warn(
        f"teachers: they are neither calibrated nor weighed, because {lacking}",
        stacklevel=4,
    )
    data = TrainingRows(rows.inputs, rows.labels, classes, rows.weights)
    planned = [
        (recipe, recipe.jobs(rows.labels, seed))
        for recipe in prepare_recipes(recipes, rows.inputs, len(classes), seed)
    ]
    check_weights(planned, data)
    made = train(Training(planned, data, {}), dict, device="cpu", folder=None, progress=progress or None)
    names = [job.name for _, jobs in planned for job in jobs]
    members = [made[name] for name in names]
    ensemble: Any = Ensemble.from_members(members, classes=classes, task=rows.task)
    return Taught(ensemble, ensemble.names[0], None)


def _fitted(name: str, value: Any, classes: tuple[str, ...], task: Task) -> Member:
    """The teacher as a member; one that was fitted to the integers 0..C-1 has the classes by index."""
    if isinstance(value, Recipe):
        raise ValueError(f"teachers: {name} is a recipe, which is yet to be trained: pass prefit=False")
    if isinstance(value, type) or isinstance(getattr(value, "func", None), type):
        raise ValueError(f"teachers: {name} is a class, of which nothing is trained: pass prefit=False")
    value = value.estimator if isinstance(value, FrozenEstimator) else value
    try:
        known = None if task == "classification" else task
        return named_by_index(as_member(value, name, task=known), value, classes)
    except ValueError as error:
        raise ValueError(f"teachers: {error} (prefit=True takes fitted teachers)") from error


def _with_classes(ensemble: Any, classes: tuple[str, ...]) -> Any:
    """The ensemble with its outputs in the order of the classes of y; columns of other tasks have an order
    of their own."""
    own = ensemble.classes
    if ensemble.task != "classification" and own is not None and len(own) == len(classes):
        return ensemble
    if own is None or own == classes:
        found = copy(ensemble)
        found.classes = classes
        return found
    if set(own) != set(classes):
        raise ValueError(f"teachers: expected an Ensemble of the classes {list(classes)}; got {list(own)}")
    members = [_with_names(member, own) for member in ensemble.members]
    found = Ensemble.from_members(
        members, classes=classes, weights=ensemble.weights, combiner=ensemble.combiner
    )
    found.temperatures, found.temperature = ensemble.temperatures.copy(), ensemble.temperature
    if ensemble.vectors is not None:
        found.vectors = ensemble.vectors[:, :, [own.index(name) for name in classes]]
    return found


def _with_names(member: Member, classes: tuple[str, ...]) -> Member:
    """The member with the names of its outputs: a module has none, so nothing else would reorder them."""
    if member.classes is not None:
        return member
    made = copy(member)
    if isinstance(made, Preprocessed):
        made.member = _with_names(made.member, classes)
    made.classes = classes
    return made


def _warn_of_no_error(ensemble: Ensemble, raw: np.ndarray, rows: Rows) -> None:
    right = (raw.argmax(-1) == rows.labels).all(1)
    if len(rows) >= SUSPICIOUS and right.any():
        names = [name for name, all_right in zip(ensemble.names, right, strict=True) if all_right]
        warnings.warn(
            f"prefit: {', '.join(names)} made no error on {len(rows)} rows. If it was fitted to them, its "
            "temperature, its weight and the report are too good: pass rows that the teachers have not seen",
            stacklevel=4,
        )
