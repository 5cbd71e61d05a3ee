"""JSON files with a checksum of themselves, and opening a file that may have been put there by somebody else."""

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

FORMAT_VERSION, WITH_UIDS, _OLDEST = 3, 4, 2
"""What is written, also where a cache keeps its samples' uids (which readers of 3 must refuse), and the oldest that is read."""
# No manifest of ours comes near it; what is larger is never read into memory.
_LARGEST = 1 << 30


def open_regular(path: Path) -> int:
    """A read-only descriptor of a regular file: no symbolic link, and no pipe that would make the reader wait for ever.

    Raises
    ------
    CacheIncomplete
        There is no such file.
    CacheCorrupt
        It is something else than a regular file.
    """
    try:
        kind = os.lstat(path).st_mode
    except FileNotFoundError:
        raise _missing(path) from None
    if not stat.S_ISREG(kind):
        raise CacheCorrupt(f"{path}: expected a regular file; got {'a symbolic link' if stat.S_ISLNK(kind) else stat.filemode(kind)}")
    try:
        return os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0))
    except FileNotFoundError:  # a writer that builds the cache anew has just removed it
        raise _missing(path) from None
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise CacheCorrupt(f"{path}: expected a regular file; got a symbolic link") from None
        raise


def _missing(path: Path) -> CacheIncomplete:
    return CacheIncomplete(f"{path}: no such file; the cache has not been finished, is being built anew, or was copied only in part")


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
        It is not byte for byte what was written.
    CacheMismatch
        It is of another version of the format.
    """
    with open(open_regular(path), "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size > _LARGEST:
            raise CacheCorrupt(f"{path}: {size} bytes, which no manifest comes near")
        raw = file.read(size)  # never with a larger number: that much is allocated first
    return parse_checked(path, raw)


def parse_checked(path: Path | str, raw: bytes) -> dict[str, Any]:
    """The body in the bytes of such a file, which ``path`` names in errors; raises as `read_checked` does."""
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError) as error:  # ValueError: not JSON, not UTF-8, an integer of 5000 digits
        raise CacheCorrupt(f"{path}: not a JSON file ({str(error)[:200]})") from None
    if not isinstance(body, dict):
        raise CacheCorrupt(f"{path}: expected a JSON object; got {type(body).__name__}")
    # First, because another version may keep its checksum in another way.
    version = body.get("format_version")
    if type(version) is int and version > WITH_UIDS:
        raise CacheMismatch(f"{path}: format_version {version}, but this ensdistill reads up to {WITH_UIDS}; upgrade it")
    checksum = body.pop("checksum", None)
    try:
        sound = checksum == _checksum(body) and raw == _text({**body, "checksum": checksum})
    except (ValueError, RecursionError):  # NaN and infinities, which JSON does not have but Python's parser lets through
        sound = False
    if not sound:
        raise CacheCorrupt(f"{path}: the file has been changed since it was written (checksum)")
    if type(version) is int and version < _OLDEST:
        readable = f"versions {_OLDEST} to {WITH_UIDS}"
        raise CacheMismatch(f"{path}: format_version {version}, but this ensdistill reads {readable}; build the cache again")
    return body


def _text(value: dict[str, Any]) -> bytes:
    return (json.dumps(value, indent=1, allow_nan=False) + "\n").encode()


def _checksum(body: dict[str, Any]) -> str:
    return xxhash.xxh3_128_hexdigest(_text(body))
