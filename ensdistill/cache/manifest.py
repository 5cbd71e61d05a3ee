"""The two JSON files of a cache, and the header of its shards. This is the format's reference.

A finished cache is a folder with ``manifest.json`` and ``shard-00000.safetensors``,
``shard-00001.safetensors``, ... Row ``r`` is row ``r % shard_rows`` of shard ``view * V + r // shard_rows``,
where each view has V = ceil(rows / shard_rows) shards: there is no index. Where the samples' uids are 0 ...
N-1, sample ``uid`` is row ``uid``; any others are kept in ``uids.safetensors``. The manifest's fields:

==================  ========================================================================================
format              ``"ensdistill-target-cache"``
format_version      3; 4 where there are ``uids``; 5 where a codec is named by class path; or 2, whose
                    caches have no ``floor``. A reader refuses every other
codec               ``uint8``, ``fp16``, ``bf16``, ``fp32``, ``topk-N`` or ``counts-N`` (``codecs/``), or a
                    class path with its settings: ``my_package.my_codec.MyCodec(bits=4)``
seed                of the draws of a codec that draws (``counts-N``); else null
rows                N
uids                ``{file, bytes, hash}`` of ``uids.safetensors``, the xxh3_128 of the whole file; no such
                    field where row r has uid r
members, weights    K names, and K non-negative weights (float64) of the mixture
combiner            ``prob``, ``logit`` or ``log_prob``
classes             C names; position is class index
floor               how far below its row's largest a logit may be and still have a code (``floors.py``);
                    null where codes reach any depth
temperature         ``"any"``: members' logits are kept, so the mixture can be formed at every T. A number:
                    only the mixture at this T
views               the number of versions of each sample
sequences           whether a sample has several positions, each with a record
shard_rows          S; a view's last shard may be shorter
block_bytes         B; each block of a shard's data has a CRC-32C of its own
record              ``{bytes, fields: [{name, dtype, offset, shape}]}``: one sample, all members side by
                    side
fingerprint         ``{ensemble: {...}, inputs: {rows, hash}, views: null or {...}}``: the sources of the
                    cache, by content. ``inputs.hash`` is the xxh3_128 of all inputs' hashes in row order,
                    before any augmentation, of sequences ``inputs.lengths`` that of their lengths, and
                    where there are ``uids``, ``inputs.uids`` that of the uids; ``derived`` lists the steps
                    by which the cache was made from another
shards              for each ``{file, rows, records, bytes, hash, blocks}``; ``hash`` is the xxh3_128 of the
                    whole file, ``blocks`` that of its table of CRCs
statistics          ``{kl: {rows, mean, p99, max}, members: {name: ...}}``: KL(softmax(logits) ||
                    softmax(stored)) at T = 1, over rows and members; of a mixture KL(mixture || stored) at
                    its T; of counts KL(stored || mixture). The part of a member has ``floored`` where
                    logits of so many rows were below the floor, which the KL does not count. ``p99`` is the
                    upper edge of a bin 4.4 % wide, so that it never promises too much. Of a converted cache
                    it is the KL to the source's targets; the source's own stands in ``fingerprint.derived``
checksum            xxh3_128 of the file's text without this field
==================  ========================================================================================

A shard is a ``.safetensors`` file with the tensors ``records`` (uint8 [records, record bytes]), for sequences
``offsets`` (uint64 [rows + 1]: where each sample's records begin), and ``crc32c`` (uint32 [blocks], over
records and offsets), and the layout in its metadata (``first_uid`` is its first row). Its header is padded to
a page and follows from the manifest byte for byte, so a reader compares it and never has to parse a
stranger's bytes. The same holds for ``uids.safetensors``, whose one tensor ``uids`` is int64 [N], in row
order.

While a cache is being written there is no manifest: ``plan.json`` holds the fields that are set before any
record is written, and each finished shard has ``shard-00000.commit.json``. Both are removed when the manifest
stands. None of the files holds a date, a path or a process id.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ensdistill.cache import statistics
from ensdistill.cache.codecs import BUILT_IN, Codec, Layout, is_built_in, is_codec_name, record_of
from ensdistill.cache.errors import CacheCorrupt, CacheIncomplete
from ensdistill.cache.files.checked import FORMAT_VERSION, WITH_CLASS_PATHS, WITH_UIDS, read_checked

FORMAT = "ensdistill-target-cache"
MANIFEST, PLAN, UIDS = "manifest.json", "plan.json", "uids.safetensors"
COMBINERS = ("prob", "logit", "log_prob")
BLOCK_BYTES = 1 << 16
# Records start at a page, so that a block is read and checked by whole pages.
_PAGE = 4096

Manifest = dict[str, Any]


def shard_name(shard: int) -> str:
    return f"shard-{shard:05d}.safetensors"


def commit_name(shard: int) -> str:
    return f"shard-{shard:05d}.commit.json"


def shards_per_view(manifest: Manifest) -> int:
    return -(-manifest["rows"] // manifest["shard_rows"])


def shard_count(manifest: Manifest) -> int:
    return manifest["views"] * shards_per_view(manifest)


def view_and_first_row(manifest: Manifest, shard: int) -> tuple[int, int]:
    view, place = divmod(shard, shards_per_view(manifest))
    return view, place * manifest["shard_rows"]


def rows_of_shard(manifest: Manifest, shard: int) -> int:
    return min(manifest["shard_rows"], manifest["rows"] - view_and_first_row(manifest, shard)[1])


def files_of(manifest: Manifest) -> list[dict[str, Any]]:
    """Each file ``{file, bytes, hash}`` of a cache but its manifest."""
    return [*manifest["shards"], *([manifest["uids"]] if "uids" in manifest else [])]


def targets_of(manifest: Manifest) -> list[str]:
    """The names of the rows that a record holds side by side: its members, or their mixture."""
    return manifest["members"] if manifest["temperature"] == "any" else ["mixture"]


def conversions(manifest: Manifest, member: str) -> list[dict[str, Any]]:
    """The conversions ``{from, kl}`` of a member's logits before they were stored in this cache.
    cache.

    Each has the ``floor`` too, where rows of the source had logits below it.
    """
    steps = manifest["fingerprint"].get("derived", [])
    came = max((i for i, step in enumerate(steps) if step.get("add", {}).get("name") == member), default=-1)
    return [step["convert"] for step in steps[came + 1 :] if "convert" in step]


def kl_before(manifest: Manifest) -> dict[str, float]:
    """The sum of the largest KL of each member's conversions before the one that the statistics are of.
    up.
    """
    return {
        name: sum(float(step["kl"]["max"]) for step in conversions(manifest, name))
        for name in manifest["members"]
    }


def format_version_of(plan: Manifest) -> int:
    """The version that a cache of this plan is written in: the oldest whose readers understand it."""
    if not all(is_built_in(name) for name in _codec_names(plan)):
        return WITH_CLASS_PATHS
    return WITH_UIDS if "uids" in plan else FORMAT_VERSION


def _codec_names(plan: Manifest) -> list[str]:
    """The codecs of the cache and of those that it was converted from."""
    steps = plan.get("fingerprint", {}).get("derived", [])
    return [plan["codec"], *(step["convert"]["from"] for step in steps if "convert" in step)]


def record_for(codec: Codec, plan: Manifest) -> Layout:
    """The record that ``codec`` makes of the targets of this plan."""
    return record_of(codec, len(targets_of(plan)), len(plan["classes"]))


def layout_of(manifest: Manifest) -> Layout:
    return Layout.of_manifest(manifest["record"])


def data_bytes(manifest: Manifest, shard: int, records: int) -> int:
    """Bytes of a shard's records and offsets, which the blocks divide."""
    offsets = 8 * (rows_of_shard(manifest, shard) + 1) if manifest["sequences"] else 0
    return records * manifest["record"]["bytes"] + offsets


def block_count(manifest: Manifest, shard: int, records: int) -> int:
    return -(-data_bytes(manifest, shard, records) // manifest["block_bytes"])


def shard_header(manifest: Manifest, shard: int, records: int) -> bytes:
    """The safetensors header of a shard: 8 bytes of length, then JSON, padded to a page.
    page.
    """
    rows, record = rows_of_shard(manifest, shard), manifest["record"]
    view, first = view_and_first_row(manifest, shard)
    metadata = {
        "format": FORMAT,
        "format_version": str(manifest["format_version"]),
        "codec": manifest["codec"],
        "view": str(view),
        "first_uid": str(first),
        "record": json.dumps(record, separators=(",", ":")),
    }
    wanted = [("records", "U8", [records, record["bytes"]], records * record["bytes"])]
    if manifest["sequences"]:
        wanted.append(("offsets", "U64", [rows + 1], 8 * (rows + 1)))
    blocks = block_count(manifest, shard, records)
    wanted.append(("crc32c", "U32", [blocks], 4 * blocks))
    return _header(metadata, wanted)


def uids_header(rows: int) -> bytes:
    """The safetensors header of the file of so many uids."""
    metadata = {"format": FORMAT, "format_version": str(WITH_UIDS)}
    return _header(metadata, [("uids", "I64", [rows], 8 * rows)])


def _header(metadata: dict[str, str], wanted: list[tuple[str, str, list[int], int]]) -> bytes:
    """Of tensors, each given by its name, dtype, shape and size in bytes."""
    tensors, end = {}, 0
    for name, dtype, shape, size in wanted:
        tensors[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps({"__metadata__": metadata, **tensors}, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % _PAGE)
    return len(text).to_bytes(8, "little") + text


def read_manifest(path: Path) -> Manifest:
    """``path/manifest.json``, every field checked except the codec's record.
    files.

    Raises
    ------
    CacheIncomplete, CacheCorrupt, CacheMismatch
        There is no manifest, or a field is wrong, or the manifest is of a version that cannot be read.
    """
    try:
        manifest = read_checked(path / MANIFEST)
    except CacheIncomplete:
        started = (path / PLAN).exists()
        state = (
            "its writer has not finished; run it again to resume"
            if started
            else "no cache has been written there"
        )
        raise CacheIncomplete(f"{path}: no {MANIFEST}: {state}") from None
    _check(path / MANIFEST, manifest, {**_plan_fields(manifest), **SHARD_FIELDS})
    members = len(manifest["members"])
    if len(manifest["weights"]) != members:
        raise _unexpected(path, manifest, "weights", f"{members} numbers, one for each member")
    floored = any(part.get("floored") for part in manifest["statistics"]["members"].values())
    if manifest.get("floor") is None and floored:
        raise CacheCorrupt(
            f"{path / MANIFEST}: floor: expected a number, because the statistics count rows with logits "
            "below it; got none"
        )
    if len(manifest["shards"]) != shard_count(manifest):
        raise _unexpected(path, manifest, "shards", f"{shard_count(manifest)} shards")
    if "uids" in manifest:
        _check_uids(path, manifest)
    for shard, entry in enumerate(manifest["shards"]):
        _check_shard(path / MANIFEST, manifest, shard, entry)
    return manifest


def check_codec(path: Path, manifest: Manifest, codec: Codec) -> None:
    """Raise CacheCorrupt where a manifest describes other records than its codec makes.
    makes.
    """
    if codec.mixture_only and manifest["temperature"] == "any":
        raise _unexpected(path, manifest, "temperature", f"a number, because {codec.name} holds a mixture")
    try:
        record = record_for(codec, manifest).describe()
    except ValueError as error:
        raise CacheCorrupt(f"{path / MANIFEST}: {error}") from None
    if manifest["record"] != record:
        raise _unexpected(path, manifest, "record", "the layout of its codec")


def _unexpected(path: Path, manifest: Manifest, field: str, expectation: str) -> CacheCorrupt:
    return CacheCorrupt(
        f"{path / MANIFEST}: {field}: expected {expectation}; got {repr(manifest[field])[:200]}"
    )


def _check_uids(path: Path, manifest: Manifest) -> None:
    entry, rows = manifest["uids"], manifest["rows"]
    expected = {"file": UIDS, "bytes": len(uids_header(rows)) + 8 * rows}
    same = entry.keys() == {*expected, "hash"} and {k: entry[k] for k in expected} == expected
    if not same or not isinstance(entry["hash"], str):
        raise _unexpected(path, manifest, "uids", f"{expected} and a hash")


def _check_shard(file: Path, manifest: Manifest, shard: int, entry: Any) -> None:
    # The name follows from the number, so that a manifest cannot lead anywhere else ("..", absolute paths).
    rows = rows_of_shard(manifest, shard)
    records: Any = entry.get("records") if isinstance(entry, dict) else None
    if not _positive(records) or (records < rows if manifest["sequences"] else records != rows):
        raise CacheCorrupt(
            f"{file}: shards[{shard}]: expected records for its {rows} rows; got {repr(entry)[:200]}"
        )
    header, data = len(shard_header(manifest, shard, records)), data_bytes(manifest, shard, records)
    size = header + data + 4 * block_count(manifest, shard, records)
    expected = {"file": shard_name(shard), "rows": rows, "records": records, "bytes": size}
    hashes = {k: v for k, v in entry.items() if k not in expected}
    same = {k: entry.get(k) for k in expected} == expected
    if not same or hashes.keys() != {"hash", "blocks"} or not _names([*hashes.values()]):
        raise CacheCorrupt(
            f"{file}: shards[{shard}]: expected {expected}, a hash and that of its blocks; got "
            f"{repr(entry)[:200]}"
        )


def check_plan(file: Path, plan: Manifest) -> None:
    _check(file, plan, _plan_fields(plan))


def same_fields(found: Manifest, plan: Manifest) -> tuple[Manifest, Manifest]:
    """The fields by which a finished cache can be compared with a plan, of both.

    The version of the format is none of them: an older one does not make it the cache of something else.
    """
    fields = [field for field in plan if field in found and field != "format_version"]
    return {field: found[field] for field in fields}, {field: plan[field] for field in fields}


def _plan_fields(body: Manifest) -> dict[str, tuple[Callable[[Any], bool], str]]:
    version = body.get("format_version")
    fields = dict(PLAN_FIELDS)
    if version == 2:
        del fields["floor"]
    if type(version) is int and (version < WITH_UIDS or (version >= WITH_CLASS_PATHS and "uids" not in body)):
        del fields["uids"]
    return fields


def _check(file: Path, body: Manifest, fields: dict[str, tuple[Callable[[Any], bool], str]]) -> None:
    for field, (valid, expectation) in fields.items():
        if field not in body:
            raise CacheCorrupt(f"{file}: {field}: expected {expectation}; the field is missing")
        if not valid(body[field]):
            raise CacheCorrupt(f"{file}: {field}: expected {expectation}; got {repr(body[field])[:200]}")
    if unknown := body.keys() - fields.keys():
        raise CacheCorrupt(f"{file}: unknown fields {sorted(unknown)}")
    if body["format_version"] < WITH_CLASS_PATHS and format_version_of(body) == WITH_CLASS_PATHS:
        raise CacheCorrupt(
            f"{file}: codec: expected one of {_BUILT_IN}, in format_version {body['format_version']}; got "
            f"{_codec_names(body)}"
        )


def _positive(value: Any) -> bool:
    return type(value) is int and 0 < value < 2**62


def _number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and value >= 0


def _names(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(name, str) for name in value)


def _weights(value: Any) -> bool:
    return isinstance(value, list) and all(map(_number, value)) and sum(value) > 0


def _fingerprint(value: Any) -> bool:
    steps = value.get("derived", []) if isinstance(value, dict) else None
    if not isinstance(steps, list) or not all(isinstance(step, dict) for step in steps):
        return False
    return all(_added(step) and _converted(step) for step in steps)


def _added(step: dict[str, Any]) -> bool:
    about = step.get("add", {"name": ""})
    return isinstance(about, dict) and isinstance(about.get("name"), str)


def _converted(step: dict[str, Any]) -> bool:
    if "convert" not in step:
        return True
    about: Any = step["convert"]
    if (
        not isinstance(about, dict)
        or not is_codec_name(about.get("from"))
        or not isinstance(about.get("kl"), dict)
    ):
        return False
    return _number(about["kl"].get("max")) and _floor(about.get("floor"))


def _record(value: Any) -> bool:
    return isinstance(value, dict) and _positive(value.get("bytes"))


def _floor(value: Any) -> bool:
    return value is None or (_number(value) and value > 0)


def _statistics(value: Any) -> bool:
    if (
        not isinstance(value, dict)
        or value.keys() != {"kl", "members"}
        or not isinstance(value["members"], dict)
    ):
        return False
    kl, parts = value["kl"], value["members"].values()
    numbers = (
        isinstance(kl, dict)
        and kl.keys() == {"rows", "mean", "p99", "max"}
        and all(map(_number, kl.values()))
    )
    return numbers and bool(parts) and all(map(statistics.is_part, parts))


_BUILT_IN = ", ".join(BUILT_IN)
PLAN_FIELDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "format": (lambda v: v == FORMAT, repr(FORMAT)),
    "format_version": (lambda v: type(v) is int and 2 <= v <= WITH_CLASS_PATHS, f"2 to {WITH_CLASS_PATHS}"),
    "codec": (is_codec_name, f"one of {_BUILT_IN}, or a class path"),
    "seed": (lambda v: v is None or (type(v) is int and 0 <= v < 2**63), "null or a number of at least 0"),
    "rows": (_positive, "a positive integer"),
    "uids": (lambda v: isinstance(v, dict), "an object"),
    "members": (_names, "a list of names"),
    "weights": (_weights, "a list of non-negative numbers with a positive sum"),
    "combiner": (lambda v: v in COMBINERS, f"one of {list(COMBINERS)}"),
    "classes": (_names, "a list of names"),
    "floor": (_floor, "null or a number above 0"),
    "temperature": (lambda v: v == "any" or (_number(v) and v > 0), "'any' or a number above 0"),
    "views": (_positive, "a positive integer"),
    "sequences": (lambda v: type(v) is bool, "true or false"),
    "shard_rows": (_positive, "a positive integer"),
    "block_bytes": (lambda v: type(v) is int and v == BLOCK_BYTES, str(BLOCK_BYTES)),
    "record": (_record, "an object with a positive number of bytes"),
    "fingerprint": (
        _fingerprint,
        "an object, whose derived (if any) lists the steps of convert, add, drop and reweight",
    ),
}
SHARD_FIELDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "shards": (lambda v: isinstance(v, list), "a list"),
    "statistics": (
        _statistics,
        "{'kl': {'rows', 'mean', 'p99', 'max'}, 'members': ...} with non-negative numbers",
    ),
}
