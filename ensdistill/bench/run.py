"""All cases, one after the other, each written down as soon as it is measured."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from ensdistill.bench import machine
from ensdistill.bench.cases import TEMPERATURE, Case
from ensdistill.bench.contenders import Peers
from ensdistill.bench.cuda import Cuda
from ensdistill.bench.measure import Cpu
from ensdistill.bench.race import MODES, run_case
from ensdistill.bench.result import Writer


def run(
    cases: Sequence[Case],
    place: Cpu | Cuda,
    path: Path,
    rounds: int = 5,
    seconds: float = 0.6,
    resume: bool = False,
    peers: Sequence[Peers] = (),
    progress: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Check and time every case; ``path`` is the result at any time, and afterwards.

    Raises
    ------
    WrongOutput
        A loss or a gradient of ours is further from the float64 truth than plain torch code is. Earlier
        measurements are kept.
    ValueError
        ``resume``, and ``path`` is of another machine, commit or setting.
    """
    notes = [*filter(None, (library.why_not(place.device) for library in peers)), *place.notes()]
    start = {
        "machine": machine.describe_machine(place.device) | {"copy_gb_per_s": place.copy_gb_per_s()},
        "source": machine.describe_source(place.device),  # now: a commit may be made while this runs
        "settings": {
            "temperature": TEMPERATURE,
            "rounds": rounds,
            "seconds": seconds,
            "data_bytes": place.data_bytes,
        },
        "notes": notes,
    }
    writer = Writer(path, start, resume)
    for note in notes:
        progress(note)
    todo = [case for case in cases if not writer.has(case.label)]
    if len(todo) < len(cases):
        progress(f"{len(cases) - len(todo)} of {len(cases)} cases are in {path}")
    begin = time.perf_counter()
    # Beyond its limit of recompilations dynamo would run eager code under the name of compiled code.
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        for done, case in enumerate(todo, 1):
            before = time.perf_counter()
            rows, left_out = run_case(case, place, rounds, seconds, peers)
            now = time.perf_counter()
            writer.add(case.label, rows, left_out, now - before)
            left = _minutes((now - begin) / done * (len(todo) - done))
            progress(
                f"[{len(cases) - len(todo) + done}/{len(cases)}] {_line(case, rows, left_out)}; {left} left"
            )
    return writer.close()


def _line(case: Case, rows: list[dict[str, Any]], left_out: list[dict[str, str]]) -> str:
    fused = next((r for r in rows if r["implementation"] == "fused" and r["mode"] == MODES[0]), None)
    out = "".join(f"; without {x['who']}: {x['why']}" for x in left_out)
    if fused is None:
        return f"{case.label}{out}"
    floor = "" if fused["ratio_to_floor"] is None else f", {fused['ratio_to_floor']:.2f}x the floor"
    peers = ", ".join(f"{value:.1f}x {peer}" for peer, value in fused["speedup"].items())
    return f"{case.label}: {fused['ms']:.3g} ms{floor}; speedup {peers}{out}"


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"
