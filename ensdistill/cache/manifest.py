"""The two JSON files of a cache, and the header of its shards. This is the format's reference.

A finished cache is a folder with ``manifest.json`` and ``shard-00000.safetensors``,
``shard-00001.safetensors``, ... Row ``r`` is row ``r % shard_rows`` of shard ``view * V + r // shard_rows``,
where each view has V = ceil(rows / shard_rows) shards: there is no index. Where the samples' uids are 0 ...
N-1, sample ``uid`` is row ``uid``; any others are kept in ``uids.safetensors``. The manifest's fields:

==================  ========================================================================================
format              ``"ensdistill-target-cache"``
format_version      3; 4 where there are ``uids``; 5 where a codec is named by class path; 6 where there is a
                    ``task``; or 2, whose caches have no ``floor``. A reader refuses every other
task                ``multilabel`` or ``regression``; no such field in a cache of classification
codec               ``uint8``, ``fp16``, ``bf16``, ``fp32``, ``topk-N``, ``topkB-N``, ``counts-N`` or
                    ``draws-N``, of regression ``fp32``, ``fp16``, ``affine16`` or ``uint8`` (``codecs/``), or
                    a class path with its settings: ``my_package.my_codec.MyCodec(bits=4)``
seed                of the draws of a codec that draws (``counts-N``, ``draws-N``); else null
rows                N
uids                ``{file, bytes, hash}`` of ``uids.safetensors``, the xxh3_128 of the whole file; no such
                    field where row r has uid r
members, weights    K names, and K non-negative weights (float64) of the mixture
combiner            ``prob``, ``logit`` or ``log_prob``
classes             C names of classes or labels, D of numbers; position is index
location, scale     of regression, float64 [D]: a mean in the data's units is location + scale * number. They
                    are mean and spread of the mixture's means over the rows, or over 1024 of more; scale is
                    1 where these are constant
variance            of regression, true or false: whether each row of a record has D deviations (roots of
                    variances, in units of scale) after its D means
floor               how far below its row's largest a logit may be and still have a code (``floors.py``), or
                    how far from 0 log-odds may be; null where codes reach any depth
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
                    it is the KL to the source's targets; the source's own stands in ``fingerprint.derived``.
                    Of multi-label members it is the sum of the labels' binary KLs. Of regression the field is
                    ``error``: the largest absolute error among a row's numbers, in units of ``scale``
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
from typing import Any

from ensdistill.cache.codecs import Codec, Layout, is_built_in, record_of
from ensdistill.cache.files.checked import FORMAT_VERSION, WITH_CLASS_PATHS, WITH_TASKS, WITH_UIDS
from ensdistill.common.tasks import Task

FORMAT = "ensdistill-target-cache"
MEASURED = ("location", "scale", "variance")
"""The fields of regression that follow from the members' predictions."""
MANIFEST, PLAN, UIDS = "manifest.json", "plan.json", "uids.safetensors"
BLOCK_BYTES = 1 << 16
# Records start at a page, so that a block is read and checked by whole pages.
_PAGE = 4096

Manifest = dict[str, Any]


def task_of_plan(plan: Manifest) -> Task:
    """The task of a manifest or a plan, which those of classification do not hold."""
    found: Task = plan.get("task", "classification")
    return found


def measure_of(plan: Manifest) -> str:
    """The field of the statistics that has the cost of storing."""
    return "error" if task_of_plan(plan) == "regression" else "kl"


def width_of(plan: Manifest) -> int:
    """How many numbers a row of a record has: C, or of regression D means and perhaps D deviations."""
    return len(plan["classes"]) * (2 if plan.get("variance") else 1)


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

    Those of a regressor's moments are ``{from, error}``. Each has the ``floor`` too, where rows of the source
    had logits below it.
    """
    steps = manifest["fingerprint"].get("derived", [])
    came = max((i for i, step in enumerate(steps) if step.get("add", {}).get("name") == member), default=-1)
    return [step["convert"] for step in steps[came + 1 :] if "convert" in step]


def cost_before(manifest: Manifest) -> dict[str, float]:
    """The sum of the largest cost of each member's conversions before the one that the statistics are of."""
    return {
        name: sum(float(step[measure_of(manifest)]["max"]) for step in conversions(manifest, name))
        for name in manifest["members"]
    }


def format_version_of(plan: Manifest) -> int:
    """The version that a cache of this plan is written in: the oldest whose readers understand it."""
    if "task" in plan:
        return WITH_TASKS
    if not all(is_built_in(name) for name in codec_names(plan)):
        return WITH_CLASS_PATHS
    return WITH_UIDS if "uids" in plan else FORMAT_VERSION


def codec_names(plan: Manifest) -> list[str]:
    """The codecs of the cache and of those that it was converted from."""
    steps = plan.get("fingerprint", {}).get("derived", [])
    return [plan["codec"], *(step["convert"]["from"] for step in steps if "convert" in step)]


def record_for(codec: Codec, plan: Manifest) -> Layout:
    """The record that ``codec`` makes of the targets of this plan."""
    return record_of(codec, len(targets_of(plan)), width_of(plan))


def layout_of(manifest: Manifest) -> Layout:
    return Layout.of_manifest(manifest["record"])


def data_bytes(manifest: Manifest, shard: int, records: int) -> int:
    """Bytes of a shard's records and offsets, which the blocks divide."""
    offsets = 8 * (rows_of_shard(manifest, shard) + 1) if manifest["sequences"] else 0
    return records * manifest["record"]["bytes"] + offsets


def block_count(manifest: Manifest, shard: int, records: int) -> int:
    return -(-data_bytes(manifest, shard, records) // manifest["block_bytes"])


def shard_header(manifest: Manifest, shard: int, records: int) -> bytes:
    """The safetensors header of a shard: 8 bytes of length, then JSON, padded to a page."""
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
