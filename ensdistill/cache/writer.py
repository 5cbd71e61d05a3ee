"""Writing a target cache: run the ensemble once over the rows, one shard after the other."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ensdistill.cache import manifest as m
from ensdistill.cache.codecs import Codec, Fields, class_paths, codec_of
from ensdistill.cache.codecs.layout import INPUT_HASH
from ensdistill.cache.fingerprint import as_json, input_hashes, made_from
from ensdistill.cache.floors import TEMPERATURE
from ensdistill.cache.plan import make_plan
from ensdistill.cache.publishing import publish
from ensdistill.cache.reader import TargetCache
from ensdistill.cache.teachers import Ensemble, Predict, predictor
from ensdistill.cache.uids import row_order
from ensdistill.common.files import local_path
from ensdistill.common.processes import processes
from ensdistill.common.progress import Progress
from ensdistill.common.scalars import plain
from ensdistill.data import BadRows, Rows
from ensdistill.data.reading import ReadAhead
from ensdistill.data.samples import in_memory, whole

if TYPE_CHECKING:
    from ensdistill.data.augmentation import Augmentation

_LONGEST = 2**24


def cache_targets(
    ensemble: Ensemble,
    rows: Rows,
    path: Path | str,
    *,
    codec: str | Codec = "uint8",
    mixture_at: float | None = None,
    views: int = 1,
    augment: Augmentation | None = None,
    lengths: np.ndarray | None = None,
    max_kl: float | None = None,
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
        ``fingerprint()``.
    rows : Rows
        The transfer set: inputs of any kind that the ensemble takes, lazy ones too, with any uids. ``gather``
        takes them. Where they are 0 ... N-1, in any order, the uid is the sample's row in the cache. Any
        others (a data set's own) are kept in the cache, whose rows are in the order of these.
    path : path
        A folder; created if it does not exist.
    codec : {"uint8", "fp16", "bf16", "fp32", "topk-N", "counts-N"}, import path or Codec
        How targets are stored; see ``ensdistill.cache.codecs``. ``topk-N`` and ``counts-N`` hold the mixture
        only. A codec outside the package is given by its import path (``"my_package.my_codec.MyCodec"``, with
        settings ``"my_package.my_codec.MyCodec(bits=4)"``) or as an instance; see ``docs/extending.md``.
    mixture_at : float, optional
        Keep only the mixture at this temperature, a K-th of the bytes. By default every member's logits are
        kept, which serve every temperature, weighting and combiner.
    views : int
        Versions of each sample, each augmented in its own way by ``augment``.
    augment : Augmentation, optional
        Changes the inputs before the members get them; ``ensdistill.data.versions.view_inputs`` gives the
        student the same.
    lengths : ndarray [N], integer, optional
        In the order of ``rows``: the samples are sequences, of which so many positions count;
        ``predict_logits`` returns [K, N, L, C].
    max_kl : float, optional
        Refuse to write a shard in which storing costs a row more than so many nats.
    max_temperature : float
        The largest temperature at which members' logits will be used. With ``uint8``, classes so far below
        their row's largest that they have no share at such temperatures are stored as masked (``-inf``), lest
        they coarsen the others. If a row needed that, the loss refuses higher temperatures. See
        ``ensdistill.cache.floors``.
    seed : int
        Of the augmentation and of the draws of ``counts-N``.
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
        ``max_kl``: names the member and the uid.
    CacheLossWarning
        (a warning) Storing cost some row a KL of more than 0.01 nats; so does opening such a cache.
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
    path, codec = local_path(path), codec_of(codec)
    if rank is None and world is None:
        with processes() as group:
            rank, world = group.rank, group.count
    rank, world = 0 if rank is None else rank, 1 if world is None else world
    numbers = (batch_size, shard_rows, views, rank, world, seed, max_kl)
    batch_size, shard_rows, views, rank, world, seed, max_kl = (plain(value) for value in numbers)
    _check_numbers(batch_size, shard_rows, views, rank, world, seed, max_kl)
    if not len(rows):
        raise ValueError("rows: expected at least one; got none")
    order, uids = row_order(rows.uids)
    predict = predictor(ensemble, rows, augment)
    if augment is None and views > 1:
        raise ValueError(
            f"augment: expected an augmentation, because {views} views without one would all be the same; "
            "got None"
        )
    plan = make_plan(
        members=list(ensemble.names),
        weights=ensemble.weights,
        combiner=ensemble.combiner,
        classes=_classes(ensemble, predict, rows),
        codec=codec,
        mixture_at=mixture_at,
        rows=len(rows),
        views=views,
        sequences=lengths is not None,
        shard_rows=shard_rows,
        seed=seed,
        max_temperature=max_temperature,
        uids=uids,
    )
    counts = _lengths(lengths, rows, order)
    # Lazy samples are hashed as they are read for the members: reading them all beforehand would double the
    # time.
    hashes = input_hashes(whole(rows.inputs))[order] if in_memory(rows.inputs) else None
    described = None
    if augment is not None:
        from ensdistill.data.versions import describe_views

        described = as_json("augment", describe_views(augment, views, seed))
    plan["fingerprint"] = {
        "ensemble": as_json("ensemble.fingerprint()", ensemble.fingerprint()),
        "inputs": made_from(rows.inputs if hashes is None else hashes, counts, uids),
        "views": described,
    }
    source = _Predictions(
        plan=plan,
        codec=codec,
        predict=predict,
        rows=rows,
        order=order,
        hashes=hashes,
        all_lengths=counts,
        uids=uids,
        augment=augment,
        seed=seed,
        batch_size=batch_size,
        world=world,
        workers=workers,
    )
    try:
        return publish(
            path,
            plan,
            source,
            rank=rank,
            world=world,
            overwrite=overwrite,
            max_kl=max_kl,
            progress=progress,
            trusted=class_paths(codec),
        )
    finally:
        source.close()


@dataclass
class _Predictions:
    """Records of the ensemble's predictions for the rows.

    Attributes
    ----------
    order : ndarray [N]
        The position among ``rows`` of each row of the cache.
    hashes, all_lengths, uids : ndarray [N]
        In the order of the cache. Hashes of lazy samples are None until they are read.
    world : int
        Number of writers, each of which has every so many-th shard.
    """

    plan: m.Manifest
    codec: Codec
    predict: Predict
    rows: Rows
    order: np.ndarray
    hashes: np.ndarray | None
    all_lengths: np.ndarray | None
    uids: np.ndarray | None
    augment: Augmentation | None
    seed: int
    batch_size: int
    world: int
    workers: int | None
    spent: dict[str, float] = field(default_factory=dict)

    @cached_property
    def _encoder(self) -> Any:
        from ensdistill.cache.encoding import Encoder  # imports torch

        return Encoder(self.plan, self.codec, self.uids)

    @cached_property
    def _reader(self) -> ReadAhead:
        read = _Hashed(self.rows.inputs) if self.hashes is None and self.augment is None else None
        return ReadAhead(self.rows.inputs, self._following, workers=self.workers, read=read)

    def close(self) -> None:
        self._reader.close()

    def _following(self, key: tuple[int, int]) -> Iterator[tuple[tuple[int, int], np.ndarray]]:
        """Number of the shard and of its first row, and the positions, of this batch and all that this writer
        encodes after it."""
        for shard in range(key[0], m.shard_count(self.plan), self.world):
            _, first = m.view_and_first_row(self.plan, shard)
            stop = first + m.rows_of_shard(self.plan, shard)
            for start in range(max(first, key[1]) if shard == key[0] else first, stop, self.batch_size):
                yield (shard, start), self.order[start : min(start + self.batch_size, stop)]

    def lengths(self, view: int, rows: np.ndarray) -> np.ndarray | None:
        return None if self.all_lengths is None else self.all_lengths[rows]

    def encode(self, view: int, rows: np.ndarray) -> tuple[Fields, dict[str, Any]]:
        shard = view * m.shards_per_view(self.plan) + int(rows[0]) // self.plan["shard_rows"]
        inputs, uids = self._reader((shard, int(rows[0]))), self.rows.uids[self.order[rows]]
        lengths = self.lengths(view, rows)
        if self.augment is None:
            inputs, hashes = inputs if self.hashes is None else (inputs, self.hashes[rows])
        else:
            from ensdistill.data.versions import view_inputs

            inputs = view_inputs(self.augment, inputs, uids, view, self.seed)
            hashes = input_hashes(inputs)
        try:
            value = self.predict(inputs, uids)
        except BadRows as error:  # its rows are positions in this batch
            bad = uids[error.rows]
            raise BadRows(f"{error}; that row has uid {bad[0]}", bad) from error
        fields, costs = self._encoder(value, view, rows, lengths)
        return {**fields, INPUT_HASH: hashes if lengths is None else np.repeat(hashes, lengths)}, costs


@dataclass(frozen=True)
class _Hashed:
    """Reads a batch and hashes it in the same place: a worker process, or the thread that reads ahead."""

    samples: Any

    def __call__(self, positions: np.ndarray) -> tuple[Any, np.ndarray]:
        batch = self.samples[positions]
        return batch, input_hashes(batch)


def _check_numbers(
    batch_size: Any, shard_rows: Any, views: Any, rank: Any, world: Any, seed: Any, max_kl: Any
) -> None:
    counts = (("batch_size", batch_size), ("shard_rows", shard_rows), ("views", views), ("world", world))
    for name, value in counts:
        if type(value) is not int or value < 1:
            raise ValueError(f"{name}: expected a positive integer; got {value!r}")
    if type(rank) is not int or not 0 <= rank < world:
        raise ValueError(f"rank: expected 0 to {world - 1}, one of the {world} writers; got {rank!r}")
    if type(seed) is not int or not 0 <= seed < 2**63:
        raise ValueError(f"seed: expected an integer from 0 to 2**63 - 1; got {seed!r}")
    if max_kl is not None and not (isinstance(max_kl, int | float) and max_kl >= 0):
        raise ValueError(f"max_kl: expected a number of at least 0, in nats; got {max_kl!r}")


def _classes(ensemble: Ensemble, predict: Predict, rows: Rows) -> list[str]:
    """The classes' names; numbers where the ensemble has no names."""
    if ensemble.classes is not None:
        return list(ensemble.classes)
    return list(map(str, range(np.shape(predict(rows.inputs[:1], rows.uids[:1]))[-1])))


def _lengths(lengths: Any, rows: Rows, order: np.ndarray) -> np.ndarray | None:
    """In row order."""
    if lengths is None:
        return None
    array = np.asarray(lengths)
    if array.dtype.kind not in "iu" or array.shape != (len(rows),):
        raise ValueError(
            f"lengths: expected one integer for each of the {len(rows)} rows; got {array.dtype} "
            f"{list(array.shape)}"
        )
    if array.min() < 1 or array.max() >= _LONGEST:
        raise ValueError(f"lengths: expected 1 to {_LONGEST - 1}; got {array.min()} to {array.max()}")
    return array.astype(np.int64)[order]
