"""Random batches from every store: all in rotation, medians of the rounds, and before any of it every record
of every store compared."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.cache.stores import STORES, Store, remove

BATCH = 1024
COLD_BATCHES = 4  # of a round; more would find most of it in memory again
WIDTHS = (344, 2000)


class WrongRecords(AssertionError):
    """A store gave back something else than was put in: its speed means nothing."""


def table(n: int, width: int) -> np.ndarray:
    """Records [N, width] that are finite float32 after their first 8 bytes, which hold our header."""
    from ensdistill.cache import input_hashes

    values = np.random.default_rng(0).standard_normal((n, (width - 8) // 4), np.float32)
    return np.concatenate(
        [input_hashes(np.arange(n)[:, None])[:, None].view(np.uint8), values.view(np.uint8)], axis=1
    )


def measure(
    folder: Path, n: int, width: int, rounds: int, seconds: float, note: Callable[[str], None]
) -> list[dict[str, Any]]:
    """One row for each store: writing, warm and cold gathering."""
    rows, opened = [], []
    for kind in STORES:
        count = min(n, kind.most_records)
        records = table(count, width)
        place = folder / f"{width}-{kind.name.replace(' ', '-')}"
        place.mkdir(parents=True)
        store = kind(place)
        try:
            os.sync()
            begun = time.perf_counter()
            store.write(records)
            os.sync()  # ours has reached the disk by itself; so have the others then
            written = time.perf_counter() - begun
            store.open(count, width)
        except ImportError as error:
            note(f"{kind.name}: left out ({error})")
            remove(place)
            continue
        drawn = np.random.default_rng(1).integers(0, count, BATCH)
        if not np.array_equal(store.gather(drawn), records[drawn]):
            raise WrongRecords(f"{kind.name}: the records of a batch are not those that were written")
        for start in range(
            0, count, 1 << 14
        ):  # everything once: pages are mapped by it, and our checksums compared
            chunk = slice(start, min(start + (1 << 14), count))
            if not np.array_equal(store.gather(np.arange(chunk.start, chunk.stop)), records[chunk]):
                raise WrongRecords(
                    f"{kind.name}: records {chunk.start} to {chunk.stop - 1} are not those that were written"
                )
        opened.append((store, count))
        rows.append(
            {
                "store": kind.name,
                "width": width,
                "records": count,
                "write_mb_per_s": records.nbytes / written / 1e6,
            }
        )
        note(f"{kind.name}, {width} bytes: written in {written:.1f} s")
    warm: list[list[float]] = [[] for _ in opened]
    cold: list[list[float]] = [[] for _ in opened]
    from_disk = [0] * len(opened)
    cold_rounds = min(rounds, 3)
    for round_ in range(rounds):
        for i, (store, count) in enumerate(opened):
            warm[i].append(_rate(store, count, round_, seconds, most=1 << 30))
        note(f"{width} bytes, warm: round {round_ + 1} of {rounds}")
    for round_ in range(cold_rounds):
        for i, (store, count) in enumerate(opened):
            store.close()
            store.open(count, width)
            _forget(store.folder)  # after opening, by which some have the system read all that they map
            before = _disk_bytes()
            cold[i].append(_rate(store, count, 1000 + round_, seconds, most=COLD_BATCHES))
            from_disk[i] += _disk_bytes() - before
        note(f"{width} bytes, cold: round {round_ + 1} of {cold_rounds}")
    for row, (store, count), hot, fresh, disk in zip(rows, opened, warm, cold, from_disk, strict=True):
        store.close()
        row["cold_mb_from_disk"] = disk / 1e6
        # Where others read from the disk, one that read less than a round's first batch holds came from
        # memory.
        row["was_cold"] = disk >= cold_rounds * min(BATCH, count) * width // 2 or not any(from_disk)
        if not row["was_cold"]:
            note(
                f"{row['store']}, {width} bytes: its cold rounds were not: {disk / 1e6:.3g} MB came from "
                "the disk"
            )
        for name, rates in (("warm", hot), ("cold", fresh)):
            row[f"{name}_records_per_s"] = median(rates)
            row[f"{name}_gb_per_s"] = median(rates) * width / 1e9
            row[f"{name}_spread"] = [min(rates), max(rates)]
        remove(store.folder)
    return rows


def _rate(store: Store, count: int, seed: int, seconds: float, most: int) -> float:
    """Records a second."""
    generator, done, spent = np.random.default_rng(seed), 0, 0.0
    while spent < seconds and done < most:
        batch = generator.integers(0, count, BATCH)
        begun = time.perf_counter()
        store.gather(batch)
        spent += time.perf_counter() - begun
        done += 1
    return done * BATCH / spent


def _disk_bytes() -> int:
    """Bytes that the disk has read for this process; 0 where the system doesn't count them."""
    try:
        lines = Path("/proc/self/io").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("read_bytes:")), 0)


def _forget(folder: Path) -> None:
    """Make the system drop its copies of the files: as cold as can be had without being root."""
    for file in folder.rglob("*"):
        if file.is_file():
            descriptor = os.open(file, os.O_RDONLY)
            try:
                os.fsync(descriptor)
                if hasattr(os, "posix_fadvise"):
                    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)
