"""A student's validation: rows that it does not learn from, and how near it is to the ensemble on them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, get_args

import numpy as np
import torch
from torch import nn

from ensdistill.cache import TargetCache
from ensdistill.cache.verifying import stored_hashes
from ensdistill.common import scalars
from ensdistill.common.processes import Processes
from ensdistill.common.random import random_generator
from ensdistill.common.tasks import Task
from ensdistill.data import UNLABELLED, Rows
from ensdistill.data import batches as b
from ensdistill.data.augmentation import Augmentation
from ensdistill.data.copies import equal_inputs, merged
from ensdistill.data.samples import as_samples, in_memory, positions, whole
from ensdistill.data.versions import view_inputs
from ensdistill.loss.settings import LossSettings
from ensdistill.student.as_you_go import CacheAsYouGo
from ensdistill.student.comparisons import NAMES, OF_ENSEMBLE, OF_LABELS, Comparison, Metric, Scores
from ensdistill.student.inputs import Inputs, Preparation, call, moved, rows_of
from ensdistill.student.machines import Division
from ensdistill.student.methods import MomentTargets, SoftTargets, StudentLoss
from ensdistill.student.sources import RowTargets, TargetSource, targets_for
from ensdistill.student.units import Units, in_units, rows_of_task

# By default the divergence chooses the weights of a student with variances, in place of the mean's distance.
WITH_VARIANCES: dict[Metric, Metric] = {"distance": "kl", "rmse": "nll"}
_AT_ONCE = 1024


@dataclass(frozen=True, kw_only=True)
class Validation:
    """Which rows judge a student while it is trained, how often, and when they end the training.

    Parameters
    ----------
    rows : Rows, or float
        Rows that the student does not learn from: those with targets in the cache are compared with the
        ensemble, those with labels with these. Or the share of the training's rows that is held out, in
        (0, 1); rows of one group, and rows with equal inputs, are held out together.
    every : int, optional
        Steps between two evaluations, rounded up to a multiple of 32; by default a twentieth of the training.
        The end of the training is always evaluated.
    metric : {"kl", "agreement", "nll", "accuracy", "distance", "rmse"}, optional
        What decides which weights are the best. ``kl``: the mean KL divergence from the ensemble, in nats.
        ``agreement``: the share of rows whose likeliest class is the ensemble's. ``nll`` and ``accuracy``:
        of the rows' labels, where they have one. By default ``kl``; ``nll`` where there is no ensemble. A
        regression has ``distance`` and ``rmse``, its default, and for a student with variances ``kl`` and
        ``nll``, its default then; see :class:`ensdistill.student.comparisons.Scores`.
    patience : int, optional
        The training ends after so many evaluations in a row that are not better than the best one.

    Raises
    ------
    ValueError, TypeError
        A value outside the ranges above.

    Examples
    --------
    >>> Validation(rows=0.1, metric="agreement", patience=5).rows
    0.1
    """

    rows: Rows | float
    every: int | None = None
    metric: Metric | None = None
    patience: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.rows, Rows):
            check_share("validation", self.rows)
        for name in ("every", "patience"):
            value = getattr(self, name)
            if value is not None and not (scalars.whole(value) and value >= 1):
                raise ValueError(f"validation.{name}: expected an integer of at least 1; got {value!r}")
        if self.metric is not None and self.metric not in get_args(Metric):
            allowed = ", ".join(get_args(Metric))
            raise ValueError(f"validation.metric: expected one of {allowed}; got {self.metric!r}")


def check_share(argument: str, share: Any) -> None:
    """Raise for anything but a share of the rows."""
    if not scalars.real(share) or isinstance(share, bool):
        raise TypeError(
            f"{argument}: expected Rows, a share of the rows, or a Validation; got {type(share).__name__}"
        )
    if not 0 < float(share) < 1:
        raise ValueError(f"{argument}: expected a share of the rows in (0, 1); got {share!r}")


@dataclass(frozen=True, eq=False)
class HeldOut:
    """The checked rows of a validation.

    Parameters
    ----------
    rows : Rows
    targets : RowTargets or None
        Of the rows, in their first version; None where they have labels alone.
    temperature : float
        At which students are compared with the targets.
    settings : Validation
    metric : str
        Of a regression, the one of a student without variances.
    division : Division or None
        Which machine evaluates which rows; None where any process evaluates any.
    task : {"classification", "multilabel", "regression"}
    units : Units or None
        Of a regression.
    """

    rows: Rows
    targets: RowTargets | None
    temperature: float
    settings: Validation
    metric: Metric
    division: Division | None = None
    task: Task = "classification"
    units: Units | None = None

    def fingerprint(self) -> list[Any]:
        settings = self.settings
        return [self.rows, self.targets is not None, settings.every, self.metric, settings.patience]


def split_rows(
    given: Validation | Rows | float | None,
    rows: Rows,
    source: TargetCache | TargetSource | None,
    seed: int,
) -> tuple[Rows, Validation | None]:
    """The rows to train on, and the validation with rows of its own.

    Raises
    ------
    ValueError
        Rows that are trained on as well, or none; a share that leaves no row to one of the two.
    TypeError
        Neither rows nor a share nor a Validation.
    """
    if given is None:
        return rows, None
    settings = given if isinstance(given, Validation) else Validation(rows=given)
    if not isinstance(settings.rows, Rows):
        drawn = draw_share(rows, float(settings.rows), seed, source)
        return rows.take(~drawn), replace(settings, rows=rows.take(drawn))
    if len(settings.rows) == 0:
        raise ValueError("validation: expected at least one row; got none")
    both = np.intersect1d(settings.rows.uids, rows.uids)
    if len(both):
        raise ValueError(
            f"validation: uid {both[0]} is among the rows that are trained on, too ({len(both)} such uids); "
            "pass rows of their own, or a share such as 0.1 to hold out some of these"
        )
    return rows, settings


def hold_out(
    settings: Validation | None,
    classes: int,
    source: TargetCache | TargetSource | None,
    augment: Augmentation | None,
    division: Division | None = None,
    *,
    task: Task = "classification",
    units: Units | None = None,
) -> HeldOut | None:
    """The checked rows of a validation, and their targets; of divided rows a machine checks its own.

    Raises
    ------
    ValueError
        Rows of which the cache has some only, that have neither targets nor labels, or nothing for the
        metric.
    CacheMismatch
        A row's input is not that of the cache.
    """
    if settings is None:
        return None
    assert isinstance(settings.rows, Rows)
    rows = rows_of_task(settings.rows, task, classes, "validation")
    strange = (rows.labels < 0) | (rows.labels >= classes)
    wrong = np.flatnonzero(rows.known & strange) if task == "classification" else np.empty(0, np.int64)
    if len(wrong):
        raise ValueError(
            f"validation: expected labels 0..{classes - 1} or {UNLABELLED}; uid {rows.uids[wrong[0]]} has "
            f"{rows.labels[wrong[0]]}"
        )
    if isinstance(source, TargetCache):
        known = np.isin(rows.uids, source.uids)
        if known.any() and not known.all():
            raise ValueError(
                f"validation: {int(known.sum())} of the {len(rows)} rows have targets in the cache, uid "
                f"{rows.uids[~known][0]} has none; pass rows that are all in the cache, or none of them"
            )
        source = source if known.any() else None
    elif isinstance(source, CacheAsYouGo):
        source = source.online()
    metric = _metric(settings, rows, source is not None, task)
    division = None if source is None else division
    checked = rows if division is None else division.own(rows)
    targets = None if source is None else targets_for(source, checked, augment)
    if targets is not None and units is not None:
        targets = in_units(targets, units)
    temperature = 1.0 if source is None or source.temperature is None else source.temperature
    return HeldOut(rows, targets, temperature, settings, metric, division, task, units)


def draw_share(rows: Rows, share: float, seed: int, source: Any = None) -> np.ndarray:
    """Which rows are held out, bool [N]: whole groups, and whole sets of rows with equal inputs.

    A cache without versions has hashes of the inputs, so that lazy samples need no reading.

    Raises
    ------
    ValueError
        Nothing would be held out, or nothing left.
    """
    hashed = isinstance(source, TargetCache) and source.manifest["fingerprint"].get("views") is None
    if hashed and not in_memory(rows.inputs):
        equal = np.unique(stored_hashes(source, rows.uids, 0), return_inverse=True)[1]
    else:
        equal = equal_inputs(rows.inputs)[0]
    units = merged(equal, rows.groups)
    _, first, of_row, counts = np.unique(units, return_index=True, return_inverse=True, return_counts=True)
    # Sets are numbered in the rows' order, whichever way equal rows were found.
    order = np.argsort(first)
    of_row, counts = np.argsort(order)[of_row], counts[order]
    wanted, taken = max(1, round(share * len(rows))), np.zeros(len(counts), bool)
    missing = wanted
    for unit in random_generator("student validation", seed).permutation(len(counts)):
        if counts[unit] <= missing:
            taken[unit] = True
            missing -= counts[unit]
    drawn: np.ndarray = taken[of_row]
    if not drawn.any() or drawn.all():
        raise ValueError(
            f"validation: no {wanted} of the {len(rows)} rows can be held out for a share of {share}: groups "
            f"and equal rows stay together, and make {len(counts)} sets; pass a larger share, or rows"
        )
    return drawn


def _metric(settings: Validation, rows: Rows, compared: bool, task: Task) -> Metric:
    labelled = bool(rows.known.any())
    possible = [*(OF_ENSEMBLE[task] if compared else ()), *(OF_LABELS[task] if labelled else ())]
    if not possible:
        raise ValueError(
            f"validation: none of the {len(rows)} rows has a label or targets in a cache, so there is "
            "nothing to compare the student with"
        )
    metric = settings.metric or possible[0]
    if metric not in (*OF_ENSEMBLE[task], *OF_LABELS[task]):
        raise ValueError(
            f"validation.metric: {metric!r} is none of the task {task}; choose {' or '.join(possible)}"
        )
    if metric not in possible:
        lacking = "a label" if metric in OF_LABELS[task] else "targets in a cache"
        raise ValueError(
            f"validation.metric: {metric!r} needs rows with {lacking}, and none has; choose "
            f"{' or '.join(possible)}"
        )
    return metric


class Examination:
    """Compares students with the ensemble, and with the labels, on the rows of a validation.

    Processes take turns with the batches, and all have the same scores.

    Parameters
    ----------
    held : HeldOut
    loss : StudentLoss
        Its mixture of the members is the one that students are compared with.
    prepare : Preparation
    group : Processes
    sharded : bool
        Whether a forward pass needs all processes: then all take as many.
    variances : bool
        Whether the student is a regression's with variances, which are then judged, too.
    """

    def __init__(
        self,
        held: HeldOut,
        loss: StudentLoss,
        prepare: Preparation,
        group: Processes,
        sharded: bool = False,
        variances: bool = False,
    ) -> None:
        self.held, self.prepare, self.group, self.metric = held, prepare, group, held.metric
        if variances and held.settings.metric is None:
            self.metric = WITH_VARIANCES.get(held.metric, held.metric)
        if held.task == "regression" and not variances and self.metric in WITH_VARIANCES.values():
            raise ValueError(
                f"validation.metric: {self.metric!r} is of a student with variances, which this one does not "
                f"have: choose {' or '.join(WITH_VARIANCES)}, or a model of twice as many outputs"
            )
        combiner = loss.settings.combiner if isinstance(loss, SoftTargets) else None
        settings = LossSettings(temperature=held.temperature, combiner=combiner, reduction="none")
        weights = loss.weights if isinstance(loss, (SoftTargets, MomentTargets)) else None
        self._compared = Comparison(held.task, settings, weights, held.units)
        labels, units = held.rows.labels, held.units
        self._labels = torch.from_numpy(labels) if units is None else units.standardised(labels)
        self._versions = None if held.targets is None else held.targets.versions
        parts = turns(held, group.count)
        self._parts = parts[group.rank]
        missing = max(map(len, parts)) - len(self._parts) if sharded else 0
        self._repeated = [np.arange(min(_AT_ONCE, len(held.rows)))] * missing
        self._samples, self._lazy = held.rows.inputs, not in_memory(held.rows.inputs)
        if not self._lazy and self._versions is not None:
            self._samples = as_samples(self._seen(whole(held.rows.inputs), held.rows.uids))
        self._inputs = prepare.held(self._samples)

    def __call__(self, model: nn.Module, device: torch.device) -> Scores:
        """The scores of a model, which is in eval mode afterwards."""
        model.eval()
        sums = torch.zeros(len(NAMES), 2, dtype=torch.float64)
        with torch.no_grad():
            for part in self._parts:
                inputs, targets = self._read(part, self.held.targets)
                outputs = call(model, moved(inputs, device)).float()
                sums += self._compared(outputs, targets, self._labels[part])
            for part in self._repeated:
                call(model, moved(self._read(part, None)[0], device))
        return Scores.of(self.group.mean(sums) * self.group.count)

    def _read(self, part: np.ndarray, targets: RowTargets | None) -> tuple[Inputs, Any]:
        """The inputs and the targets of some rows."""
        uids, first, batch = self.held.rows.uids[part], np.zeros(len(part), np.int64), None
        if self._inputs is None or (targets is not None and targets.needs_samples):
            batch = self._samples[part]
            batch = self._seen(batch, uids) if self._lazy else batch
        if batch is not None and targets is not None and self._lazy and targets.compared != "none":
            targets.check(uids, first, b.kind_of(batch).hashes(batch), b.describe(batch))
        held = self._inputs
        inputs = self.prepare(batch) if held is None else rows_of(held, torch.from_numpy(part))
        return inputs, None if targets is None else targets.of(uids, first, batch)

    def _seen(self, batch: Any, uids: np.ndarray) -> Any:
        """The samples in the version that the first targets are of."""
        if self._versions is None:
            return batch
        return view_inputs(self._versions.augment, batch, uids, 0, self._versions.seed)


def turns(held: HeldOut, processes: int) -> list[list[np.ndarray]]:
    """The batches of each process, as positions of rows."""
    if held.division is None:
        parts = positions(len(held.rows), _AT_ONCE)
        return [parts[rank::processes] for rank in range(processes)]
    of_process, of_row = np.asarray(held.division.machines), held.division.of(held.rows.uids)
    found: list[list[np.ndarray]] = []
    for rank, machine in enumerate(of_process):
        own = np.flatnonzero(of_row == machine)
        first, step = int((of_process[:rank] == machine).sum()), int((of_process == machine).sum())
        found.append([own[part] for part in positions(len(own), _AT_ONCE)][first::step])
    return found
