"""JSON files that hold their own checksum, and opening a file that may come from a stranger."""

from __future__ import annotations

import errno
import json
import os
import stat
from pathlib import Path
from typing import Any

import xxhash

from ensdistill.cache.errors import CacheCorrupt, CacheIncomplete, CacheMismatch
from ensdistill.common.files import write_bytes

FORMAT_VERSION = 3
"""The format of most caches. A newer one is written only where a reader of this one has to refuse the cache.
"""
WITH_UIDS = 4
"""The cache keeps its samples' uids."""
WITH_CLASS_PATHS = 5
"""A codec, of the cache or of one that it was made from, is named by class path."""
WITH_TASKS = 6
"""The targets are of multi-label members or of regressors."""
_OLDEST, _NEWEST = 2, WITH_TASKS
# No manifest comes near this size. A larger file is never read into memory.
_LARGEST = 1 << 30


def open_regular(path: Path) -> int:
    """A read-only descriptor of a regular file; a symbolic link or a pipe, which may block, is refused.

    Raises
    ------
    CacheIncomplete
        There is no such file.
    CacheCorrupt
        The path leads to a link, a folder, a pipe or a device.
    """
    try:
        kind = os.lstat(path).st_mode
    except FileNotFoundError:
        raise _missing(path) from None
    if not stat.S_ISREG(kind):
        got = "a symbolic link" if stat.S_ISLNK(kind) else stat.filemode(kind)
        raise CacheCorrupt(f"{path}: expected a regular file; got {got}")
    try:
        return os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0))
    except FileNotFoundError:  # a writer that builds the cache anew has just removed it
        raise _missing(path) from None
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise CacheCorrupt(f"{path}: expected a regular file; got a symbolic link") from None
        raise


def _missing(path: Path) -> CacheIncomplete:
    return CacheIncomplete(
        f"{path}: no such file; the cache has not been finished, is being built anew, or was copied only in "
        "part"
    )


def write_checked(path: Path, body: dict[str, Any]) -> None:
    """Atomically write ``body`` as JSON with a checksum of itself."""
    write_bytes(path, _text({**body, "checksum": _checksum(body)}))


def read_checked(path: Path) -> dict[str, Any]:
    """The body that `write_checked` wrote, its checksum removed.

    Raises
    ------
    CacheIncomplete
        There is no such file.
    CacheCorrupt
        Its bytes are not those that were written.
    CacheMismatch
        It is of another version of the format.
    """
    with open(open_regular(path), "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size > _LARGEST:
            raise CacheCorrupt(f"{path}: {size} bytes, which no manifest comes near")
        raw = file.read(size)  # Python allocates the number that is passed, so it is never a larger one
    return parse_checked(path, raw)


def parse_checked(path: Path | str, raw: bytes) -> dict[str, Any]:
    """The body in the bytes of such a file, which ``path`` names in errors; raises as `read_checked` does."""
    try:
        body = json.loads(raw)
    except (
        ValueError,
        RecursionError,
    ) as error:  # ValueError: not JSON, not UTF-8, an integer of 5000 digits
        raise CacheCorrupt(f"{path}: not a JSON file ({str(error)[:200]})") from None
    if not isinstance(body, dict):
        raise CacheCorrupt(f"{path}: expected a JSON object; got {type(body).__name__}")
    # This comes first, because another version may compute its checksum in another way.
    version = body.get("format_version")
    if type(version) is int and version > _NEWEST:
        raise CacheMismatch(
            f"{path}: format_version {version}, but this ensdistill reads up to {_NEWEST}; upgrade it"
        )
    checksum = body.pop("checksum", None)
    try:
        sound = checksum == _checksum(body) and raw == _text({**body, "checksum": checksum})
    except (
        ValueError,
        RecursionError,
    ):  # NaN and infinities, which JSON does not have but Python's parser lets through
        sound = False
    if not sound:
        raise CacheCorrupt(f"{path}: the file has been changed since it was written (checksum)")
    if type(version) is int and version < _OLDEST:
        raise CacheMismatch(
            f"{path}: format_version {version}, but this ensdistill reads versions {_OLDEST} to {_NEWEST}; "
            "build the cache again"
        )
    return body


def _text(value: dict[str, Any]) -> bytes:
    return (json.dumps(value, indent=1, allow_nan=False) + "\n").encode()


def _checksum(body: dict[str, Any]) -> str:
    return xxhash.xxh3_128_hexdigest(_text(body))
