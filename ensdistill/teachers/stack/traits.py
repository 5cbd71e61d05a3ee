"""Traits of a module that matter for its training, found by one forward pass of two rows."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ensdistill.teachers.channels_last import gains_by_channels_last, same_in_channels_last
from ensdistill.teachers.members.logits import logits_of
from ensdistill.teachers.stack.dropout import OwnDropout


@dataclass(frozen=True)
class Traits:
    """Properties of a module that its training has to respect.

    Parameters
    ----------
    drops : bool
        There is dropout in train mode.
    draws : bool
        The forward pass draws from a global generator, torch's, NumPy's or Python's, beside dropout.
    channels_last : bool
        Batches of images are laid out with the channels innermost.
    reassigns : bool
        The forward pass puts new tensors in the place of buffers instead of writing into them.
    """

    drops: bool
    draws: bool
    channels_last: bool
    reassigns: bool


def traits(module: nn.Module, inputs: Tensor, channels_last: bool = True) -> Traits:
    """Find the properties in train mode; afterwards buffers and generators are as before.
    ``channels_last=False`` rules that layout out."""
    few = inputs[:2] if len(inputs) > 1 else inputs[[0, 0]]
    with torch.no_grad(), OwnDropout() as mode:
        with _kept(module, inputs.device):
            before = _generators(inputs.device)
            old = dict(module.named_buffers())
            module(few)
            reassigns = any(buffer is not old.get(name) for name, buffer in module.named_buffers())
            draws = before != _generators(inputs.device)

        def again(images: Tensor) -> Tensor:
            with _kept(module, inputs.device):
                return logits_of(module(images))

        last = channels_last and gains_by_channels_last(module, inputs) and same_in_channels_last(again, few)
    return Traits(mode.used, draws, last, reassigns)


def _generators(device: torch.device) -> tuple[object, ...]:
    """The states of the global generators."""
    numpy: Any = np.random.get_state()  # noqa: NPY002
    own = torch.cuda.get_rng_state(device).tolist() if device.type == "cuda" else None
    return torch.get_rng_state().tolist(), own, random.getstate(), numpy[1].tolist(), numpy[2:]


@contextmanager
def _kept(module: nn.Module, device: torch.device) -> Iterator[None]:
    """The module's buffers, also those that are assigned anew, and the generators are afterwards as
    before."""
    parts = [(part._buffers, dict(part._buffers)) for part in module.modules()]
    values = [(buffer, buffer.clone()) for buffer in module.buffers()]
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
        for buffer, value in values:
            buffer.copy_(value)
        for own, before in parts:
            own.update(before)
