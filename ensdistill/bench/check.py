"""Every loss and gradient is compared with the truth in float64 before any contender is timed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from ensdistill.bench.cases import Case
from ensdistill.bench.contenders import Contender, Loss
from ensdistill.bench.inputs import Inputs
from ensdistill.bench.truth import (
    Errors,
    Name,
    Output,
    Truth,
    errors,
    of_cross_entropy,
    sanity,
    tolerance,
    without_entropy,
)

NAIVE = ("eager", "kl_div")  # whose own error is the measure
OTHERS = 4  # others may have so many times our error: a slightly less exact peer is still a peer


class WrongOutput(RuntimeError):
    """A loss or gradient of ours is wrong; its time would mean nothing."""


@dataclass
class Judged:
    """The result of the check."""

    truth: Truth
    allowed: Errors
    racing: list[Contender]
    errors: dict[Name, Errors]
    left_out: dict[str, str] = field(default_factory=dict)  # {contender: reason}


def check(case: Case, inputs: Inputs, racing: Sequence[Contender]) -> Judged:
    """Compare loss and gradients of all with the truth. Contenders that fail or are wrong are left out,
    except ours and the plain code.

    Raises
    ------
    WrongOutput
        Of ours, or of the plain code, which is the measure of all others.
    """
    outputs: dict[Name, Output] = {}
    left_out: dict[str, str] = {}
    for c in racing:
        try:
            outputs[c.name] = both(c.loss, inputs)
        except Exception as failure:
            if c.name == NAIVE or (c.ours and not isinstance(failure, NotImplementedError)):
                raise
            left_out[c.title] = reason(failure)
    found, truth = errors(case, inputs, outputs)
    for c in racing:
        if not c.whole and c.name in found:
            found[c.name] = without_entropy(found[c.name], float(outputs[c.name][0]), truth)
    if not _within(found[NAIVE], sanity(case, truth)):
        raise WrongOutput(f"{case.label}: {_wrong('eager (kl_div)', found[NAIVE], sanity(case, truth))}")
    allowed = tolerance(found[NAIVE], case, truth)
    fit: list[Contender] = []
    for c in racing:
        limit = allowed if c.whole else of_cross_entropy(allowed, truth)
        if not c.ours:
            limit = Errors(OTHERS * limit.loss, OTHERS * limit.gradient)
        if c.name in found and _within(found[c.name], limit):
            fit.append(c)
        elif c.name in found:
            left_out[c.title] = _wrong(c.title, found[c.name], limit)
            if c.ours:
                raise WrongOutput(f"{case.label}: {left_out[c.title]}")
    return Judged(truth, allowed, fit, found, left_out)


def check_forward(case: Case, c: Contender, inputs: Inputs, judged: Judged) -> None:
    """The same for the loss without a gradient, which may take another way through the code.

    Raises
    ------
    WrongOutput
        Whose ever it is.
    """
    loss = float(forward(c.loss, inputs))
    truth, allowed = judged.truth.loss, judged.allowed
    if not c.whole:
        truth, allowed = truth + judged.truth.entropy, of_cross_entropy(allowed, judged.truth)
    limit = allowed.loss if c.ours else OTHERS * allowed.loss
    if not abs(loss - truth) <= limit:
        expected = f"{truth:.9g} within {limit:.3g}"
        raise WrongOutput(
            f"{case.label}: {c.title} without a gradient gives the loss {loss:.9g}; expected {expected}"
        )


def both(loss: Loss, inputs: Inputs) -> Output:
    """Loss and gradients."""
    value = loss(inputs)
    return value.detach(), torch.autograd.grad(value, inputs.leaves)


def forward(loss: Loss, inputs: Inputs) -> torch.Tensor:
    """The loss alone."""
    with torch.no_grad():
        return loss(inputs)


def reason(failure: Exception) -> str:
    """The reason to leave a contender out, in one line."""
    first = (str(failure).strip() or type(failure).__name__).splitlines()[0]
    return (
        f"not implemented: {first}"
        if isinstance(failure, NotImplementedError)
        else f"{type(failure).__name__}: {first}"
    )


def _within(error: Errors, allowed: Errors) -> bool:
    return error.loss <= allowed.loss and error.gradient <= allowed.gradient  # so that a NaN fails


def _wrong(title: str, error: Errors, allowed: Errors) -> str:
    limits = (
        f"allowed are {allowed.loss:.3g} and {allowed.gradient:.3g}, plain torch code's own error and a few "
        "roundings"
    )
    return (
        f"{title} is wrong by {error.loss:.3g} in the loss and by {error.gradient:.3g} in the gradient; "
        f"{limits}"
    )
