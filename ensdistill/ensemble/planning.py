"""What ``Ensemble.train`` is to train, checked before it begins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from ensdistill.augmentation import Augmentation
from ensdistill.data import Rows, check_finite, derive_seed
from ensdistill.describe import class_path, module_recipe
from ensdistill.ensemble import estimators
from ensdistill.ensemble.methods import FastGeometric, Method, Snapshot
from ensdistill.members.base import as_classes
from ensdistill.optimization import Optimization
from ensdistill.training import Way


@dataclass(frozen=True)
class Planned:
    """A member to be: its number, name, seed, what makes it, how it is optimised (a module), and the rows it learns from."""

    number: int
    name: str
    seed: int
    factory: Any
    optimization: Optimization
    rows: np.ndarray


@dataclass(frozen=True)
class Settings:
    """What all members of a training share."""

    inputs: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]
    method: Method
    augment: Augmentation | None
    way: Way
    device: str
    n_jobs: int | None


def one_training(method: Method) -> bool:
    return isinstance(method, (Snapshot, FastGeometric))


def plan(
    factory: Any,
    members: int | Sequence[int] | None,
    method: Method,
    seed: int,
    name: str | None,
    labels: np.ndarray,
    optimization: Optimization | Sequence[Optimization] | None = None,
) -> list[Planned]:
    """What is to be trained, checked."""
    several = isinstance(factory, (list, tuple)) or isinstance(optimization, (list, tuple))
    optimizations: list[Any] = list(optimization) if isinstance(optimization, (list, tuple)) else [optimization or Optimization()]
    factories = list(factory) if isinstance(factory, (list, tuple)) else [factory] * len(optimizations)
    if not factories:
        raise ValueError("factory: expected at least one; got an empty list")
    if isinstance(optimization, (list, tuple)) and len(optimizations) != len(factories):
        raise ValueError(f"optimization: expected one, or one for each of the {len(factories)} factories; got {len(optimizations)}")
    if wrong := [o for o in optimizations if not isinstance(o, Optimization)]:
        raise TypeError(f"optimization: expected an Optimization, or a list of them; got {class_path(type(wrong[0]))}")
    if members is None and not several:
        raise ValueError("members: expected how many members; got None, which stands for one of each factory in a list")
    members = int(members) if isinstance(members, np.integer) else members
    if members is not None and not isinstance(members, int) and not hasattr(members, "__iter__"):
        raise TypeError(f"members: expected a number, or numbers of members; got {class_path(type(members))}")
    numbers = list(range(len(factories))) if members is None else list(range(members)) if isinstance(members, int) else list(members)
    numbers = [int(n) if isinstance(n, np.integer) else n for n in numbers]
    if not numbers or any(not isinstance(n, int) or n < 0 for n in numbers) or len(set(numbers)) != len(numbers):
        raise ValueError(f"members: expected a number of at least 1, or different numbers of members from 0; got {members!r}")
    if one_training(method) and (several or estimators.is_estimator(factory) or not isinstance(members, int)):
        kind = type(method).__name__
        raise ValueError(f"method: {kind} takes all its members from one training of one torch module: expected one factory and a number")
    for one in factories:
        if isinstance(one, type) and hasattr(one, "fit") and hasattr(one, "get_params"):
            raise TypeError(f"factory: expected an estimator that is to be fitted, {one.__name__}(...); got its class {class_path(one)}")
        if isinstance(one, nn.Module) or not (estimators.is_estimator(one) or callable(one)):
            got = f"the {type(one).__name__} itself" if isinstance(one, nn.Module) else class_path(type(one))
            expected = "what makes a new module (its class, functools.partial of it, a function), an estimator that is to be fitted"
            raise TypeError(f"factory: expected {expected}, or a list of those; got {got}")
    planned = []
    for number in numbers:
        one = factories[number % len(factories)]
        own = derive_seed("member", seed, number) if not one_training(method) else derive_seed("member", seed)
        rows = np.arange(len(labels), dtype=np.int64) if isinstance(method, (Snapshot, FastGeometric)) else method.rows(labels, own)
        planned.append(Planned(number, f"{name or _called(one)}-{number + 1}", own, one, optimizations[number % len(optimizations)], rows))
    if not one_training(method):
        counts = [sum(p.factory is one for p in planned) for one in factories]
        differ = not np.array_equal(planned[0].rows, planned[-1].rows)
        estimators.check_seeds([(one, n) for one, n in zip(factories, counts, strict=True) if estimators.is_estimator(one)], differ)
    return planned


def _called(factory: Any) -> str:
    if estimators.is_estimator(factory):
        return type(factory).__name__.lower()
    recipe = module_recipe(factory)
    return "member" if recipe is None else recipe["class_path"].rpartition(".")[2].lower()


def as_data(data: Any, classes: Sequence[str] | None) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Inputs [N, ...], labels as class indices, int64 [N], and the classes' names."""
    if isinstance(data, Rows):
        inputs, labels = data.inputs, data.labels
    elif isinstance(data, tuple) and len(data) == 2:
        inputs, labels = (v.detach().cpu().numpy() if isinstance(v, torch.Tensor) else np.asarray(v) for v in data)
    else:
        raise TypeError(f"data: expected Rows, or a tuple of inputs and labels; got {class_path(type(data))}")
    if inputs.ndim < 2 or labels.shape != inputs.shape[:1] or len(inputs) == 0:
        raise ValueError(f"data: expected inputs [N, ...] and labels [N]; got {list(inputs.shape)} and {list(labels.shape)}")
    check_finite("data", inputs)
    wanted = as_classes("the ensemble", classes)
    if labels.dtype.kind in "US":  # names
        names = tuple(np.unique(labels).tolist()) if wanted is None else wanted
        position = {name: i for i, name in enumerate(names)}
        if unknown := sorted(set(labels.tolist()) - set(names)):
            raise ValueError(f"classes: expected all names among the labels; {unknown} are missing from {list(names)}")
        labels = np.array([position[name] for name in labels.tolist()], np.int64)
    elif labels.dtype.kind in "iu":
        labels = labels.astype(np.int64)
        names = _numbers(labels) if wanted is None else wanted
    else:
        raise ValueError(f"data: expected labels that are class indices or names; got {labels.dtype}")
    if labels.min() < 0 or labels.max() >= len(names):
        row = int(np.flatnonzero((labels < 0) | (labels >= len(names)))[0])
        raise ValueError(f"data: expected labels in 0..{len(names) - 1}; row {row} has {labels[row]}")
    if len(np.unique(labels)) < 2:
        raise ValueError(f"data: expected rows of at least two classes; all are of class {names[labels[0]]!r}")
    return inputs, labels, names


def _numbers(labels: np.ndarray) -> tuple[str, ...]:
    """The names 0..C-1 of classes that are known by their indices alone. Of numbers with gaps nobody can tell how many classes they are
    of: from 1, they may be counted from there, and be an index too high each."""
    there = np.unique(labels).tolist()
    if len(there) > 1 and there[0] >= 0 and there[-1] >= len(there):
        got = f"{len(there)} different ones, {there[:5]}{' ...' * (len(there) > 5)}, up to {there[-1]}"
        raise ValueError(
            f"data: expected labels in 0..C-1, class indices, with rows of each; got {got}. "
            "If they are names, pass labels.astype(str); if they are indices, name all classes by classes="
        )
    return tuple(str(i) for i in range(there[-1] + 1))


def check_learnable(planned: list[Planned], settings: Settings) -> None:
    """Estimators know no class but those they have seen; modules have an output for each in any case."""
    missing = sorted(set(range(len(settings.classes))) - set(np.unique(settings.labels).tolist()))
    for p in planned:
        if missing and estimators.is_estimator(p.factory):
            names = [settings.classes[i] for i in missing]
            raise ValueError(
                f"classes: {p.name}: expected rows of each of {list(settings.classes)}, because a fitted estimator knows no others; "
                f"there are none of {names}. Leave them out, with labels that are names or count the classes that are left"
            )
