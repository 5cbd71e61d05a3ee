"""Reading a target cache: any uids in any order, as targets that the loss reads in their stored form.

This needs NumPy only; torch is imported by `TargetCache.gather`, whose tensors are views of the gathered
records.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ensdistill.cache import manifest as m
from ensdistill.cache.codecs import stored_codec
from ensdistill.cache.errors import CacheError, CacheMismatch
from ensdistill.cache.fingerprint import as_json, differences
from ensdistill.cache.floors import largest_temperature
from ensdistill.cache.loss_warning import warn_of_loss
from ensdistill.cache.manifest import Manifest, files_of, record_for
from ensdistill.cache.mapped import MappedShards, default_threads
from ensdistill.cache.standard import Standard
from ensdistill.cache.streaming import stream
from ensdistill.cache.targets import targets_from
from ensdistill.cache.uids import Samples
from ensdistill.cache.validation import check_codec, read_manifest
from ensdistill.cache.verifying import verify_bytes, verify_inputs
from ensdistill.common.progress import Progress
from ensdistill.common.scalars import whole
from ensdistill.common.tasks import Task

if TYPE_CHECKING:
    from ensdistill.cache.teachers import Ensemble
    from ensdistill.data import Rows
    from ensdistill.data.augmentation import Augmentation
    from ensdistill.loss.targets import Moments, Targets


class TargetCache:
    """An ensemble's targets for N samples, on disk. Made by `cache_targets`, opened by `TargetCache.open`.

    Attributes
    ----------
    path : Path
        The folder, absolute.
    url : str or None
        The URL that the folder is a copy of.
    codec : Codec
        How the targets are stored.
    trusted : tuple of str
        The class paths that may be imported to read this cache.
    max_temperature : float or None
        The largest temperature that the targets serve; None where they serve every one (or, of a mixture, its
        own).

    Any number of processes may read one cache, from a read-only folder too. A process may fork with it, and
    it may be pickled, for instance for the spawned workers of a ``DataLoader``: a copy holds the folder's
    absolute path and the manifest, and maps the files when it reads them. Each copy compares a block of
    records with its checksum once, before its first record is returned.
    """

    def __init__(
        self,
        path: Path,
        manifest: Manifest,
        threads: int | None = None,
        url: str | None = None,
        trusted: Sequence[str] = (),
        as_read: bool = False,
    ) -> None:
        # Absolute, because shards are opened at their first use, and the working directory may change before
        # that.
        self.path = path.absolute()
        self.url, self.trusted = url, tuple(trusted)
        self.codec = stored_codec(manifest["codec"], self.trusted, self.path, m.task_of_plan(manifest))
        self.layout = record_for(self.codec, manifest)
        self._manifest, self._threads = manifest, threads
        self.shards = MappedShards(self.path, manifest, threads or default_threads(), url, as_read)
        self.samples = Samples(self.path, manifest, self.shards)
        self.max_temperature = largest_temperature(manifest)

    def __reduce__(self) -> tuple[Any, ...]:
        # A copy reads no file when it is made: an error there would end a worker process before it can report
        # why.
        settings = (self._threads, self.url, self.trusted, self.shards.as_read)
        return TargetCache, (self.path, self._manifest, *settings)

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
        fetch: str = "all",
        trusted: Sequence[str] = (),
    ) -> TargetCache:
        """Open a finished cache.

        Records are read from mapped files, which no program may cut meanwhile: the system ends a process that
        reads a page beyond the end of a file (SIGBUS). A writer that builds the cache anew writes new files;
        processes that have the old ones open keep them.

        Parameters
        ----------
        path : path or URL
            The folder. A URL (``s3://...``, ``memory://...``, any that fsspec supports) is copied to this
            machine first, each shard once.
        check : {"lazy", "full"}
            ``lazy`` checks manifest and file sizes now, and each block of records and the uids at their first
            use; ``full`` reads everything now.
        expect : dict, optional
            Fields of ``manifest["fingerprint"]`` (``ensemble``, ``inputs``, ``views``) that must be equal to
            these.
        threads : int, optional
            That copy records; by default one for each core, at most four.
        local : path, optional
            Where the copy of a URL is kept; by default in the user's cache folder.
        overwrite : bool
            Replace another cache in the folder ``local`` instead of refusing.
        fetch : {"all", "as_read"}
            Of a URL: ``as_read`` copies the manifest now, and each shard when one of its records is first
            read. Processes of one machine share the copy.
        trusted : sequence of str
            Class paths of codecs outside the package that may be imported, which runs their code:
            ``("my_package.my_codec.MyCodec",)``.

        Raises
        ------
        CacheIncomplete
            There is no manifest, or a file that it lists is missing.
        CacheCorrupt
            A file has other bytes than were written.
        CacheMismatch
            The fingerprint differs from ``expect``, or the folder ``local`` holds another cache than the URL
            (field by field in the message), or another version of the format.
        CacheUntrusted
            The cache's codec is a class outside the package that is not among ``trusted``.
        CacheError
            That class cannot be imported or does not take the settings in the manifest.
        CacheLossWarning
            (a warning) Storing cost some row a KL of more than 0.01 nats.
        """
        if isinstance(trusted, str):
            raise TypeError(f"trusted: expected a sequence of class paths; got the string {trusted!r}")
        if check not in ("lazy", "full"):
            raise ValueError(f"check: expected 'lazy' or 'full'; got {check!r}")
        if threads is not None and (not whole(threads) or not 1 <= threads <= 256):
            raise ValueError(f"threads: expected a number from 1 to 256; got {threads!r}")
        if fetch not in ("all", "as_read"):
            raise ValueError(f"fetch: expected 'all' or 'as_read'; got {fetch!r}")
        as_read = fetch == "as_read"
        url = str(path) if "://" in str(path) else None
        if url is not None:
            from ensdistill.cache.remote import download

            path = download(url, local, overwrite=overwrite, only_manifest=as_read)
        elif overwrite:
            raise ValueError(f"overwrite: is for the local copy of a URL; got it with the folder {path}")
        elif local is not None:
            raise ValueError(f"local: is for a URL; got it with the folder {path}")
        elif as_read:
            raise ValueError(f"fetch: 'as_read' is for a URL; got it with the folder {path}")
        path = Path(path).absolute()
        manifest = read_manifest(path)
        if expect is not None:
            expect = as_json("expect", expect)
            found = {field: value for field, value in manifest["fingerprint"].items() if field in expect}
            if differing := differences(found, expect):
                raise CacheMismatch(f"{path}: the cache was made from something else:", differing)
        check_codec(path, manifest, stored_codec(manifest["codec"], trusted, path, m.task_of_plan(manifest)))
        cache = cls(path, manifest, threads, url, trusted, as_read)
        for entry in files_of(manifest):
            if not as_read or (path / entry["file"]).exists():
                cache.shards.check_size(entry)
        if check == "full":
            cache.verify()
        warn_of_loss(path, manifest, cache.codec)
        return cache

    def __len__(self) -> int:
        return self._manifest["rows"]

    def __repr__(self) -> str:
        k, c = len(self.names), len(self.classes)
        size = f"members={k}, rows={len(self)}, classes={c}"
        size += "" if self.task == "classification" else f", task={self.task!r}"
        return f"TargetCache({str(self.path)!r}, codec={self.codec.name!r}, {size})"

    @property
    def manifest(self) -> Manifest:
        """The manifest, documented in ``ensdistill.cache.manifest``; it must not be changed."""
        return self._manifest

    @property
    def task(self) -> Task:
        return m.task_of_plan(self._manifest)

    @property
    def location(self) -> np.ndarray | None:
        """Of regression: the zero of the stored numbers in the data's units, float64 [D]; else None."""
        return _numbers(self._manifest.get("location"))

    @property
    def scale(self) -> np.ndarray | None:
        """Of regression: the unit of the stored numbers in the data's units, float64 [D]; else None."""
        return _numbers(self._manifest.get("scale"))

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._manifest["members"])

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the C classes or labels, or of the D numbers."""
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
        """The temperature of a cache of the mixture only; None where the members are kept, for every one."""
        return None if self._manifest["temperature"] == "any" else float(self._manifest["temperature"])

    @property
    def views(self) -> int:
        """The number of versions of each sample; epoch e takes view e mod views."""
        return self._manifest["views"]

    @property
    def uids(self) -> np.ndarray:
        """The samples' uids in row order, int64 [N], read-only; 0 ... N-1 where the cache keeps none.

        Raises
        ------
        CacheIncomplete, CacheCorrupt, CacheMismatch
            Their file is missing, is damaged, or has become another cache's.
        """
        return self.samples.uids

    def gather(self, uids: np.ndarray, view: int | np.ndarray = 0) -> Targets | Moments:
        """The targets of these samples, as stored: the tensors are strided views of one block of records.

        Parameters
        ----------
        uids : ndarray or Tensor [N], integer
            Any order, repeats allowed.
        view : int or ndarray [N]
            Which version of the samples, or of each.

        Returns
        -------
        QuantizedLogits (codec ``uint8``) or EnsembleLogits (the floats), [K, N, C], with the ensemble's
        weights and combiner
            Of a cache that holds the mixture only: QuantizedLogits [1, N, C], LogProbs [N, C], TopK [N, k] or
            Counts [N, S]. Of sequences, N is the number of all their positions, one sequence after the other;
            `lengths` returns the number of each. Each has ``to_logits()``: float32 [K or 1, N, C].
        Moments (regression) [K or 1, N, D]
            In standardised units: a mean in the data's units is ``location + scale * mean``.

        Raises
        ------
        TypeError, ValueError, IndexError
            ``uids`` are not integers, not one-dimensional, or not the cache's; or ``view`` is not within 0
            ... views-1.
        CacheCorrupt
            A block that is read for the first time does not have its checksum.
        CacheMismatch, CacheIncomplete
            The cache was built anew since it was opened, or is being built.
        """
        return self.target_of(self.gather_records(uids, view))

    def gather_records(
        self, uids: np.ndarray, view: int | np.ndarray = 0, out: np.ndarray | None = None
    ) -> np.ndarray:
        """The raw records of these samples, uint8 [N, record bytes], without torch, for `layout.views`.

        If ``out`` is given, it is filled and returned. Raises as `gather` does, and ValueError where ``out``
        has another shape.
        """
        return self.shards.gather(self.samples.ids(uids, view), out)

    def target_of(self, records: np.ndarray) -> Targets | Moments:
        """The targets that these raw records hold, as views of them; see `gather`."""
        target = targets_from(self._manifest, self.codec, self.layout.views(records))
        if self.max_temperature is None:
            return target
        members: Any = target  # a mixture has no largest temperature
        return replace(members, max_temperature=self.max_temperature)

    def gather_logits(self, uids: np.ndarray, view: int | np.ndarray = 0) -> np.ndarray:
        """The decoded targets, without torch: float32 [K, N, C] logits, or the mixture's log-probabilities.

        Those of multi-label members are log-odds, the mixture's too. Each row is exact up to its codec's
        error, and of classification up to a shift. Raises as `gather` does, and CacheError for a cache of
        regression.
        """
        if self.task == "regression":
            raise CacheError(
                f"{self.path}: is a cache of regression, which has no logits: use gather or gather_moments"
            )
        return self.decoded(uids, view)

    def gather_moments(
        self, uids: np.ndarray, view: int | np.ndarray = 0
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Means and variances of a cache of regression in the data's units, without torch: float64 [K, N, D].

        The variances are None where no member gives one; K is 1 where the cache holds the mixture only.
        Raises as `gather` does, and CacheError for a cache of another task.
        """
        if (standard := Standard.of(self._manifest)) is None:
            raise CacheError(
                f"{self.path}: is a cache of {self.task}, which has no moments: use gather_logits"
            )
        return standard.in_data_units(self.decoded(uids, view))

    def decoded(self, uids: np.ndarray, view: int | np.ndarray = 0) -> np.ndarray:
        """The rows of the records as their codec returns them, float32 [K or 1, N, C].

        Of regression they are means and deviations in standardised units, [K or 1, N, D or 2 D]. Raises as
        `gather` does.
        """
        fields = self.layout.views(self.gather_records(uids, view))
        values = self.codec.decode(fields, m.width_of(self._manifest))
        return np.ascontiguousarray(values.swapaxes(0, 1), np.float32)

    def lengths(self, uids: np.ndarray, view: int | np.ndarray = 0) -> np.ndarray:
        """The number of records (positions) of each sample, int64 [N]; 1 unless they are sequences."""
        return self.shards.lengths(self.samples.ids(uids, view))

    def raw_logits(self, ensemble: Any, uids: np.ndarray | None, count: int, unshifted: bool) -> np.ndarray:
        """Logits [K, N, C], float64, before calibration; see :mod:`ensdistill.cache.members`."""
        from ensdistill.cache.members import raw_logits

        return raw_logits(self, ensemble, uids, count, unshifted)

    def stream(
        self, batches: Iterable[np.ndarray | tuple[np.ndarray, int | np.ndarray]]
    ) -> Iterator[Targets | Moments]:
        """The targets of each batch. While some are being used, the next are gathered on another thread.

        Parameters
        ----------
        batches : iterable of uids [N], or of pairs (uids [N], view)
            Up to 32 are taken from it before their targets are needed: as many as fit into 8 MB, and at least
            two.

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

    def verify_inputs(self, uids: np.ndarray, inputs: Any, view: int | np.ndarray = 0) -> None:
        """Check that the cache's targets were made from exactly these inputs.

        Parameters
        ----------
        uids : ndarray [N], integer
        inputs : batch of N samples, or lazy samples
            In the container, dtype and shape that the members were given, augmented where those were.
        view : int or ndarray [N]

        Raises
        ------
        CacheMismatch
            An input has other bytes, another dtype or another shape: the data were re-ordered, augmented or
            preprocessed in another way.
        """
        verify_inputs(self, uids, inputs, view)

    def verify(self, *, progress: Progress | None = None) -> None:
        """Read everything: every file against its hash, every input hash against the fingerprint.

        Parameters
        ----------
        progress : callable, optional
            Called with bytes done and bytes in all.

        Raises
        ------
        CacheIncomplete, CacheCorrupt
            The first file with other bytes than were written.
        CacheMismatch
            The cache was built anew since it was opened.
        """
        verify_bytes(self, progress)

    def verify_against(
        self,
        ensemble: Ensemble,
        rows: Rows,
        *,
        share: float = 0.001,
        augment: Augmentation | None = None,
        progress: Progress | None = None,
    ) -> int:
        """Run the members again for a share of the samples, and compare their logits with the stored targets.

        Parameters
        ----------
        ensemble : Ensemble
            Has the cache's members, and may have others.
        rows : Rows
            The transfer set; inputs are compared too.
        share : float
            Of the samples, above 0 and up to 1; drawn evenly, the same at every call; at least one sample.
        augment : Augmentation, optional
            The one that the cache was made with, if it was.
        progress : callable, optional
            Called with samples done and samples in all, each view's counted.

        Returns
        -------
        int
            The number of samples that were compared.

        Raises
        ------
        CacheMismatch
            An input that is not the cache's, or a target further off than storing explains; names uid and
            member.
        CacheCorrupt
            As `gather`.
        CacheUntrusted
            The cache was converted from one with a codec outside the package that is not among ``trusted``.
        """
        from ensdistill.cache.recheck import recheck

        return recheck(self, ensemble, rows, share, augment, progress)


def _numbers(values: list[float] | None) -> np.ndarray | None:
    return None if values is None else np.array(values, np.float64)
