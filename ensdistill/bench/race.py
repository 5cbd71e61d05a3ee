"""One case: every contender that passes the check is timed, for loss and gradient and for the loss alone."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any

from ensdistill.bench.cases import Case
from ensdistill.bench.check import Judged, both, check, check_forward, forward, reason
from ensdistill.bench.contenders import Contender, Loss, Peers, contenders
from ensdistill.bench.cuda import Cuda
from ensdistill.bench.inputs import Inputs, make_inputs
from ensdistill.bench.measure import Cpu, Timing, interleave
from ensdistill.bench.truth import Errors

MODES = ("forward+backward", "forward")

Rows = list[dict[str, Any]]


def run_case(
    case: Case, place: Cpu | Cuda, rounds: int, seconds: float, peers: Sequence[Peers] = ()
) -> tuple[Rows, list[dict[str, str]]]:
    """Rows of the result, and the contenders that were left out, with the reasons.

    Raises
    ------
    WrongOutput
        See :func:`~ensdistill.bench.check.check`.
    """
    # Together more than twice the cache, so that no call finds there the inputs of the call before: one set,
    # except for small shapes.
    count = min(1 + 2 * place.cache_bytes // case.bytes_moved(gradient=True), place.most_inputs)
    sets = [make_inputs(case, place.device, seed) for seed in range(count)]
    rivals = contenders(case, place.device, peers)
    judged = check(case, sets[0], [c for c in rivals if c.anchor is None])
    judged.racing = best_forms(judged.racing, sets, place)
    judged.racing += anchors(case, sets[0], [c for c in rivals if c.anchor is not None], judged)
    rows: Rows = []
    # Compiling every forward for all numbers of members would take minutes, and show the same as for one
    # member.
    for mode in MODES if case.members == 1 or case.family else MODES[:1]:
        rows += race(case, mode, sets, judged, place, rounds, seconds)
    return rows, [{"case": case.label, "who": who, "why": why} for who, why in judged.left_out.items()]


def anchors(case: Case, inputs: Inputs, found: Sequence[Contender], judged: Judged) -> list[Contender]:
    """The contenders of ``found`` that pass their own check; the case's truth is another computation's."""
    right = []
    for c in found:
        try:
            loss, gradients = both(c.loss, inputs)
            assert c.anchor is not None
            c.anchor.check(case, inputs, loss, gradients[0])
        except Exception as failure:
            judged.left_out[c.title] = reason(failure)
        else:
            right.append(c)
    return right


def best_forms(racing: Sequence[Contender], sets: Sequence[Inputs], place: Cpu | Cuda) -> list[Contender]:
    """Of each kind the form that was faster in a warm call, forward and backward: each competes at its
    best."""
    best: dict[str, tuple[float, Contender]] = {}
    for c in racing:
        call = partial(_each, both, c.loss, sets)
        spent = place.clock(call) if sum(c.kind == other.kind for other in racing) > 1 else 0.0
        if c.kind not in best or spent < best[c.kind][0]:
            best[c.kind] = spent, c
    return [c for _, c in best.values()]


def race(
    case: Case,
    mode: str,
    sets: Sequence[Inputs],
    judged: Judged,
    place: Cpu | Cuda,
    rounds: int,
    seconds: float,
) -> Rows:
    """Time all contenders of one mode, and the floor."""
    gradient = mode == MODES[0]
    run = both if gradient else forward
    calls: dict[str, Callable[[], Any]] = {}
    memory: dict[str, int | None] = {}
    errors: dict[str, Errors | None] = {}
    forms: dict[str, str] = {}
    anchored = {c.kind: c.anchor for c in judged.racing if c.anchor is not None}
    for c in judged.racing:
        try:
            if not gradient and c.anchor is None:
                check_forward(case, c, sets[0], judged)  # the first forward also compiles
        except Exception as failure:
            if c.ours:
                raise
            judged.left_out[f"{c.title}, {mode}"] = reason(failure)
            continue
        calls[c.kind], forms[c.kind], errors[c.kind] = (
            partial(_each, run, c.loss, sets),
            c.form,
            judged.errors.get(c.name),
        )
        calls[c.kind]()
        memory[c.kind] = place.extra_bytes(partial(run, c.loss, sets[0]))
    floors = [place.floor(case, inputs, gradient) for inputs in sets]
    if floors[0] is not None:
        streams = [found[1] for found in floors if found is not None]
        calls["floor"], forms["floor"] = lambda: [stream() for stream in streams], floors[0][0]
    timed, graphs = place.launched(calls, len(sets))
    times = interleave(timed, rounds, seconds, place.clock)
    moved = {
        k: anchored[k].bytes_moved(case, gradient) if k in anchored else case.bytes_moved(gradient)
        for k in timed
    }
    return [
        {
            **case.describe(),
            "mode": mode,
            "implementation": kind,
            "form": forms[kind],
            **_speed(kind, times, len(sets), moved[kind], anchored),
            "error": None if (error := errors.get(kind)) is None else vars(error),
            "extra_bytes": memory.get(kind),
            "graph": kind in graphs,
            "inputs": len(sets),
        }
        for kind in timed
    ]


def _each(run: Callable[[Loss, Inputs], Any], loss: Loss, sets: Sequence[Inputs]) -> Any:
    """One call for each set of inputs."""
    for inputs in sets:
        result = run(loss, inputs)
    return result


def _speed(
    kind: str, times: dict[str, Timing], sets: int, moved: int, anchored: Collection[str]
) -> dict[str, Any]:
    """The columns of a row that are about time; ``ms`` is that of one set of inputs."""
    time = times[kind]
    ms = time.median / sets
    peers = (
        []
        if not kind.startswith("fused")
        else [k for k in times if not k.startswith("fused") and k != "floor" and k not in anchored]
    )
    return {
        "ms": ms,
        "ms_quartiles": [time.first_quartile / sets, time.third_quartile / sets],
        "rounds": time.rounds,
        "bytes": moved,
        "gb_per_s": moved / ms / 1e6,
        "ratio_to_floor": time.median / times["floor"].median
        if "floor" in times and kind not in anchored
        else None,  # of other bytes
        "speedup": {peer: times[peer].median / time.median for peer in peers},
    }
