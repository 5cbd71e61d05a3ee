"""Small networks for examples: students and members. Any ``torch.nn.Module`` that maps [N, ...] to [N, C]
serves as well."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from torch import nn

Activation = Literal["relu", "gelu", "silu", "tanh"]
Pooling = Literal["max", "average"]
_ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
}
_POOLINGS: dict[str, type[nn.Module]] = {"max": nn.MaxPool2d, "average": nn.AvgPool2d}


def _activation(name: str) -> nn.Module:
    if name not in _ACTIVATIONS:
        raise ValueError(f"activation: expected one of {', '.join(_ACTIVATIONS)}; got {name!r}")
    return _ACTIVATIONS[name]()


def _head(
    features: int, hidden: Sequence[int], outputs: int, dropout: float, activation: str
) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for width in hidden:
        layers += [nn.Linear(features, width), _activation(activation)]
        if dropout:
            layers.append(nn.Dropout(dropout))
        features = width
    return [*layers, nn.Linear(features, outputs)]


class MLP(nn.Sequential):
    """Flatten, then fully connected layers.

    Parameters
    ----------
    inputs : int
        Numbers per sample; the trailing shape of a sample does not matter.
    hidden : sequence of int
        Widths of the hidden layers; empty for a linear model.
    outputs : int
        Classes.
    dropout : float
        Dropout probability after each hidden layer.
    activation : {"relu", "gelu", "silu", "tanh"}
        After each hidden layer. A smooth one (silu) follows a smooth teacher more closely than ReLU does.

    Examples
    --------
    >>> sum(p.numel() for p in MLP(inputs=64, hidden=[64], outputs=10).parameters())
    4810
    """

    def __init__(
        self,
        inputs: int = 64,
        hidden: Sequence[int] = (64,),
        outputs: int = 10,
        dropout: float = 0.0,
        activation: Activation = "relu",
    ) -> None:
        super().__init__(nn.Flatten(), *_head(inputs, hidden, outputs, dropout, activation))


class CNN(nn.Sequential):
    """Stages of 3x3 convolutions (padding 1), each ended by a 2x2 pooling; then fully connected layers.

    Parameters
    ----------
    channels : sequence of int or of sequences of int
        One entry per stage: the channels of its convolution, or of each of its convolutions.
    image : sequence of three int
        Channels, height and width of one input.
    hidden : sequence of int
        Widths of hidden fully connected layers between the last stage and the output.
    outputs : int
        Classes.
    dropout : float
        Dropout probability after the last stage and after each hidden layer.
    activation : {"relu", "gelu", "silu", "tanh"}
        After each convolution and hidden layer.
    pooling : {"max", "average"}
        At the end of each stage. Averages are smooth: a small network then follows a smooth teacher more
        closely.

    Raises
    ------
    ValueError
        The image is too small for that many stages, or an unknown activation or pooling.

    Examples
    --------
    >>> sum(p.numel() for p in CNN(channels=[8, 16], image=[1, 8, 8], outputs=10).parameters())
    1898
    """

    def __init__(
        self,
        channels: Sequence[int | Sequence[int]] = (8, 16),
        image: Sequence[int] = (1, 8, 8),
        hidden: Sequence[int] = (),
        outputs: int = 10,
        dropout: float = 0.0,
        activation: Activation = "relu",
        pooling: Pooling = "max",
    ) -> None:
        if pooling not in _POOLINGS:
            raise ValueError(f"pooling: expected one of {', '.join(_POOLINGS)}; got {pooling!r}")
        if len(image) != 3:
            raise ValueError(f"image: expected [channels, height, width]; got {list(image)}")
        depth, height, width = image
        if min(height, width) >> len(channels) == 0:
            raise ValueError(
                f"image: {height}x{width} pixels are too few for {len(channels)} stages, each of which "
                "halves them"
            )
        layers: list[nn.Module] = []
        for stage in channels:
            for count in [stage] if isinstance(stage, int) else stage:
                layers += [nn.Conv2d(depth, count, 3, padding=1), _activation(activation)]
                depth = count
            layers.append(_POOLINGS[pooling](2))
            height, width = height // 2, width // 2
        if dropout:
            layers.append(nn.Dropout(dropout))
        super().__init__(
            *layers,
            nn.Flatten(),
            *_head(math.prod((depth, height, width)), hidden, outputs, dropout, activation),
        )
