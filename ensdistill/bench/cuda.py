"""The GPU as a place to measure: events, CUDA graphs, the allocator's peak. The same methods as
:class:`ensdistill.bench.measure.Cpu`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ensdistill.bench.cases import Case
from ensdistill.bench.floor import products
from ensdistill.bench.inputs import Inputs
from ensdistill.bench.measure import Call, copy_speed

_SHORT = 0.25  # ms; below it the time that Python takes to launch the work shows
_MOST_INPUTS = 256  # of a graph's nodes there is no end, but of the time that it takes to make them
_WARM_UP = 3  # calls before a capture, as torch's documentation has it


class Cuda:
    """The current GPU."""

    device = torch.device("cuda")
    most_inputs = _MOST_INPUTS

    def __init__(self) -> None:
        properties = torch.cuda.get_device_properties(self.device)
        self.cache_bytes = int(properties.L2_cache_size)
        # Long enough (0.7 ms on an H100) for a streaming kernel to reach its full speed, and for launches not
        # to show; intermediates of plain code take up to 16 times as much.
        self.data_bytes = min(max(4 * self.cache_bytes, 2 << 30), properties.total_memory // 32)

    def clock(self, call: Call) -> float:
        """Milliseconds of one call between two events on the stream."""
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize()
        start.record()
        result = call()
        end.record()
        end.synchronize()
        del result
        return float(start.elapsed_time(end))

    def launched(self, calls: Mapping[str, Call], inputs: int = 1) -> tuple[dict[str, Call], set[str]]:
        """Where a call is so short that its launches show, capture each call, of ``inputs`` sets, in a CUDA
        graph if possible.

        One that waits for the device (Liger's do, in their backward) can't be captured, and is timed as it
        is. It is found out beforehand: a capture that fails leaves torch 2.11's allocator in a state in which
        no other succeeds.
        """
        timed = dict(calls)
        if min(self.clock(call) for call in calls.values()) >= _SHORT * inputs:
            return timed, set()
        graphs = {name for name, call in calls.items() if not waits(call)}
        return timed | {name: capture(calls[name]) for name in graphs}, graphs

    def extra_bytes(self, call: Call) -> int | None:
        """Bytes at the call's peak beyond those before it, by torch's allocator."""
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        result = call()
        torch.cuda.synchronize()
        peak = torch.cuda.max_memory_allocated()
        del result
        return int(peak - before)

    def floor(self, case: Case, inputs: Inputs, gradient: bool) -> tuple[str, Call] | None:
        """A copy that moves as many bytes as the shape has to; for a last layer its matrix products."""
        if case.hidden:
            return "products", products(inputs, gradient)
        source = torch.ones(case.bytes_moved(gradient) // 8, device=self.device)
        target = torch.zeros_like(source)
        return "copy", lambda: target.copy_(source)

    def notes(self) -> list[str]:
        """Measurements that this machine does not allow: none."""
        return []

    def copy_gb_per_s(self) -> float:
        """The bandwidth of a large copy, both directions counted."""
        source = torch.ones(max(self.data_bytes, 1 << 30) // 8, device=self.device)
        return copy_speed(self.clock, source, torch.zeros_like(source))


def waits(call: Call) -> bool:
    """Whether it waits for the device, or does something else that a capture forbids."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        call()
    except RuntimeError:
        return True
    finally:
        torch.cuda.set_sync_debug_mode("default")
        torch.cuda.synchronize()
    return False


def capture(call: Call) -> Call:
    """``call`` as a CUDA graph's replay."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(_WARM_UP):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = call()

    def replay() -> Any:
        graph.replay()
        return result  # made in the capture, so it lies in the graph's memory

    return replay
