"""Torch members of one architecture that predict in one vmapped call."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call, stack_module_state, vmap

from ensdistill.members import Member, TorchMember
from ensdistill.members.base import batches
from ensdistill.members.module import predicting

# A stack adds up in another order; float32 logits of one row differ by far less, other code by far more.
TOLERANCE = 1e-3


def stacked_logits(members: Sequence[Member], inputs: np.ndarray) -> dict[int, np.ndarray]:
    """Logits of the members that can be stacked, by their position: float32 [N, C] each.

    The rest has to be asked one by one: other kinds, architectures that stand alone, and, with a warning that says why, modules that
    can't be vmapped.
    """
    groups = defaultdict(list)
    for i, member in enumerate(members):
        if isinstance(member, TorchMember) and inputs.dtype == np.float32:
            shapes = tuple((name, value.shape, value.dtype, value.device) for name, value in member.module.state_dict().items())
            groups[type(member.module), repr(member.module), shapes, member.batch_size].append(i)
    found: dict[int, np.ndarray] = {}
    for places in groups.values():
        if len(places) > 1 and len(inputs):
            chosen = [m for i in places if isinstance(m := members[i], TorchMember)]
            logits = _predict(chosen, inputs)
            if logits is not None:
                found |= {i: chosen[k].ordered(logits[k]) for k, i in enumerate(places)}
    return found


def _predict(members: list[TorchMember], inputs: np.ndarray) -> np.ndarray | None:
    modules = [member.module for member in members]
    kind = type(modules[0]).__name__
    with torch.no_grad():
        parameters, buffers = stack_module_state(modules)
        parameters = {name: value.detach() for name, value in parameters.items()}
        with predicting(modules[0]) as device:
            call = vmap(lambda p, b, x: _tensor(functional_call(modules[0], (p, b), (x,))), in_dims=(0, 0, None), randomness="error")
            try:
                parts = [call(parameters, buffers, _batch(x, device)).cpu() for x in batches(inputs, members[0].batch_size)]
            except (RuntimeError, ValueError, TypeError) as error:
                reason = (str(error).splitlines() or [type(error).__name__])[0]
                warnings.warn(f"{kind} can't be stacked, its members predict one by one: {reason}", stacklevel=5)
                return None
    logits = torch.cat(parts, dim=1).float().numpy()
    # What a module's text doesn't show (a flag, a branch) would make the first one's code wrong for the others.
    for member, own in zip(members, logits, strict=True):
        alone = member.raw(inputs[:2])
        if alone.shape != own[:2].shape or not np.allclose(alone, own[:2], rtol=TOLERANCE, atol=TOLERANCE):
            warnings.warn(f"{kind} can't be stacked, its members predict one by one: {member.name} computes something else", stacklevel=5)
            return None
    return logits


def _batch(x: np.ndarray, device: torch.device) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(x)).to(device)


def _tensor(output: Any) -> Tensor:
    logits: Tensor = getattr(output, "logits", output)
    return logits
