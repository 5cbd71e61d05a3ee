"""The training of one trunk with several heads: batches of the data sets by turns."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ensdistill.common.describe import make_module
from ensdistill.common.optimizers import StudentOptimization, build_optimizer
from ensdistill.common.progress import Progress
from ensdistill.common.random import derive_seed
from ensdistill.data.preprocess.base import Preprocess
from ensdistill.student.checkpoint_files import checkpoint_files
from ensdistill.student.inputs import Preparation, takes_ids
from ensdistill.student.preconditions import check_optimization
from ensdistill.student.shared.checkpoint import SetsCheckpoint, describe_sets
from ensdistill.student.shared.modules import Headed
from ensdistill.student.shared.report import SetReport, judged
from ensdistill.student.shared.sets import HeadSet, SetTargets
from ensdistill.teachers.members import Member, Preprocessed, TorchMember


@dataclass(frozen=True)
class SharedStudents:
    """The result of :func:`distill_sets`.

    Parameters
    ----------
    modules : dict of str to Headed
        The student of each data set, in eval mode on the CPU. All have the same trunk.
    factories : dict of str to callable
        What makes such a module, where trunk and head are classes or ``functools.partial`` of classes.
    losses : dict of str to ndarray [S], float64
        The loss of each of the set's own steps, in nats.
    order : ndarray [steps], int64
        The place of the data set of each step.
    reports : dict of str to SetReport
    preprocess : Preprocess or None
    tasks : dict of str to str
    positions : frozenset of str
        The sets with targets at positions.
    """

    modules: dict[str, Headed]
    factories: dict[str, Callable[[], nn.Module]]
    losses: dict[str, np.ndarray]
    order: np.ndarray
    reports: dict[str, SetReport]
    preprocess: Preprocess | None
    tasks: dict[str, Any]
    positions: frozenset[str] = frozenset()

    def member(self, name: str, classes: tuple[str, ...] | None = None) -> Member:
        """The student of one data set, as a member that predicts raw samples and is saved by
        ``save(folder)``.

        Raises
        ------
        ValueError
            The set has targets at positions, and a member returns one row of logits for each sample.
        """
        if name in self.positions:
            raise ValueError(
                f"name: {name}: expected a set with one target for each row, because a member predicts one; "
                "this one has targets at positions: take modules[name], whose state_dict() can be saved, and "
                "PositionEnsemble([module], classes), which predicts"
            )
        made = TorchMember(
            self.modules[name],
            name=name,
            classes=classes,
            factory=self.factories[name],
            output="logits",
            task=self.tasks[name],
        )
        return made if self.preprocess is None else Preprocessed(made, self.preprocess)

    def __str__(self) -> str:
        return "\n".join(map(str, self.reports.values()))


def distill_sets(
    trunk: Callable[[], nn.Module],
    sets: Mapping[str, HeadSet],
    optimization: StudentOptimization | None = None,
    *,
    seed: int = 0,
    preprocess: Preprocess | None = None,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
    checkpoint: Path | str | None = None,
    checkpoint_every: int = 1024,
) -> SharedStudents:
    """Train one trunk with a head for each data set, each from its own ensemble's cache.

    Each step has a batch of one data set, in turns that follow the weights as nearly as whole steps can.
    With one data set whose cache holds targets at positions it trains a student of pixels or anchors.

    Parameters
    ----------
    trunk : callable
        Makes the module from inputs to features, which all heads take.
    sets : mapping of str to HeadSet
    optimization : Optimization or StudentOptimization
        ``steps`` are those of all sets together, ``batch_size`` the rows of a batch. Their numbers have to be
        given; accumulation and clipping have no part in it.
    seed : int
        Initialisation, order of the batches, held-out rows, dropout.
    preprocess : Preprocess, optional
        From raw samples of every set to the trunk's input.
    device : str
    progress : callable (done, total), optional
    checkpoint : path, optional
        A file for the state of the training, every ``checkpoint_every`` steps: the same call goes on from it,
        with the same bits.

    Raises
    ------
    CheckpointMismatch
        (a ValueError) The checkpoint is of other settings, data or code; names the fields that differ.
    ValueError
        No set; settings that are ``auto``; rows, labels, outputs or targets that do not fit; begins with
        ``sets.<name>``.
    CacheMismatch
        The rows differ from the cache's.
    FloatingPointError
        A loss that is not finite; names the set and the step.

    Examples
    --------
    >>> import tempfile
    >>> from ensdistill import Ensemble, Optimization, Rows, cache_targets
    >>> from ensdistill.models import MLP
    >>> x, folder = np.random.default_rng(0).normal(size=(40, 6)).astype(np.float32), tempfile.mkdtemp()
    >>> rows = Rows(x, np.arange(40), np.full(40, -100))
    >>> sets, _ = {}, torch.manual_seed(0)
    >>> for name, classes in (("kinds", 3), ("sizes", 2)):
    ...     ensemble = Ensemble.from_members([MLP(6, [8], classes), MLP(6, [8], classes)])
    ...     cache = cache_targets(ensemble, rows, f"{folder}/{name}")
    ...     sets[name] = HeadSet(rows, cache, partial(nn.Linear, 16, classes), weight=classes)
    >>> students = distill_sets(partial(MLP, 6, [16], 16), sets, Optimization(50, 20, 0.02))
    >>> np.bincount(students.order).tolist(), students.modules["sizes"](torch.zeros(5, 6)).shape
    ([30, 20], torch.Size([5, 2]))
    """
    settings = StudentOptimization() if optimization is None else optimization
    check_optimization("optimization", settings)
    if getattr(settings, "automatic", ()):
        raise ValueError(
            "optimization: expected numbers for steps, batch_size and learning_rate, which are not found for "
            f"several sets; got auto for {', '.join(settings.automatic)}"
        )
    if not sets:
        raise ValueError("sets: expected at least one; got none")
    where, files = torch.device(device), checkpoint_files(checkpoint, None, 1, checkpoint_every)
    with torch.random.fork_rng(devices=[where] if where.type == "cuda" else []):
        torch.manual_seed(derive_seed("shared student", seed))
        shared = make_module(trunk)
        students = [Headed(shared, own.head) for own in sets.values()]
        models = nn.ModuleList(students)
        prepare = Preparation(preprocess, takes_ids(shared))
        targets = [
            SetTargets(name, own, settings.batch_size, derive_seed("set", seed, i), prepare)
            for i, (name, own) in enumerate(sets.items())
        ]
        for own, model in zip(targets, students, strict=True):
            _try(own, model.eval())
        models.to(where).train()
        optimizer, scheduler = build_optimizer(settings, models)
        order = turns([own.weight for own in sets.values()], settings.steps)
        losses: list[list[float]] = [[] for _ in targets]
        about = {} if files is None else describe_sets(students, targets, settings, preprocess, seed, where)
        state = SetsCheckpoint(files, checkpoint_every, about, models, optimizer, scheduler)
        for step in range(state.resume(losses), settings.steps):
            place = int(order[step])
            own, model = targets[place], students[place]
            batch = own.batch(len(losses[place]), where)
            outputs = model(**batch.inputs) if isinstance(batch.inputs, dict) else model(batch.inputs)
            loss = own.loss(own.rows_of(outputs), batch.targets, batch.labels, batch)
            value = float(loss.detach())
            if not np.isfinite(value):
                raise FloatingPointError(
                    f"sets.{own.name}: the loss is {value} at step {step + 1} of {settings.steps}; lower the "
                    f"learning rate, {settings.learning_rate:g}"
                )
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            scheduler.step()
            losses[place].append(value)
            state.save(step + 1, settings.steps, losses)
            if progress is not None:
                progress(step + 1, settings.steps)
        models.eval()
        reports = {own.name: judged(own, m, where) for own, m in zip(targets, students, strict=True)}
        models.cpu()
    return SharedStudents(
        {own.name: model for own, model in zip(targets, students, strict=True)},
        {name: partial(Headed, trunk=trunk, head=own.head) for name, own in sets.items()},
        {own.name: np.array(found) for own, found in zip(targets, losses, strict=True)},
        order,
        reports,
        preprocess,
        {own.name: own.task for own in targets},
        frozenset(own.name for own in targets if own.positions is not None),
    )


def turns(weights: list[float], steps: int) -> np.ndarray:
    """The place of the data set of each step: always the one that is furthest behind its share.

    Examples
    --------
    >>> turns([2.0, 1.0], 6).tolist()
    [0, 1, 0, 0, 1, 0]
    """
    shares = np.array(weights, np.float64) / np.sum(weights)
    done, found = np.zeros(len(shares)), np.empty(steps, np.int64)
    for step in range(steps):
        found[step] = int(np.argmax(shares * (step + 1) - done))
        done[found[step]] += 1
    return found


def _try(own: SetTargets, model: nn.Module) -> None:
    """Run the model on two rows, and refuse outputs that do not fit the cache."""
    inputs = own.prepare(own.own.rows.inputs[np.arange(min(2, len(own.own.rows)))])
    try:
        with torch.no_grad():
            outputs = model(**inputs) if isinstance(inputs, dict) else model(inputs)
    except (RuntimeError, IndexError, TypeError) as error:
        raise ValueError(
            f"sets.{own.name}: trunk and head do not take the rows, or do not fit each other ({error})"
        ) from error
    own.rows_of(outputs)
