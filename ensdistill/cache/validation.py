"""Reading a manifest: every field is checked, so that its sizes and names can be relied on."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ensdistill.cache import statistics
from ensdistill.cache.codecs import BUILT_IN, Codec, is_codec_name
from ensdistill.cache.errors import CacheCorrupt, CacheIncomplete
from ensdistill.cache.files.checked import WITH_CLASS_PATHS, WITH_TASKS, WITH_UIDS, read_checked
from ensdistill.cache.manifest import (
    BLOCK_BYTES,
    FORMAT,
    MANIFEST,
    MEASURED,
    PLAN,
    UIDS,
    Manifest,
    block_count,
    codec_names,
    data_bytes,
    format_version_of,
    measure_of,
    record_for,
    rows_of_shard,
    shard_count,
    shard_header,
    shard_name,
    task_of_plan,
    uids_header,
)
from ensdistill.common.combiners import COMBINERS
from ensdistill.common.tasks import TASKS


def read_manifest(path: Path) -> Manifest:
    """``path/manifest.json``, every field checked except the codec's record.

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
    _check_task(path, manifest)
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
    """Raise CacheCorrupt where a manifest describes other records than its codec makes."""
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


def _check_task(path: Path, manifest: Manifest) -> None:
    """Raise where fields do not fit the manifest's task."""
    measure = measure_of(manifest)
    if measure not in manifest["statistics"]:
        raise _unexpected(path, manifest, "statistics", f"{measure!r}, for {task_of_plan(manifest)}")
    steps = manifest["fingerprint"].get("derived", [])
    if any(measure not in step["convert"] for step in steps if "convert" in step):
        raise _unexpected(path, manifest, "fingerprint", f"conversions with {measure!r}")
    if task_of_plan(manifest) != "regression":
        return
    for field in ("location", "scale"):
        if len(manifest[field]) != len(manifest["classes"]):
            raise _unexpected(
                path, manifest, field, f"{len(manifest['classes'])} numbers, one for each class"
            )
    if manifest["temperature"] not in ("any", 1):
        raise _unexpected(path, manifest, "temperature", "'any' or 1, for regression")
    if manifest["sequences"]:
        raise _unexpected(path, manifest, "sequences", "false, for regression")


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
    tasks = [{"task": task_of_plan(body)} for body in (found, plan)]
    return (
        {**tasks[0], **{field: found[field] for field in fields}},
        {**tasks[1], **{field: plan[field] for field in fields}},
    )


def _plan_fields(body: Manifest) -> dict[str, tuple[Callable[[Any], bool], str]]:
    version = body.get("format_version")
    fields = dict(PLAN_FIELDS)
    if version == 2:
        del fields["floor"]
    task = body.get("task", "classification")
    if version != WITH_TASKS:
        del fields["task"]
    if version != WITH_TASKS or task != "regression":
        for field in MEASURED:
            del fields[field]
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
            f"{codec_names(body)}"
        )


def _positive(value: Any) -> bool:
    return type(value) is int and 0 < value < 2**62


def _number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and value >= 0


def _reals(value: Any) -> bool:
    finite = isinstance(value, list) and all(type(x) in (int, float) and abs(x) < 1e300 for x in value)
    return finite and bool(value)


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
    if not isinstance(about, dict) or not is_codec_name(about.get("from")):
        return False
    cost = about.get("kl", about.get("error"))
    return isinstance(cost, dict) and _number(cost.get("max")) and _floor(about.get("floor"))


def _record(value: Any) -> bool:
    return isinstance(value, dict) and _positive(value.get("bytes"))


def _floor(value: Any) -> bool:
    return value is None or (_number(value) and value > 0)


def _statistics(value: Any) -> bool:
    if (
        not isinstance(value, dict)
        or value.keys() not in ({"kl", "members"}, {"error", "members"})
        or not isinstance(value["members"], dict)
    ):
        return False
    kl, parts = value.get("kl", value.get("error")), value["members"].values()
    numbers = (
        isinstance(kl, dict)
        and kl.keys() == {"rows", "mean", "p99", "max"}
        and all(map(_number, kl.values()))
    )
    return numbers and bool(parts) and all(map(statistics.is_part, parts))


_BUILT_IN = ", ".join(dict.fromkeys(name for names in BUILT_IN.values() for name in names))
PLAN_FIELDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "format": (lambda v: v == FORMAT, repr(FORMAT)),
    "format_version": (lambda v: type(v) is int and 2 <= v <= WITH_TASKS, f"2 to {WITH_TASKS}"),
    "task": (lambda v: v in TASKS[1:], f"one of {TASKS[1:]}"),
    "codec": (is_codec_name, f"one of {_BUILT_IN}, or a class path"),
    "seed": (lambda v: v is None or (type(v) is int and 0 <= v < 2**63), "null or a number of at least 0"),
    "rows": (_positive, "a positive integer"),
    "uids": (lambda v: isinstance(v, dict), "an object"),
    "members": (_names, "a list of names"),
    "weights": (_weights, "a list of non-negative numbers with a positive sum"),
    "combiner": (lambda v: v in COMBINERS, f"one of {list(COMBINERS)}"),
    "classes": (_names, "a list of names"),
    "location": (_reals, "a list of finite numbers"),
    "scale": (lambda v: _reals(v) and all(x > 0 for x in v), "a list of finite numbers above 0"),
    "variance": (lambda v: type(v) is bool, "true or false"),
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
        "{'kl' or 'error': {'rows', 'mean', 'p99', 'max'}, 'members': ...} with non-negative numbers",
    ),
}
