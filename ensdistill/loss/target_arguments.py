"""The targets of a loss: their checks, and the tensors that the op takes of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ensdistill.common.scalars import check_temperature
from ensdistill.loss.checks import (
    FLOATS,
    INTEGERS,
    check_combiner,
    check_device,
    check_strided,
    dtype_names,
    extent,
)
from ensdistill.loss.settings import LossSettings
from ensdistill.loss.targets import (
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


def as_target(targets: Any, dims: int) -> Targets:
    """A bare tensor is logits: of one member if shaped like the student's, which has ``dims`` dimensions,
    else of K."""
    if isinstance(targets, Tensor):
        return EnsembleLogits(targets.unsqueeze(0) if targets.dim() == dims else targets)
    if not isinstance(targets, Targets):
        names = ", ".join(kind.__name__ for kind in (*_DENSE, TopK))
        raise TypeError(
            f"targets: expected a Tensor of logits, {names} or Counts; got {type(targets).__name__}"
        )
    return targets


def combiner_of(target: Targets) -> str | None:
    """The one that a target of members carries."""
    combiner = getattr(target, "combiner", None)
    check_combiner("targets.combiner", combiner)
    return combiner


def check_target_temperature(
    target: QuantizedLogits | LogProbs | Probs | TopK | Counts, temperature: float
) -> None:
    made_at = target.temperature
    check_temperature("targets.temperature", made_at)
    assert made_at is not None
    if abs(made_at - temperature) > 1e-6 * temperature:  # a float32's rounding, as of one that was stored
        raise ValueError(
            f"temperature: {temperature!r}, but targets ({type(target).__name__}) were made at {made_at!r}, "
            "and a mixture at one "
            f"temperature can't be derived from that at another; pass temperature={made_at!r}, or make the "
            "targets anew from the "
            "members' logits"
        )


def check_reach(target: Targets, temperature: float, combiner: str | None) -> None:
    """Raise ValueError for a use in which classes have a share that a cache stored as masked, as too far
    below their row's largest."""
    largest = getattr(target, "max_temperature", None)
    if largest is None:
        return
    if temperature > largest * (1 + 1e-6):
        raise ValueError(
            f"temperature: {temperature!r}, but some rows of the targets were stored for temperatures up to "
            f"{largest:g} only, with classes "
            f"far below the likeliest left out; build the cache again with max_temperature={temperature!r}, "
            "or with codec='fp32'"
        )
    if combiner in ("logit", "log_prob") and combiner_of(target) in (None, "prob"):
        raise ValueError(
            f"combiner: {combiner!r}, but some rows of the targets were stored for 'prob' only, with "
            "classes left out that are far below a "
            "member's likeliest; build the cache again with codec='fp32'"
        )


def dense_values(target: Targets, shape: Sequence[int], class_dim: int, device: torch.device) -> Tensor:
    """The members' values, [K, ...] with ``shape`` behind K."""
    values = typed_values("targets", target)
    if isinstance(target, _DISTRIBUTIONS) and values.dim() == len(shape):
        values = values.unsqueeze(0)
    found = list(values.shape)
    if values.dim() != len(shape) + 1 or found[0] < 1:
        wanted = str(["K", *shape]).replace("'", "")
        raise ValueError(
            f"targets: expected {wanted} with K >= 1, for the student's {list(shape)}; got shape {found}"
        )
    if found[1:] != list(shape):
        both = f"(shapes {found} and {list(shape)})"
        if found[class_dim + 1] != shape[class_dim]:
            raise ValueError(
                f"targets: {found[class_dim + 1]} classes, but the student has {shape[class_dim]} {both}"
            )
        lead, wanted_lead = found[1:], list(shape)
        del lead[class_dim], wanted_lead[class_dim]
        raise ValueError(f"targets: {extent(lead)}, but the student has {extent(wanted_lead)} {both}")
    check_device("targets", values, device)
    return values


def typed_values(name: str, target: Targets) -> Tensor:
    """The tensor that a dense target holds; its dtype is checked."""
    field = _DENSE[type(target)]
    values = getattr(target, field)
    if not isinstance(values, Tensor):
        raise TypeError(
            f"{name}: expected Tensors inside {type(target).__name__}; got {type(values).__name__}"
        )
    if isinstance(target, QuantizedLogits):
        if values.dtype != torch.uint8:
            raise TypeError(f"{name}.codes: expected torch.uint8; got {values.dtype}")
    elif values.dtype not in FLOATS:
        hint = (
            "; wrap codes in QuantizedLogits with their scale and offset"
            if values.dtype == torch.uint8
            else ""
        )
        raise TypeError(f"{name}: expected {dtype_names(FLOATS)} {field}; got {values.dtype}{hint}")
    if values.layout is not torch.strided:
        check_strided(name, values)
    return values


def affine_maps(
    target: QuantizedLogits, expected: tuple[int, ...], device: torch.device, others: str = "the student is"
) -> tuple[Tensor, Tensor]:
    """scale and offset as [K, N]."""
    maps = []
    for name in ("scale", "offset"):
        value = getattr(target, name)
        if not isinstance(value, Tensor) or value.dtype != torch.float32:
            raise TypeError(
                f"targets.{name}: expected torch.float32; got {getattr(value, 'dtype', type(value).__name__)}"
            )
        if value.shape != expected:
            raise ValueError(
                f"targets.{name}: expected {list(expected)}, one for each member and row; got shape "
                f"{list(value.shape)}"
            )
        check_device(f"targets.{name}", value, device, others)
        maps.append(
            value if len(expected) == 2 else value.flatten(1) if len(expected) > 2 else value.unsqueeze(1)
        )
    return maps[0], maps[1]


def sparse_values(
    target: TopK | Counts,
    lead: tuple[int, ...],
    classes: int,
    dtype: torch.dtype,
    device: torch.device,
    settings: LossSettings,
) -> tuple[Tensor, Tensor, Tensor | None, str]:
    """Log-probabilities [N, k], their ids [N, k], log-mass of the rest [N], and the mode in which they are to
    be read."""
    ids, tail = target.ids, str(settings.tail)
    field, listed = ("log_probs", target.log_probs) if isinstance(target, TopK) else ("counts", target.counts)
    for part, value in (("ids", ids), (field, listed)):
        if not isinstance(value, Tensor):
            raise TypeError(f"targets.{part}: expected a Tensor; got {type(value).__name__}")
        check_device(f"targets.{part}", value, device)
    if target.classes is not None and target.classes != classes:
        raise ValueError(f"targets: {target.classes} classes, but the student has {classes}")
    if ids.dtype not in INTEGERS:
        raise TypeError(f"targets.ids: expected {dtype_names(INTEGERS)}; got {ids.dtype}")
    if ids.shape[:-1] != lead or ids.dim() != len(lead) + 1 or ids.shape[-1] < 1:
        wanted = str([*lead, "k"]).replace("'", "")
        raise ValueError(
            f"targets.ids: expected {wanted} with k >= 1, for the student's {extent(lead)}; got shape "
            f"{list(ids.shape)}"
        )
    if listed.shape != ids.shape:
        raise ValueError(
            f"targets.{field}: expected the shape of ids, {list(ids.shape)}; got shape {list(listed.shape)}"
        )
    k, tail_mass = ids.shape[-1], None
    if isinstance(target, Counts):
        if listed.dtype == torch.bool or listed.is_complex():
            raise TypeError(
                f"targets.counts: expected integers or floating-point numbers; got {listed.dtype}"
            )
        if tail == "zero":
            raise ValueError(
                "tail: 'zero' keeps the listed classes' masses, which Counts don't have: they are divided "
                "by their sum; leave it out"
            )
        # The kernel normalises them; a count of 0 becomes the -inf that marks padding, a negative one NaN.
        listed, tail = listed.detach().to(torch.promote_types(dtype, torch.float32)).log(), "renormalize"
    else:
        if listed.dtype not in FLOATS:
            raise TypeError(f"targets.log_probs: expected {dtype_names(FLOATS)}; got {listed.dtype}")
        listed = listed.detach().to(torch.promote_types(listed.dtype, torch.float32))
        if tail == "tail":
            tail_mass = tail_log_mass(target, lead, device)
    if settings.divergence == "reverse_kl" and tail != "tail":
        what = f"tail={tail!r}" if isinstance(target, TopK) else "Counts"
        raise ValueError(
            f"divergence: reverse_kl is infinite with {what}, which leaves no mass on the other classes; "
            "use TopK with tail='tail'"
        )
    rows = (-1, k)
    return listed.reshape(rows).contiguous(), ids.reshape(rows).to(torch.int64).contiguous(), tail_mass, tail


def tail_log_mass(target: TopK, lead: tuple[int, ...], device: torch.device) -> Tensor:
    mass = target.tail_log_mass
    if mass is None:
        raise ValueError(
            "tail: 'tail' needs targets.tail_log_mass, which is None; pass it, or tail='renormalize' or "
            "'zero'"
        )
    if not isinstance(mass, Tensor) or mass.dtype not in (torch.float32, torch.float64):
        raise TypeError(
            "targets.tail_log_mass: expected float32 or float64; got "
            f"{getattr(mass, 'dtype', type(mass).__name__)}"
        )
    if mass.shape != lead:
        raise ValueError(
            f"targets.tail_log_mass: expected {list(lead)}, one for each row; got shape {list(mass.shape)}"
        )
    check_device("targets.tail_log_mass", mass, device)
    return mass.detach().reshape(-1).contiguous()
