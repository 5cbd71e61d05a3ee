"""Reading a target cache: any uids in any order, as targets that the loss reads as they are stored.

Needs NumPy only; torch is imported by `TargetCache.gather`, whose tensors are views of the gathered records.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ensdistill.cache.codecs import Counts, TopK, codec_of
from ensdistill.cache.errors import CacheCorrupt, CacheLossWarning, CacheMismatch
from ensdistill.cache.fingerprint import as_json, differences, input_hashes, root_hash
from ensdistill.cache.floors import largest_temperature
from ensdistill.cache.manifest import MANIFEST, UIDS, Manifest, files_of, kl_before, layout_of, read_manifest, shards_per_view
from ensdistill.cache.mapped import MappedShards, default_threads
from ensdistill.cache.streaming import stream
from ensdistill.cache.uids import Places, parse_uids
from ensdistill.common.scalars import whole

if TYPE_CHECKING:
    from ensdistill.cache.teachers import Ensemble
    from ensdistill.data import Rows
    from ensdistill.data.augmentation import Augmentation
    from ensdistill.loss.targets import Targets

NOTABLE_KL = 0.01
"""Nats that storing may cost any row without a warning."""
_LARGEST = 2**63 - 1


class TargetCache:
    """What an ensemble says about N samples, on disk. Made by `cache_targets`, opened by `TargetCache.open`.

    Attributes
    ----------
    path : Path
        The folder, absolute.
    url : str or None
        What the folder is a copy of.
    max_temperature : float or None
        The largest temperature that the targets serve; None where they serve every one (or, of a mixture, the one that it is of).

    Any number of processes may read one cache, from a read-only folder too. A process may fork with it, and it may be pickled, for
    instance by the workers of a ``DataLoader`` that are spawned: a copy holds the folder's absolute path and the manifest, and maps the
    files when it reads them. A block of records is compared with its checksum once by each copy, before its first record is returned.
    """

    def __init__(self, path: Path, manifest: Manifest, threads: int | None = None, url: str | None = None) -> None:
        # Absolute, because shards are opened when they are first read, and the working directory may have changed by then.
        self.path = path.absolute()
        self.url = url  # of which the folder is a copy, where it is one
        self.layout = layout_of(manifest)
        self._manifest, self._threads = manifest, threads
        self._codec = codec_of(manifest["codec"])
        self._shards = MappedShards(self.path, manifest, threads or default_threads(), url)
        self.max_temperature = largest_temperature(manifest)

    def __reduce__(self) -> tuple[Any, ...]:
        # Nothing is read when a copy is made: an error there would end a worker process before it can report why.
        return TargetCache, (self.path, self._manifest, self._threads, self.url)

    @classmethod
    def open(
        cls,
        path: Path | str,
        *,
        check: str = "lazy",
        expect: dict[str, Any] | None = None,
        threads: int | None = None,
        local: Path | str | None = None,
        overwrite: bool = False,
    ) -> TargetCache:
        """Open a finished cache.

        Records are read from mapped files. Nobody may cut a shard meanwhile: the system ends a process that reads what is no longer
        there (SIGBUS). A writer that builds the cache anew never does; it leaves the old files to whoever has them open.

        Parameters
        ----------
        path : path or URL
            The folder. A URL (``s3://...``, ``memory://...``: whatever fsspec knows) is copied to this machine first, each shard once.
        check : {"lazy", "full"}
            ``lazy`` checks manifest and file sizes now, and each block of records and the uids at their first use; ``full`` reads
            everything now.
        expect : dict, optional
            Fields of ``manifest["fingerprint"]`` (``ensemble``, ``inputs``, ``views``) that must be equal to these.
        threads : int, optional
            That copy records; by default one for each core, at most four.
        local : path, optional
            Where the copy of a URL is kept; by default in the user's cache folder.
        overwrite : bool
            Replace another cache in the folder ``local`` instead of refusing.

        Raises
        ------
        CacheIncomplete
            No manifest, or a file of it is missing.
        CacheCorrupt
            A file is not what was written.
        CacheMismatch
            The fingerprint differs from ``expect``, or the folder ``local`` holds another cache than the URL (field by field in the
            message), or another version of the format.
        CacheLossWarning
            (a warning) Storing cost some row a KL of more than 0.01 nats.
        """
        if check not in ("lazy", "full"):
            raise ValueError(f"check: expected 'lazy' or 'full'; got {check!r}")
        if threads is not None and (not whole(threads) or not 1 <= threads <= 256):
            raise ValueError(f"threads: expected a number from 1 to 256; got {threads!r}")
        url = str(path) if "://" in str(path) else None
        if url is not None:
            from ensdistill.cache.remote import download

            path = download(url, local, overwrite=overwrite)
        elif overwrite:
            raise ValueError(f"overwrite: is for the local copy of a URL; got it with the folder {path}")
        elif local is not None:
            raise ValueError(f"local: is for a URL; got it with the folder {path}")
        path = Path(path).absolute()
        manifest = read_manifest(path)
        if expect is not None:
            expect = as_json("expect", expect)
            found = {field: value for field, value in manifest["fingerprint"].items() if field in expect}
            if differing := differences(found, expect):
                raise CacheMismatch(f"{path}: the cache was made from something else:", differing)
        cache = cls(path, manifest, threads, url)
        for entry in files_of(manifest):
            cache._shards.check_size(entry)
        if check == "full":
            cache.verify()
        cache._warn_of_loss()
        return cache

    def __len__(self) -> int:
        return self._manifest["rows"]

    def __repr__(self) -> str:
        k, c = len(self.names), len(self.classes)
        return f"TargetCache({str(self.path)!r}, codec={self._codec.name!r}, members={k}, rows={len(self)}, classes={c})"

    @property
    def manifest(self) -> Manifest:
        """The manifest as a dictionary (``ensdistill.cache.manifest`` documents it); to be read only."""
        return self._manifest

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._manifest["members"])

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(self._manifest["classes"])

    @property
    def weights(self) -> np.ndarray:
        """Mixture weights as the ensemble gave them, float64 [K]."""
        return np.array(self._manifest["weights"], np.float64)

    @property
    def combiner(self) -> str:
        return self._manifest["combiner"]

    @property
    def temperature(self) -> float | None:
        """The one temperature of a cache that holds the mixture only; None where the members are kept, which serve every one."""
        return None if self._manifest["temperature"] == "any" else float(self._manifest["temperature"])

    @property
    def views(self) -> int:
        """How many versions of each sample there are; epoch e takes view e mod views."""
        return self._manifest["views"]

    @cached_property
    def uids(self) -> np.ndarray:
        """The samples' uids in the order of the cache's rows, int64 [N], read-only; 0 ... N-1 where the cache keeps none.

        Raises
        ------
        CacheIncomplete, CacheCorrupt, CacheMismatch
            Their file is not there, is damaged, or is another cache's by now.
        """
        if "uids" in self._manifest:
            return parse_uids(self.path / UIDS, self._shards.read(self._manifest["uids"]), len(self))
        rows = np.arange(len(self))
        rows.flags.writeable = False
        return rows

    @cached_property
    def _places(self) -> Places | None:
        """Of the uids; None where a row is its uid."""
        return Places(self.uids) if "uids" in self._manifest else None

    def gather(self, uids: np.ndarray, view: int | np.ndarray = 0) -> Targets:
        """The targets of these samples, as stored: the tensors are strided views of one block of records.

        Parameters
        ----------
        uids : ndarray or Tensor [N], integer
            Any order, repeats allowed.
        view : int or ndarray [N]
            Which version of the samples, or of each.

        Returns
        -------
        QuantizedLogits (codec ``uint8``) or EnsembleLogits (the floats), [K, N, C], with the ensemble's weights and combiner
            Of a cache that holds the mixture only: QuantizedLogits [1, N, C], LogProbs [N, C], TopK [N, k] or Counts [N, S]. Of
            sequences, N is the number of all their positions, one sequence after the other; `lengths` says how many each has. Each has
            ``to_logits()``: float32 [K or 1, N, C].

        Raises
        ------
        TypeError, ValueError, IndexError
            ``uids`` are not integers, not one-dimensional, or not the cache's; or ``view`` is not within 0 ... views-1.
        CacheCorrupt
            What is read for the first time does not have its checksum.
        CacheMismatch, CacheIncomplete
            The cache was built anew since it was opened, or is being.
        """
        return self._target(self.gather_records(uids, view))

    def gather_records(self, uids: np.ndarray, view: int | np.ndarray = 0, out: np.ndarray | None = None) -> np.ndarray:
        """The raw records of these samples, uint8 [N, record bytes], without torch; `layout` takes them apart.

        Raises as `gather` does, and ValueError where ``out``, which is filled and returned if it is given, has another shape.
        """
        return self._shards.gather(self._ids(uids, view), out)

    def gather_logits(self, uids: np.ndarray, view: int | np.ndarray = 0) -> np.ndarray:
        """What `gather` means, decoded, without torch: float32 [K, N, C] logits, or [1, N, C] log-probabilities of the mixture.

        Each row is exact up to a shift and its codec's error; raises as `gather` does.
        """
        fields = self.layout.views(self.gather_records(uids, view))
        return np.ascontiguousarray(self._codec.decode(fields, len(self.classes)).swapaxes(0, 1), np.float32)

    def lengths(self, uids: np.ndarray, view: int | np.ndarray = 0) -> np.ndarray:
        """How many records (positions) each of these samples has, int64 [N]; 1 unless they are sequences."""
        return self._shards.lengths(self._ids(uids, view))

    def raw_logits(self, ensemble: Any, uids: np.ndarray | None, count: int, unshifted: bool) -> np.ndarray:
        """Logits [K, N, C], float64, of the ensemble's members before any calibration; see :mod:`ensdistill.cache.members`."""
        from ensdistill.cache.members import raw_logits

        return raw_logits(self, ensemble, uids, count, unshifted)

    def stream(self, batches: Iterable[np.ndarray | tuple[np.ndarray, int | np.ndarray]]) -> Iterator[Targets]:
        """The targets of each batch; while some are being used the next are gathered, on another thread.

        Parameters
        ----------
        batches : iterable of uids [N], or of pairs (uids [N], view)
            Up to 32 are taken from it before their targets are asked for: as many as fit into 8 MB, and at least two.

        Raises
        ------
        TypeError, ValueError, IndexError, CacheCorrupt
            As `gather` does, when a batch is taken or its targets are needed.

        Examples
        --------
        >>> for target in cache.stream(batches):  # doctest: +SKIP
        ...     distillation_loss(student(...), target).backward()
        """
        return stream(self, batches)

    def verify_inputs(self, uids: np.ndarray, inputs: np.ndarray, view: int | np.ndarray = 0) -> None:
        """Check that the cache's targets were made from exactly these inputs.

        Parameters
        ----------
        uids : ndarray [N], integer
        inputs : ndarray [N, ...]
            In the dtype and shape that the teachers saw, augmented where they were.
        view : int or ndarray [N]

        Raises
        ------
        CacheMismatch
            An input has other bytes, dtype or shape: the data were re-ordered, augmented or preprocessed in another way.
        """
        uids, inputs = _checked_uids(uids), np.asarray(inputs)
        if inputs.shape[:1] != uids.shape:
            raise ValueError(f"inputs: expected {len(uids)}, one for each uid; got an array {list(inputs.shape)}")
        wrong = np.flatnonzero(self._input_hashes(uids, view) != input_hashes(inputs))
        if wrong.size:
            raise CacheMismatch(
                f"inputs: uid {int(uids[wrong[0]])} ({inputs.dtype} {list(inputs.shape[1:])}) is not what the cache was made from; "
                f"{wrong.size} of {len(uids)} differ: re-ordered data, another augmentation or another preprocessing"
            )

    def verify(self, *, progress: Callable[[int, int], None] | None = None) -> None:
        """Read everything: every file against its hash, every input hash against the fingerprint.

        Parameters
        ----------
        progress : callable, optional
            Called with bytes done and bytes in all.

        Raises
        ------
        CacheIncomplete, CacheCorrupt
            The first file that is not as it was written.
        CacheMismatch
            The cache was built anew since it was opened.
        """
        files, total, done = files_of(self._manifest), 0, 0

        def tell(size: int) -> None:
            nonlocal done
            done += size
            if progress is not None:
                progress(done, total)

        # The fingerprint of a cache with views is of what the samples were before they were augmented.
        hashed = self._manifest["fingerprint"].get("views") is None
        total = sum(entry["bytes"] + hashed * entry.get("records", 0) * self.layout.bytes for entry in files)
        self._shards.unmap()
        for entry in files:
            self._shards.check_whole(entry, tell)
        if not hashed:
            return
        step = max(1, (1 << 26) // self.layout.bytes)
        hashes = []
        for start in range(0, len(self), step):
            uids = self.uids[start : start + step]
            hashes.append(self._input_hashes(uids, 0))
            tell(int(self.lengths(uids).sum()) * self.layout.bytes)
        recorded = self._manifest["fingerprint"].get("inputs")
        # Caches of format 2 have no lengths there.
        lengths = self.lengths(self.uids) if isinstance(recorded, dict) and "lengths" in recorded else None
        own = self.uids if "uids" in self._manifest else None
        if recorded != (found := made_from(np.concatenate(hashes), lengths, own)):
            raise CacheCorrupt(f"{self.path / MANIFEST}: fingerprint.inputs: expected {found}, from the records; got {recorded}")

    def verify_against(
        self,
        ensemble: Ensemble,
        rows: Rows,
        *,
        share: float = 0.001,
        augment: Augmentation | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> int:
        """Ask the teachers again about a share of the samples, and compare what they say with what is stored.

        Parameters
        ----------
        ensemble : Ensemble
            Has the cache's members, and may have others.
        rows : Rows
            The transfer set; inputs are compared too.
        share : float
            Of the samples, above 0 and up to 1; drawn evenly, the same at every call; at least one.
        augment : Augmentation, optional
            The one that the cache was made with, if it was.
        progress : callable, optional
            Called with samples done and samples in all, each view's counted.

        Returns
        -------
        int
            How many samples were compared.

        Raises
        ------
        CacheMismatch
            An input that is not the cache's, or a target further off than storing explains; names uid and member.
        CacheCorrupt
            As `gather`.
        """
        from ensdistill.cache.recheck import recheck

        return recheck(self, ensemble, rows, share, augment, progress)

    def _target(self, records: np.ndarray) -> Targets:
        classes = len(self._manifest["classes"])
        target = self._codec.target(self.layout.views(records), classes, self.weights, self.combiner, self.temperature)
        if self.max_temperature is None:
            return target
        members: Any = target  # a mixture has no largest temperature
        return replace(members, max_temperature=self.max_temperature)

    def _warn_of_loss(self) -> None:
        """Not of counts, whose distance from the mixture is chance and none on average."""
        worst = largest_kl(self._manifest)
        if worst <= NOTABLE_KL or isinstance(self._codec, Counts):
            return
        better = "A topk-N with a larger N" if isinstance(self._codec, TopK) else "A more exact codec (fp16, fp32)"
        warnings.warn(
            f"{self.path}: storing with codec {self._codec.name!r} cost a row a KL of {worst:.2g} nats, which is more than {NOTABLE_KL:g} "
            f"(the mean row {self._manifest['statistics']['kl']['mean']:.1g}). {better} costs less; max_kl= refuses such rows",
            CacheLossWarning,
            stacklevel=_caller(),
        )

    def _input_hashes(self, uids: np.ndarray, view: int | np.ndarray) -> np.ndarray:
        hashes = self.layout.views(self.gather_records(uids, view))["input_hash"]
        if not self._manifest["sequences"]:
            return hashes
        lengths = self.lengths(uids, view)
        return hashes[np.cumsum(lengths) - lengths]  # every position has its sequence's

    def _ids(self, uids: Any, view: Any) -> np.ndarray:
        """Where the samples stand among all shards' rows."""
        rows = self._rows(_checked_uids(uids))
        if whole(view) and view == 0:
            return rows
        views = np.asarray(view)
        if views.dtype.kind not in "iu":
            raise TypeError(f"view: expected an integer, or one for each uid; got {view!r}")
        if views.shape not in ((), rows.shape):
            raise ValueError(f"view: expected one for each of the {len(rows)} uids; got {list(views.shape)}")
        if views.size and (views.min() < 0 or views.max() >= self.views):
            wrong = int(views[(views < 0) | (views >= self.views)].reshape(-1)[0])
            raise IndexError(f"view: expected 0 to {self.views - 1}; got {wrong}")
        return rows + views.astype(np.int64) * shards_per_view(self._manifest) * self._manifest["shard_rows"]

    def _rows(self, uids: np.ndarray) -> np.ndarray:
        """The rows of these samples, int64 [M]."""
        if not uids.size:
            return uids
        if self._places is not None:
            rows, unknown = self._places.of(uids)
            if unknown.size:
                raise IndexError(
                    f"uids: expected those of the cache {self.path}; it has no sample with uid {uids[unknown[0]]} "
                    f"({unknown.size} of {len(uids)} uids are not its own)"
                )
            return rows
        if uids.view(np.uint64).max() >= len(self):  # a negative one is a large one
            raise IndexError(f"uids: expected 0 to {len(self) - 1}; got {uids[(uids < 0) | (uids >= len(self))][0]}")
        return uids


def _checked_uids(uids: Any) -> np.ndarray:
    """As int64 [M], in a copy: whoever asks may fill theirs anew."""
    array = np.asarray(uids)
    if array.size == 0 and array.ndim == 1:
        return array.astype(np.int64)
    if array.dtype.kind not in "iu":
        raise TypeError(f"uids: expected integers; got {array.dtype}")
    if array.ndim != 1:
        raise ValueError(f"uids: expected one dimension [N]; got {list(array.shape)}")
    if array.dtype == np.uint64 and array.max() > _LARGEST:
        raise IndexError(f"uids: expected no more than {_LARGEST}; got {array.max()}")
    return array.astype(np.int64)


def largest_kl(manifest: Manifest) -> float:
    """What storing cost the row that lost most, in nats, with what the caches cost that it was made from."""
    spent = kl_before(manifest)
    spent["mixture"] = max(spent.values())
    return max(part["max"] + spent.get(name, 0.0) for name, part in manifest["statistics"]["members"].items())


def _caller() -> int:
    """The stack level, for `warnings.warn` in who calls this, of the first frame outside this package."""
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("ensdistill."):
        frame, level = frame.f_back, level + 1
    return level


def made_from(hashes: np.ndarray, lengths: np.ndarray | None, uids: np.ndarray | None) -> dict[str, Any]:
    """``fingerprint.inputs`` of a cache, in row order.

    Made from each input's hash [N]; of sequences, how many positions count [N]; and the uids [N], unless a row is its uid.
    """
    more = {"lengths": lengths, "uids": uids}
    return {"rows": len(hashes), "hash": root_hash(hashes), **{name: root_hash(v) for name, v in more.items() if v is not None}}
