"""Caches at a URL: whole shards, several at once, each to a temporary name, checked, renamed; retried where the network fails.

Any file system that fsspec knows serves (``s3://``, ``gs://``, ``memory://``, ``file://``); fsspec comes with torch, the
file systems' own packages (``s3fs``, ``gcsfs``) don't.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import xxhash

from ensdistill.cache.checked import open_regular, parse_checked, read_checked
from ensdistill.cache.errors import CacheCorrupt, CacheError, CacheIncomplete, CacheLocked, CacheMismatch
from ensdistill.cache.folder import leftovers, remove, require_no_folders, require_no_other
from ensdistill.cache.locks import writing
from ensdistill.cache.manifest import MANIFEST, PLAN, Manifest, files_of, read_manifest
from ensdistill.common.files import atomic_path, local_path

_CHUNK = 1 << 22
_AT_ONCE, _TRIES, _PAUSE, _LONGEST_WAIT = 8, 4, 0.5, 3600.0
_TELL_EVERY = 0.1  # seconds
# A manifest says how large everything else is, so nothing says how large it may be but this.
_LARGEST_MANIFEST = 1 << 30

_OBJECT_STORES = {"s3", "s3a", "gs", "gcs", "abfs", "abfss", "memory"}

T = TypeVar("T")
Progress = Callable[[int, int], None]
Tell = Callable[[int], None]


def upload(folder: Path | str, url: str, *, overwrite: bool = False, progress: Progress | None = None) -> None:
    """Copy a finished cache to a URL; files that are there already, with the same bytes, are not sent again.

    The manifest goes last, so that a reader never finds one whose files are missing.

    Parameters
    ----------
    folder : path
    url : str
    overwrite : bool
        Replace another cache at the URL instead of refusing. Its manifest goes first: until the new one stands, readers find none.
    progress : callable, optional
        Called now and then with the files' bytes that are there and all of them, on the caller's thread.

    Raises
    ------
    CacheIncomplete, CacheCorrupt
        The cache is not whole: nothing that was damaged is published. Or what is at the URL can't be read as a manifest.
    CacheMismatch
        Another cache is at the URL (field by field in the message).
    CacheError
        The URL can't be read or written, after some tries.
    """
    folder = Path(folder).absolute()
    manifest = read_manifest(folder)
    system, base = _system(url)
    system.makedirs(base, exist_ok=True)

    def check(entry: dict[str, Any], tell: Tell) -> None:
        name = entry["file"]
        if _hash_of_file(folder / name) != entry["hash"]:
            raise CacheCorrupt(f"{folder / name}: the bytes are not those that were written (hash); it was not sent")

    def send(entry: dict[str, Any], tell: Tell) -> None:
        name = entry["file"]
        if not _has(system, f"{base}/{name}", entry):
            _retried(url, lambda: _send(system, folder / name, f"{base}/{name}", tell))

    _each(check, files_of(manifest), None)  # all of them, before anything at the URL is touched
    _make_way(system, f"{base}/{MANIFEST}", url, manifest, overwrite)
    _each(send, files_of(manifest), progress)
    _retried(url, lambda: _send(system, folder / MANIFEST, f"{base}/{MANIFEST}", lambda size: None))


def download(url: str, folder: Path | str | None = None, *, overwrite: bool = False, progress: Progress | None = None) -> Path:
    """Copy a cache from a URL; files that are here already, with the bytes that the manifest names, are not fetched again.

    Parameters
    ----------
    url : str
    folder : path, optional
        By default one of the user's cache folder (``$XDG_CACHE_HOME`` or ``~/.cache``), by the hash of the URL; an earlier copy in it is
        replaced when the URL holds another cache.
    overwrite : bool
        Replace another cache in ``folder``, finished or not, instead of refusing.
    progress : callable, optional
        Called now and then with the files' bytes that are here and all of them, on the caller's thread.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    CacheIncomplete
        There is no manifest at the URL, or a shard is missing.
    CacheCorrupt
        What arrives is not what the manifest names, or what is in ``folder`` can't be read as a manifest.
    CacheMismatch
        Another cache is in ``folder`` (field by field in the message).
    CacheLocked
        Another process has been writing the folder for an hour.
    CacheError
        The URL can't be read, after some tries.
    """
    if folder is None:
        overwrite = True  # it is a copy of ours, whatever the URL held then
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        folder = home / "ensdistill" / xxhash.xxh3_128_hexdigest(url.encode())
    folder = local_path(folder)
    system, base = _system(url)
    text = _manifest_text(system, f"{base}/{MANIFEST}", url)
    if _is_here(folder, text):
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder):
        if _is_here(folder, text):  # another process of this machine has fetched it
            return folder
        require_no_folders(folder)
        if not overwrite:
            arriving = parse_checked(f"{url}/{MANIFEST}", text)
            for name in (MANIFEST, PLAN):
                require_no_other(folder, partial(read_checked, folder / name), arriving)
        with atomic_path(folder / "fetched" / MANIFEST) as part:
            part.write_bytes(text)
        manifest = read_manifest(folder / "fetched")
        if (folder / MANIFEST).exists() and (folder / MANIFEST).read_bytes() != text:
            (folder / MANIFEST).unlink()  # first: should this be interrupted, the folder is unfinished, not damaged
        _each(lambda entry, tell: _fetch(system, base, url, folder, entry, tell), files_of(manifest), progress)
        # Last, as when a cache is written: a folder with a manifest is whole.
        os.replace(folder / "fetched" / MANIFEST, folder / MANIFEST)
        (folder / "fetched").rmdir()
        if overwrite:
            remove(leftovers(folder, manifest))
    return folder


def _make_way(system: Any, target: str, url: str, manifest: Manifest, overwrite: bool) -> None:
    """Leave no manifest at the URL but this one: refuse where it is another cache's, or remove it."""

    def there() -> Manifest:
        return parse_checked(f"{url}/{MANIFEST}", _manifest_text(system, target, url))

    if not overwrite:
        require_no_other(url, there, manifest)
        return
    try:
        if there() == manifest:
            return
    except CacheIncomplete:
        return
    except (CacheCorrupt, CacheMismatch):
        pass  # another one, surely
    with suppress(FileNotFoundError):
        _retried(url, lambda: system.rm_file(target))


def _system(url: str) -> tuple[Any, str]:
    import fsspec

    try:
        system, base = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise CacheError(f"{url}: {error}") from error
    return system, base.rstrip("/")


def _each(work: Callable[[dict[str, Any], Tell], None], entries: list[dict[str, Any]], progress: Progress | None) -> None:
    """Several at once; the first error ends it. ``work`` tells how many bytes of its entry it has come to."""
    come_to, total = [0] * len(entries), sum(entry["bytes"] for entry in entries)

    def run(i: int) -> None:
        work(entries[i], partial(come_to.__setitem__, i))
        come_to[i] = entries[i]["bytes"]  # which may have been there already

    with ThreadPoolExecutor(_AT_ONCE, "ensdistill-remote") as executor:
        waiting = {executor.submit(run, i) for i in range(len(entries))}
        try:
            while waiting:
                done, waiting = wait(waiting, None if progress is None else _TELL_EVERY, FIRST_EXCEPTION)
                for future in done:
                    future.result()
                if progress is not None:
                    progress(sum(come_to), total)
        except BaseException:
            executor.shutdown(cancel_futures=True)
            raise


def _retried(url: str, work: Callable[[], T]) -> T:
    for attempt in range(_TRIES):
        try:
            return work()
        except (CacheError, FileNotFoundError):
            raise  # trying again would not make it right
        except Exception as error:  # each file system has errors of its own
            if attempt == _TRIES - 1:
                raise CacheError(f"{url}: {type(error).__name__}: {error} ({_TRIES} tries)") from error
            time.sleep(_PAUSE * 2**attempt)
    raise AssertionError


def _send(system: Any, file: Path, target: str, tell: Tell) -> None:
    # Object stores show an object when it is complete. Others get a temporary name and a rename.
    protocols = {system.protocol} if isinstance(system.protocol, str) else set(system.protocol)
    atomic = bool(protocols & _OBJECT_STORES)
    place = target if atomic else f"{target}.{os.getpid()}.part"
    with open(open_regular(file), "rb") as source, system.open(place, "wb") as sink:
        while chunk := source.read(_CHUNK):
            sink.write(chunk)
            tell(source.tell())
    if not atomic:
        system.mv(place, target)


def _has(system: Any, target: str, entry: dict[str, Any]) -> bool:
    """Whether the very bytes are there: reading them is what it takes to know."""
    try:
        if system.info(target)["size"] != entry["bytes"]:
            return False
        digest = xxhash.xxh3_128()
        with system.open(target, "rb") as source:
            while chunk := source.read(_CHUNK):
                digest.update(chunk)
    except Exception:  # not there, or not readable: it is sent, and that says what is wrong
        return False
    return digest.hexdigest() == entry["hash"]


def _is_here(folder: Path, text: bytes) -> bool:
    """A copy with this manifest; what its shards hold is checked when they are read, as in any cache."""
    try:
        return (folder / MANIFEST).read_bytes() == text and all(
            (folder / entry["file"]).stat().st_size == entry["bytes"] for entry in files_of(read_manifest(folder))
        )
    except (FileNotFoundError, CacheError):
        return False


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Be the one process that fetches; another is waited for, because it fetches the same."""
    deadline = time.monotonic() + _LONGEST_WAIT
    while True:
        try:
            with writing(folder, 0, 1):
                yield
            return
        except CacheLocked:
            if time.monotonic() > deadline:
                raise
            time.sleep(_PAUSE)


def _manifest_text(system: Any, source: str, url: str) -> bytes:
    def read() -> bytes:
        if (size := system.info(source)["size"]) > _LARGEST_MANIFEST:
            raise CacheCorrupt(f"{url}: its manifest has more than {_LARGEST_MANIFEST} bytes")
        with system.open(source, "rb") as file:
            return file.read(size)

    try:
        return _retried(url, read)
    except FileNotFoundError:
        raise CacheIncomplete(f"{url}: no {MANIFEST}: no cache has been written there, or not all of it") from None


def _fetch(system: Any, base: str, url: str, folder: Path, entry: dict[str, Any], tell: Tell) -> None:
    target = folder / entry["file"]
    if target.is_file() and target.stat().st_size == entry["bytes"] and _hash_of_file(target) == entry["hash"]:
        return

    def copy() -> None:
        digest, size = xxhash.xxh3_128(), 0
        with atomic_path(target) as part:
            with system.open(f"{base}/{entry['file']}", "rb") as source, open(part, "wb") as sink:
                # Never more than the manifest says, whatever the other side sends.
                while size <= entry["bytes"] and (chunk := source.read(_CHUNK)):
                    size += len(chunk)
                    digest.update(chunk)
                    sink.write(chunk)
                    tell(size)
            if size != entry["bytes"] or digest.hexdigest() != entry["hash"]:
                raise CacheCorrupt(f"{url}: {entry['file']}: the bytes are not those that the manifest names")

    try:
        _retried(url, copy)
    except FileNotFoundError:
        raise CacheIncomplete(f"{url}: {entry['file']}: no such file; the cache was copied only in part") from None


def _hash_of_file(path: Path) -> str:
    digest = xxhash.xxh3_128()
    with open(open_regular(path), "rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
