"""Members as functions of tensors through which gradients flow."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ensdistill.teachers.members import Member, TorchMember
from ensdistill.teachers.members.base import SMOOTHING, arranged, positions
from ensdistill.teachers.members.dtypes import floating_type
from ensdistill.teachers.members.module import is_plain, predicting

Function = Callable[[Tensor], Tensor]


def differentiable(
    members: Sequence[Member],
    classes: Sequence[str] | None,
    temperatures: np.ndarray,
    vectors: np.ndarray | None = None,
) -> list[Function]:
    """For each member a function from floating-point inputs [N, ...] to its calibrated logits [N, C].

    Parameters
    ----------
    members : sequence of Member
    classes : sequence of str, optional
        The order of the logits.
    temperatures : ndarray [K]
    vectors : ndarray [2, K, C], optional
        Each member's scale and bias of each class's logit.

    Raises
    ------
    ValueError
        A member is no torch module; names it. A function raises it where a member's preprocess returns a
        batch without gradients.

    Examples
    --------
    >>> from ensdistill.teachers import Ensemble
    >>> (function,) = Ensemble.from_members([torch.nn.Linear(3, 2)]).differentiable()
    >>> x = torch.zeros(5, 3, requires_grad=True)
    >>> torch.autograd.grad(function(x).sum(), x)[0].shape
    torch.Size([5, 3])
    """
    if refused := [member for member in members if not is_plain(_within(member))]:
        raise ValueError(
            f"members: expected torch modules, whose outputs have gradients; {refused[0].name} is a "
            f"{type(refused[0]).__name__}. Leave it out of the ensemble for this, or leave out the "
            "source that needs gradients"
        )
    scales = [None] * len(members) if vectors is None else list(np.moveaxis(vectors, 1, 0))
    return [
        _function(member, classes, float(temperature), scale)
        for member, temperature, scale in zip(members, temperatures, scales, strict=True)
    ]


def _within(member: Any) -> Any:
    """The member that a preprocess belongs to; other members as they are."""
    return member.member if hasattr(member, "preprocess") else member


def _function(
    member: Any, classes: Sequence[str] | None, temperature: float, scale: np.ndarray | None
) -> Function:
    inner: TorchMember = _within(member)
    preprocess = getattr(member, "preprocess", None)

    def logits(inputs: Tensor) -> Tensor:
        x = inputs if preprocess is None else _prepared(member.name, preprocess, inputs)
        with predicting(inner.module, inner.device) as device:
            x = x.to(device, floating_type(inner.module) or x.dtype)
            outputs = _as_logits(inner, inner._forward(x), x).cpu()
        if inner._columns is not None and outputs.shape[1] == len(inner._columns):
            outputs = outputs[:, inner._columns.tolist()]
        if member.classes is not None and classes is not None:
            outputs = arranged(outputs, positions(member.classes, classes))
        if scale is not None:
            outputs = outputs * torch.from_numpy(scale[0]) + torch.from_numpy(scale[1])
        return outputs / temperature

    return logits


def _prepared(name: str, preprocess: Any, inputs: Tensor) -> Tensor:
    """The preprocessed inputs; ValueError where no gradients flow through the preprocess."""
    refused: Exception | None = None
    try:
        x = preprocess(inputs)
        if isinstance(x, Tensor) and (x.requires_grad or not inputs.requires_grad):
            return x
    except (RuntimeError, TypeError, ValueError) as error:  # NumPy takes no tensor that has a gradient
        refused = error
    raise ValueError(
        f"preprocess: {name}: expected one through which gradients flow, such as operations on tensors; got "
        f"{type(preprocess).__name__}"
    ) from refused


def _as_logits(member: TorchMember, outputs: Tensor, x: Tensor) -> Tensor:
    """Outputs read as the member reads them, with their gradients."""
    if member._reading is None:  # the member decides by a prediction
        member.predict_logits(x.detach().cpu().numpy())
    reading = member._reading or "logits"
    if member.task == "multilabel":
        if reading == "probabilities":
            outputs = (outputs + SMOOTHING).log() - (1 - outputs + SMOOTHING).log()
        return outputs.double()
    if outputs.shape[1] == 1 and reading in ("probabilities", "margin"):
        one = outputs[:, 0]
        pair = [1 - one, one] if reading == "probabilities" else [-one / 2, one / 2]
        outputs = torch.stack(pair, dim=1)
    if reading == "probabilities":
        outputs = (outputs + SMOOTHING).log()
    return outputs.double()
