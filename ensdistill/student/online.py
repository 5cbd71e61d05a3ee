"""Teachers that predict during a student's training, in place of a cache."""

from __future__ import annotations

from collections.abc import Sequence
from threading import Lock
from typing import Any

import numpy as np
import torch

from ensdistill.cache.codecs import codec_of
from ensdistill.cache.encoding import Encoder
from ensdistill.cache.fingerprint import as_json, differences
from ensdistill.cache.plan import make_plan
from ensdistill.cache.planned import Planned
from ensdistill.cache.standard import Standard
from ensdistill.cache.teachers import Ensemble, Predict, class_names, predictor
from ensdistill.common.scalars import plain
from ensdistill.common.tasks import Task, task_of
from ensdistill.data import Rows
from ensdistill.data.augmentation import Augmentation
from ensdistill.data.batches import take
from ensdistill.data.versions import describe_views
from ensdistill.loss.targets import EnsembleLogits, Moments
from ensdistill.student.sources import Compared, Versions

# Members put their modules into eval mode, and back: a validation on one thread must not meet the training's
# predictions on another.
_one_at_a_time = Lock()


class EnsembleSource:
    """A source of targets whose members are those of an ensemble that is here.

    Attributes
    ----------
    ensemble : Ensemble
    """

    ensemble: Ensemble

    @property
    def names(self) -> Sequence[str]:
        return tuple(self.ensemble.names)

    @property
    def weights(self) -> np.ndarray:
        return self.ensemble.weights

    @property
    def combiner(self) -> str:
        return self.ensemble.combiner

    @property
    def task(self) -> Task:
        return task_of(self.ensemble)


class OnlineTeachers(EnsembleSource):
    """An ensemble that predicts for each batch of a student's training: a source of targets.

    It serves where a cache cannot: with ``augment`` no two epochs have the same inputs. Where inputs stay as
    they are, or have a few versions, a cache costs the members one pass instead of one for each epoch;
    :class:`~ensdistill.student.CacheAsYouGo` fills one in the first epoch.

    The members predict where they are: torch modules on their own device, which may be another than the
    student's. While the student trains on one part of the samples, they predict for the next on a thread;
    on a CPU that torch uses with several threads, before it. ``print(trained.cost)`` shows their part of a
    step.

    Parameters
    ----------
    ensemble : Ensemble
        As :func:`ensdistill.cache.cache_targets` takes it.
    augment : Augmentation, optional
        Changes the inputs of members and student alike. In epoch e each sample has its version e, which
        depends on ``seed`` and its uid. A cache of V views with this ``seed`` holds the versions of the first
        V epochs. The ``rounds`` of a transfer set make its synthetic rows anew for each epoch.
    seed : int
        Of the versions.
    batch_size : int
        Samples for one call of ``predict_logits``, at most.

    Raises
    ------
    ValueError
        A value outside these ranges. ``distill`` raises it for logits that a cache would refuse (NaN,
        ``+inf``, another shape), and for members with stored answers where inputs change.

    Examples
    --------
    >>> import torch
    >>> from ensdistill import Ensemble, Optimization, Rows, StudentTrainer
    >>> x = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
    >>> teachers = OnlineTeachers(Ensemble.from_members([torch.nn.Linear(4, 3), torch.nn.Linear(4, 3)]))
    >>> trainer = StudentTrainer(Optimization(steps=20, batch_size=10))
    >>> rows = Rows(x, np.arange(50), np.full(50, -100))
    >>> trained = trainer.distill(lambda: torch.nn.Linear(4, 3), rows, teachers)
    >>> trained.cost.steps
    20
    """

    temperature: float | None = None
    max_temperature: float | None = None

    def __init__(
        self,
        ensemble: Ensemble,
        *,
        augment: Augmentation | None = None,
        seed: int = 0,
        batch_size: int = 1024,
    ) -> None:
        seed, batch_size = plain(seed), plain(batch_size)
        if type(seed) is not int or not 0 <= seed < 2**63:
            raise ValueError(f"seed: expected an integer from 0 to 2**63 - 1; got {seed!r}")
        if type(batch_size) is not int or batch_size < 1:
            raise ValueError(f"batch_size: expected a positive integer; got {batch_size!r}")
        self.ensemble, self.augment, self.seed, self.batch_size = ensemble, augment, seed, batch_size

    def for_rows(self, rows: Rows, augment: Augmentation | None) -> OnlineTargets:
        check_augment(type(self).__name__, self.augment, augment)
        return OnlineTargets(self, rows)


class OnlineTargets:
    """The predictions of an :class:`OnlineTeachers` for the rows of one training."""

    needs_samples = True
    compared: Compared = "none"

    def __init__(self, teachers: OnlineTeachers, rows: Rows) -> None:
        if not len(rows):
            raise ValueError("rows: expected at least one; got none")
        ensemble, self.teachers = teachers.ensemble, teachers
        self.predict = predictor(ensemble, rows, teachers.augment)
        self.task = task_of(ensemble)
        names, codec = class_names(ensemble, self.predict, rows), codec_of("fp32", self.task)
        augment = teachers.augment
        plan = make_plan(
            members=list(ensemble.names),
            weights=ensemble.weights,
            combiner=ensemble.combiner,
            classes=names,
            codec=codec,
            mixture_at=None,
            rows=len(rows),
            views=1,
            sequences=False,
            shard_rows=1,
            seed=teachers.seed,
            task=self.task,
        )
        # Location and scale of a regression are measured as those of a cache of these rows.
        order = np.arange(len(rows))
        planned = Planned(plan, codec, self.predict, rows, order, None, None, None, augment, teachers.seed)
        planned = planned.settled(plan, teachers.batch_size)
        self.predict, self._standard = planned.predict, Standard.of(planned.plan)
        self.location = None if self._standard is None else self._standard.location
        self.scale = None if self._standard is None else self._standard.scale
        self.classes, self._encoder = len(names), Encoder(planned.plan, codec)
        self.versions = None if augment is None else Versions(augment, None, teachers.seed)

    def of(self, uids: np.ndarray, epochs: np.ndarray, samples: Any) -> EnsembleLogits | Moments:
        logits = predicted(self.predict, self._encoder, uids, samples, self.teachers.batch_size)
        if self._standard is not None:
            return Moments(*self._standard.split(logits), self._encoder.weights)
        combiner: Any = self.teachers.ensemble.combiner
        return EnsembleLogits(logits, self._encoder.weights, combiner)

    def check(self, uids: np.ndarray, epochs: np.ndarray, hashes: np.ndarray, form: dict[str, Any]) -> None:
        pass

    def fingerprint(self) -> list[Any]:
        teachers = self.teachers
        members = as_json("ensemble.fingerprint()", teachers.ensemble.fingerprint())
        # Versions without end are described by a number of views that no cache has.
        versions = None if teachers.augment is None else describe_views(teachers.augment, 0, teachers.seed)
        return [["online", members, versions, teachers.batch_size]]

    def close(self) -> None:
        pass


def predicted(
    predict: Predict,
    encoder: Encoder,
    uids: np.ndarray,
    samples: Any,
    size: int,
    rows: np.ndarray | None = None,
) -> torch.Tensor:
    """The members' logits for these samples, checked as a cache's: float32 [K, M, C], on their device. Of a
    regression the numbers that a cache's records hold.

    ``size`` samples are predicted at once. ``rows`` are the samples' rows in the encoder's cache; an encoder
    without uids names a sample by its row, which is the uid by default.
    """
    named, parts = uids if rows is None else rows, []
    for start in range(0, len(uids), size):
        part = slice(start, start + size)
        batch = samples if len(uids) <= size else take(samples, part)
        with _one_at_a_time:
            value = predict(batch, uids[part])
        parts.append(encoder.batch(value, 0, named[part], None).logits)
    return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


def check_augment(source: str, own: Augmentation | None, given: Augmentation | None) -> None:
    """Raise ValueError where the augmentation passed to ``distill`` is not the source's own."""
    if given is None:
        return
    described = [None if one is None else describe_views(one, 0, 0) for one in (own, given)]
    if differences(described[0], described[1]):
        raise ValueError(
            f"augment: {source} changes the inputs itself, by {own!r}; got {given!r}: pass it to "
            f"{source}(augment=...), and none to distill"
        )
