"""The sources of a student's targets, behind one interface: a cache, or another object with its methods."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np

from ensdistill.cache import CacheMismatch, TargetCache
from ensdistill.cache.fingerprint import as_json, differences
from ensdistill.cache.verifying import verify_hashes
from ensdistill.common.tasks import task_of
from ensdistill.data import Rows
from ensdistill.data.augmentation import Augmentation
from ensdistill.data.samples import in_memory, whole
from ensdistill.data.versions import describe_views, view_inputs

Compared = Literal["none", "one a batch", "all"]


@dataclass(frozen=True)
class Versions:
    """How the inputs of each epoch are made from the rows, for teachers and student alike.

    Parameters
    ----------
    augment : Augmentation
    views : int or None
        In epoch e a sample has version e mod ``views``; version e itself where None, so that none repeats.
    seed : int
        Of the versions.
    """

    augment: Augmentation
    views: int | None
    seed: int


class RowTargets(Protocol):
    """A source's targets for the rows of one training.

    Attributes
    ----------
    classes : int
        Classes, labels, or numbers that are predicted.
    task : {"classification", "multilabel", "regression"}
        Classification where there is no such attribute.
    location, scale : ndarray [D], float64
        Of a regression: ``(y - location) / scale`` are the targets' standardised units. None, or absent, of
        other tasks.
    versions : Versions or None
        How inputs are made from the rows; None where they are the rows themselves.
    needs_samples : bool
        Whether ``of`` needs the samples. ``of`` may be called on a thread, but never by two at once.
    compared : {"none", "one a batch", "all"}
        Which of the samples that are read during the training are passed to ``check``. Samples in memory
        that have no versions are never read again.
    """

    classes: int
    versions: Versions | None
    compared: Compared

    @property
    def needs_samples(self) -> bool: ...

    def of(self, uids: np.ndarray, epochs: np.ndarray, samples: Any) -> Any:
        """The targets of some samples.

        Parameters
        ----------
        uids : ndarray [M], int64
            Any order; one may be there several times.
        epochs : ndarray [M], int64
            How many epochs each sample had been part of before.
        samples : batch of M samples, or None
            As the members take them: in their versions, not preprocessed. None unless ``needs_samples``.

        Returns
        -------
        one of :mod:`ensdistill.loss.targets`, of M rows
        """
        ...

    def check(self, uids: np.ndarray, epochs: np.ndarray, hashes: np.ndarray, form: dict[str, Any]) -> None:
        """Raise CacheMismatch for samples that differ from those that the targets were made from.

        Parameters
        ----------
        uids, epochs : ndarray [M], int64
        hashes : ndarray [M], uint64
            See :func:`ensdistill.cache.input_hashes`.
        form : dict
            The samples' kind, dtype and shape, for the message.
        """
        ...

    def fingerprint(self) -> list[Any]:
        """Data for :func:`ensdistill.common.fingerprint.digest`: a checkpoint of a training with other data
        is not resumed."""
        ...

    def close(self) -> None:
        """The training has ended."""
        ...


class TargetSource(Protocol):
    """A source of targets for :meth:`ensdistill.student.StudentTrainer.distill`: the attributes of a
    :class:`~ensdistill.cache.TargetCache` that a loss checks before a training, and ``for_rows``.

    Attributes
    ----------
    names : sequence of str [K]
        The members.
    weights : ndarray [K], float64
    combiner : {"prob", "logit", "log_prob"}
    temperature : float or None
        The temperature of targets that hold the mixture only; None where they serve every one.
    max_temperature : float or None
        The largest temperature that the targets serve; None without a limit.
    task : {"classification", "multilabel", "regression"}
        Classification where there is no such attribute.
    """

    @property
    def names(self) -> Sequence[str]: ...

    @property
    def weights(self) -> np.ndarray: ...

    @property
    def combiner(self) -> str: ...

    @property
    def temperature(self) -> float | None: ...

    @property
    def max_temperature(self) -> float | None: ...

    def for_rows(self, rows: Rows, augment: Augmentation | None) -> RowTargets:
        """The targets of these rows, which are checked first.

        Parameters
        ----------
        rows : Rows
        augment : Augmentation, optional
            The one that the caller of ``distill`` expects the source to have.
        """
        ...


def targets_for(source: TargetCache | TargetSource, rows: Rows, augment: Augmentation | None) -> RowTargets:
    """The targets of these rows, from a cache or from another source.

    Raises
    ------
    TypeError
        Neither of these.
    """
    if isinstance(source, TargetCache):
        return CachedTargets(source, rows, augment)
    if not callable(getattr(source, "for_rows", None)):
        raise TypeError(
            "cache: expected a TargetCache, or another source of targets with the methods of "
            f"ensdistill.student.TargetSource; got {type(source).__name__}"
        )
    return source.for_rows(rows, augment)


class CachedTargets:
    """A cache's targets for the rows of one training; see :class:`RowTargets`.

    Rows in memory are all compared with the cache at once, in their first version; lazy ones as they are
    read.

    Raises
    ------
    CacheMismatch
        Other rows than the cache's, or another augmentation.
    ValueError
        A cache of sequences.
    """

    needs_samples = False

    def __init__(self, cache: TargetCache, rows: Rows, augment: Augmentation | None) -> None:
        check_rows_only(cache)
        self.cache, self.classes, self.task = cache, len(cache.classes), task_of(cache)
        self.location, self.scale = (getattr(cache, name, None) for name in ("location", "scale"))
        self.versions = versions_of(cache, rows, augment)
        self.compared: Compared = compared_of(rows, self.versions)

    def of(self, uids: np.ndarray, epochs: np.ndarray, samples: Any) -> Any:
        return self.cache.gather(uids, epochs % self.cache.views)

    def check(self, uids: np.ndarray, epochs: np.ndarray, hashes: np.ndarray, form: dict[str, Any]) -> None:
        verify_hashes(self.cache, uids, hashes, epochs % self.cache.views, form)

    def fingerprint(self) -> list[Any]:
        return fingerprint_of_cache(self.cache.manifest, self.versions)

    def close(self) -> None:
        pass


def check_in_cache(cache: Any, rows: Rows) -> None:
    """Raise ValueError for rows that a cache has no targets of; other sources check theirs by themselves."""
    if not isinstance(cache, TargetCache):
        return
    missing = np.flatnonzero(~np.isin(rows.uids, cache.uids))
    if len(missing):
        raise ValueError(
            f"rows: expected rows with targets in the cache {cache.path}, which holds {len(cache)}; got "
            f"{len(rows)} rows, {len(missing)} of them without, such as uid {rows.uids[missing[0]]}: build "
            "the cache from these rows, or leave those out by rows.take(numpy.isin(rows.uids, cache.uids))"
        )


def compared_of(rows: Rows, versions: Versions | None) -> Compared:
    """Which samples are compared with a cache during a training: in memory, plain rows were compared before
    it; of versions one is in each batch."""
    if not in_memory(rows.inputs):
        return "all"
    return "none" if versions is None else "one a batch"


def fingerprint_of_cache(manifest: dict[str, Any], versions: Versions | None) -> list[Any]:
    """A cache's part of a checkpoint's fingerprint; its order is that of earlier versions' checkpoints."""
    fields = ("fingerprint", "codec", "seed", "temperature", "views", "weights")
    augment = None if versions is None else versions.augment
    return [[manifest[field] for field in fields], manifest["combiner"], repr(augment)]


def check_rows_only(cache: TargetCache) -> None:
    """Raise ValueError for a cache of sequences."""
    if cache.manifest["sequences"]:
        raise ValueError(
            f"cache: {cache.path} holds sequences, targets at several positions of each row, which this "
            "trainer does not take: pass pixels or anchors to ensdistill.student.shared.distill_sets, in a "
            "HeadSet with class_dim, or gather the targets in a loop of your own"
        )


def versions_of(cache: TargetCache, rows: Rows, augment: Augmentation | None) -> Versions | None:
    """How a cache's inputs are made from the rows, after a comparison of these; None where they are the rows
    themselves."""
    made_by = cache.manifest["fingerprint"].get("views")
    if made_by is None:
        if augment is not None:
            raise CacheMismatch(
                f"augment: the cache {cache.path} was made from inputs as they are; got {augment!r}"
            )
        if in_memory(rows.inputs):
            cache.verify_inputs(rows.uids, rows.inputs)
        return None
    if augment is None:
        raise CacheMismatch(
            f"augment: the cache {cache.path} was made from inputs changed by {made_by['augment']}; pass "
            "that, got None"
        )
    given = as_json("augment", describe_views(augment, cache.views, made_by["seed"]))
    if differing := differences(made_by, given):
        raise CacheMismatch(f"augment: not the one that the cache {cache.path} was made with:", differing)
    seed = made_by["seed"]
    if in_memory(rows.inputs):  # lazy samples are compared as they are read
        cache.verify_inputs(rows.uids, view_inputs(augment, whole(rows.inputs), rows.uids, 0, seed))
    return Versions(augment, cache.views, seed)
