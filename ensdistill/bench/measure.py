"""Timing in rotation, and the CPU's clock and memory. ``cuda.py`` has the GPU's."""

from __future__ import annotations

import ctypes
import gc
import random
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ensdistill.bench import floor, machine
from ensdistill.bench.cases import Case
from ensdistill.bench.inputs import Inputs
from ensdistill.loss._native import release_memory

Call = Callable[[], Any]
# OpenMP's threads keep spinning for some milliseconds after their work; they would take a core from a
# neighbour that has its own.
_PAUSE = 0.01
_MEMORY_LIMIT = 6 << 30  # for everything that is alive at a time


@dataclass(frozen=True)
class Timing:
    """Milliseconds of one contender: the median counts, the quartiles show how quiet the machine was."""

    median: float
    first_quartile: float
    third_quartile: float
    rounds: int


class Cpu:
    """The CPU as a place to measure: clock, memory, floor."""

    device = torch.device("cpu")
    most_inputs = 1 << 20  # sets of inputs that a call goes through: no limit

    def __init__(self) -> None:
        self.cache_bytes = machine.last_level_cache()
        # Inputs and gradient of a shape. The plain code's intermediates are several times as large: 16 times
        # in the worst case.
        self.data_bytes = min(4 * self.cache_bytes, _MEMORY_LIMIT // 16)
        self._pool = ThreadPoolExecutor(torch.get_num_threads())

    def clock(self, call: Call) -> float:
        """Milliseconds of one call."""
        time.sleep(_PAUSE)
        start = time.perf_counter()
        result = call()
        spent = 1e3 * (time.perf_counter() - start)
        del result  # giving memory back is not part of the call, and the next one finds it free
        return spent

    def launched(self, calls: Mapping[str, Call], inputs: int = 1) -> tuple[dict[str, Call], set[str]]:
        """The calls as they are to be timed, and the names of those that became CUDA graphs."""
        return dict(calls), set()

    def extra_bytes(self, call: Call) -> int | None:
        """Bytes at the call's peak beyond those before it; None where the system doesn't expose them."""
        release_memory()  # a gradient's buffer that our op kept for its next call counts as that call's
        return extra_bytes(call)

    def floor(self, case: Case, inputs: Inputs, gradient: bool) -> tuple[str, Call] | None:
        """Name and call of the shape's floor; None where it can't be measured."""
        found = floor.make_floor(case, inputs, gradient, self._pool)
        return None if found is None else ("products" if case.hidden else "loop", found)

    def notes(self) -> list[str]:
        """Measurements that this machine does not allow, one sentence each."""
        return [why for why in (floor.why_not(),) if why]

    def copy_gb_per_s(self) -> float:
        """The bandwidth of a large copy, both directions counted, between buffers that were touched
        before."""
        source = torch.ones(self.data_bytes // 8)
        return copy_speed(self.clock, source, torch.zeros_like(source))


def copy_speed(clock: Callable[[Call], float], source: torch.Tensor, target: torch.Tensor) -> float:
    """Bytes read and written by ``target.copy_(source)``, in GB/s: the median of eleven."""
    times = [clock(lambda: target.copy_(source)) for _ in range(12)][1:]
    return 2 * source.nbytes / statistics.median(times) / 1e6


@contextmanager
def _no_collection() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def interleave(
    calls: Mapping[str, Call], rounds: int, seconds: float, clock: Callable[[Call], float]
) -> dict[str, Timing]:
    """Time warm calls in rotation: ``rounds`` times each, and on until ``seconds`` are spent.

    In rotation, a slow minute of the machine hits all contenders. The order changes each time (by a fixed
    seed), so that no contender always follows the same neighbour, which leaves the caches in the same state.
    """
    if rounds < 2:
        raise ValueError(f"rounds: expected at least 2; got {rounds}")
    times: dict[str, list[float]] = {name: [] for name in calls}
    order = list(calls)
    shuffle = random.Random(0).shuffle
    done = 0
    with _no_collection():
        begin = time.perf_counter()
        while done < rounds or time.perf_counter() - begin < seconds:
            shuffle(order)
            for name in order:
                times[name].append(clock(calls[name]))
            done += 1
    return {name: _summary(values) for name, values in times.items()}


def _summary(values: list[float]) -> Timing:
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return Timing(median, low, high, len(values))


def extra_bytes(call: Call) -> int | None:
    """Bytes that the process holds at the call's peak beyond those before it, its results included; None
    where the system doesn't expose them.

    The kernel's own count of resident memory, so nothing that allocates can hide. Good to about 1 MiB (the
    count is kept in batches).
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
