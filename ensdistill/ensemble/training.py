"""``Ensemble.train``: many members from one factory, or from several, on one process or on many."""

from __future__ import annotations

import shutil
from collections import defaultdict
from collections.abc import Container, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from ensdistill.augmentation import Augmentation
from ensdistill.data import Rows, check_finite, derive_seed
from ensdistill.describe import class_path, describe, module_recipe
from ensdistill.ensemble import estimators, storage
from ensdistill.ensemble.methods import FastGeometric, Method, Snapshot
from ensdistill.ensemble.view import TrainingView
from ensdistill.files import read_json, write_json
from ensdistill.fingerprint import digest
from ensdistill.members import Member, SklearnMember, TorchMember, load_member
from ensdistill.members.boosted import library_of
from ensdistill.optimization import Optimization
from ensdistill.processes import Processes, processes
from ensdistill.skops_files import untrusted_types
from ensdistill.training import Status, Watch, Way, train_stack, train_trajectory
from ensdistill.training.checks import Seen, check_own

if TYPE_CHECKING:
    from ensdistill.ensemble.core import Ensemble


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


def train(
    cls: type[Ensemble],
    planned: list[Planned],
    settings: Settings,
    *,
    combiner: Any,
    folder: Path | str | None,
    progress: bool | Watch | None,
) -> Ensemble:
    """Train what is planned; see :meth:`ensdistill.ensemble.Ensemble.train`."""
    _check_learnable(planned, settings)
    with processes(settings.device) as group:
        if folder is None:
            if group.count > 1:
                raise ValueError(f"folder: expected one that all {group.count} processes see, where they put their members; got None")
            with _watched(progress, planned) as watch:
                made = dict(_fit(planned, settings, None, watch))
            return cls.from_members([made[p.name] for p in planned], combiner=combiner, classes=settings.classes)
        return _on_disk(cls, planned, settings, combiner, Path(folder), group, progress)


def _watched(progress: bool | Watch | None, planned: list[Planned], **view: Any) -> AbstractContextManager[Watch | None]:
    return TrainingView([p.name for p in planned], **view) if progress is True else nullcontext(progress or None)


def _check_learnable(planned: list[Planned], settings: Settings) -> None:
    """Estimators know no class but those they have seen; modules have an output for each in any case."""
    missing = sorted(set(range(len(settings.classes))) - set(np.unique(settings.labels).tolist()))
    for p in planned:
        if missing and estimators.is_estimator(p.factory):
            names = [settings.classes[i] for i in missing]
            raise ValueError(
                f"classes: {p.name}: expected rows of each of {list(settings.classes)}, because a fitted estimator knows no others; "
                f"there are none of {names}. Leave them out, with labels that are names or count the classes that are left"
            )


def _on_disk(
    cls: type[Ensemble],
    planned: list[Planned],
    settings: Settings,
    combiner: Any,
    folder: Path,
    group: Processes,
    progress: bool | Watch | None,
) -> Ensemble:
    """Every member is put into the folder by the process whose it is, and taken from there by all."""
    prints = _fingerprints(planned, settings)
    trusted = [path for p in planned for path in _own_types(p)]

    def done(name: str) -> bool:
        return _finished(folder, name, prints[name])

    finished = {p.name for p in planned if done(p.name)}
    homes = [folder / "training" / f"{rank}-of-{group.count}" for rank in range(group.count)]
    shares = [_share(planned, prints, finished, home, rank, group.count) for rank, home in enumerate(homes)]
    group.wait()  # nobody may write before everybody has seen what there is
    home, mine = homes[group.rank], shares[group.rank]
    if mine:
        write_json(home / "share.json", {p.name: prints[p.name] for p in mine})
    ranks = {p.name: rank for rank, share in enumerate(shares) if rank != group.rank for p in share}
    shown = None if progress is True and group.rank > 0 else progress  # one view of all members
    with _watched(shown, planned, ranks=ranks, finished=done) as watch:
        for name, member in _fit(mine, settings, home / "checkpoint", watch, finished):
            if isinstance(member, SklearnMember) and (unknown := member.untrusted(trusted)):
                raise ValueError(
                    f"factory: {name}: fitted, it holds types that are not trusted, so that the folder would not give it back: {unknown}. "
                    f"If you know them, train without a folder, save the ensemble, and read it by Ensemble.load(folder, trusted={unknown})"
                )
            place = folder / "members" / name
            (place / "trained.json").unlink(missing_ok=True)
            member.save(place)
            write_json(place / "trained.json", {"fingerprint": prints[name]})
        shutil.rmtree(home, ignore_errors=True)
        group.wait()
    # Read back by everybody: a member that was just trained and one that comes from disk can't differ.
    members = [load_member(folder / "members" / p.name, trusted) for p in planned]
    ensemble = cls.from_members(members, combiner=combiner, classes=settings.classes)
    if group.rank == 0:
        shutil.rmtree(folder / "training", ignore_errors=True)  # of a run with another number of processes
        write_json(folder / "ensemble.json", {"format": storage.FORMAT, **ensemble.fingerprint()})
    group.wait()
    return ensemble


def _share(planned: list[Planned], prints: dict[str, str], finished: set[str], home: Path, rank: int, count: int) -> list[Planned]:
    """A process's members: those it was at when it was killed, for the sake of their checkpoint, or its part of what is left."""
    before = read_json(home / "share.json")
    if isinstance(before, dict) and all(prints.get(name) == value for name, value in before.items()):
        return [p for p in planned if p.name in before]
    return [p for i, p in enumerate(planned) if i % count == rank and p.name not in finished]


def _finished(folder: Path, name: str, fingerprint: str) -> bool:
    record = read_json(folder / "members" / name / "trained.json")
    return isinstance(record, dict) and record.get("fingerprint") == fingerprint


def _fingerprints(planned: list[Planned], settings: Settings) -> dict[str, str]:
    """Of everything a member depends on. Who is trained beside it is not among that."""
    for p in planned:
        if isinstance(p.factory, nn.Module) or (not estimators.is_estimator(p.factory) and _recipe(p.factory) is None):
            raise ValueError(
                f"factory: {p.name}: expected a module class, or functools.partial of one with plain arguments, so that the member can be "
                f"saved in the folder; got {p.factory!r}"
            )
    common = [settings.inputs, settings.labels, list(settings.classes), describe(settings.method)]
    augment = None if settings.augment is None else describe(settings.augment)
    shared = digest([common, augment, settings.way, torch.__version__, len(planned) if _one_training(settings.method) else 0])
    return {p.name: digest([shared, describe(p.factory), p.optimization, p.number, p.seed, p.rows]) for p in planned}


def _recipe(factory: Any) -> dict[str, Any] | None:
    return None if estimators.is_estimator(factory) else module_recipe(factory)


def _own_types(p: Planned) -> list[str]:
    """The types that its factory, which is the caller's own, is made of."""
    if not estimators.is_estimator(p.factory):
        recipe = _recipe(p.factory)
        return [] if recipe is None else [recipe["class_path"]]
    own = [class_path(type(p.factory))]
    if library_of(p.factory) is not None:
        return own
    import skops.io

    try:
        types = untrusted_types(skops.io.dumps(p.factory))
    except Exception as error:  # of the kinds of what it holds
        raise ValueError(f"factory: {p.name}: can't be saved in the folder without pickle: {type(error).__name__}: {error}") from error
    if nameless := [name for name in types if "<" in name]:
        raise ValueError(f"factory: {p.name}: can't be saved in the folder without pickle: {nameless} can't be imported again")
    return own + types


def _one_training(method: Method) -> bool:
    return isinstance(method, (Snapshot, FastGeometric))


def _fit(
    planned: list[Planned], settings: Settings, checkpoint: Path | None, watch: Watch | None, finished: Container[str] = ()
) -> Iterator[tuple[str, Member]]:
    """The members, by name, as they are done; those that are finished only where they are part of a stack that is not."""
    seen: Seen = {}
    for group in _groups(planned, settings):
        left = [p for p in group if p.name not in finished]
        if not left:
            continue
        if estimators.is_estimator(group[0].factory):
            jobs = [(p.factory, p.seed, p.rows, p.name) for p in left]
            fitted = estimators.fit(jobs, settings.inputs, settings.labels, settings.classes, settings.n_jobs)
            for name, member in estimators.alike(fitted, settings.inputs):
                if watch is not None:
                    watch(Status((name,), 1, 1, np.array([np.nan]), np.array([np.nan])))
                yield name, member
            continue
        home = None if checkpoint is None else checkpoint / f"from-{group[0].number}"
        modules = _modules(group, settings, home, watch)
        check_own([(p.name, module) for p, module in zip(group, modules, strict=True)], seen)
        for p, module in zip(group, modules, strict=True):
            factory = p.factory if _recipe(p.factory) is not None else None
            yield p.name, TorchMember(module, name=p.name, classes=settings.classes, factory=factory)


def _groups(planned: list[Planned], settings: Settings) -> list[list[Planned]]:
    """Those of one factory and optimisation together; modules that are trained one by one in any case each by itself, so that it is put
    away at once."""
    groups = defaultdict(list)
    alone = settings.way == "one_by_one" and not _one_training(settings.method)
    for p in planned:
        groups[id(p.factory), p.optimization, p.number if alone and not estimators.is_estimator(p.factory) else -1].append(p)
    return list(groups.values())


def _modules(group: list[Planned], settings: Settings, checkpoint: Path | None, watch: Watch | None) -> list[nn.Module]:
    common: dict[str, Any] = {"classes": len(settings.classes), "augment": settings.augment, "device": settings.device}
    common |= {"checkpoint": checkpoint, "watch": watch}
    inputs, labels, base = settings.inputs, settings.labels, group[0].optimization
    if not isinstance(settings.method, (Snapshot, FastGeometric)):
        own: dict[str, Any] = {"seeds": [p.seed for p in group], "rows": [p.rows for p in group], "names": [p.name for p in group]}
        return train_stack(group[0].factory, inputs, labels, optimization=base, way=settings.way, **own, **common)
    optimization, captures = settings.method.plan(base, len(group))

    def shared(status: Status) -> None:  # one training, of which everybody is a part
        for p, end in zip(group, captures, strict=True):
            if watch is not None:
                watch(Status((p.name,), min(status.step, end), end, status.losses, status.accuracies))

    seed = derive_seed("trajectory", group[0].seed)
    common["watch"] = None if watch is None else shared
    return train_trajectory(
        group[0].factory, inputs, labels, seed=seed, captures=captures, optimization=optimization, name=group[0].name, **common
    )


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
    if _one_training(method) and (several or estimators.is_estimator(factory) or not isinstance(members, int)):
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
        own = derive_seed("member", seed, number) if not _one_training(method) else derive_seed("member", seed)
        rows = np.arange(len(labels), dtype=np.int64) if isinstance(method, (Snapshot, FastGeometric)) else method.rows(labels, own)
        planned.append(Planned(number, f"{name or _called(one)}-{number + 1}", own, one, optimizations[number % len(optimizations)], rows))
    if not _one_training(method):
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
    if labels.dtype.kind in "US":  # names
        names = tuple(np.unique(labels).tolist()) if classes is None else tuple(classes)
        position = {name: i for i, name in enumerate(names)}
        if unknown := sorted(set(labels.tolist()) - set(names)):
            raise ValueError(f"classes: expected all names among the labels; {unknown} are missing from {list(names)}")
        labels = np.array([position[name] for name in labels.tolist()], np.int64)
    elif labels.dtype.kind in "iu":
        labels = labels.astype(np.int64)
        names = _numbers(labels) if classes is None else tuple(classes)
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
