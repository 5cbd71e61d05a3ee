"""The description of a cache, for ``ensdistill cache info``."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from ensdistill.cache import manifest as m
from ensdistill.cache.reader import TargetCache


def about(cache: TargetCache) -> dict[str, Any]:
    """The JSON document of a cache."""
    manifest = cache.manifest
    return {
        "folder": str(cache.path),
        "samples": len(cache),
        "views": cache.views,
        "records": sum(shard["records"] for shard in manifest["shards"]),
        "record_bytes": cache.layout.bytes,
        "bytes": sum(file["bytes"] for file in m.files_of(manifest)),
        "codec": manifest["codec"],
        "kl": manifest["statistics"]["kl"],
        "members": dict(zip(cache.names, cache.weights.tolist(), strict=True)),
        "combiner": cache.combiner,
        "temperature": cache.temperature,
        "max_temperature": cache.max_temperature,
        "classes": list(cache.classes),
        "derived": manifest["fingerprint"].get("derived", []),
    }


def table_of(cache: TargetCache, folder: str) -> Table:
    """The same for people; ``folder`` as they wrote it."""
    manifest = cache.manifest
    kl = manifest["statistics"]["kl"]
    table = Table.grid(padding=(0, 3))
    table.add_row("folder", folder)
    views = f", in {cache.views} views" if cache.views > 1 else ""
    records = sum(shard["records"] for shard in manifest["shards"])
    shards = len(manifest["shards"])
    each = ", one for each position of a sequence" if manifest["sequences"] else ""
    size = sum(file["bytes"] for file in m.files_of(manifest))
    table.add_row("samples", f"{len(cache)}{views}")
    pieces = f"in {shards} shard{'s' * (shards != 1)}"
    table.add_row("records", f"{records}{each}, of {cache.layout.bytes} bytes each, {pieces}")
    table.add_row("files", f"{_size(size)} in all")
    if "uids" in manifest:
        table.add_row("uids", f"the data set's own, in {m.UIDS}")
    converted = any(m.conversions(manifest, name) for name in cache.names)
    to = "the source's" if converted else "the exact"
    table.add_row(
        "codec",
        f"{manifest['codec']}: KL to {to} targets mean {kl['mean']:.1e}, p99 {kl['p99']:.1e}, max "
        f"{kl['max']:.1e} nats",
    )
    if converted:
        table.add_row(
            "",
            f"KL of the source's to the exact targets max {max(m.kl_before(manifest).values()):.1e} nats, "
            "all steps added up",
        )
    table.add_row(
        "members", ", ".join(f"{n} ({w:.3f})" for n, w in zip(cache.names, cache.weights, strict=True))
    )
    table.add_row("combiner", cache.combiner)
    any_ = "any" if cache.max_temperature is None else f"up to {cache.max_temperature:.4g}"
    table.add_row(
        "temperature", any_ if cache.temperature is None else f"{cache.temperature:g}: the mixture only"
    )
    table.add_row("classes", ", ".join(cache.classes[:12]) + (" ..." if len(cache.classes) > 12 else ""))
    if made_by := manifest["fingerprint"].get("views"):
        table.add_row("augmented by", f"{made_by['augment']}, seed {made_by['seed']}")
    for step in manifest["fingerprint"].get("derived", []):
        table.add_row(
            "derived", ", ".join(f"{step_name} {_in_words(made)}" for step_name, made in step.items())
        )
    return table


def _size(count: int) -> str:
    """A number of bytes in the largest unit of which it is at least one."""
    units = [
        (unit, power) for power, unit in enumerate(("bytes", "kB", "MB", "GB", "TB")) if count >= 1000**power
    ]
    unit, power = units[-1] if units else ("bytes", 0)
    return f"{count / 1000**power:.4g} {unit}"


def _in_words(value: Any) -> str:
    """The subject of a fingerprint's step, without braces and with few digits."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {_in_words(part)}" for name, part in value.items())
    return f"{value:.3g}" if isinstance(value, float) else str(value)
