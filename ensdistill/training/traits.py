"""What a module is like where it matters for its training, found by one forward pass of two rows."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ensdistill.channels_last import answers_alike, gains_by_channels_last
from ensdistill.training.dropout import OwnDropout


@dataclass(frozen=True)
class Traits:
    """What training has to respect, and what it may gain.

    ``drops``: there is dropout in train mode. ``draws``: it asks a global generator, torch's, NumPy's or Python's, for more than that.
    ``channels_last``: its batches of images are laid out with the channels innermost.
    """

    drops: bool
    draws: bool
    channels_last: bool


def traits(module: nn.Module, inputs: Tensor, channels_last: bool = True) -> Traits:
    """Tried in train mode; what the module remembers and the generators stay as they were. ``channels_last=False`` rules that layout
    out."""
    few = inputs[:2] if len(inputs) > 1 else inputs[[0, 0]]
    with torch.no_grad(), OwnDropout() as mode:
        with _kept(module, inputs.device):
            before = _generators(inputs.device)
            module(few)
            draws = before != _generators(inputs.device)

        def again(images: Tensor) -> Tensor:
            with _kept(module, inputs.device):
                answer: Tensor = module(images)
            return answer

        last = channels_last and gains_by_channels_last(module, inputs) and answers_alike(again, few)
    return Traits(mode.used, draws, last)


def _generators(device: torch.device) -> tuple[object, ...]:
    """The states of the global generators."""
    numpy: Any = np.random.get_state()  # noqa: NPY002
    own = torch.cuda.get_rng_state(device).tolist() if device.type == "cuda" else None
    return torch.get_rng_state().tolist(), own, random.getstate(), numpy[1].tolist(), numpy[2:]


@contextmanager
def _kept(module: nn.Module, device: torch.device) -> Iterator[None]:
    """The module's buffers and the generators are afterwards what they were."""
    buffers = [(buffer, buffer.clone()) for buffer in module.buffers()]
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
        for buffer, value in buffers:
            buffer.copy_(value)
