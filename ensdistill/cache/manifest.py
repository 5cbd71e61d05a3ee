"""The two JSON files of a cache, and the header of its shards. This is the format's reference.

A finished cache is a folder with ``manifest.json`` and ``shard-00000.safetensors``, ``shard-00001.safetensors``, ... Sample
``uid`` is row ``uid % shard_rows`` of shard ``uid // shard_rows``: there is no index. The manifest's fields:

==================  ==================================================================================================
format              ``"ensdistill-target-cache"``
format_version      1; a reader refuses what is newer than itself
codec               ``uint8``, ``fp16`` or ``fp32`` (``codecs.py``)
rows                N; the uids are 0 ... N-1
members, weights    K names, and K non-negative weights (float64) of the mixture
combiner            ``prob``, ``logit`` or ``log_prob``
classes             C names; position is class index
temperature         ``"any"``: members' logits are kept, so the mixture can be formed at every T
shard_rows          S; the last shard may be shorter
record              ``{bytes, fields: [{name, dtype, offset, shape}]}``: one sample, all members side by side
fingerprint         ``{ensemble: {...}, inputs: {rows, hash}, codec}``: what the cache was made from, by content. ``inputs.hash``
                    is the xxh3_128 of all records' ``input_hash`` in uid order
shards              for each ``{file, rows, bytes, hash}``; ``hash`` is the xxh3_128 of the whole file
statistics          ``{kl: {rows, mean, p99, max}}``: KL(softmax(logits) || softmax(stored)) at T = 1, over rows and members.
                    ``p99`` is the upper edge of a bin 4.4 % wide, so that it never promises too much
checksum            xxh3_128 of the file's text without this field
==================  ==================================================================================================

A shard is a ``.safetensors`` file with one tensor ``records``, uint8 [rows, record bytes], and the layout in its metadata. Its
header follows from the manifest byte for byte, so a reader compares it and never has to parse what it was given.

While a cache is being written there is no manifest: ``plan.json`` holds the fields that are known beforehand, and each finished
shard has ``shard-00000.commit.json``. Both go when the manifest stands. None of the files holds a date, a path or a process id.
"""

from __future__ import annotations

import json
import math
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import xxhash

from ensdistill.cache.codecs import CODECS, layout
from ensdistill.cache.errors import CacheCorrupt, CacheIncomplete, CacheMismatch
from ensdistill.files import write_bytes

FORMAT = "ensdistill-target-cache"
FORMAT_VERSION = 1
MANIFEST, PLAN = "manifest.json", "plan.json"
COMBINERS = ("prob", "logit", "log_prob")

Manifest = dict[str, Any]


def shard_name(shard: int) -> str:
    return f"shard-{shard:05d}.safetensors"


def commit_name(shard: int) -> str:
    return f"shard-{shard:05d}.commit.json"


def shard_count(manifest: Manifest) -> int:
    return -(-manifest["rows"] // manifest["shard_rows"])


def rows_of_shard(manifest: Manifest, shard: int) -> int:
    return min(manifest["shard_rows"], manifest["rows"] - shard * manifest["shard_rows"])


def shard_header(manifest: Manifest, shard: int) -> bytes:
    """The safetensors header of a shard: 8 bytes of length, then JSON padded so that the records start at a multiple of 64."""
    rows, record = rows_of_shard(manifest, shard), manifest["record"]
    metadata = {
        "format": FORMAT,
        "format_version": str(manifest["format_version"]),
        "codec": manifest["codec"],
        "first_uid": str(shard * manifest["shard_rows"]),
        "record": json.dumps(record, separators=(",", ":")),
    }
    tensor = {"dtype": "U8", "shape": [rows, record["bytes"]], "data_offsets": [0, rows * record["bytes"]]}
    text = json.dumps({"__metadata__": metadata, "records": tensor}, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % 64)
    return len(text).to_bytes(8, "little") + text


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
        raise CacheIncomplete(f"{path}: no such file; the cache has not been finished, or was copied only in part") from None
    if not stat.S_ISREG(kind):
        raise CacheCorrupt(f"{path}: expected a regular file; got {'a symbolic link' if stat.S_ISLNK(kind) else stat.filemode(kind)}")
    return os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0))


def write_checked(path: Path, body: Manifest) -> None:
    """Atomically write ``body`` as JSON with a checksum of itself."""
    write_bytes(path, _text({**body, "checksum": _checksum(body)}))


def read_checked(path: Path) -> Manifest:
    """The body that `write_checked` wrote, its checksum removed.

    Raises
    ------
    CacheIncomplete
        There is no such file.
    CacheCorrupt
        It is not byte for byte what was written.
    CacheMismatch
        It is of a newer format.
    """
    with open(open_regular(path), "rb") as file:
        raw = file.read()
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError) as error:  # ValueError: not JSON, not UTF-8, an integer of 5000 digits
        raise CacheCorrupt(f"{path}: not a JSON file ({str(error)[:200]})") from None
    if not isinstance(body, dict):
        raise CacheCorrupt(f"{path}: expected a JSON object; got {type(body).__name__}")
    # First, because a newer format may keep its checksum in another way.
    version = body.get("format_version")
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise CacheMismatch(f"{path}: format_version {version}, but this ensdistill reads up to {FORMAT_VERSION}; upgrade it")
    checksum = body.pop("checksum", None)
    try:
        sound = checksum == _checksum(body) and raw == _text({**body, "checksum": checksum})
    except (ValueError, RecursionError):  # NaN and infinities, which JSON does not have but Python's parser lets through
        sound = False
    if not sound:
        raise CacheCorrupt(f"{path}: the file has been changed since it was written (checksum)")
    return body


def _text(value: Manifest) -> bytes:
    return (json.dumps(value, indent=1, allow_nan=False) + "\n").encode()


def _checksum(body: Manifest) -> str:
    return xxhash.xxh3_128_hexdigest(_text(body))


def read_manifest(path: Path) -> Manifest:
    """``path/manifest.json``, every field checked: what it says can be relied on, and its sizes are within the shards' files."""
    try:
        manifest = read_checked(path / MANIFEST)
    except CacheIncomplete:
        state = "its writer has not finished; run it again to resume" if (path / PLAN).exists() else "no cache has been written there"
        raise CacheIncomplete(f"{path}: no {MANIFEST}: {state}") from None
    _check(path / MANIFEST, manifest, {**PLAN_FIELDS, **SHARD_FIELDS})
    members, classes = len(manifest["members"]), len(manifest["classes"])
    expected = {
        "weights": f"{members} numbers, one for each member" if len(manifest["weights"]) != members else None,
        "record": "the layout of its codec" if manifest["record"] != layout(manifest["codec"], members, classes).describe() else None,
        "shards": f"{shard_count(manifest)} shards" if len(manifest["shards"]) != shard_count(manifest) else None,
    }
    for field, expectation in expected.items():
        if expectation:
            raise CacheCorrupt(f"{path / MANIFEST}: {field}: expected {expectation}; got {repr(manifest[field])[:200]}")
    for shard, entry in enumerate(manifest["shards"]):
        _check_shard(path / MANIFEST, manifest, shard, entry)
    return manifest


def _check_shard(file: Path, manifest: Manifest, shard: int, entry: Any) -> None:
    # The name follows from the number, so that a manifest cannot lead anywhere else ("..", absolute paths).
    rows = rows_of_shard(manifest, shard)
    size = len(shard_header(manifest, shard)) + rows * manifest["record"]["bytes"]
    expected = {"file": shard_name(shard), "rows": rows, "bytes": size}
    if not isinstance(entry, dict) or {k: v for k, v in entry.items() if k != "hash"} != expected or not isinstance(entry.get("hash"), str):
        raise CacheCorrupt(f"{file}: shards[{shard}]: expected {expected} and a hash; got {repr(entry)[:200]}")


def check_plan(file: Path, plan: Manifest) -> None:
    _check(file, plan, PLAN_FIELDS)


def _check(file: Path, body: Manifest, fields: dict[str, tuple[Callable[[Any], bool], str]]) -> None:
    for field, (valid, expectation) in fields.items():
        if field not in body:
            raise CacheCorrupt(f"{file}: {field}: expected {expectation}; the field is missing")
        if not valid(body[field]):
            raise CacheCorrupt(f"{file}: {field}: expected {expectation}; got {repr(body[field])[:200]}")
    if unknown := body.keys() - fields.keys():
        raise CacheCorrupt(f"{file}: unknown fields {sorted(unknown)}")


def _positive(value: Any) -> bool:
    return type(value) is int and 0 < value < 2**63


def _number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and value >= 0


def _names(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(name, str) for name in value)


def _weights(value: Any) -> bool:
    return isinstance(value, list) and all(map(_number, value)) and sum(value) > 0


def _statistics(value: Any) -> bool:
    kl = value.get("kl") if isinstance(value, dict) else None
    return isinstance(kl, dict) and kl.keys() == {"rows", "mean", "p99", "max"} and all(map(_number, kl.values()))


PLAN_FIELDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "format": (lambda v: v == FORMAT, repr(FORMAT)),
    "format_version": (lambda v: type(v) is int and v == FORMAT_VERSION, str(FORMAT_VERSION)),
    "codec": (lambda v: isinstance(v, str) and v in CODECS, f"one of {list(CODECS)}"),
    "rows": (_positive, "a positive integer"),
    "members": (_names, "a list of names"),
    "weights": (_weights, "a list of non-negative numbers with a positive sum"),
    "combiner": (lambda v: v in COMBINERS, f"one of {list(COMBINERS)}"),
    "classes": (_names, "a list of names"),
    "temperature": (lambda v: v == "any", "'any'"),
    "shard_rows": (_positive, "a positive integer"),
    "record": (lambda v: isinstance(v, dict), "an object"),
    "fingerprint": (lambda v: isinstance(v, dict), "an object"),
}
SHARD_FIELDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "shards": (lambda v: isinstance(v, list), "a list"),
    "statistics": (_statistics, "{'kl': {'rows', 'mean', 'p99', 'max'}} with non-negative numbers"),
}
