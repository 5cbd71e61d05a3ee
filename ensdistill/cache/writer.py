"""Writing a target cache: run the ensemble once over the rows, one shard after the other."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ensdistill.cache import manifest as m
from ensdistill.cache.codecs import Codec, Fields, class_paths, codec_of
from ensdistill.cache.codecs.layout import INPUT_HASH
from ensdistill.cache.fingerprint import input_hashes
from ensdistill.cache.floors import TEMPERATURE
from ensdistill.cache.planned import Planned, check_numbers, limit_of, plan_predictions
from ensdistill.cache.publishing import publish
from ensdistill.cache.reader import TargetCache
from ensdistill.cache.teachers import Ensemble
from ensdistill.common.files import local_path
from ensdistill.common.processes import processes
from ensdistill.common.progress import Progress
from ensdistill.common.scalars import plain
from ensdistill.common.tasks import task_of
from ensdistill.data import Rows
from ensdistill.data.reading import ReadAhead

if TYPE_CHECKING:
    from ensdistill.data.augmentation import Augmentation


def cache_targets(
    ensemble: Ensemble,
    rows: Rows,
    path: Path | str,
    *,
    codec: str | Codec | None = None,
    mixture_at: float | None = None,
    views: int = 1,
    augment: Augmentation | None = None,
    lengths: np.ndarray | None = None,
    max_kl: float | None = None,
    max_error: float | None = None,
    max_temperature: float = TEMPERATURE,
    seed: int = 0,
    batch_size: int = 1024,
    shard_rows: int = 4096,
    workers: int | None = None,
    rank: int | None = None,
    world: int | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> TargetCache:
    """Run the ensemble over ``rows`` and keep its targets in the folder ``path``.

    Under ``torchrun`` every process calls it with the same arguments, writes the shards that are its own, and
    gets the whole cache.

    If the folder holds a finished cache of the same things it is opened and returned; an unfinished one is
    resumed. With the same ``batch_size`` and members that return the same bits, a resumed cache equals an
    undisturbed one byte for byte, with any number of writers.

    The logits are encoded on the device of the members: a tensor on a GPU is encoded there, and only the
    records are copied. From an :class:`ensdistill.Ensemble` with a torch member on a GPU they are taken there
    (``predict_logits_on_device``).

    Parameters
    ----------
    ensemble : Ensemble
        The members: ``predict_logits``, ``names``, ``classes``, ``weights``, ``combiner`` and
        ``fingerprint()``; of regressors ``predict_moments``. Its ``task`` is the cache's.
    rows : Rows
        The transfer set: inputs of any kind that the ensemble takes, lazy ones too, with any uids. ``gather``
        takes them. Where they are 0 ... N-1, in any order, the uid is the sample's row in the cache. Any
        others (a data set's own) are kept in the cache, whose rows are in the order of these.
    path : path
        A folder; created if it does not exist.
    codec : {"uint8", "fp16", "bf16", "fp32", "topk-N", "counts-N", ...}, import path or Codec
        How targets are stored; see ``ensdistill.cache.codecs``. By default ``uint8``, and ``fp32`` of
        regression, which also has ``fp16``, ``affine16`` and ``uint8``. ``topk-N`` and ``counts-N`` hold the
        mixture only, ``topk4-N`` to ``topk8-N`` and ``draws-N`` the same in fewer bytes; of multi-label
        members there is ``topk-N`` alone. A codec outside the package is given by its
        import path (``"my_package.my_codec.MyCodec"``, with settings
        ``"my_package.my_codec.MyCodec(bits=4)"``) or as an instance; see ``docs/extending.md``.
    mixture_at : float, optional
        Keep only the mixture at this temperature, a K-th of the bytes. By default every member's logits are
        kept, which serve every temperature, weighting and combiner. Of regression only 1.0.
    views : int
        Versions of each sample, each augmented in its own way by ``augment``.
    augment : Augmentation, optional
        Changes the inputs before the members get them; ``ensdistill.data.versions.view_inputs`` gives the
        student the same. The ``rounds`` of a transfer set make its synthetic rows anew in each version.
    lengths : ndarray [N], integer, optional
        In the order of ``rows``: the samples are sequences, of which so many positions count;
        ``predict_logits`` returns [K, N, L, C].
    max_kl : float, optional
        Refuse to write a shard in which storing costs a row more than so many nats. Not of regression.
    max_error : float, optional
        Of regression: refuse to write a shard in which storing moves a number by more than this share of the
        predictions' spread (``scale``).
    max_temperature : float
        The largest temperature at which members' logits will be used. With ``uint8``, classes so far below
        their row's largest that they have no share at such temperatures are stored as masked (``-inf``), lest
        they coarsen the others; log-odds that far from 0 are stored at that distance. If a row needed that,
        the loss refuses higher temperatures. See ``ensdistill.cache.floors``.
    seed : int
        Of the augmentation and of the draws of ``counts-N`` and ``draws-N``.
    batch_size : int
        Samples for one call of ``predict_logits``.
    shard_rows : int
        Samples in one file.
    workers : int, optional
        Processes that read lazy samples ahead (see :mod:`ensdistill.data.samples`), so that no more than
        ``2 * workers`` batches are in memory. As many as there are cores by default, up to eight; for Parquet
        and Arrow one thread.
    rank, world : int, optional
        This process is writer number ``rank`` of ``world``, all given the same arguments; each runs the
        members over its own shards, and returns when all are done. By default the numbers that ``torchrun``
        sets, or 0 of 1.
    overwrite : bool
        Build again instead of refusing a folder that holds something else, or a damaged cache (every byte is
        read and checked). A sound cache of the same things is still opened, and an unfinished one resumed.
    progress : callable, optional
        Called with ``(samples done, samples in all)`` of this process, each view counted.

    Returns
    -------
    TargetCache

    Raises
    ------
    ValueError, TypeError
        An argument (so a URL as ``path``), or the logits: NaN, ``+inf``, or a row of ``-inf`` only (``-inf``
        elsewhere masks a class). The message names the uid and the member; the shard is not published.
    CacheError
        ``max_kl`` or ``max_error``: names the member and the uid.
    CacheLossWarning
        (a warning) Storing cost some row a KL of more than 0.01 nats, or of regression an error of more than
        0.01 of the spread; so does opening such a cache.
    CacheMismatch
        The folder holds a cache of something else; the message lists the fields that differ.
    CacheLocked
        Another process is writing the folder.
    CacheCorrupt, CacheIncomplete
        A finished cache in the folder is damaged (``overwrite=True`` builds it again); or another writer
        died.

    Examples
    --------
    >>> import tempfile, types
    >>> n = np.arange(6)
    >>> rows = Rows(inputs=np.eye(6, dtype=np.float32), uids=n, labels=n % 3)
    >>> teachers = types.SimpleNamespace(
    ...     names=("a", "b"), classes=("x", "y", "z"), weights=np.array([0.75, 0.25]), combiner="prob",
    ...     predict_logits=lambda inputs: np.stack([inputs[:, :3], inputs[:, 3:]]),
    ...     fingerprint=lambda: {"members": ["a", "b"]})
    >>> folder = tempfile.TemporaryDirectory()
    >>> cache = cache_targets(teachers, rows, folder.name)
    >>> len(cache), cache.names, cache.manifest["statistics"]["kl"]["max"] < 1e-6
    (6, ('a', 'b'), True)
    >>> cache.gather(np.array([4, 0])).to_logits()[1]
    tensor([[0., 1., 0.],
            [0., 0., 0.]])
    >>> folder.cleanup()
    """
    if not isinstance(rows, Rows):
        remedy = ": pass its .rows" if hasattr(rows, "rows") else ""
        raise TypeError(f"rows: expected Rows; got {type(rows).__name__}{remedy}")
    task = task_of(ensemble)
    path, codec = local_path(path), codec_of(codec, task)
    max_cost = limit_of(task, max_kl, max_error)
    if rank is None and world is None:
        with processes() as group:
            rank, world = group.rank, group.count
    rank, world = 0 if rank is None else rank, 1 if world is None else world
    numbers = (batch_size, shard_rows, views, rank, world, seed)
    batch_size, shard_rows, views, rank, world, seed = (plain(value) for value in numbers)
    check_numbers(batch_size, shard_rows, views, rank, world, seed)
    planned = plan_predictions(
        ensemble,
        rows,
        codec=codec,
        mixture_at=mixture_at,
        views=views,
        augment=augment,
        lengths=lengths,
        max_temperature=max_temperature,
        seed=seed,
        shard_rows=shard_rows,
    )
    source = _Predictions(planned, batch_size=batch_size, world=world, workers=workers)
    try:
        return publish(
            path,
            planned.plan,
            source,
            rank=rank,
            world=world,
            overwrite=overwrite,
            max_cost=max_cost,
            progress=progress,
            trusted=class_paths(codec),
        )
    finally:
        source.close()


class _Predictions:
    """Records of the ensemble's predictions for the rows.

    Parameters
    ----------
    planned : Planned
    batch_size : int
    world : int
        Number of writers, each of which has every so many-th shard.
    workers : int or None
    """

    def __init__(self, planned: Planned, batch_size: int, world: int, workers: int | None) -> None:
        self.planned, self.uids = planned, planned.uids
        self.batch_size, self.world, self.workers = batch_size, world, workers
        self.spent: dict[str, float] = {}

    @property
    def plan(self) -> m.Manifest:
        return self.planned.plan

    def settle(self, plan: m.Manifest) -> m.Manifest:
        self.planned = self.planned.settled(plan, self.batch_size)
        return self.plan

    @cached_property
    def _encoder(self) -> Any:
        from ensdistill.cache.encoding import Encoder  # imports torch

        return Encoder(self.plan, self.planned.codec, self.uids)

    @cached_property
    def _reader(self) -> ReadAhead:
        planned = self.planned
        read = _Hashed(planned.rows.inputs) if planned.hashes is None and planned.augment is None else None
        return ReadAhead(planned.rows.inputs, self._following, workers=self.workers, read=read)

    def close(self) -> None:
        self._reader.close()

    def _following(self, key: tuple[int, int]) -> Iterator[tuple[tuple[int, int], np.ndarray]]:
        """Number of the shard and of its first row, and the positions, of this batch and all that this writer
        encodes after it."""
        for shard in range(key[0], m.shard_count(self.plan), self.world):
            _, first = m.view_and_first_row(self.plan, shard)
            stop = first + m.rows_of_shard(self.plan, shard)
            for start in range(max(first, key[1]) if shard == key[0] else first, stop, self.batch_size):
                yield (shard, start), self.planned.order[start : min(start + self.batch_size, stop)]

    def lengths(self, view: int, rows: np.ndarray) -> np.ndarray | None:
        return None if self.planned.lengths is None else self.planned.lengths[rows]

    def encode(self, view: int, rows: np.ndarray) -> tuple[Fields, dict[str, Any]]:
        planned = self.planned
        shard = view * m.shards_per_view(self.plan) + int(rows[0]) // self.plan["shard_rows"]
        inputs, uids = self._reader((shard, int(rows[0]))), planned.rows.uids[planned.order[rows]]
        lengths = self.lengths(view, rows)
        if planned.augment is None:
            inputs, hashes = inputs if planned.hashes is None else (inputs, planned.hashes[rows])
        else:
            from ensdistill.data.versions import view_inputs

            inputs = view_inputs(planned.augment, inputs, uids, view, planned.seed)
            hashes = input_hashes(inputs)
        parts = None if lengths is None else planned.parts(inputs)
        if parts is None or lengths is None:
            fields, costs = self._encoder(planned.predict(inputs, uids), view, rows, lengths)
        else:
            fields, costs = self._encoder.parts(parts, view, rows, lengths)
        return {**fields, INPUT_HASH: hashes if lengths is None else np.repeat(hashes, lengths)}, costs


@dataclass(frozen=True)
class _Hashed:
    """Reads a batch and hashes it in the same place: a worker process, or the thread that reads ahead."""

    samples: Any

    def __call__(self, positions: np.ndarray) -> tuple[Any, np.ndarray]:
        batch = self.samples[positions]
        return batch, input_hashes(batch)
