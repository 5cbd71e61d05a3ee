"""The arguments of the losses: every check of a user's input, and the op's arguments made from it. checks.py
checks single values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ensdistill.loss.checks import (
    check_device,
    first,
    member_weights,
    numbers,
    shown,
    visible,
)
from ensdistill.loss.explain import Launch, check_launch
from ensdistill.loss.layout import product
from ensdistill.loss.settings import LossSettings, check_call, refuse_label_settings
from ensdistill.loss.signature import OpTensors, op_settings
from ensdistill.loss.target_arguments import (
    affine_maps,
    as_target,
    check_reach,
    check_target_temperature,
    combiner_of,
    dense_values,
    sparse_values,
)
from ensdistill.loss.targets import (
    SUM_TOLERANCE,
    Counts,
    EnsembleLogits,
    LogProbs,
    Probs,
    QuantizedLogits,
    Targets,
    TopK,
)

_DENSE = {EnsembleLogits: "logits", QuantizedLogits: "codes", LogProbs: "log_probs", Probs: "probs"}
# Tuples, since a union is made anew wherever it stands.
_DISTRIBUTIONS, _SPARSE = (LogProbs, Probs), (TopK, Counts)
# Rows of each member in which LogProbs are looked at.
_LOOKED_AT = 4


@dataclass(slots=True)
class Problem:
    """The op's arguments beside the student's logits, checked. N is the number of rows: the product of the
    leading dimensions."""

    lead: tuple[int, ...]
    values: Tensor  # dense: [K, ...] shaped like the student; else [N, k]
    dense: bool
    given: Tensor | None  # dense: the caller's own tensor, of which ``values`` is a view
    tensors: Any  # OpTensors
    settings: Any  # OpSettings


def make_problem(
    shape: Sequence[int],
    class_dim: int,
    dtype: torch.dtype,
    device: torch.device,
    targets: Tensor | Targets,
    labels: Tensor | None,
    settings: LossSettings,
    *,
    weights: Tensor | Sequence[float] | None,
    class_weights: Tensor | Sequence[float] | None,
    sample_weights: Tensor | Sequence[float] | None,
    statistics: bool,
    impl: str = "fused",
) -> Problem:
    """Check everything but the student's logits, of which it needs ``shape``, the class dimension (not
    negative), dtype, device."""
    check_call(statistics, impl)
    alpha, ignore_index, reduction = settings.alpha, settings.ignore_index, settings.reduction
    combiner: str | None = settings.combiner
    if alpha < 1 and labels is None:
        raise ValueError(
            f"labels: needed for alpha = {alpha!r}, which mixes in hard labels; pass labels or alpha=1.0"
        )
    if labels is None:  # with them it is legal at any alpha: schedules of alpha may reach 1
        refuse_label_settings(
            settings.label_smoothing, class_weights, "but labels is None; pass labels and an alpha below 1"
        )
    classes, lead = shape[class_dim], (*shape[:class_dim], *shape[class_dim + 1 :])
    target = as_target(targets, len(shape))
    kind, tail_mode = "logits", str(settings.tail)
    given = scale = offset = ids = tail_mass = None
    if isinstance(target, _SPARSE):
        kind, dense, members = "topk", False, 0
        values, ids, tail_mass, tail_mode = sparse_values(target, lead, classes, dtype, device, settings)
        if weights is not None:
            raise ValueError(
                f"weights: {type(target).__name__} is one distribution, which has no members to weigh; got "
                f"{shown(weights)}"
            )
        if combiner not in (None, "prob"):
            raise ValueError(
                f"combiner: {type(target).__name__} is one distribution, which has no members to combine; "
                f"got {combiner!r}"
            )
    else:
        dense = True
        values = dense_values(target, shape, class_dim, device)
        given = targets if isinstance(targets, Tensor) else getattr(target, _DENSE[type(target)])
        members = len(values)
        weights = target.weights if weights is None else weights
        combiner = combiner_of(target) if combiner is None else combiner
        if isinstance(target, QuantizedLogits):
            scale, offset = affine_maps(target, (members, *lead), device)
        elif isinstance(target, _DISTRIBUTIONS):
            kind = "log_probs" if isinstance(target, LogProbs) else "probs"
            combiner = "log_prob" if combiner == "logit" else combiner
    if not isinstance(target, EnsembleLogits) and target.temperature is not None:
        check_target_temperature(target, settings.temperature)
    check_reach(target, settings.temperature, combiner)
    problem = Problem(
        lead,
        values,
        dense,
        given,
        OpTensors(
            scale=scale,
            offset=offset,
            ids=ids,
            tail=tail_mass,
            weights=None if weights is None else member_weights(weights, members, device),
            labels=None
            if labels is None
            else checked_labels(labels, lead, classes, ignore_index, shape, class_dim, device),
            class_weights=None
            if class_weights is None
            else numbers("class_weights", class_weights, (classes,), "class", device),
            sample_weights=None
            if sample_weights is None
            else numbers("sample_weights", sample_weights, lead, "of the student's rows", device),
        ),
        op_settings(
            settings,
            kind=kind,
            combiner=combiner or "prob",
            tail_mode=tail_mode,
            reduction="sum" if reduction == "batchmean" else reduction,
            divisor=float(max(lead[0], 1)) if reduction == "batchmean" and lead else 1.0,
        ),
    )
    # Under torch.compile the op checks its launch when it runs.
    if impl == "fused" and device.type == "cuda" and not torch.compiler.is_compiling():
        entries, classes_first = 0 if ids is None else ids.shape[1], class_dim != len(shape) - 1
        op = problem.settings
        check_launch(
            Launch(
                1,
                classes,
                max(members, 1),
                dtype,
                values.dtype,
                op.divergence,
                op.combiner,
                entries,
                classes_first,
                device,
                op.temperature,
            )
        )
    if alpha > 0 or statistics:  # else no value of the targets is used
        if ids is not None:
            check_not_empty(problem)
            if impl != "fused" or alpha == 0:  # else this check runs only where the kernel returned NaN
                check_sparse(problem, type(target).__name__, classes)
        elif kind == "log_probs":
            check_log_probs(problem, class_dim)
    return problem


def check_not_empty(problem: Problem) -> None:
    """Reject rows of sparse targets that hold only padding and are to be renormalised."""
    if problem.settings.tail_mode != "renormalize" or not _visible(problem):
        return
    nothing = used_rows(problem, 1)[0] & (problem.values == -torch.inf).all(-1)
    if bool(nothing.any()):
        row = int(nothing.nonzero()[0])
        raise ValueError(f"targets: expected mass on at least one class; got only padding in row {row}")


def check_sparse(problem: Problem, name: str, classes: int) -> None:
    """Check the values of TopK and Counts, in the rows that are used. To sort all ids costs more than the
    loss does."""
    ids, listed, tail = problem.tensors.ids, problem.values, problem.tensors.tail
    assert ids is not None
    if ids.numel() == 0 or not _visible(problem):
        return
    low, high = torch.aminmax(ids)
    if int(low) < 0 or int(high) >= classes:
        row, entry = first((ids < 0) | (ids >= classes))
        raise ValueError(f"targets.ids: expected 0..{classes - 1}; got {int(ids[row, entry])} in row {row}")
    used = used_rows(problem, 1)[0]
    # Padding may repeat an id: each gets one of its own, below 0.
    real = torch.where(listed == -torch.inf, -1 - torch.arange(ids.shape[1]), ids).sort(-1).values
    twice = (real[:, 1:] == real[:, :-1]) & used[:, None]
    if bool(twice.any()):
        row, entry = first(twice)
        raise ValueError(
            f"targets.ids: expected each id once in a row; got {int(real[row, entry])} twice in row {row}"
        )
    if name == "Counts":
        wrong = ~(listed < torch.inf) & used[:, None]
        if bool(wrong.any()):
            row, _ = first(wrong)
            raise ValueError(
                "targets.counts: expected finite numbers of at least 0; got a negative or infinite one or "
                f"NaN in row {row}"
            )
    else:
        mass = listed.double().exp().sum(-1)
        mass = mass if tail is None else mass + tail.double().exp()
        low_mass = 1 - SUM_TOLERANCE if tail is not None else 0.0
        wrong = used & ((mass > 1 + SUM_TOLERANCE) | (mass < low_mass))
        if bool(wrong.any()):
            row = int(wrong.nonzero()[0])
            wanted = (
                "log-probabilities and tail_log_mass whose exp sum to 1"
                if tail is not None
                else "log-probabilities, exp sum at most 1"
            )
            raise ValueError(
                f"targets.log_probs: expected {wanted}; got a sum of {float(mass[row]):.4g} in row {row}"
            )


def _visible(problem: Problem) -> bool:
    return all(visible(x) for x in (problem.values, *problem.tensors) if x is not None)


def used_rows(problem: Problem, members: int) -> Tensor:
    """Return the rows that are read of each member, [K, N] bool."""
    used = torch.ones(members, product(problem.lead), dtype=torch.bool)
    if problem.tensors.sample_weights is not None:
        used &= problem.tensors.sample_weights != 0
    if problem.tensors.weights is not None:
        used &= (problem.tensors.weights != 0)[:, None]
    return used


def check_log_probs(problem: Problem, class_dim: int) -> None:
    """Check that a few rows hold distributions: logits and probabilities, taken for log-probabilities, are
    none in any row. To check all rows would cost more than the loss does.
    """
    values, lead, n = problem.values.detach(), problem.lead or (1,), product(problem.lead)
    if n == 0 or not _visible(problem):
        return
    step = -(-n // _LOOKED_AT)
    index = (
        (slice(None, None, step),) if len(lead) == 1 else torch.unravel_index(torch.arange(0, n, step), lead)
    )
    rows = (values.movedim(class_dim + 1, -1) if problem.lead else values.unsqueeze(1))[:, *index]
    mass = rows.double().logsumexp(-1)
    wrong = (mass.abs() > SUM_TOLERANCE) & used_rows(problem, len(values))[:, ::step]
    if bool(wrong.any()):
        member, row = first(wrong)
        place = f"row {row * step}" + (f" of member {member}" if len(rows) > 1 else "")
        raise ValueError(
            "targets.log_probs: expected log-probabilities whose log-sum-exp is 0 to within "
            f"{SUM_TOLERANCE}; "
            f"got {float(mass[member, row]):.4g} in {place}; of logits pass EnsembleLogits, of "
            "probabilities Probs"
        )


def explain_nan(problem: Problem, targets: Any, classes: int, class_dim: int, loss: Tensor) -> None:
    """Raise for a loss that is NaN because of wrong probabilities or sparse targets. It is called with the
    result: to check all values beforehand would cost more than the loss.
    """
    kind = problem.settings.kind
    if kind not in ("probs", "topk") or not (
        visible(loss) and _visible(problem) and bool(loss.isnan().any())
    ):
        return
    if kind == "topk":
        check_sparse(problem, type(targets).__name__, classes)
    else:
        check_probs(problem, class_dim)


def check_probs(problem: Problem, class_dim: int) -> None:
    values = problem.values
    rows = values.movedim(class_dim + 1, -1).flatten(1, -2) if values.dim() > 2 else values.unsqueeze(1)
    used = used_rows(problem, len(rows))
    rows = rows.double()
    for wrong, what in (
        ((rows < 0).any(-1), "no negative probability"),
        ((rows.sum(-1) - 1).abs() > SUM_TOLERANCE, f"probabilities whose sum is 1 to within {SUM_TOLERANCE}"),
    ):
        if bool((wrong & used).any()):
            member, row = first(wrong & used)
            found = rows[member, row]
            got = (
                f"{float(found.min()):.4g}" if what.startswith("no") else f"a sum of {float(found.sum()):.4g}"
            )
            place = f"row {row}" + (f" of member {member}" if len(rows) > 1 else "")
            raise ValueError(f"targets.probs: expected {what}; got {got} in {place}")


# Labels and weights
# ---------------------------------------------------------------------------------------------------


def checked_labels(
    labels: Any,
    lead: tuple[int, ...],
    classes: int,
    ignore_index: int,
    shape: Sequence[int],
    class_dim: int,
    device: torch.device,
) -> Tensor:
    """Labels as [N]."""
    if not isinstance(labels, Tensor):
        found = f"a {type(labels).__module__}.{type(labels).__name__}; pass torch.as_tensor(labels)"
        raise TypeError(f"labels: expected a torch.int64 Tensor; got {found}")
    if labels.dtype != torch.int64:
        raise TypeError(f"labels: expected a torch.int64 Tensor; got {labels.dtype}")
    if labels.shape != lead:
        channels_first = len(shape) > 2 and class_dim != 1 and labels.shape == (shape[0], *shape[2:])
        hint = "; with classes in dimension 1, pass class_dim=1" if channels_first else ""
        raise ValueError(
            f"labels: expected {list(lead)}, one for each of the student's rows; got shape "
            f"{list(labels.shape)}{hint}"
        )
    check_device("labels", labels, device)
    labels = labels.reshape(-1).contiguous()
    if labels.numel() == 0 or not visible(labels):
        return labels
    low, high = torch.aminmax(labels)
    if int(low) < 0 or int(high) >= classes:
        wrong = (labels != ignore_index) & ((labels < 0) | (labels >= classes))
        if bool(wrong.any()):
            row = int(wrong.nonzero()[0])
            raise ValueError(
                f"labels: expected 0..{classes - 1} or ignore_index {ignore_index}; got {int(labels[row])} "
                f"in row {row}"
            )
    return labels
