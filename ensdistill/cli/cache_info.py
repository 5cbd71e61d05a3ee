"""The description of a cache, for ``ensdistill cache info``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.table import Table

from ensdistill.cache import manifest as m
from ensdistill.cache.reader import TargetCache
from ensdistill.cache.standard import Standard


def about(cache: TargetCache) -> dict[str, Any]:
    """The JSON document of a cache."""
    manifest = cache.manifest
    measure, standard = m.measure_of(manifest), Standard.of(manifest)
    return {
        "folder": str(cache.path),
        "task": cache.task,
        "samples": len(cache),
        "views": cache.views,
        "records": sum(shard["records"] for shard in manifest["shards"]),
        "record_bytes": cache.layout.bytes,
        "bytes": sum(file["bytes"] for file in m.files_of(manifest)),
        "codec": manifest["codec"],
        measure: manifest["statistics"][measure],
        "members": dict(zip(cache.names, cache.weights.tolist(), strict=True)),
        "combiner": cache.combiner,
        "temperature": cache.temperature,
        "max_temperature": cache.max_temperature,
        "classes": list(cache.classes),
        **({} if standard is None else standard.fields()),
        "derived": manifest["fingerprint"].get("derived", []),
    }


def table_of(cache: TargetCache, folder: str) -> Table:
    """The same for people; ``folder`` as they wrote it."""
    manifest = cache.manifest
    measure = m.measure_of(manifest)
    cost = manifest["statistics"][measure]
    name, unit = ("KL", "nats") if measure == "kl" else ("error", "of the spread")
    table = Table.grid(padding=(0, 3))
    table.add_row("folder", folder)
    table.add_row("task", cache.task)
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
        f"{manifest['codec']}: {name} to {to} targets mean {cost['mean']:.1e}, p99 {cost['p99']:.1e}, max "
        f"{cost['max']:.1e} {unit}",
    )
    if converted:
        table.add_row(
            "",
            f"{name} of the source's to the exact targets max {max(m.cost_before(manifest).values()):.1e} "
            f"{unit}, all steps added up",
        )
    table.add_row(
        "members", ", ".join(f"{n} ({w:.3f})" for n, w in zip(cache.names, cache.weights, strict=True))
    )
    if cache.task == "regression":
        _add_standard(table, cache)
    else:
        table.add_row("combiner", cache.combiner)
        any_ = "any" if cache.max_temperature is None else f"up to {cache.max_temperature:.4g}"
        table.add_row(
            "temperature", any_ if cache.temperature is None else f"{cache.temperature:g}: the mixture only"
        )
        table.add_row("labels" if cache.task == "multilabel" else "classes", _listed(cache.classes))
    if made_by := manifest["fingerprint"].get("views"):
        table.add_row("augmented by", f"{made_by['augment']}, seed {made_by['seed']}")
    for step in manifest["fingerprint"].get("derived", []):
        table.add_row(
            "derived", ", ".join(f"{step_name} {_in_words(made)}" for step_name, made in step.items())
        )
    return table


def _add_standard(table: Table, cache: TargetCache) -> None:
    """The rows of a cache of regression."""
    standard = Standard.of(cache.manifest)
    assert standard is not None
    whose = "each member's" if cache.temperature is None else "the mixture's"
    table.add_row("moments", f"{whose} means{' and variances' if standard.variance else ', no variances'}")
    scales = zip(cache.classes, standard.location, standard.scale, strict=True)
    table.add_row(
        "numbers", _listed([f"{name} ({zero:.4g}, spread {unit:.4g})" for name, zero, unit in scales])
    )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:12]) + (" ..." if len(names) > 12 else "")


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
