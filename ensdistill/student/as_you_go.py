"""A cache that a student's training fills in its first epochs, and reads in those after them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ensdistill.cache.codecs import Codec, codec_of, largest_share_distance
from ensdistill.cache.draft import Draft
from ensdistill.cache.errors import CacheMismatch
from ensdistill.cache.fingerprint import input_hashes
from ensdistill.cache.floors import TEMPERATURE
from ensdistill.cache.manifest import task_of_plan
from ensdistill.cache.planned import check_numbers, plan_predictions
from ensdistill.cache.standard import Standard
from ensdistill.cache.teachers import Ensemble
from ensdistill.cache.uids import Places
from ensdistill.cache.verifying import verify_hashes
from ensdistill.common.files import local_path
from ensdistill.common.scalars import check_temperature, plain
from ensdistill.common.tasks import task_of
from ensdistill.data import Rows
from ensdistill.data.augmentation import Augmentation
from ensdistill.student.online import EnsembleSource, OnlineTeachers, check_augment, predicted
from ensdistill.student.sources import (
    Compared,
    RowTargets,
    Versions,
    compared_of,
    fingerprint_of_cache,
    targets_for,
)


class CacheAsYouGo(EnsembleSource):
    """An ensemble that predicts in the first epochs of a student's training and fills a cache with it: a
    source of targets.

    The student begins at once, and sees the targets of the finished cache from its first step: they are
    encoded and decoded by the codec. After ``views`` epochs the folder holds the cache that
    :func:`ensdistill.cache.cache_targets` makes of the same arguments, and the members are not needed any
    more. Until then it holds the logits of the rows that are there, four bytes each; a training that was
    killed goes on from them, and a training that ends earlier leaves them to the next. Where the folder holds
    the finished cache already, it is read. Rows that a validation holds out are no part of the cache: the
    members predict for them in each evaluation.

    Parameters
    ----------
    ensemble : Ensemble
        As :func:`ensdistill.cache.cache_targets` takes it.
    path : path
        The cache's folder. Processes that ``torchrun`` starts on one machine fill it together.
    codec, mixture_at, views, augment, max_temperature, seed, batch_size, shard_rows, overwrite
        As for :func:`ensdistill.cache.cache_targets`.

    Raises
    ------
    ValueError, TypeError
        An argument.
    CacheMismatch
        (``distill``) The folder holds a cache of something else.
    OSError
        (``distill``) The disk has no space for the logits.

    Examples
    --------
    >>> import tempfile, torch
    >>> from ensdistill import Ensemble, Optimization, Rows, StudentTrainer
    >>> x = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
    >>> rows = Rows(x, np.arange(50), np.full(50, -100))
    >>> ensemble = Ensemble.from_members([torch.nn.Linear(4, 3), torch.nn.Linear(4, 3)])
    >>> folder = tempfile.TemporaryDirectory()
    >>> source = CacheAsYouGo(ensemble, folder.name)
    >>> trainer = StudentTrainer(Optimization(steps=20, batch_size=10))
    >>> trained = trainer.distill(lambda: torch.nn.Linear(4, 3), rows, source)
    >>> from ensdistill import TargetCache
    >>> len(TargetCache.open(folder.name))
    50
    >>> folder.cleanup()
    """

    def __init__(
        self,
        ensemble: Ensemble,
        path: Path | str,
        *,
        codec: str | Codec | None = None,
        mixture_at: float | None = None,
        views: int = 1,
        augment: Augmentation | None = None,
        max_temperature: float = TEMPERATURE,
        seed: int = 0,
        batch_size: int = 1024,
        shard_rows: int = 4096,
        overwrite: bool = False,
    ) -> None:
        batch_size, shard_rows, views, seed = map(plain, (batch_size, shard_rows, views, seed))
        check_numbers(batch_size, shard_rows, views, 0, 1, seed)
        check_temperature("max_temperature", max_temperature)
        self.ensemble, self.path = ensemble, local_path(path)
        self.codec = codec_of(codec, task_of(ensemble))
        self.temperature, self.views, self.augment, self.seed = mixture_at, views, augment, seed
        self.batch_size, self.shard_rows, self.overwrite = batch_size, shard_rows, overwrite
        self._made_for = max_temperature

    @property
    def max_temperature(self) -> float | None:
        """The largest temperature that the finished cache serves, whatever the members predict."""
        if self.task != "classification":
            return None
        classes = 1000 if self.ensemble.classes is None else len(self.ensemble.classes)
        floor = self.codec.floor(classes, self.combiner, self.temperature is not None, self._made_for)
        return None if floor is None else floor / largest_share_distance(classes)

    def online(self) -> OnlineTeachers:
        """The same members without a cache, for rows that are no part of it."""
        return OnlineTeachers(self.ensemble, augment=self.augment, seed=self.seed, batch_size=self.batch_size)

    def for_rows(self, rows: Rows, augment: Augmentation | None) -> RowTargets:
        check_augment(type(self).__name__, self.augment, augment)
        planned = plan_predictions(
            self.ensemble,
            rows,
            codec=self.codec,
            mixture_at=self.temperature,
            views=self.views,
            augment=self.augment,
            lengths=None,
            max_temperature=self._made_for,
            seed=self.seed,
            shard_rows=self.shard_rows,
        )
        draft = Draft(self.path, planned, self.batch_size, self.overwrite)
        if draft.cache is not None:
            return targets_for(draft.cache, rows, self.augment)
        return FilledTargets(draft, rows)


class FilledTargets:
    """The targets of a draft, which is filled where it is empty, for the rows of one training; after that
    those of the finished cache."""

    def __init__(self, draft: Draft, rows: Rows) -> None:
        planned = draft.planned
        self.draft, self.classes = draft, len(draft.plan["classes"])
        self.task, standard = task_of_plan(draft.plan), Standard.of(draft.plan)
        self.location = None if standard is None else standard.location
        self.scale = None if standard is None else standard.scale
        self.versions = (
            None if planned.augment is None else Versions(planned.augment, draft.plan["views"], planned.seed)
        )
        self.compared: Compared = compared_of(rows, self.versions)
        self._places = None if planned.uids is None else Places(planned.uids)

    @property
    def needs_samples(self) -> bool:
        return self.draft.cache is None

    def of(self, uids: np.ndarray, epochs: np.ndarray, samples: Any) -> Any:
        draft, views = self.draft, epochs % self.draft.plan["views"]
        if (cache := draft.find()) is not None:
            return cache.gather(uids, views)
        rows = self._rows(uids)
        ids = draft.ids(rows, views)
        if draft.missing(ids).any():
            # All of the samples, and not only those that are missing: members may round differently in
            # another batch, and a training that goes on has some of them already.
            planned = draft.planned
            logits = predicted(planned.predict, draft.encoder, uids, samples, draft.batch_size, rows)
            first = np.sort(np.unique(ids, return_index=True)[1])
            first = first[draft.missing(ids[first])]
            draft.write(ids[first], logits[:, first].cpu().numpy(), input_hashes(samples)[first])
        targets = draft.target(rows, views)
        if draft.complete:
            draft.publish()
        return targets

    def check(self, uids: np.ndarray, epochs: np.ndarray, hashes: np.ndarray, form: dict[str, Any]) -> None:
        views = epochs % self.draft.plan["views"]
        if (cache := self.draft.find()) is not None:
            return verify_hashes(cache, uids, hashes, views, form)
        ids = self.draft.ids(self._rows(uids), views)
        wrong = np.flatnonzero(~self.draft.missing(ids) & (self.draft.hashes(ids) != hashes))
        if wrong.size:
            raise CacheMismatch(
                f"inputs: uid {int(uids[wrong[0]])} is not what its target was made from; {wrong.size} of "
                f"{len(uids)} differ: a data set whose items change between reads"
            )

    def fingerprint(self) -> list[Any]:
        return fingerprint_of_cache(self.draft.plan, self.versions)

    def close(self) -> None:
        pass

    def _rows(self, uids: np.ndarray) -> np.ndarray:
        """The rows of the cache, int64 [M]; all uids are its own."""
        return uids if self._places is None else self._places.of(uids)[0]
