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

from ensdistill.teachers.members import Member, Preprocessed, TorchMember, inner
from ensdistill.teachers.members.inputs import batches, count
from ensdistill.teachers.members.logits import logits_of
from ensdistill.teachers.members.module import is_plain, predicting
from ensdistill.teachers.predict import named

# A stack adds up in another order; float32 logits of one row differ by far less, other code by far more.
TOLERANCE = 1e-3
LEAST_ROWS = 128  # of a batch, below which small networks would mostly wait for Python


class Stack:
    """The parameters of some members in one piece: a copy, which is made again when one of theirs has
    changed.

    Raises
    ------
    RuntimeError, ValueError, TypeError
        (by ``predict``) It can't be vmapped, or one of the members computes something else than the first.
    """

    def __init__(self, members: list[TorchMember]) -> None:
        self.members, self._state = members, list[tuple[int, int]]()
        self._checked = False

    def predict(self, inputs: np.ndarray) -> np.ndarray:
        """Logits as the modules order them: float32 [members, N, C]."""
        self._refresh()
        first = self.members[0]
        with predicting(first.module) as device, torch.no_grad():
            call = vmap(
                lambda p, b, x: logits_of(functional_call(first.module, (p, b), (x,))),
                in_dims=(0, 0, None),
                randomness="error",
            )
            # A stack holds all members' activations at once: 8 CNNs of 8-16 channels take 1.2 s for 1024
            # images of 28x28 in one batch, and 0.26 s in batches of 128 (2-core x86).
            rows = max(min(LEAST_ROWS, first.batch_size), first.batch_size // len(self.members))
            parts = [
                call(self._parameters, self._buffers, _batch(x, device)).cpu() for x in batches(inputs, rows)
            ]
        logits = torch.cat(parts, dim=1).float().numpy()
        if not self._checked:
            # A difference that a module's text doesn't show (a flag, a branch) would make the first one's
            # code wrong for the others.
            for member, own in zip(self.members, logits, strict=True):
                alone = member.raw(inputs[:2])
                if alone.shape != own[:2].shape or not np.allclose(
                    alone, own[:2], rtol=TOLERANCE, atol=TOLERANCE
                ):
                    raise ValueError(f"{member.name} computes something else")
            self._checked = True
        return logits

    def _refresh(self) -> None:
        modules = [member.module for member in self.members]
        state = [(id(t), t._version) for m in modules for t in (*m.parameters(), *m.buffers())]
        if state != self._state:
            parameters, buffers = stack_module_state(modules)
            self._parameters, self._buffers = (
                {name: value.detach() for name, value in parameters.items()},
                buffers,
            )
            self._state, self._checked = state, False


def stacked_logits(
    members: Sequence[Member],
    inputs: Any,
    stacks: dict[tuple[int, ...], Stack],
    made: dict[int, Any] | None = None,
) -> dict[int, np.ndarray]:
    """Logits of the members that can be stacked, by their position: float32 [N, C] each. ``stacks`` keeps the
    stacks, ``made`` what preprocessing made of the inputs.

    The others have to predict one by one: other kinds, architectures with one member, and modules that can't
    be vmapped, with a warning that gives the reason.
    """
    groups = defaultdict(list)
    made = {} if made is None else made
    for i, member in enumerate(members):
        own = inner(member)
        if is_plain(own) and own.device is None:
            with named(member.name, count(inputs)):
                x = member.prepared(inputs, made) if isinstance(member, Preprocessed) else inputs
            if not isinstance(x, np.ndarray) or x.dtype != np.float32:
                continue
            shapes = tuple(
                (name, value.shape, value.dtype, value.device)
                for name, value in own.module.state_dict().items()
            )
            key = id(x), type(own.module), repr(own.module), shapes, own.batch_size
            groups[key].append((i, own, x))
    found: dict[int, np.ndarray] = {}
    for group in groups.values():
        places, x = tuple(i for i, _, _ in group), group[0][2]
        if len(places) < 2 or len(x) == 0:
            continue
        stack = stacks.setdefault(places, Stack([own for _, own, _ in group]))
        try:
            logits = stack.predict(x)
        except (RuntimeError, ValueError, TypeError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            kind = type(stack.members[0].module).__name__
            warnings.warn(f"{kind} can't be stacked, its members predict one by one: {reason}", stacklevel=4)
            continue
        found |= {i: stack.members[k].ordered(logits[k]) for k, i in enumerate(places)}
    return found


def _batch(x: np.ndarray, device: torch.device) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(x)).to(device)
