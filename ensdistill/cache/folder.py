"""The files in a cache's folder: the cache's own, leftovers, and those of another cache."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path

from ensdistill.cache import manifest as m
from ensdistill.cache.errors import CacheCorrupt, CacheError, CacheIncomplete, CacheMismatch
from ensdistill.cache.fingerprint import differences
from ensdistill.cache.validation import PLAN_FIELDS

DRAFT_LOGITS, DRAFT_MARKS = "draft.logits", "draft.marks"
_OURS = re.compile(
    r"(manifest\.json|plan\.json|uids\.safetensors|shard-\d{5,}\.(safetensors|commit\.json))(\.\d+\.part)?"
    r"|draft\.(logits|marks)"
)
ADVICE = "choose another folder, or overwrite it (overwrite=True, --overwrite)"


def own_files(path: Path) -> list[Path]:
    """All files that have the name of a cache's file, the manifest first: without it no other is read."""
    return sorted(file for file in _named(path) if not _is_folder(file))


def require_no_folders(path: Path) -> None:
    """Raise CacheError where a folder has the name of a cache's file: no file can take its place."""
    for file in filter(_is_folder, _named(path)):
        raise CacheError(
            f"{file}: expected a file of the cache, or nothing; got a folder: move it elsewhere, or choose "
            "another folder"
        )


def leftovers(path: Path, finished: m.Manifest) -> list[Path]:
    """The files that a finished cache does not need: plan, draft, commits, parts, shards of an overwritten
    cache."""
    keep = {m.MANIFEST, *(m.shard_name(shard) for shard in range(m.shard_count(finished)))}
    if "uids" in finished:
        keep.add(m.UIDS)
    return [file for file in own_files(path) if file.name not in keep]


def remove(files: Iterable[Path]) -> None:
    for file in list(files):  # all named before the folder changes
        file.unlink(missing_ok=True)


def require_same(place: Path | str, found: m.Manifest, expected: m.Manifest) -> None:
    """Raise CacheMismatch where two manifests or plans differ; ``found`` is the one at ``place``."""
    # The record, the file of the uids, and measured fields follow from other fields: a difference in them
    # would only repeat theirs.
    follow = ("record", "uids", *m.MEASURED)
    found, expected = (
        {"task": m.task_of_plan(body), **{f: value for f, value in body.items() if f not in follow}}
        for body in (found, expected)
    )
    if differing := differences(found, expected):
        raise CacheMismatch(f"{place}: the folder holds a cache of something else; {ADVICE}:", differing)


def require_no_other(place: Path | str, read: Callable[[], m.Manifest], expected: m.Manifest) -> None:
    """Raise where copying the cache with the manifest ``expected`` to ``place`` would destroy another one.

    ``read`` returns the manifest or the plan at ``place``, or raises CacheIncomplete where there is none. One
    that cannot be read may be another cache's: that is an error too.
    """
    try:
        found = read()
    except CacheIncomplete:
        return
    except (CacheCorrupt, CacheMismatch) as error:
        raise type(error)(f"{error}; {ADVICE}") from error
    # Shards and statistics follow from the plan, so they are compared only where the plans are the same.
    for fields in ([field for field in PLAN_FIELDS if field in found], [*found]):
        there = {field: found[field] for field in fields}
        require_same(place, there, {field: expected[field] for field in fields if field in expected})


def _named(path: Path) -> list[Path]:
    return [file for file in path.iterdir() if _OURS.fullmatch(file.name)]


def _is_folder(file: Path) -> bool:
    return file.is_dir() and not file.is_symlink()
