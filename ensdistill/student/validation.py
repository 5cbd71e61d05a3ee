"""A student's validation: rows that it does not learn from, and how near it is to the ensemble on them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ensdistill.cache import TargetCache
from ensdistill.cache.verifying import stored_hashes
from ensdistill.common.processes import Processes
from ensdistill.common.random import random_generator
from ensdistill.common.scalars import real, whole
from ensdistill.data import UNLABELLED, Rows
from ensdistill.data.augmentation import Augmentation
from ensdistill.data.copies import equal_inputs, merged
from ensdistill.data.samples import in_memory, positions
from ensdistill.data.samples import whole as all_of
from ensdistill.data.versions import view_inputs
from ensdistill.loss.functional import distillation_loss
from ensdistill.loss.settings import DEFAULTS, LossSettings
from ensdistill.student.blocks import Versions, versions_of
from ensdistill.student.inputs import Inputs, Preparation, call, moved
from ensdistill.student.methods import SoftTargets, StudentLoss

Metric = Literal["agreement", "kl", "nll", "accuracy"]
LARGER_IS_BETTER = ("agreement", "accuracy")
OF_ENSEMBLE, OF_LABELS = ("kl", "agreement"), ("nll", "accuracy")
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
    metric : {"kl", "agreement", "nll", "accuracy"}, optional
        What decides which weights are the best. ``kl``: the mean KL divergence from the ensemble, in nats.
        ``agreement``: the share of rows whose likeliest class is the ensemble's. ``nll`` and ``accuracy``:
        of the rows' labels, where they have one. By default ``kl``; ``nll`` where there is no ensemble.
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
            if value is not None and not (whole(value) and value >= 1):
                raise ValueError(f"validation.{name}: expected an integer of at least 1; got {value!r}")
        if self.metric is not None and self.metric not in get_args(Metric):
            allowed = ", ".join(get_args(Metric))
            raise ValueError(f"validation.metric: expected one of {allowed}; got {self.metric!r}")


def check_share(argument: str, share: Any) -> None:
    """Raise for anything but a share of the rows."""
    if not real(share) or isinstance(share, bool):
        raise TypeError(
            f"{argument}: expected Rows, a share of the rows, or a Validation; got {type(share).__name__}"
        )
    if not 0 < float(share) < 1:
        raise ValueError(f"{argument}: expected a share of the rows in (0, 1); got {share!r}")


@dataclass(frozen=True)
class Scores:
    """What an evaluation found, as means over the validation rows; None where there is nothing to compare
    with.

    Parameters
    ----------
    kl, agreement : float or None
        Nats, and a share, against the ensemble.
    nll, accuracy : float or None
        Nats, and a share, against the labels, of the rows that have one.
    """

    kl: float | None = None
    agreement: float | None = None
    nll: float | None = None
    accuracy: float | None = None


@dataclass(frozen=True, eq=False)
class HeldOut:
    """The checked rows of a validation.

    Parameters
    ----------
    rows : Rows
    cache : TargetCache or None
        With their targets; None where they have labels alone.
    versions : Versions or None
        The rows are seen in their first version, where the cache has versions.
    augment : Augmentation or None
        Of the versions.
    settings : Validation
    metric : str
    """

    rows: Rows
    cache: TargetCache | None
    versions: Versions | None
    augment: Augmentation | None
    settings: Validation
    metric: Metric

    def fingerprint(self) -> list[Any]:
        settings = self.settings
        return [self.rows, self.cache is not None, settings.every, self.metric, settings.patience]


def hold_out(
    given: Validation | Rows | float | None,
    rows: Rows,
    classes: int,
    cache: TargetCache | None,
    augment: Augmentation | None,
    seed: int,
) -> tuple[Rows, HeldOut | None]:
    """The rows to train on, and those to validate on.

    Raises
    ------
    ValueError
        Rows that are trained on as well, of which the cache has some only, that have neither targets nor
        labels, or nothing for the metric; a share that leaves no row to one of the two.
    TypeError
        Neither rows nor a share nor a Validation.
    CacheMismatch
        A row's input is not that of the cache.
    """
    if given is None:
        return rows, None
    settings = given if isinstance(given, Validation) else Validation(rows=given)
    if isinstance(settings.rows, Rows):
        held, source = settings.rows, cache
        if len(held) == 0:
            raise ValueError("validation: expected at least one row; got none")
        both = np.intersect1d(held.uids, rows.uids)
        if len(both):
            raise ValueError(
                f"validation: uid {both[0]} is among the rows that are trained on, too ({len(both)} such "
                "uids); pass rows of their own, or a share such as 0.1 to hold out some of these"
            )
        if cache is not None:
            known = np.isin(held.uids, cache.uids)
            source = cache if known.any() else None
            if known.any() and not known.all():
                raise ValueError(
                    f"validation: {int(known.sum())} of the {len(held)} rows have targets in the cache, uid "
                    f"{held.uids[~known][0]} has none; pass rows that are all in the cache, or none of them"
                )
    else:
        drawn = draw_share(rows, float(settings.rows), seed, cache)
        rows, held, source = rows.take(~drawn), rows.take(drawn), cache
    _check_labels(held, classes)
    augment = augment if source is not None else None
    versions = None if source is None else versions_of(source, held, augment)
    metric = _metric(settings, held, source)
    return rows, HeldOut(held, source, versions, augment, settings, metric)


def draw_share(rows: Rows, share: float, seed: int, cache: TargetCache | None = None) -> np.ndarray:
    """Which rows are held out, bool [N]: whole groups, and whole sets of rows with equal inputs.

    A cache without versions has hashes of the inputs, so that lazy samples need no reading.

    Raises
    ------
    ValueError
        Nothing would be held out, or nothing left.
    """
    hashed = cache is not None and cache.manifest["fingerprint"].get("views") is None
    if cache is not None and hashed and not in_memory(rows.inputs):
        equal = np.unique(stored_hashes(cache, rows.uids, 0), return_inverse=True)[1]
    else:
        equal = equal_inputs(rows.inputs)[0]
    units = merged(equal, rows.groups)
    _, of_row, counts = np.unique(units, return_inverse=True, return_counts=True)
    order = random_generator("student validation", seed).permutation(len(counts))
    wanted, taken = max(1, round(share * len(rows))), np.zeros(len(counts), bool)
    missing = wanted
    for unit in order:
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


def _check_labels(rows: Rows, classes: int) -> None:
    wrong = np.flatnonzero((rows.labels != UNLABELLED) & ((rows.labels < 0) | (rows.labels >= classes)))
    if len(wrong):
        raise ValueError(
            f"validation: expected labels 0..{classes - 1} or {UNLABELLED}; uid {rows.uids[wrong[0]]} has "
            f"{rows.labels[wrong[0]]}"
        )


def _metric(settings: Validation, rows: Rows, cache: TargetCache | None) -> Metric:
    labelled = bool((rows.labels != UNLABELLED).any())
    possible: list[Metric] = [*(OF_ENSEMBLE if cache is not None else ()), *(OF_LABELS if labelled else ())]
    if not possible:
        raise ValueError(
            f"validation: none of the {len(rows)} rows has a label or targets in a cache, so there is "
            "nothing to compare the student with"
        )
    metric = settings.metric or possible[0]
    if metric not in possible:
        lacking = "a label" if metric in OF_LABELS else "targets in a cache"
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
    """

    def __init__(self, held: HeldOut, loss: StudentLoss, prepare: Preparation, group: Processes) -> None:
        self.held, self.prepare, self.group = held, prepare, group
        self.settings, self.weights = mixture_of(loss, held.cache)
        self._parts = positions(len(held.rows), _AT_ONCE)[group.rank :: group.count]
        plain = held.versions is None
        self._inputs = prepare.held(held.rows.inputs) if plain else None
        self._samples = held.rows.inputs
        if held.versions is not None and in_memory(held.rows.inputs):
            self._samples = self._seen(all_of(held.rows.inputs), held.rows.uids)
        self._compared = in_memory(held.rows.inputs)  # with the cache, which lazy samples are at first

    def __call__(self, model: nn.Module, device: torch.device) -> Scores:
        """The scores of a model, which is in eval mode afterwards."""
        model.eval()
        # kl, agreement, rows; nll, accuracy, labelled rows
        sums = torch.zeros(6, dtype=torch.float64)
        with torch.no_grad():
            for part, inputs in self._batches():
                sums += self._of_batch(call(model, moved(inputs, device)).float(), part, device)
        self._compared = True
        kl, agreement, rows, nll, accuracy, labelled = (self.group.mean(sums) * self.group.count).tolist()
        compared, known = self.held.cache is not None, labelled > 0
        return Scores(
            kl=kl / rows if compared else None,
            agreement=agreement / rows if compared else None,
            nll=nll / labelled if known else None,
            accuracy=accuracy / labelled if known else None,
        )

    def _batches(self) -> Iterator[tuple[np.ndarray, Inputs]]:
        rows, cache = self.held.rows, self.held.cache
        for part in self._parts:
            if self._inputs is not None:
                first, last = int(part[0]), int(part[-1]) + 1
                inputs = self._inputs
                yield (
                    part,
                    {k: v[first:last] for k, v in inputs.items()}
                    if isinstance(inputs, dict)
                    else inputs[first:last],
                )
                continue
            batch = self._samples[part]
            if not in_memory(rows.inputs):
                batch = self._seen(batch, rows.uids[part])
            if cache is not None and not self._compared:
                cache.verify_inputs(rows.uids[part], batch)
            yield part, self.prepare(batch)

    def _seen(self, batch: Any, uids: np.ndarray) -> Any:
        """The samples in the version that the cache's first targets are of."""
        versions, augment = self.held.versions, self.held.augment
        if versions is None or augment is None:
            return batch
        return view_inputs(augment, batch, uids, 0, versions.seed)

    def _of_batch(self, outputs: Tensor, part: np.ndarray, device: torch.device) -> Tensor:
        sums = torch.zeros(6, dtype=torch.float64)
        rows, cache = self.held.rows, self.held.cache
        if cache is not None:
            targets = cache.gather(rows.uids[part], 0).to(device)
            losses, rows_ = distillation_loss(
                outputs, targets, settings=self.settings, weights=self.weights, statistics=True
            )
            sums[0] = losses.double().sum().cpu() / self.settings.temperature**2
            sums[1] = rows_.agreement.double().sum().cpu()
            sums[2] = len(part)
        labels = torch.from_numpy(rows.labels[part]).to(device)
        known = labels != UNLABELLED
        log_q = outputs.double().log_softmax(1)
        sums[3] = F.nll_loss(log_q, labels, ignore_index=UNLABELLED, reduction="sum").cpu()
        sums[4] = ((outputs.argmax(1) == labels) & known).sum().cpu()
        sums[5] = known.sum().cpu()
        return sums


def mixture_of(loss: StudentLoss, cache: TargetCache | None) -> tuple[LossSettings, Tensor | None]:
    """The settings and the members' weights by which a student is compared with the ensemble: its forward KL
    at temperature 1, or at the one at which the cache holds the mixture."""
    temperature = 1.0 if cache is None or cache.temperature is None else cache.temperature
    own = loss.settings if isinstance(loss, SoftTargets) else DEFAULTS
    settings = LossSettings(temperature=temperature, combiner=own.combiner, reduction="none")
    return settings, loss.weights if isinstance(loss, SoftTargets) else None
