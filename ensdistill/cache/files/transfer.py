"""Files to and from a URL: several at once, each under a temporary name, checked, renamed, retried.

Any file system that fsspec supports will do (``s3://``, ``gs://``, ``memory://``, ``file://``). fsspec comes
with torch; the file systems' own packages (``s3fs``, ``gcsfs``) do not.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import xxhash

from ensdistill.cache.errors import CacheCorrupt, CacheError, CacheIncomplete
from ensdistill.cache.files.checked import open_regular
from ensdistill.common.files import atomic_path
from ensdistill.common.progress import Advance, Progress

_CHUNK = 1 << 22
_AT_ONCE, _TRIES, _PAUSE = 8, 4, 0.5
_PROGRESS_EVERY = 0.1  # seconds

# They show an object only when it is complete.
_OBJECT_STORES = {"s3", "s3a", "gs", "gcs", "abfs", "abfss", "memory"}

T = TypeVar("T")
Entry = dict[str, Any]
"""``{file, bytes, hash}``: a file's name, size and xxh3_128."""


def file_system(url: str) -> tuple[Any, str]:
    """The fsspec file system of a URL, and the path within it."""
    import fsspec

    try:
        system, base = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise CacheError(f"{url}: {error}") from error
    return system, base.rstrip("/")


def each(work: Callable[[Entry, Advance], None], entries: list[Entry], progress: Progress | None) -> None:
    """Call ``work`` for several entries at once, until the first error; it reports the bytes it copied."""
    copied, total = [0] * len(entries), sum(entry["bytes"] for entry in entries)

    def run(i: int) -> None:
        work(entries[i], partial(copied.__setitem__, i))
        copied[i] = entries[i]["bytes"]  # also where the file was there already

    with ThreadPoolExecutor(_AT_ONCE, "ensdistill-remote") as executor:
        waiting = {executor.submit(run, i) for i in range(len(entries))}
        try:
            while waiting:
                done, waiting = wait(waiting, None if progress is None else _PROGRESS_EVERY, FIRST_EXCEPTION)
                for future in done:
                    future.result()
                if progress is not None:
                    progress(sum(copied), total)
        except BaseException:
            executor.shutdown(cancel_futures=True)
            raise


def retried(url: str, work: Callable[[], T]) -> T:
    """The result of ``work``, which is called again after an error of the network."""
    for attempt in range(_TRIES):
        try:
            return work()
        except (CacheError, FileNotFoundError):
            raise  # another try would fail in the same way
        except Exception as error:  # each file system raises its own classes
            if attempt == _TRIES - 1:
                raise CacheError(f"{url}: {type(error).__name__}: {error} ({_TRIES} tries)") from error
            time.sleep(_PAUSE * 2**attempt)
    raise AssertionError


def send(system: Any, file: Path, target: str, advance: Advance) -> None:
    """Copy a local file to ``target``, which appears when it is complete."""
    # Other file systems get a temporary name and a rename.
    protocols = {system.protocol} if isinstance(system.protocol, str) else set(system.protocol)
    atomic = bool(protocols & _OBJECT_STORES)
    place = target if atomic else f"{target}.{os.getpid()}.part"
    with open(open_regular(file), "rb") as source, system.open(place, "wb") as sink:
        while chunk := source.read(_CHUNK):
            sink.write(chunk)
            advance(source.tell())
    if not atomic:
        system.mv(place, target)


def has(system: Any, target: str, entry: Entry) -> bool:
    """Whether ``target`` has the entry's bytes; all of them are read and hashed."""
    try:
        if system.info(target)["size"] != entry["bytes"]:
            return False
        digest = xxhash.xxh3_128()
        with system.open(target, "rb") as source:
            while chunk := source.read(_CHUNK):
                digest.update(chunk)
    except Exception:  # missing or unreadable: the file is sent, and an error then names the cause
        return False
    return digest.hexdigest() == entry["hash"]


def fetch(system: Any, base: str, url: str, folder: Path, entry: Entry, advance: Advance) -> None:
    """Copy an entry's file into ``folder``, unless the folder has it already.

    Raises
    ------
    CacheIncomplete, CacheCorrupt
        There is no such file at the URL, or it has other bytes than the entry describes.
    """
    target = folder / entry["file"]
    if target.is_file() and target.stat().st_size == entry["bytes"] and hash_of_file(target) == entry["hash"]:
        return

    def copy() -> None:
        digest, size = xxhash.xxh3_128(), 0
        with atomic_path(target) as part:
            with system.open(f"{base}/{entry['file']}", "rb") as source, open(part, "wb") as sink:
                # Never more bytes than the manifest names, however many the other side sends.
                while size <= entry["bytes"] and (chunk := source.read(_CHUNK)):
                    size += len(chunk)
                    digest.update(chunk)
                    sink.write(chunk)
                    advance(size)
            if size != entry["bytes"] or digest.hexdigest() != entry["hash"]:
                raise CacheCorrupt(f"{url}: {entry['file']}: the bytes are not those that the manifest names")

    try:
        retried(url, copy)
    except FileNotFoundError:
        raise CacheIncomplete(
            f"{url}: {entry['file']}: no such file; the cache was copied only in part"
        ) from None


def hash_of_file(path: Path) -> str:
    """xxh3_128 of a local file."""
    digest = xxhash.xxh3_128()
    with open(open_regular(path), "rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
