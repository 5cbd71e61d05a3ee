"""The students and teachers of the benchmark, in plain torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ensdistill.models import MLP


class Residual(nn.Module):
    """Two convolutions with batch normalisation, and a path around them."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.second = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norms = nn.ModuleList([nn.BatchNorm2d(outputs) for _ in range(2)])
        self.around: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            around = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.around = nn.Sequential(around, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norms[0](self.first(x)))
        return F.relu(self.norms[1](self.second(y)) + self.around(x))


class ResNet18(nn.Module):
    """The 18 layers of He et al. (2016) for small images [N, 3, height, width]: a 3 x 3 stem, and no pooling
    before the blocks."""

    def __init__(self, width: int = 64, outputs: int = 100) -> None:
        super().__init__()
        widths = [width, width, 2 * width, 4 * width, 8 * width]
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.blocks = nn.Sequential(
            *(
                block
                for i, (before, after) in enumerate(pairwise(widths))
                for block in (Residual(before, after, 1 if i == 0 else 2), Residual(after, after, 1))
            )
        )
        self.end = nn.Linear(8 * width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.end(self.blocks(self.stem(x)).mean((2, 3)))


class SmallTransformer(nn.Module):
    """Two layers of attention over rows of numbers [N, tokens, inputs], and their mean."""

    def __init__(self, tokens: int = 32, inputs: int = 16, width: int = 64, outputs: int = 10) -> None:
        super().__init__()
        self.start = nn.Linear(inputs, width)
        self.places = nn.Parameter(0.02 * torch.randn(tokens, width))
        layer = nn.TransformerEncoderLayer(width, 4, 4 * width, dropout=0.0, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.end = nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.end(self.layers(self.start(x) + self.places).mean(1))


def cnn() -> nn.Module:
    """Two stages of convolution and pooling on images [N, 1, 16, 16]."""
    first, second = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 16, 3, padding=1)
    pooled = [first, nn.ReLU(), nn.MaxPool2d(2), second, nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*pooled, nn.Flatten(), nn.Linear(16 * 16, 10))


@dataclass(frozen=True)
class Case:
    """One student and its teachers.

    Parameters
    ----------
    name : str
    student : callable
        Makes it.
    shape : tuple of int
        Of a sample, float32.
    classes, members, batch : int
    steps : int
        Of one training.
    rows : int
        Of the transfer set.
    """

    name: str
    student: Callable[[], nn.Module]
    shape: tuple[int, ...]
    classes: int
    members: int
    batch: int
    steps: int
    rows: int

    def inputs(self) -> np.ndarray:
        return np.random.default_rng(0).normal(size=(self.rows, *self.shape)).astype(np.float32)

    def teachers(self) -> list[nn.Module]:
        """Members of the student's own architecture, of other weights."""
        made = []
        for seed in range(self.members):
            torch.manual_seed(100 + seed)
            made.append(self.student().eval().requires_grad_(False))
        return made


def cases(quick: bool) -> list[Case]:
    """An MLP, a CNN, a ResNet-18 and a transformer; with ``quick`` a narrow ResNet-18 and few steps."""
    mlp = partial(MLP, 64, [64], 10)
    width, size = (8, 16) if quick else (64, 32)
    resnet, transformer = partial(ResNet18, width), SmallTransformer
    few = 0.25 if quick else 1
    return [
        Case("MLP 64-64-10", mlp, (64,), 10, 8, 64, int(2048 * few), 4096),
        Case("CNN 8-16", cnn, (1, 16, 16), 10, 8, 64, int(1024 * few), 4096),
        Case("transformer, 2 layers", transformer, (32, 16), 10, 4, 64, int(512 * few), 4096),
        Case(f"ResNet-18, width {width}", resnet, (3, size, size), 100, 4, 16, 64, 512),
    ]
