"""``Ensemble.train``: many members from one factory, or from several, on one process or on many."""

from __future__ import annotations

import shutil
from collections import defaultdict
from collections.abc import Container, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from ensdistill.common.describe import class_path, describe, module_recipe
from ensdistill.common.files import read_json, write_json
from ensdistill.common.fingerprint import digest
from ensdistill.common.processes import Processes, processes
from ensdistill.common.random import derive_seed
from ensdistill.teachers import estimators, storage
from ensdistill.teachers.factories import check_factories
from ensdistill.teachers.live import TrainingView
from ensdistill.teachers.members import Member, SklearnMember, TorchMember, load_member
from ensdistill.teachers.members.boosted import library_of
from ensdistill.common.skops_files import untrusted_types
from ensdistill.teachers.methods import FastGeometric, Snapshot
from ensdistill.teachers.planning import Planned, Settings, one_training
from ensdistill.teachers.stack import Status, Watch, train_stack, train_trajectory
from ensdistill.teachers.stack.fitting import is_estimator, versions
from ensdistill.teachers.stack.validation import Seen, as_float32, check_own

if TYPE_CHECKING:
    from ensdistill.teachers.ensemble import Ensemble


def train(
    cls: type[Ensemble],
    planned: list[Planned],
    settings: Settings,
    *,
    combiner: Any,
    folder: Path | str | None,
    progress: bool | Watch | None,
) -> Ensemble:
    """Train what is planned; see :meth:`ensdistill.teachers.Ensemble.train`."""
    check_factories(planned, settings)
    with processes(settings.device) as group:
        if folder is None:
            if group.count > 1:
                raise ValueError(f"folder: expected one that all {group.count} processes see, where they put their members; got None")
            with _watched(progress, planned) as watch:
                made = dict(_fit(planned, settings, None, watch))
            return cls.from_members([made[p.name] for p in planned], combiner=combiner, classes=settings.data.classes)
        return _on_disk(cls, planned, settings, combiner, Path(folder), group, progress)


def _watched(progress: bool | Watch | None, planned: list[Planned], **view: Any) -> AbstractContextManager[Watch | None]:
    return TrainingView([p.name for p in planned], **view) if progress is True else nullcontext(progress or None)


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
    if one_training(settings.method):  # it can't be shared out, and what is missing of it can't be had without the rest
        shares = [[] if finished == set(prints) else planned, *([] for _ in homes[1:])]
    else:
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
    ensemble = cls.from_members(members, combiner=combiner, classes=settings.data.classes)
    if group.rank == 0:
        shutil.rmtree(folder / "training", ignore_errors=True)  # of a run with another number of processes
        storage.write_about(ensemble, folder)
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
        if isinstance(p.factory, nn.Module) or (not is_estimator(p.factory) and _recipe(p.factory) is None):
            raise ValueError(
                f"factory: {p.name}: expected a module class, or functools.partial of one with plain arguments, so that the member can be "
                f"saved in the folder; got {p.factory!r}"
            )
    data = settings.data
    common = [data.inputs, data.labels, list(data.classes), describe(settings.method)]
    common += [] if data.weights is None else [data.weights]
    augment = None if settings.augment is None else describe(settings.augment)
    shared = digest([common, augment, settings.way, torch.__version__, len(planned) if one_training(settings.method) else 0])
    libraries = {p.name: versions(p.factory) if is_estimator(p.factory) else {} for p in planned}
    return {p.name: digest([shared, describe(p.factory), libraries[p.name], p.optimization, p.number, p.seed, p.rows]) for p in planned}


def _recipe(factory: Any) -> dict[str, Any] | None:
    return None if is_estimator(factory) else module_recipe(factory)


def _own_types(p: Planned) -> list[str]:
    """The types that its factory, which is the caller's own, is made of."""
    if not is_estimator(p.factory):
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


def _fit(
    planned: list[Planned], settings: Settings, checkpoint: Path | None, watch: Watch | None, finished: Container[str] = ()
) -> Iterator[tuple[str, Member]]:
    """The members, by name, as they are done; those that are finished only where they are part of a stack that is not."""
    seen: Seen = {}
    for group in _groups(planned, settings):
        left = [p for p in group if p.name not in finished]
        if not left:
            continue
        if is_estimator(group[0].factory):
            jobs = [(p.factory, p.seed, p.rows, p.name) for p in left]
            fitted = estimators.fit(jobs, settings.data, settings.n_jobs)
            for name, member in estimators.alike(fitted, settings.data.inputs):
                if watch is not None:
                    watch(Status((name,), 1, 1, np.array([np.nan]), np.array([np.nan])))
                yield name, member
            continue
        home = None if checkpoint is None else checkpoint / f"from-{group[0].number}"
        modules = _modules(group, settings, home, watch)
        check_own([(p.name, module) for p, module in zip(group, modules, strict=True)], seen)
        for p, module in zip(group, modules, strict=True):
            factory = p.factory if _recipe(p.factory) is not None else None
            yield p.name, TorchMember(module, name=p.name, classes=settings.data.classes, factory=factory, output="logits")


def _groups(planned: list[Planned], settings: Settings) -> list[list[Planned]]:
    """Those of one factory and optimisation together; modules that are trained one by one in any case each by itself, so that it is put
    away at once."""
    groups = defaultdict(list)
    alone = settings.way == "one_by_one" and not one_training(settings.method)
    for p in planned:
        groups[id(p.factory), p.optimization, p.number if alone and not is_estimator(p.factory) else -1].append(p)
    return list(groups.values())


def _modules(group: list[Planned], settings: Settings, checkpoint: Path | None, watch: Watch | None) -> list[nn.Module]:
    data = settings.data
    common: dict[str, Any] = {"classes": len(data.classes), "augment": settings.augment, "device": settings.device}
    common |= {"checkpoint": checkpoint, "watch": watch, "weights": data.weights}
    inputs, labels, base = as_float32("data", data.inputs), data.labels, group[0].optimization
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
