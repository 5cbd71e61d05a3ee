"""Timing in rotation, and peak memory."""

from __future__ import annotations

import ctypes
import gc
import random
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# OpenMP's threads keep spinning for some milliseconds after their work; they would take a core from a neighbour that has its own.
_PAUSE = 0.01


@dataclass(frozen=True)
class Timing:
    """Milliseconds of one contender: the median is what counts, the quartiles say how quiet the machine was."""

    median: float
    first_quartile: float
    third_quartile: float
    rounds: int


@contextmanager
def _no_collection() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def interleave(contenders: Mapping[str, Callable[[], Any]], rounds: int, seconds: float = 0.0) -> dict[str, Timing]:
    """Time warm contenders in rotation: ``rounds`` times each, and on until ``seconds`` are spent.

    In rotation, a slow minute of the machine is everybody's. The order changes each time (by a fixed seed), so that nobody always
    follows the same neighbour, who leaves the caches in the same state.
    """
    if rounds < 2:
        raise ValueError(f"rounds: expected at least 2; got {rounds}")
    times: dict[str, list[float]] = {name: [] for name in contenders}
    order = list(contenders)
    shuffle = random.Random(0).shuffle
    done = 0
    with _no_collection():
        begin = time.perf_counter()
        while done < rounds or time.perf_counter() - begin < seconds:
            shuffle(order)
            for name in order:
                call = contenders[name]
                time.sleep(_PAUSE)
                start = time.perf_counter()
                result = call()
                times[name].append(1e3 * (time.perf_counter() - start))
                del result  # giving memory back is not part of the call, and the next one finds it free
            done += 1
    return {name: _summary(values) for name, values in times.items()}


def _summary(values: list[float]) -> Timing:
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return Timing(median, low, high, len(values))


def once(call: Callable[[], Any]) -> float:
    """Milliseconds of one call."""
    start = time.perf_counter()
    call()
    return 1e3 * (time.perf_counter() - start)


def extra_bytes(call: Callable[[], Any]) -> int | None:
    """Bytes that the process holds at the call's peak beyond those before it, its results included; None where the system can't say.

    The kernel's own count of resident memory, so nothing that allocates can hide. Good to about 1 MiB (the count is kept in batches).
    """
    try:
        # Freed memory that the allocator keeps would be reused unseen.
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
        before = _status("VmRSS")
    except (OSError, AttributeError):
        return None
    result = call()
    peak = _status("VmHWM")
    del result
    return max(0, peak - before)


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}")
