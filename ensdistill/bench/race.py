"""One case: every output is checked, then everybody is timed, for loss and gradient and for the loss alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from ensdistill.bench.cases import Case, Inputs, make_inputs
from ensdistill.bench.contenders import Contender, Loss, contenders
from ensdistill.bench.cuda import Cuda
from ensdistill.bench.measure import Cpu, Timing, interleave
from ensdistill.bench.truth import Errors, Output, Truth, errors, sanity, tolerance, without_entropy

MODES = ("forward+backward", "forward")
NAIVE = ("eager", "kl_div")  # whose own error is the measure
_NOT_BUILT = " so far"  # how the CUDA op ends a refusal of what it doesn't compute yet

Rows = list[dict[str, Any]]


class WrongOutput(RuntimeError):
    """A loss or gradient of ours is not what it should be; its time would mean nothing."""


@dataclass
class Judged:
    """What the check found."""

    truth: Truth
    allowed: Errors
    racing: list[Contender]
    errors: dict[tuple[str, str], Errors]
    left_out: dict[str, str] = field(default_factory=dict)  # {who: why}


def run_case(case: Case, place: Cpu | Cuda, rounds: int, seconds: float) -> tuple[Rows, list[dict[str, str]]]:
    """Rows of the result, and who was left out and why."""
    # Together more than twice the cache, so that nobody finds there what the call before has read: one set, but for small shapes.
    count = 1 + 2 * place.cache_bytes // case.bytes_moved(gradient=True)
    sets = [make_inputs(case, place.device, seed) for seed in range(count)]
    judged = check(case, sets[0], contenders(case, place.device))
    judged.racing = best_forms(judged.racing, sets, place)
    rows: Rows = []
    # Compiling everybody's forward for all numbers of members would take minutes, and say what one member's says.
    for mode in MODES if case.members == 1 or case.family else MODES[:1]:
        rows += race(case, mode, sets, judged, place, rounds, seconds)
    return rows, [{"case": case.label, "who": who, "why": why} for who, why in judged.left_out.items()]


def check(case: Case, inputs: Inputs, racing: Sequence[Contender]) -> Judged:
    """Compare loss and gradients with the truth in float64, before anybody is timed.

    Raises
    ------
    WrongOutput
        Of ours, or of the plain code, which is the measure of all others.
    """
    outputs: dict[tuple[str, str], Output] = {}
    left_out: dict[str, str] = {}
    for c in racing:
        try:
            outputs[c.kind, c.form] = both(c.loss, inputs)
        except Exception as error:
            if (c.kind, c.form) == NAIVE or (c.ours and not _not_built(error)):
                raise
            left_out[f"{c.kind} ({c.form})"] = _reason(error)
    found, truth = errors(case, inputs, outputs)
    for c in racing:
        if not c.whole and (c.kind, c.form) in found:
            name = c.kind, c.form
            found[name] = without_entropy(found[name], float(outputs[name][0]), truth)
    if not _within(found[NAIVE], sanity(case, truth)):
        raise WrongOutput(f"{case.label}: {_wrong(NAIVE, found[NAIVE], sanity(case, truth))}")
    allowed = tolerance(found[NAIVE], case, truth)
    fit = []
    for c in racing:
        error = found.get((c.kind, c.form))
        if error is None:
            continue
        if _within(error, allowed):
            fit.append(c)
        elif c.ours:
            raise WrongOutput(f"{case.label}: {_wrong((c.kind, c.form), error, allowed)}")
        else:
            left_out[f"{c.kind} ({c.form})"] = _wrong((c.kind, c.form), error, allowed)
    return Judged(truth, allowed, fit, found, left_out)


def race(
    case: Case, mode: str, sets: Sequence[Inputs], judged: Judged, place: Cpu | Cuda, rounds: int, seconds: float
) -> list[dict[str, Any]]:
    """Time all contenders of one mode, and the floor."""
    gradient = mode == MODES[0]
    run = both if gradient else forward
    calls: dict[str, Callable[[], Any]] = {}
    for c in judged.racing:
        if not gradient:
            try:
                _check_forward(case, c, float(forward(c.loss, sets[0])), judged)  # the first one also compiles
            except Exception as error:
                if c.ours:
                    raise
                judged.left_out[f"{c.kind} ({c.form}), {mode}"] = _reason(error)
                continue
        calls[c.kind] = partial(each, run, c.loss, sets)
    for call in calls.values():
        call()
    memory = {c.kind: place.extra_bytes(partial(run, c.loss, sets[0])) for c in judged.racing if c.kind in calls}
    timed, graphs = place.launched(calls)
    forms = {c.kind: c.form for c in judged.racing}
    floors = [place.floor(case, inputs, gradient) for inputs in sets]
    if floors[0] is not None:
        streams = [found[1] for found in floors if found is not None]
        timed["floor"], forms["floor"] = lambda: [stream() for stream in streams], floors[0][0]
    times = interleave(timed, rounds, seconds, place.clock)
    extra = {"inputs": len(sets)}
    return [
        _row(case, mode, kind, times, len(sets), judged.errors.get((kind, forms[kind])))
        | {"form": forms[kind], "extra_bytes": memory.get(kind), "graph": kind in graphs}
        | extra
        for kind in timed
    ]


def both(loss: Loss, inputs: Inputs) -> Output:
    """Loss and gradients."""
    value = loss(inputs)
    return value.detach(), torch.autograd.grad(value, inputs.leaves)


def forward(loss: Loss, inputs: Inputs) -> torch.Tensor:
    """The loss alone."""
    with torch.no_grad():
        return loss(inputs)


def each(run: Callable[[Loss, Inputs], Any], loss: Loss, sets: Sequence[Inputs]) -> Any:
    """One call for each set of inputs."""
    for inputs in sets:
        result = run(loss, inputs)
    return result


def best_forms(racing: Sequence[Contender], sets: Sequence[Inputs], place: Cpu | Cuda) -> list[Contender]:
    """Of each kind the form that was faster in a warm call, forward and backward: nobody is beaten at his worst."""
    best: dict[str, tuple[float, Contender]] = {}
    for c in racing:
        call = partial(each, both, c.loss, sets)
        spent = place.clock(call) if sum(c.kind == other.kind for other in racing) > 1 else 0.0
        if c.kind not in best or spent < best[c.kind][0]:
            best[c.kind] = spent, c
    return [c for _, c in best.values()]


def _check_forward(case: Case, c: Contender, loss: float, judged: Judged) -> None:
    truth = judged.truth.loss + (0.0 if c.whole else judged.truth.entropy)
    if not abs(loss - truth) <= judged.allowed.loss:
        expected = f"{truth:.9g} within {judged.allowed.loss:.3g}"
        raise WrongOutput(f"{case.label}: {c.kind} ({c.form}) without a gradient gives the loss {loss:.9g}; expected {expected}")


def _within(error: Errors, allowed: Errors) -> bool:
    return error.loss <= allowed.loss and error.gradient <= allowed.gradient  # so that a NaN fails


def _wrong(name: tuple[str, str], error: Errors, allowed: Errors) -> str:
    limits = f"allowed are {allowed.loss:.3g} and {allowed.gradient:.3g}, plain torch code's own error and a few roundings"
    return f"{name[0]} ({name[1]}) is wrong by {error.loss:.3g} in the loss and by {error.gradient:.3g} in the gradient; {limits}"


def _not_built(error: Exception) -> bool:
    return isinstance(error, NotImplementedError) or (isinstance(error, RuntimeError) and _NOT_BUILT in str(error))


def _reason(error: Exception) -> str:
    first = (str(error).strip() or type(error).__name__).splitlines()[0]
    return f"not implemented: {first}" if _not_built(error) else f"{type(error).__name__}: {first}"


def _row(case: Case, mode: str, kind: str, times: dict[str, Timing], sets: int, error: Errors | None) -> dict[str, Any]:
    """``ms`` is the time of one set of inputs."""
    time, moved = times[kind], case.bytes_moved(gradient=mode == MODES[0])
    ms = time.median / sets
    peers = [] if not kind.startswith("fused") else [k for k in times if not k.startswith("fused") and k != "floor"]
    return {
        **case.describe(),
        "mode": mode,
        "implementation": kind,
        "ms": ms,
        "ms_quartiles": [time.first_quartile / sets, time.third_quartile / sets],
        "rounds": time.rounds,
        "bytes": moved,
        "gb_per_s": moved / ms / 1e6,
        "ratio_to_floor": time.median / times["floor"].median if "floor" in times else None,
        "error": None if error is None else {"loss": error.loss, "gradient": error.gradient},  # the floor has no output
        "speedup": {peer: times[peer].median / time.median for peer in peers},
    }
