"""What a module is like where it matters for its training, found by one forward pass of two rows."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

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
    last = channels_last and _gains_by_channels_last(module, inputs)
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


def as_channels_last(images: Tensor) -> Tensor:
    """The same values [N, C, H, W] with C innermost in memory; the operations after the first take the layout over."""
    if images.shape[1] > 1:
        return images.contiguous(memory_format=torch.channels_last)
    # With one channel both layouts are the same bytes, and torch takes the other one to be meant unless the strides say so.
    _, _, height, width = images.shape
    return images.contiguous().as_strided(images.shape, (height * width, 1, width, 1))


def _gains_by_channels_last(module: nn.Module, inputs: Tensor) -> bool:
    # ms per step (2-core x86, torch 2.13, 2 threads), contiguous / channels last: CNN 8-16 with batch normalisation of 28x28 6.5/3.7;
    # CNN 8-16 of 8x8 0.77/0.70; two residual blocks of 32 channels, 32x32 72/51; LeNet 1.76/1.70; strided convolutions 1.57/1.58; but
    # with GroupNorm 7.7/8.6, with depthwise convolutions 1.45/1.53.
    if inputs.device.type != "cpu" or inputs.dim() != 4:
        return False
    convolutions = [m for m in module.modules() if isinstance(m, nn.Conv2d)]
    grouped = any(m.groups > 1 for m in convolutions) or any(isinstance(m, nn.GroupNorm) for m in module.modules())
    return bool(convolutions) and not grouped
