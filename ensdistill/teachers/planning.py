"""From the arguments of ``Ensemble.train`` to rows, recipes and jobs, checked before anything is trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from ensdistill.common.describe import class_path, module_recipe
from ensdistill.common.optimization import Optimization
from ensdistill.common.skops_files import untrusted_types
from ensdistill.common.tasks import Task, check_task
from ensdistill.data import BadRows, Rows, as_multilabels, as_numbers, check_finite
from ensdistill.data.augmentation import Augmentation
from ensdistill.data.batches.images import IMAGES
from ensdistill.data.labels import as_labels
from ensdistill.data.rows import as_weights
from ensdistill.data.samples import as_samples
from ensdistill.data.tasks import known_rows
from ensdistill.teachers.jobs import Job, TrainingRows
from ensdistill.teachers.members.base import as_classes
from ensdistill.teachers.members.boosted import library_of
from ensdistill.teachers.members.inputs import as_batch, lazy
from ensdistill.teachers.methods import FastGeometric, Method, Snapshot
from ensdistill.teachers.recipes import Recipe, SklearnMembers, TorchMembers, plan_jobs
from ensdistill.teachers.stack import Way
from ensdistill.teachers.stack.fitting import is_estimator, seeds_of
from ensdistill.teachers.train import Planned


def one_training(method: Method) -> bool:
    return isinstance(method, (Snapshot, FastGeometric))


@dataclass(frozen=True)
class Settings:
    """Settings that all members of one call of ``Ensemble.train`` share."""

    method: Method
    augment: Augmentation | None
    way: Way
    device: str
    n_jobs: int | None
    stored: bool  # whether members are kept in a folder
    preprocess: Any = "auto"
    variance: bool = False


def plan(
    factory: Any,
    members: int | Sequence[int] | None,
    seed: int,
    name: str | None,
    labels: np.ndarray,
    settings: Settings,
    optimization: Optimization | Sequence[Optimization] | None = None,
) -> tuple[Planned, list[str]]:
    """The recipes that the arguments of ``Ensemble.train`` describe, each with its jobs, and the members'
    names in order; checked.

    Members of one factory and optimisation are of one recipe. Numbers count over all factories in turn.
    """
    method = settings.method
    several = isinstance(factory, (list, tuple)) or isinstance(optimization, (list, tuple))
    optimizations: list[Any] = (
        list(optimization) if isinstance(optimization, (list, tuple)) else [optimization or Optimization()]
    )
    factories = list(factory) if isinstance(factory, (list, tuple)) else [factory] * len(optimizations)
    if not factories:
        raise ValueError("factory: expected at least one; got an empty list")
    if isinstance(optimization, (list, tuple)) and len(optimizations) != len(factories):
        raise ValueError(
            f"optimization: expected one, or one for each of the {len(factories)} factories; got "
            f"{len(optimizations)}"
        )
    if wrong := [o for o in optimizations if not isinstance(o, Optimization)]:
        raise TypeError(
            f"optimization: expected an Optimization, or a list of them; got {class_path(type(wrong[0]))}"
        )
    if members is None and not several:
        raise ValueError(
            "members: expected how many members; got None, which stands for one of each factory in a list"
        )
    members = int(members) if isinstance(members, np.integer) else members
    if members is not None and not isinstance(members, int) and not hasattr(members, "__iter__"):
        raise TypeError(f"members: expected a number, or numbers of members; got {class_path(type(members))}")
    numbers = (
        list(range(len(factories)))
        if members is None
        else list(range(members))
        if isinstance(members, int)
        else list(members)
    )
    numbers = [int(n) if isinstance(n, np.integer) else n for n in numbers]
    if (
        not numbers
        or any(not isinstance(n, int) or n < 0 for n in numbers)
        or len(set(numbers)) != len(numbers)
    ):
        raise ValueError(
            "members: expected a number of at least 1, or different numbers of members from 0; got "
            f"{members!r}"
        )
    if one_training(method) and (several or is_estimator(factory) or not isinstance(members, int)):
        kind = type(method).__name__
        raise ValueError(
            f"method: {kind} takes all its members from one training of one torch module: expected one "
            "factory and a number"
        )
    for one in factories:
        if isinstance(one, type) and hasattr(one, "fit") and hasattr(one, "get_params"):
            raise TypeError(
                f"factory: expected an estimator that is to be fitted, {one.__name__}(...); got its class "
                f"{class_path(one)}"
            )
        if isinstance(one, nn.Module) or not (is_estimator(one) or callable(one)):
            got = f"the {type(one).__name__} itself" if isinstance(one, nn.Module) else class_path(type(one))
            expected = (
                "what makes a new module (its class, functools.partial of it, a function), an estimator "
                "that is to be fitted"
            )
            raise TypeError(f"factory: expected {expected}, or a list of those; got {got}")
    groups: dict[tuple[int, Optimization], list[int]] = {}
    for number in numbers:
        groups.setdefault(
            (id(factories[number % len(factories)]), optimizations[number % len(optimizations)]), []
        ).append(number)
    called = {
        number: f"{name or _called(factories[number % len(factories)])}-{number + 1}" for number in numbers
    }
    planned: Planned = []
    for (_, own), group in groups.items():
        one = factories[group[0] % len(factories)]
        names = [called[number] for number in group]
        jobs = plan_jobs(names, name or _called(one), method, labels, seed)
        if is_estimator(one):
            _check_seeds(one, jobs)
        planned.append((_recipe(one, own, names, settings), jobs))
    return planned, [called[number] for number in numbers]


def _recipe(factory: Any, optimization: Optimization, names: list[str], settings: Settings) -> Recipe:
    kept: dict[str, Any] = {
        "name": names[0],
        "method": settings.method,
        "preprocess": settings.preprocess,
    }
    if is_estimator(factory):
        trusted = own_types(factory, names[0]) if settings.stored else ()
        return SklearnMembers(factory, n_jobs=settings.n_jobs, trusted=tuple(trusted), **kept)
    if settings.stored and module_recipe(factory) is None:
        raise ValueError(
            f"factory: {names[0]}: expected a module class, or functools.partial of one with plain "
            "arguments, so that the member can be "
            f"saved in the folder; got {factory!r}"
        )
    kept |= {
        "count": len(names),
        "optimization": optimization,
        "augment": settings.augment,
        "way": settings.way,
        "variance": settings.variance,
    }
    return TorchMembers(factory, device=settings.device, **kept)


def _check_seeds(estimator: Any, jobs: list[Job]) -> None:
    """Refuse members that would be equal: several of an estimator that has no seed, on the same rows."""
    if len(jobs) > 1 and np.array_equal(jobs[0].rows, jobs[-1].rows) and not seeds_of(estimator, 0):
        raise ValueError(
            f"factory: {type(estimator).__name__} has no random_state that is None, so its {len(jobs)} "
            "members would be equal; "
            "choose method='bagging', or different estimators"
        )


def own_types(estimator: Any, name: str) -> list[str]:
    """The types that an estimator, which is the caller's own, is made of beside those of scikit-learn.

    Raises
    ------
    ValueError
        It holds types that can't be saved without pickle.
    """
    if library_of(estimator) is not None:
        return []
    import skops.io

    try:
        types = untrusted_types(skops.io.dumps(estimator))
    except Exception as error:  # its kind depends on the parts of the estimator
        raise ValueError(
            f"factory: {name}: can't be saved in the folder without pickle: {type(error).__name__}: {error}"
        ) from error
    if nameless := [one for one in types if "<" in one]:
        raise ValueError(
            f"factory: {name}: can't be saved in the folder without pickle: {nameless} can't be imported "
            "again"
        )
    return types


def _called(factory: Any) -> str:
    if is_estimator(factory):
        return type(factory).__name__.lower()
    recipe = module_recipe(factory)
    return "member" if recipe is None else recipe["class_path"].rpartition(".")[2].lower()


def as_data(
    data: Any, classes: Sequence[str] | None, sample_weight: Any = None, task: Task | None = None
) -> TrainingRows:
    """The rows to learn from, checked: labels in the form of the task, names, and any weights."""
    if not isinstance(data, Rows) and not (isinstance(data, tuple) and len(data) == 2):
        raise TypeError(f"data: expected Rows, or a tuple of inputs and labels; got {class_path(type(data))}")
    given, own = (data.inputs, data.labels) if isinstance(data, Rows) else data
    _check_same_index("labels", own, given)
    inputs = _inputs(given)
    shape = list(inputs.shape) if isinstance(inputs, np.ndarray) else [len(inputs)]
    flat = isinstance(inputs, np.ndarray) and len(shape) < 2
    columns = np.shape(own)[1:] if isinstance(data, Rows) or task not in (None, "classification") else ()
    if len(inputs) == 0 or flat or [*np.shape(own)] != [*shape[:1], *columns]:
        raise ValueError(f"data: expected inputs [N, ...] and labels [N]; got {shape} and {[*np.shape(own)]}")
    labels, names = _labels(data, own, as_classes("the ensemble", classes), task)
    _check_same_index("sample_weight", sample_weight, given)
    if isinstance(data, Rows) and data.weights is not None:
        if sample_weight is not None:
            raise ValueError("sample_weight: expected none, because the rows have weights; got both")
        sample_weight = data.weights
    return TrainingRows(
        inputs,
        labels,
        names,
        None if sample_weight is None else as_weights("sample_weight", sample_weight, len(inputs)),
    )


def _labels(
    data: Any, own: Any, names: tuple[str, ...] | None, task: Task | None
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Labels in the form of their task, and the names of the classes, the labels or the numbers."""
    found = data.task if isinstance(data, Rows) else check_task(task or "classification")
    if task not in (None, found):
        raise ValueError(f"task: expected {found}, of which the labels of the rows are; got {task}")
    if found == "classification":
        labels, classes = as_labels(own, names, indices=isinstance(data, Rows))
        if len(np.unique(labels)) < 2:
            raise ValueError(
                f"data: expected rows of at least two classes; all are of class {classes[labels[0]]!r}"
            )
        return labels, classes
    convert = as_multilabels if found == "multilabel" else as_numbers
    labels = own if isinstance(data, Rows) else convert(own, argument="data")
    if len(rows := np.flatnonzero(~known_rows(labels))):
        raise BadRows(
            f"data: expected a label in each row; row {rows[0]} has none ({len(rows)} such rows)", rows
        )
    count = labels.shape[1]
    frame = getattr(own, "columns", None)
    given = names or tuple(str(name) for name in (range(count) if frame is None else frame))
    if len(given) != count:
        raise ValueError(
            f"classes: expected {count} names, one for each column of the labels; got {list(given)}"
        )
    return labels, given


def _inputs(given: Any) -> Any:
    """An array of numbers, or samples of another kind; a frame whose columns have no names is an array."""
    if isinstance(given, torch.Tensor):
        given = as_batch(given)
    elif not isinstance(given, np.ndarray):
        named = all(isinstance(name, str) for name in getattr(given, "columns", ()))
        if named and not _is_numeric_list(given):
            return as_samples(as_batch(given) if lazy(given) is None else given, "data")
        given = np.asarray(given)
    if given.dtype.kind not in "fiub":
        raise ValueError(
            f"data: expected inputs that are numbers; got {given.dtype}: pass texts as a list of strings, "
            "columns of unlike types as a data frame with named columns"
        )
    if given.dtype.kind == "f" and (infinite := np.isinf(given)).any():
        check_finite("data", np.where(infinite, given, 0))
    return given


def _is_numeric_list(given: Any) -> bool:
    """Whether it is a list of rows of numbers, which is an array; not one of texts or of images."""
    if not isinstance(given, (list, tuple)) or IMAGES.holds(given):
        return False
    try:
        return np.asarray(given).dtype.kind in "fiub"
    except ValueError:  # rows of unlike lengths
        return False


def _check_same_index(name: str, value: Any, inputs: Any) -> None:
    """Refuse columns of pandas whose rows are not those of the inputs, or are in another order."""
    one, other = (getattr(v, "index", None) if hasattr(v, "iloc") else None for v in (value, inputs))
    if one is not None and other is not None and not one.equals(other):
        raise ValueError(
            f"{name}: expected the index of the inputs; got another: align it by {name}.loc[inputs.index], "
            "or, if the rows are in the same "
            "order, pass both by .to_numpy()"
        )
