"""The truth in float64, by closed forms, and how far an output may be from it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ensdistill.bench.cases import Case
from ensdistill.bench.closed_forms import row_truth
from ensdistill.bench.inputs import Inputs
from ensdistill.loss.targets import EnsembleLogits, Targets

Name = tuple[str, str]  # the kind and the form of a contender
Output = tuple[Tensor, tuple[Tensor, ...]]  # loss [], and the leaves' gradients
_CHUNK = 8 << 20  # elements in float64, over all members


@dataclass(frozen=True)
class Errors:
    """How far an output is from the truth: ``loss`` absolute, ``gradient`` the worst element, relative to the
    terms of its sum."""

    loss: float
    gradient: float


@dataclass(frozen=True)
class Truth:
    """``loss`` is the mean over rows (the sum in float16), ``entropy`` the part that is independent of the
    student: T²·H(p)."""

    loss: float
    entropy: float


def errors(case: Case, inputs: Inputs, outputs: Mapping[Name, Output]) -> tuple[dict[Name, Errors], Truth]:
    """Judge every output; the losses' errors still hold the entropy that a cross entropy leaves out (see
    ``without_entropy``).

    With d = dD/dq the gradient of D is T·q·(d - Σ q·d). An element's error is measured in the sizes of the
    terms that were added up for it, not in the largest gradient: small elements must be right too. A weight's
    gradient is a sum over rows, hidden's one over classes: their errors are measured in the largest element.
    """
    worst = dict.fromkeys(outputs, 0.0)
    smallest = torch.finfo(getattr(torch, case.student)).smallest_normal  # below it rounding is absolute
    loss = entropy = 0.0
    layer = [x.detach().double() for x in inputs.leaves] if case.hidden else []
    products = [torch.zeros_like(x) for x in layer]
    given = {name: class_last(gradients[0], case) for name, (_, gradients) in outputs.items()}
    with torch.no_grad():
        for part, student, targets, labels in _chunks(case, inputs, layer):
            rows = row_truth(case.divergence, student, targets, labels)
            loss, entropy = loss + float(rows.loss.sum()), entropy + float(rows.entropy.sum())
            if layer:
                products[0][part] = rows.gradient @ layer[1]
                products[1].addmm_(rows.gradient.t(), layer[0][part])
                continue
            truth, unit = rows.gradient / case.divisor, rows.unit / case.divisor + smallest
            for name, gradient in given.items():
                worst[name] = _larger(worst[name], ((gradient[part] - truth).abs_() / unit).max())
        for name, (_, gradients) in outputs.items() if layer else ():
            for gradient, product in zip(gradients, products, strict=True):
                truth = product / case.divisor
                worst[name] = _larger(worst[name], (gradient - truth).abs_().max() / truth.abs().max())
    loss, entropy = loss / case.divisor, entropy / case.divisor
    return {
        name: Errors(abs(float(value) - loss), worst[name]) for name, (value, _) in outputs.items()
    }, Truth(loss, entropy)


def tolerance(naive: Errors, case: Case, truth: Truth) -> Errors:
    """The plain code's own error, and a little more for luck in rounding.

    Loss: float32, a sum of terms of a few nats, hence eight units of max(1, loss). Gradient: q and p are
    exponentials in float32 of arguments up to about 16, whose rounding alone is worth eight units; half
    precision then rounds once more, by half a unit of its own. A last layer's error is mostly its logits',
    which other matrix products, of fewer rows at a time, round differently: twice the plain code's is another
    draw of the same, and far from a wrong term.
    """
    unit, draws = torch.finfo(torch.float32).eps, 2 if case.hidden else 1
    return Errors(
        naive.loss + 8 * unit * max(1.0, truth.loss), draws * naive.gradient + 8 * unit + half_unit(case)
    )


def of_cross_entropy(allowed: Errors, truth: Truth) -> Errors:
    """The error that a cross entropy may have: rounded as the larger number that it is, over 10^5 classes by
    30 units."""
    return replace(allowed, loss=allowed.loss + 64 * torch.finfo(torch.float32).eps * truth.entropy)


def half_unit(case: Case) -> float:
    dtype = getattr(torch, case.student)
    return 0.0 if dtype.itemsize >= 4 else torch.finfo(dtype).eps / 2


def sanity(case: Case, truth: Truth) -> Errors:
    """Beyond this the plain code isn't rounded but wrong, and can't be the measure of anybody.

    1e-4 is 800 float32 units. A last layer in half precision rounds its logits as well, to some units of
    theirs.
    """
    gradient = 1e-4 + (16 if case.hidden else 2) * half_unit(case)
    return Errors(gradient * max(1.0, truth.loss + truth.entropy), gradient)


def without_entropy(error: Errors, value: float, truth: Truth) -> Errors:
    """The error of a cross entropy, which leaves the teacher's entropy out by design."""
    return replace(error, loss=abs(value - truth.entropy - truth.loss))


def class_last(x: Tensor, case: Case) -> Tensor:
    """[..., N, C] of feature maps [..., N, C, H, W]."""
    return x.movedim(-3, -1).flatten(-4, -2) if case.layout == "map" else x


def _larger(before: float, error: Tensor) -> float:
    # A NaN compares false with everything, and must not pass for a small error.
    return max(before, float(error)) if not error.isnan() else float("inf")


def _chunks(
    case: Case, inputs: Inputs, layer: list[Tensor]
) -> Iterator[tuple[slice, Tensor, Targets, Tensor | None]]:
    targets, labels = inputs.targets, None if inputs.labels is None else inputs.labels.flatten()
    if case.layout == "map" and isinstance(targets, EnsembleLogits):
        targets = EnsembleLogits(class_last(targets.logits, case))
    student = None if layer else class_last(inputs.leaves[0].detach(), case)
    step = max(1, _CHUNK // (case.classes * max(1, case.members)))
    for start in range(0, case.rows, step):
        part = slice(start, min(start + step, case.rows))
        s = layer[0][part] @ layer[1].t() if student is None else student[part].double()
        yield part, s, targets.rows(part.start, part.stop), None if labels is None else labels[part]
