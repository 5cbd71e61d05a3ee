"""The arguments of the multi-label loss: all checks of a user's input, and the op's arguments from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ensdistill.loss import multilabel_op
from ensdistill.loss.checks import (
    FLOATS,
    INTEGERS,
    check_device,
    check_one_of,
    dtype_names,
    first,
    member_weights,
    numbers,
    visible,
)
from ensdistill.loss.multilabel_reference import PROBABILITY_TOLERANCE
from ensdistill.loss.settings import DEFAULTS, Impl, LossSettings, check_call
from ensdistill.loss.target_arguments import (
    affine_maps,
    as_target,
    check_target_temperature,
    combiner_of,
    dense_values,
    sparse_values,
)
from ensdistill.loss.targets import Counts, EnsembleLogits, LogProbs, Probs, QuantizedLogits, Targets, TopK

# Settings of a softmax that have no meaning for sigmoids.
_OF_A_SOFTMAX = {
    "divergence": "the Kullback-Leibler divergence of the teachers from the student is the only one here",
    "beta": "it is of the divergence jsd, which this loss doesn't have",
    "z_loss": "sigmoids have no log-sum-exp",
    "ignore_index": "unknown labels are -1",
}
_BYTES = (torch.uint8, torch.int8, torch.bool)
_LABELS = (*FLOATS, *INTEGERS, torch.int16, *_BYTES)
_MEMBERS_ON_CUDA = 1024  # csrc/cuda/plan.h


@dataclass(slots=True)
class MultilabelProblem:
    """The op's arguments beside the student's logits, checked. Labels and mask are laid out as the caller has
    them; ``tensors`` and ``settings`` are the op's."""

    lead: tuple[int, ...]
    classes: int
    class_dim: int
    target: Targets
    values: Tensor  # dense: [K, ...] shaped like the student; else [N, k]
    dense: bool
    given: Tensor | None  # dense: the caller's own tensor, of which ``values`` is a view
    labels: Tensor | None
    mask: Tensor | None
    tensors: Any
    settings: Any


def make_problem(
    student: Tensor,
    class_dim: int,
    targets: Tensor | Targets,
    labels: Tensor | None,
    mask: Tensor | None,
    settings: LossSettings,
    impl: Impl,
    **given: Any,
) -> MultilabelProblem:
    """Check everything but the student's values. ``given`` are the weights: of members, classes, positive
    labels and rows."""
    shape, device = tuple(student.shape), student.device
    check_call(False, impl)
    check_settings(settings, labels, given["pos_weight"])
    classes, lead = shape[class_dim], (*shape[:class_dim], *shape[class_dim + 1 :])
    target = as_target(targets, len(shape))
    kind, tail_mode, weights = "logits", "tail", given["weights"]
    combiner: str | None = settings.combiner
    scale = offset = ids = tail_mass = held = None
    if isinstance(target, Counts):
        raise TypeError(
            "targets: Counts are draws of one class each, and here a row may have many classes; pass logits, "
            "Probs, LogProbs or TopK"
        )
    if isinstance(target, TopK):
        kind = "topk"
        check_one_of("tail", settings.tail, ("tail", "zero"))
        values, ids, tail_mass, tail_mode = sparse_values(
            target, lead, classes, student.dtype, device, settings
        )
        if weights is not None:
            raise ValueError("weights: TopK is one mixture, which has no members to weigh; leave them out")
        if combiner not in (None, "prob"):
            raise ValueError(f"combiner: TopK is one mixture, with no members to combine; got {combiner!r}")
    else:
        values = dense_values(target, shape, class_dim, device)
        held = targets if isinstance(targets, Tensor) else values_field(target)
        weights = target.weights if weights is None else weights
        combiner = combiner_of(target) if combiner is None else combiner
        if isinstance(target, QuantizedLogits):
            scale, offset = affine_maps(target, (len(values), *lead), device)
        elif isinstance(target, LogProbs | Probs):
            kind = "log_probs" if isinstance(target, LogProbs) else "probs"
    if not isinstance(target, EnsembleLogits) and target.temperature is not None:
        check_target_temperature(target, settings.temperature)
    if getattr(target, "max_temperature", None) is not None:
        raise ValueError(
            "targets: some of their rows were stored for a softmax, without classes far below a row's "
            "largest, whose sigmoid is not 0; build the cache again with codec='fp32'"
        )
    if device.type == "cuda" and len(values) > _MEMBERS_ON_CUDA and ids is None:
        raise ValueError(f"targets: expected at most {_MEMBERS_ON_CUDA} members on a GPU; got {len(values)}")
    double = torch.float64 in (student.dtype, values.dtype)
    signature = multilabel_op.SIGNATURE
    problem = MultilabelProblem(
        lead,
        classes,
        class_dim,
        target,
        values,
        ids is None,
        held,
        None if labels is None else stored_labels(labels, shape, device, double),
        None if mask is None else stored_mask(mask, shape, device),
        signature.op_tensors(
            scale=scale,
            offset=offset,
            ids=ids,
            tail=tail_mass,
            weights=None if weights is None else member_weights(weights, len(values), device),
            labels=None,
            mask=None,
            class_weights=_optional("class_weights", given["class_weights"], (classes,), "class", device),
            pos_weight=_optional("pos_weight", given["pos_weight"], (classes,), "class", device),
            sample_weights=_optional(
                "sample_weights", given["sample_weights"], lead, "of the student's rows", device
            ),
        ),
        signature.settings(
            settings,
            kind=kind,
            combiner=combiner or "prob",
            tail_mode=tail_mode,
            reduction="sum" if settings.reduction == "batchmean" else settings.reduction,
            divisor=float(max(lead[0], 1)) if settings.reduction == "batchmean" and lead else 1.0,
        ),
    )
    if ids is not None and impl != "fused":
        check_listed(problem)
    return problem


def check_settings(settings: LossSettings, labels: Any, pos_weight: Any) -> None:
    for name, why in _OF_A_SOFTMAX.items():
        if getattr(settings, name) != getattr(DEFAULTS, name):
            raise ValueError(f"{name}: expected its default, since {why}; got {getattr(settings, name)!r}")
    if labels is not None:
        return
    if settings.alpha < 1:
        raise ValueError(
            f"labels: needed for alpha = {settings.alpha!r}, which mixes in hard labels; pass labels or "
            "alpha=1.0"
        )
    for name, present in (
        ("label_smoothing", settings.label_smoothing > 0),
        ("pos_weight", pos_weight is not None),
    ):
        if present:
            raise ValueError(f"{name}: is of the labels' cross entropy, but labels is None; pass labels")


def values_field(target: Targets) -> Any:
    """The tensor that a dense target holds, as the caller gave it."""
    names = {EnsembleLogits: "logits", QuantizedLogits: "codes", LogProbs: "log_probs", Probs: "probs"}
    return getattr(target, names[type(target)])


def _optional(
    name: str, value: Any, shape: tuple[int | None, ...], what: str, device: torch.device
) -> Tensor | None:
    return None if value is None else numbers(name, value, shape, what, device)


def stored_labels(labels: Any, shape: tuple[int, ...], device: torch.device, double: bool) -> Tensor:
    """Labels in a dtype that the op reads: bytes as they are, other integers as float32."""
    check_like_student("labels", labels, shape, device)
    if labels.dtype not in _LABELS:
        raise TypeError(f"labels: expected {dtype_names(_LABELS)}; got {labels.dtype}")
    labels = labels.detach()
    if labels.dtype in _BYTES:
        return labels.view(torch.uint8)
    return labels if labels.dtype in FLOATS and (double or labels.dtype != torch.float64) else labels.float()


def stored_mask(mask: Any, shape: tuple[int, ...], device: torch.device) -> Tensor:
    check_like_student("mask", mask, shape, device)
    if mask.dtype != torch.bool:
        raise TypeError(f"mask: expected torch.bool, True where a class counts; got {mask.dtype}")
    return mask.view(torch.uint8)


def check_like_student(name: str, value: Any, shape: Sequence[int], device: torch.device) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(
            f"{name}: expected a Tensor; got a {type(value).__name__}; pass torch.as_tensor({name})"
        )
    if value.shape != shape:
        hint = "; pass one-hot rows, or use distillation_loss for one class a row" if name == "labels" else ""
        raise ValueError(
            f"{name}: expected {list(shape)}, one for each of the student's logits; got shape "
            f"{list(value.shape)}{hint if value.dim() < len(shape) else ''}"
        )
    check_device(name, value, device)


# Values, in which faults are looked for once a loss is NaN: to check all of them beforehand would cost as
# much as the loss.


def explain_nan(problem: MultilabelProblem, loss: Tensor) -> None:
    """Raise for a loss that is NaN because of labels or targets that are no probabilities."""
    tensors = (problem.values, problem.labels, problem.mask, *problem.tensors)
    if not all(visible(x) for x in (loss, *tensors) if x is not None) or not bool(loss.isnan().any()):
        return
    if problem.settings.alpha > 0:
        if not problem.dense:
            check_listed(problem)
        elif problem.settings.kind != "logits":
            check_probabilities(problem)
    if problem.labels is None or problem.settings.alpha == 1:
        return
    labels = _rows(problem, problem.labels)
    unknown = 255 if labels.dtype == torch.uint8 else -1
    wrong = ~((labels >= 0) & (labels <= 1)) & (labels != unknown) & _used(problem)
    if bool(wrong.any()):
        row, column = first(wrong)
        got = float(labels[row, column])
        raise ValueError(
            f"labels: expected numbers from 0 to 1, or -1 where unknown; got {got:g} in row {row}, class "
            f"{column}"
        )


def check_probabilities(problem: MultilabelProblem) -> None:
    field = problem.settings.kind
    for member, given in enumerate(problem.values.double()):
        weights = problem.tensors.weights
        if weights is not None and weights[member] == 0:
            continue
        values = _rows(problem, given)
        p = values.exp() if field == "log_probs" else values
        wrong = ~((p >= 0) & (p <= 1 + PROBABILITY_TOLERANCE)) & _used(problem)
        if bool(wrong.any()):
            row, column = first(wrong)
            wanted = "logarithms of probabilities, at most 0" if field == "log_probs" else "0 to 1"
            place = f"row {row}, class {column}" + (f" of member {member}" if len(problem.values) > 1 else "")
            raise ValueError(
                f"targets.{field}: expected {wanted}; got {float(values[row, column]):.4g} in {place}"
            )


def check_listed(problem: MultilabelProblem) -> None:
    """Check the values of TopK."""
    ids, listed, tail = problem.tensors.ids, problem.values, problem.tensors.tail
    classes = problem.classes
    if ids.numel() == 0 or not all(visible(x) for x in (ids, listed)):
        return
    wrong = (ids < 0) | (ids >= classes)
    if bool(wrong.any()):
        row, entry = first(wrong)
        raise ValueError(f"targets.ids: expected 0..{classes - 1}; got {int(ids[row, entry])} in row {row}")
    real = torch.where(listed == -torch.inf, -1 - torch.arange(ids.shape[1]), ids).sort(-1).values
    twice = real[:, 1:] == real[:, :-1]
    if bool(twice.any()):
        row, entry = first(twice)
        raise ValueError(
            f"targets.ids: expected each id once in a row; got {int(real[row, entry])} twice in row {row}"
        )
    wrong = ~(listed.exp() <= 1 + PROBABILITY_TOLERANCE)
    if bool(wrong.any()):
        row, entry = first(wrong)
        raise ValueError(
            "targets.log_probs: expected logarithms of probabilities, at most 0; got "
            f"{float(listed[row, entry]):.4g} in row {row}"
        )
    if tail is None:
        return
    others = (classes - (listed != -torch.inf).sum(-1)).clamp(min=1)
    wrong = ~(tail.double().exp() / others <= 1 + PROBABILITY_TOLERANCE)
    if bool(wrong.any()):
        row = int(wrong.nonzero()[0])
        raise ValueError(
            f"targets.tail_log_mass: expected at most log({int(others[row])}), of the sum of the other "
            f"classes' probabilities; got {float(tail[row]):.4g} in row {row}"
        )


def _rows(problem: MultilabelProblem, x: Tensor) -> Tensor:
    """[N, C] of a tensor that is shaped like the student."""
    return x.movedim(problem.class_dim, -1).reshape(-1, x.shape[problem.class_dim])


def _used(problem: MultilabelProblem) -> Tensor:
    used = torch.tensor(True) if problem.mask is None else _rows(problem, problem.mask) != 0
    if problem.tensors.sample_weights is not None:
        used = used & (problem.tensors.sample_weights != 0)[:, None]
    if problem.tensors.class_weights is not None:
        used = used & (problem.tensors.class_weights != 0)
    return used
