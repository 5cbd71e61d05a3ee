"""``python -m benchmarks kernels``: the fused loss against eager torch, torch.compile and the streaming floor."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks import machine
from benchmarks.cases import TEMPERATURE, Case, Errors, errors, make_case, make_inputs, tolerance
from benchmarks.contenders import Contender, Loss, contenders
from benchmarks.floor import floor
from benchmarks.measure import Timing, extra_bytes, interleave, once
from ensdistill.targets import Targets

SCHEMA_VERSION = 1
CLASSES = (10, 100, 1000, 8192, 32000, 50257, 128256, 151936)
MEMBERS = (1, 8)
DTYPES = ("float32", "bfloat16", "uint8")
QUICK_CLASSES = (10, 1000, 50257)
QUICK_DTYPES = ("float32",)
MODES = ("forward+backward", "forward")
_MEMORY_LIMIT = 6 << 30  # for everything that is alive at a time


class WrongOutput(RuntimeError):
    """A contender's loss or gradient is not what it should be; its time would mean nothing."""


def default_data_bytes() -> int:
    """Inputs and gradient of a shape: four times the last-level cache, as far as the memory limit allows.

    The plain code's intermediates are several times as large, in float32 also for codes of one byte: 16 times in the worst case.
    """
    return min(4 * machine.last_level_cache(), _MEMORY_LIMIT // 16)


def make_cases(classes: Sequence[int], members: Sequence[int], dtypes: Sequence[str], data_bytes: int) -> list[Case]:
    """All combinations; the dtype is that of the targets, and codes meet a float32 student."""
    return [make_case(c, k, "float32" if d == "uint8" else d, d, data_bytes) for d in dtypes for k in members for c in classes]


def run(cases: Iterable[Case], rounds: int = 7, seconds: float = 1.0, progress: Callable[[str], None] = lambda _: None) -> dict[str, Any]:
    """Check and time every case; the result as plain data (``SCHEMA_VERSION``).

    Raises
    ------
    WrongOutput
        A loss or a gradient is further from the float64 truth than plain torch code is.
    """
    cases, rows, begin = list(cases), [], time.perf_counter()
    source = machine.describe_source()  # now: somebody may commit while this runs
    # Beyond its limit of recompilations dynamo would run eager code under the name of compiled code.
    with ThreadPoolExecutor(torch.get_num_threads()) as pool, torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        for done, case in enumerate(cases, 1):
            new = run_case(case, rounds, seconds, pool)
            rows += new
            spent = time.perf_counter() - begin
            progress(f"[{done}/{len(cases)}] {_line(case, new)}; {_minutes(spent / done * (len(cases) - done))} left")
    return {
        "schema_version": SCHEMA_VERSION,
        "benchmark": "kernels",
        "checked": bool(rows) and all(row["checked"] for row in rows),
        "machine": machine.describe_machine(),
        "source": source,
        "settings": {"loss": "forward KL to the members' mean softmax", "temperature": TEMPERATURE, "rounds": rounds, "seconds": seconds},
        "seconds": round(time.perf_counter() - begin, 1),
        "rows": rows,
    }


def run_case(case: Case, rounds: int, seconds: float, pool: ThreadPoolExecutor) -> list[dict[str, Any]]:
    """The rows of one case: first every form's outputs are checked, then the best form of each kind is timed."""
    student, targets = make_inputs(case)
    racing = contenders(case.classes)
    judged = _check(case, student, targets, racing)
    racing = _best_forms(racing, student, targets)  # for both modes: compiling every form once more for a second race takes minutes
    rows = []
    for mode in MODES:
        gradient = mode == "forward+backward"
        calls: dict[str, Callable[[], Any]] = {c.kind: partial(_both if gradient else _forward, c.loss, student, targets) for c in racing}
        for kind, call in calls.items():
            output = call()  # the first forward alone also compiles
            if not gradient:
                _check_loss(case, kind, float(output), judged)
        memory = {kind: extra_bytes(call) for kind, call in calls.items()}
        # Touched before: an output whose pages come from the system on first use would not be a floor.
        calls["floor"] = floor(student, targets, torch.zeros_like(student, requires_grad=False) if gradient else None, pool)
        calls["floor"]()
        memory["floor"] = None
        times = interleave(calls, rounds, seconds)
        forms = {c.kind: c.form for c in racing} | {"floor": "loop"}
        rows += [_row(case, mode, kind, forms[kind], times, memory[kind], judged.errors.get((kind, forms[kind]))) for kind in calls]
    return rows


def _both(loss: Loss, student: Tensor, targets: Targets) -> tuple[Tensor, Tensor]:
    value = loss(student, targets)
    return value.detach(), torch.autograd.grad(value, student)[0]


def _forward(loss: Loss, student: Tensor, targets: Targets) -> Tensor:
    with torch.no_grad():
        return loss(student, targets)


@dataclass(frozen=True)
class _Judged:
    """What the check found, for the rows to state."""

    truth: float
    allowed: Errors
    errors: dict[tuple[str, str], Errors]


def _check(case: Case, student: Tensor, targets: Targets, racing: list[Contender]) -> _Judged:
    outputs = {(c.kind, c.form): _both(c.loss, student, targets) for c in racing}
    found, truth = errors(student, targets, outputs)
    allowed = tolerance(found["eager", "plain"], student, truth)
    for (kind, form), error in found.items():
        # Written so that a NaN fails.
        if not (error.loss <= allowed.loss and error.gradient <= allowed.gradient):
            raise WrongOutput(
                f"{case.label}: {kind} ({form}) is wrong by {error.loss:.3g} in the loss and by {error.gradient:.3g} in the gradient; "
                f"plain torch code's own error allows {allowed.loss:.3g} and {allowed.gradient:.3g}"
            )
    return _Judged(truth, allowed, found)


def _check_loss(case: Case, kind: str, loss: float, judged: _Judged) -> None:
    if not abs(loss - judged.truth) <= judged.allowed.loss:
        allowed = f"{judged.truth:.9g} within {judged.allowed.loss:.3g}"
        raise WrongOutput(f"{case.label}: {kind} without a gradient gives the loss {loss:.9g}; expected {allowed}")


def _best_forms(racing: list[Contender], student: Tensor, targets: Targets) -> list[Contender]:
    """Of each kind the form that was faster in a warm call, forward and backward: nobody is beaten at his worst."""
    best: dict[str, tuple[float, Contender]] = {}
    for c in racing:
        call = partial(_both, c.loss, student, targets)
        spent = once(call) if sum(c.kind == other.kind for other in racing) > 1 else 0.0
        if c.kind not in best or spent < best[c.kind][0]:
            best[c.kind] = spent, c
    return [c for _, c in best.values()]


def _row(
    case: Case, mode: str, kind: str, form: str, times: dict[str, Timing], memory: int | None, judged: Errors | None
) -> dict[str, Any]:
    time_, moved = times[kind], case.bytes_moved(gradient=mode == "forward+backward")
    row: dict[str, Any] = {
        "classes": case.classes,
        "members": case.members,
        "rows": case.rows,
        "student": case.student,
        "targets": case.targets,
        "mode": mode,
        "implementation": kind,
        "form": form,
        "ms": time_.median,
        "ms_quartiles": [time_.first_quartile, time_.third_quartile],
        "rounds": time_.rounds,
        "bytes": moved,
        "gb_per_s": moved / time_.median / 1e6,
        "ratio_to_floor": time_.median / times["floor"].median,
        "extra_bytes": memory,
        # The floor has no output that could be wrong.
        "checked": kind == "floor" or judged is not None,
        "error": None if judged is None else {"loss": judged.loss, "gradient": judged.gradient},
    }
    if kind.startswith("fused"):
        row["speedup"] = {peer: times[peer].median / time_.median for peer in ("eager", "compile")}
    return row


def _line(case: Case, rows: list[dict[str, Any]]) -> str:
    fused = next(r for r in rows if r["implementation"] == "fused" and r["mode"] == MODES[0])
    peers = ", ".join(f"{value:.1f}x {peer}" for peer, value in fused["speedup"].items())
    return f"{case.label}: {fused['ms']:.1f} ms, {fused['ratio_to_floor']:.2f}x the floor; speedup {peers}"


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"
