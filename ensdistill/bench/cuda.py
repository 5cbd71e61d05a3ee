"""The GPU as a place to measure: events, CUDA graphs, the allocator's peak. The same methods as :class:`ensdistill.bench.measure.Cpu`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ensdistill.bench.cases import Case
from ensdistill.bench.floor import products
from ensdistill.bench.inputs import Inputs
from ensdistill.bench.liger import why_not
from ensdistill.bench.measure import Call, copy_speed

_SHORT = 0.25  # ms; below it the time that Python takes to launch the work shows
_WARM_UP = 3  # calls before a capture, as torch's documentation has it


class Cuda:
    """The current GPU."""

    device = torch.device("cuda")

    def __init__(self) -> None:
        properties = torch.cuda.get_device_properties(self.device)
        self.cache_bytes = int(properties.L2_cache_size)
        # Long enough for a streaming kernel to reach its full speed; intermediates of plain code take up to 16 times as much.
        self.data_bytes = min(max(4 * self.cache_bytes, 512 << 20), properties.total_memory // 32)

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

    def launched(self, calls: Mapping[str, Call]) -> tuple[dict[str, Call], set[str]]:
        """Where somebody's call is so short that its launches show, everybody's becomes a CUDA graph that can.

        One that waits for the device (Liger's do, in their backward) can't be captured, and is timed as it is.
        """
        timed = dict(calls)
        if min(self.clock(call) for call in calls.values()) >= _SHORT:
            return timed, set()
        graphs = set()
        for name, call in calls.items():
            try:
                timed[name] = capture(call)
                graphs.add(name)
            except RuntimeError:  # torch's errors in a capture, CUDA's among them
                torch.cuda.synchronize()
        return timed, graphs

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
        """What is left out here, for everybody to read."""
        found = why_not(self.device)
        return [found] if found else []

    def copy_gb_per_s(self) -> float:
        """What a large copy reaches, both directions counted."""
        source = torch.ones(max(self.data_bytes, 1 << 30) // 8, device=self.device)
        return copy_speed(self.clock, source, torch.zeros_like(source))


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
        return result  # what was made in the capture, and lives in the graph's memory

    return replay
