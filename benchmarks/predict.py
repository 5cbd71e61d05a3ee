"""The expected time of each of the benchmark's shapes on an H100, from the plan and the kernels' text:
PREDICTIONS.md's table.

Of five times the longest is expected: bytes over the memory's speed, exponentials over the special-function
units', instructions over the schedulers', bytes over the rate at which one multiprocessor can fetch, and rows
over those that are under way at a time, each of which waits for memory, for its threads to meet, and for its
own arithmetic.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ensdistill.bench.cases import DTYPES, MULTILABEL, Case
from ensdistill.bench.suite import full, quick
from ensdistill.loss import _native
from ensdistill.loss.explain import KernelPlan

# An H100 SXM5. Its copy is measured (PREDICTIONS.md has the source), its clock under load and the latencies
# are estimates.
COPY, CLOCK, PROCESSORS = 2.95e12, 1.7e9, 132
REGISTERS, SHARED, THREADS, BLOCKS = 65536, 233_472, 2048, 32
EXPONENTIALS, LANES, FETCH = (
    16,
    128,
    64,
)  # of a multiprocessor in a clock: special functions, instructions, bytes from the second cache
MEMORY_LATENCY, CACHE_LATENCY = 0.9e-6, 0.3e-6
MEETING = {
    "staged": 0.0,
    "strided": 0.0,
    "tile": 0.15e-6,
    "block": 0.6e-6,
    "cluster": 1.6e-6,
    "reread": 0.6e-6,
}  # a reduction
STALLED = 0.3  # instructions a clock of one warp, whose next waits for its last
LAUNCHES = 10e-6  # memset, prepare, two sums of the rows' losses
ROW_LOSS = 4  # bytes, which the first of these reads
DATA = 2 << 30  # as ensdistill/bench/cuda.py has it
TARGETS = {1: 0.9, 4: 0.8, 8: 0.8}  # share of the copy's speed, from 1000 classes on; below 0.6
# Bytes of an element; top-k targets have no dense ones.
SIZES = {"uint8": 1, "topk": 0} | {name: dtype.itemsize for name, dtype in DTYPES.items()}
MARK = "<!-- python -m benchmarks predict -->"
# Cost of a class beside the forward KL's term, in each of the two last sweeps that other divergences take. A
# JSD has two logarithms and two divisions, each of which uses the special functions once.
TERMS = {"reverse_kl": (0, 4), "tvd": (0, 6), "jsd": (4, 66)}


@dataclass(frozen=True)
class Work:
    """Of one element (a class of a row), over all members: counted in csrc/cuda/dense.cuh, sparse.cuh and
    row.cuh."""

    exponentials: float
    instructions: float


def why_not(case: Case) -> str | None:
    """Why there is no prediction for a case; None where there is one."""
    if case.divergence == MULTILABEL:
        return "multilabel"  # a kernel and a plan of its own
    if case.hidden:
        return "linear"  # three matrix products, which are cuBLAS's
    if case.statistics:
        return "statistics"  # a launch of its own for the by-products, which is another kernel
    if case.small:
        return "small"  # launches, of which there is no model here
    return None


def work(
    layout: str,
    members: int,
    codes: bool,
    divergence: str = "forward_kl",
    labels: bool = False,
    sparse: bool = False,
    *,
    wide: bool = False,
    at_once: bool = True,
) -> Work:
    """Sums of the student and of each member, the mixture, q, term and gradient.

    Of dense rows, from machine code for 9.0 (PREDICTIONS.md has the counts): a number's copy 1, its
    sum of exponentials 9 (of a code 13), its part of the mixture 8 (of a code 12), the last sweep
    of student and one member 17.5; members in turn beside their sum 1.5 more each, and 1.5 for the sum.
    ``wide`` numbers, float32, share a vector's overhead with three others instead of seven. For sparse
    targets only the cost of each class: the student's sum and q.
    """
    if sparse:
        return Work(2.0, 42.0)  # with a look into the index in both sweeps
    decode, several = 4 if codes else 0, members > 1
    exponentials, instructions = 1.0 + members, 10.0 + members * (10 + decode)
    mixing = members * 8 + 5 if several else 8  # and a logarithm of the mixture
    exponentials, instructions = exponentials + members + several, instructions + mixing + members * decode
    if several and not at_once:
        instructions += 1.5 * members
    exponentials, instructions = exponentials + 1, instructions + 9.5
    if (
        divergence != "forward_kl"
    ):  # the mixture, q and the term twice: for the slopes' sum, then for the gradient
        special, more = TERMS[divergence]
        again = 1 if layout in ("tile", "block", "cluster") and not at_once else members
        exponentials += again + 1 + 2 * special
        instructions += again * (8 + decode) + 18 + 20 * several + 2 * more
    if labels:  # the softmax at T = 1: its sum, and its part of the gradient
        exponentials, instructions = exponentials + 2, instructions + 20
    return Work(exponentials, instructions * (4 / 3 if wide else 1))


def occupancy(plan: KernelPlan, forward: bool = True) -> int:
    """Blocks of a multiprocessor at a time. Registers are those that tests/cuda/test_cuda_compile.py
    allows."""
    registers = plan.registers or (128 if plan.layout == "reread" or not forward else 96)
    return min(
        REGISTERS // (registers * plan.threads),
        SHARED // (plan.shared_bytes + 1024),
        THREADS // plan.threads,
        BLOCKS,
    )


def plan_of(case: Case) -> KernelPlan:
    """For an H100, also on other machines; the registers are the budget, so that the table is the same
    everywhere."""
    rows = case.layout == "rows"
    plan = _native.kernel_plan(
        rows=case.rows,
        classes=case.classes,
        members=case.members,
        student_bytes=SIZES[case.student],
        target_bytes=SIZES[case.targets],
        geometric=False,
        doubles=False,
        divergence=case.divergence,
        unit_classes=rows,
        flat=rows,
        entries=case.listed if case.targets == "topk" else 0,
        shared_limit=232_448,
        clusters=True,
    )
    return KernelPlan(**plan, registers=None)


def times(case: Case, plan: KernelPlan) -> dict[str, float]:
    """Seconds that each limit alone would take."""
    elements, blocks, sparse = (
        case.rows * case.classes,
        occupancy(plan, case.divergence == "forward_kl"),
        case.targets == "topk",
    )
    each = work(
        plan.layout,
        case.members,
        case.targets == "uint8",
        case.divergence,
        case.labels,
        sparse,
        wide=SIZES[case.student] == 4,
        at_once=plan.members_at_once,
    )
    groups = -(-case.rows // plan.rows_per_block) * plan.cluster_blocks
    share = 1 / groups
    warps = min(4.0, STALLED * plan.threads / 32)
    # All sums in one, the loss in another; of members in turn one for each.
    meetings = (
        8 if sparse else (2 if plan.members_at_once else 2 + case.members) + (case.divergence != "forward_kl")
    )
    # A sparse row's ids, its log-probabilities, and the logits that they name are waited for besides.
    row = (
        MEMORY_LATENCY * ((2 if plan.layout == "reread" else 1) + 3 * sparse)
        + meetings * MEETING[plan.layout]
    )
    if (
        plan.layout == "strided"
    ):  # a thread walks the classes: four loads at a time for the sums; then one by one, mostly in the cache
        row += case.classes * ((1 + case.members) / 4 * MEMORY_LATENCY + CACHE_LATENCY)
    row += plan.bytes * share / (FETCH * CLOCK) + elements * share * each.instructions / 32 / warps / CLOCK
    return {
        "memory": max(plan.bytes, case.bytes_moved(gradient=True))
        / COPY,  # the plan leaves out scales and offsets
        "exponentials": elements * each.exponentials / (EXPONENTIALS * CLOCK * PROCESSORS),
        "instructions": elements * each.instructions / (LANES * CLOCK * PROCESSORS),
        "latency": -(-groups // (PROCESSORS * blocks)) * row,
    }


def cases() -> Iterator[Case]:
    """The cases of the benchmark's suites on a GPU, each once; float16 moves and computes as bfloat16
    does."""
    suites = {case.label: case for case in (*full(DATA, gpu=True), *quick(DATA, gpu=True))}
    yield from (case for case in suites.values() if case.targets != "float16" and why_not(case) is None)


def predict(case: Case) -> dict[str, Any]:
    """One line of the table."""
    plan = plan_of(case)
    limits = times(case, plan)
    limiter = max(limits, key=lambda name: limits[name])
    seconds = limits[limiter] + LAUNCHES + case.rows * ROW_LOSS / COPY
    share = case.bytes_moved(gradient=True) / seconds / COPY
    target = TARGETS[case.members] if case.classes >= 1000 else 0.6
    scaling = 2 * case.rows * case.classes * DTYPES[case.student].itemsize / COPY
    return {
        "student/targets": " ".join(
            [f"{case.student}/{case.targets}", case.family.removeprefix(f"{case.student} student")]
        ).rstrip(),
        "K": case.members,
        "C": case.classes,
        "N": case.rows,
        "plan": f"{plan.layout} {plan.threads}"
        + (f"x{plan.cluster_blocks}" if plan.cluster_blocks > 1 else ""),
        "blocks/SM": occupancy(plan, case.divergence == "forward_kl"),
        "MB": f"{plan.bytes / 1e6:.0f}",
        **{f"{name} ms": f"{1e3 * value:.3f}" for name, value in limits.items()},
        "expected ms": f"{1e3 * seconds:.3f}",
        "of copy": f"{100 * share:.0f} %" + ("" if share >= target else f" < {100 * target:.0f}"),
        "limiter": limiter,
        "+ scaling ms": f"{1e3 * (seconds + scaling):.3f}",
    }


def table() -> str:
    """All lines, as Markdown."""
    lines = [predict(case) for case in cases()]
    head = list(lines[0])
    rows = [head, ["---"] * len(head), *([str(line[name]) for name in head] for line in lines)]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows) + "\n"


def rewrite(path: Path) -> None:
    """Put the table into PREDICTIONS.md, between its marks.

    Raises
    ------
    ValueError
        The marks aren't there.
    """
    text = path.read_text(encoding="utf-8")
    parts = text.split(MARK)
    if len(parts) != 3:
        raise ValueError(f"{path}: expected two lines {MARK}; got {len(parts) - 1}")
    path.write_text(f"{parts[0]}{MARK}\n\n{table()}\n{MARK}{parts[2]}", encoding="utf-8")
