"""Caches at a URL: upload and download of whole caches, the manifest last."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import xxhash

from ensdistill.cache.errors import CacheCorrupt, CacheError, CacheIncomplete, CacheLocked, CacheMismatch
from ensdistill.cache.files.checked import parse_checked, read_checked
from ensdistill.cache.files.locks import writing
from ensdistill.cache.files.transfer import (
    Entry,
    each,
    fetch,
    file_system,
    has,
    hash_of_file,
    retried,
    send,
)
from ensdistill.cache.folder import leftovers, remove, require_no_folders, require_no_other
from ensdistill.cache.manifest import MANIFEST, PLAN, Manifest, files_of
from ensdistill.cache.validation import read_manifest
from ensdistill.common.files import atomic_path, local_path
from ensdistill.common.progress import Advance, Progress

_PAUSE, _LONGEST_WAIT = 0.5, 3600.0  # seconds
# A manifest names the size of every other file. Its own size is bounded by nothing else.
_LARGEST_MANIFEST = 1 << 30


def upload(
    folder: Path | str, url: str, *, overwrite: bool = False, progress: Progress | None = None
) -> None:
    """Copy a finished cache to a URL; files that are there already, with the same bytes, are not sent again.

    The manifest goes last, so that a reader never finds one whose files are missing.

    Parameters
    ----------
    folder : path
    url : str
    overwrite : bool
        Replace another cache at the URL instead of refusing. Its manifest goes first: until the new one
        stands, readers find none.
    progress : callable, optional
        Called now and then with the bytes that are at the URL and all bytes, on the caller's thread.

    Raises
    ------
    CacheIncomplete, CacheCorrupt
        The cache is not whole: no damaged file is sent. Or the file at the URL cannot be read as a manifest.
    CacheMismatch
        Another cache is at the URL (field by field in the message).
    CacheError
        The URL cannot be read or written, after some tries.
    """
    folder = Path(folder).absolute()
    manifest = read_manifest(folder)
    system, base = file_system(url)
    system.makedirs(base, exist_ok=True)

    def check(entry: Entry, advance: Advance) -> None:
        name = entry["file"]
        if hash_of_file(folder / name) != entry["hash"]:
            raise CacheCorrupt(
                f"{folder / name}: the bytes are not those that were written (hash); it was not sent"
            )

    def send_once(entry: Entry, advance: Advance) -> None:
        name = entry["file"]
        if not has(system, f"{base}/{name}", entry):
            retried(url, lambda: send(system, folder / name, f"{base}/{name}", advance))

    each(check, files_of(manifest), None)  # all of them, before any file at the URL is changed
    _make_way(system, f"{base}/{MANIFEST}", url, manifest, overwrite)
    each(send_once, files_of(manifest), progress)
    retried(url, lambda: send(system, folder / MANIFEST, f"{base}/{MANIFEST}", lambda size: None))


def download(
    url: str,
    folder: Path | str | None = None,
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
    only_manifest: bool = False,
) -> Path:
    """Copy a cache from a URL; files that are here already, with the right bytes, are not fetched again.

    Parameters
    ----------
    url : str
    folder : path, optional
        By default one of the user's cache folder (``$XDG_CACHE_HOME`` or ``~/.cache``), by the hash of the
        URL; an earlier copy in it is replaced when the URL holds another cache.
    overwrite : bool
        Replace another cache in ``folder``, finished or not, instead of refusing.
    progress : callable, optional
        Called now and then with the bytes that have arrived and all bytes, on the caller's thread.
    only_manifest : bool
        Leave the other files to :func:`fetch_missing`: the folder then holds the manifest and some of them.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    CacheIncomplete
        There is no manifest at the URL, or a shard is missing.
    CacheCorrupt
        A file arrives with other bytes than the manifest names, or the manifest in ``folder`` cannot be read.
    CacheMismatch
        Another cache is in ``folder`` (field by field in the message).
    CacheLocked
        Another process has been writing the folder for an hour.
    CacheError
        The URL cannot be read, after some tries.
    """
    if folder is None:
        overwrite = True  # the folder holds an earlier copy of the URL, and no other cache
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        folder = home / "ensdistill" / xxhash.xxh3_128_hexdigest(url.encode())
    folder = local_path(folder)
    system, base = file_system(url)
    text = _manifest_text(system, f"{base}/{MANIFEST}", url)
    if _is_here(folder, text, only_manifest):
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder):
        if _is_here(folder, text, only_manifest):  # another process of this machine has fetched it
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
            (
                folder / MANIFEST
            ).unlink()  # first: should this be interrupted, the folder is unfinished, not damaged
        if only_manifest:
            remove(_of_others(folder, manifest))
        else:
            each(partial(fetch, system, base, url, folder), files_of(manifest), progress)
        # Last, as when a cache is written: a folder with a manifest holds no other cache's files.
        os.replace(folder / "fetched" / MANIFEST, folder / MANIFEST)
        (folder / "fetched").rmdir()
        if overwrite:
            remove(leftovers(folder, manifest))
    return folder


def fetch_missing(url: str, folder: Path, entries: list[Entry]) -> None:
    """Copy those of a cache's files that the folder does not have, several at once.

    Processes of one machine wait for each other, so each file is fetched once.

    Raises
    ------
    CacheIncomplete, CacheCorrupt, CacheLocked, CacheError
        As :func:`download`.
    """
    if all((folder / entry["file"]).exists() for entry in entries):
        return
    system, base = file_system(url)
    with _alone(folder):
        missing = [entry for entry in entries if not (folder / entry["file"]).exists()]
        each(partial(fetch, system, base, url, folder), missing, None)


def _of_others(folder: Path, manifest: Manifest) -> list[Path]:
    """The files with the name of one of this cache's, and with other bytes."""
    named = [(folder / entry["file"], entry) for entry in files_of(manifest)]
    return [file for file, entry in named if file.exists() and hash_of_file(file) != entry["hash"]]


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
        pass  # an unreadable manifest is replaced
    with suppress(FileNotFoundError):
        retried(url, lambda: system.rm_file(target))


def _is_here(folder: Path, text: bytes, only_manifest: bool) -> bool:
    """Whether the folder holds a copy with this manifest. Its shards are checked when they are read."""
    try:
        return (folder / MANIFEST).read_bytes() == text and (
            only_manifest
            or all(
                (folder / entry["file"]).stat().st_size == entry["bytes"]
                for entry in files_of(read_manifest(folder))
            )
        )
    except (FileNotFoundError, CacheError):
        return False


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Be the one process that fetches. Wait for another that does, because it fetches the same files."""
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
        return retried(url, read)
    except FileNotFoundError:
        raise CacheIncomplete(
            f"{url}: no {MANIFEST}: no cache has been written there, or not all of it"
        ) from None
