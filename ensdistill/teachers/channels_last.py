"""Images with their channels innermost in memory: the layout in which the CPU's convolutions, pooling and
normalisation are fast."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ensdistill.common.errors import is_out_of_memory

# Layouts add up in another order; logits differ by far less for that, and by far more where memory is read in
# the wrong order.
TOLERANCE = 1e-3


def gains_by_channels_last(module: nn.Module, inputs: Tensor) -> bool:
    """Whether the module is faster on these inputs [N, C, H, W] where their channels lie innermost."""
    # ms per step (2-core x86, torch 2.13, 2 threads), contiguous / channels last: CNN 8-16 with batch
    # normalisation of 28x28 6.5/3.7; CNN 8-16 of 8x8 0.77/0.70; two residual blocks of 32 channels, 32x32
    # 72/51; LeNet 1.76/1.70; strided convolutions 1.57/1.58; but with GroupNorm 7.7/8.6, with depthwise
    # convolutions 1.45/1.53.
    if inputs.device.type != "cpu" or inputs.dim() != 4:
        return False
    convolutions = [m for m in module.modules() if isinstance(m, nn.Conv2d)]
    grouped = any(m.groups > 1 for m in convolutions) or any(
        isinstance(m, nn.GroupNorm) for m in module.modules()
    )
    return bool(convolutions) and not grouped


def as_channels_last(images: Tensor) -> Tensor:
    """The same values [N, C, H, W] with C innermost in memory; the operations after the first take the layout
    over."""
    if images.shape[1] > 1:
        return images.contiguous(memory_format=torch.channels_last)
    # With one channel both layouts are the same bytes, and torch assumes the other one unless the strides
    # differ.
    _, _, height, width = images.shape
    return images.contiguous().as_strided(images.shape, (height * width, 1, width, 1))


def same_in_channels_last(forward: Callable[[Tensor], Tensor], images: Tensor) -> bool:
    """Whether a forward pass returns the same for images [N, C, H, W] with C innermost in memory.

    It does not if it needs strides of its own, as Tensor.view does, or reads memory in the order in which it
    lies.
    """
    expected = forward(images)
    try:
        got = forward(as_channels_last(images))
    except Exception as error:  # contiguous images have just worked
        if is_out_of_memory(error):
            raise
        return False
    scale = 1 + float(expected.float().nan_to_num().abs().max())
    return got.shape == expected.shape and torch.allclose(
        got, expected, rtol=0, atol=TOLERANCE * scale, equal_nan=True
    )
