"""What a module is like where it matters for its training, found by one forward pass of two rows."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ensdistill.channels_last import as_channels_last, gains_by_channels_last
from ensdistill.training.dropout import OwnDropout


@dataclass(frozen=True)
class Traits:
    """``drops``: there is dropout in train mode. ``draws``: it asks torch's global generator for more than that. ``channels_last``: its
    batches of images are laid out with the channels innermost."""

    drops: bool
    draws: bool
    channels_last: bool


def traits(module: nn.Module, inputs: Tensor, channels_last: bool = True) -> Traits:
    """Tried in train mode; what the module remembers stays as it was. ``channels_last=False`` rules that layout out."""
    kept = [(buffer, buffer.clone()) for buffer in module.buffers()]
    few = inputs[:2] if len(inputs) > 1 else inputs[[0, 0]]
    last = channels_last and gains_by_channels_last(module, inputs)
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[inputs.device] if inputs.device.type == "cuda" else []), OwnDropout() as mode:
            before = torch.get_rng_state()
            try:
                module(as_channels_last(few) if last else few)
            except RuntimeError:
                if not last:
                    raise
                last = False  # it asks for strides of its own, as Tensor.view does
                module(few)
            draws = not torch.equal(before, torch.get_rng_state())
    finally:
        for buffer, value in kept:
            buffer.copy_(value)
    return Traits(mode.used, draws, last)
