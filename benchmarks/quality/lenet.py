"""LeNet-5 with ReLU and max pooling, at any width: the members of Fashion-MNIST and its students."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn


class LeNet(nn.Sequential):
    """Two convolutions of 5x5, each ended by a pooling, and two hidden layers.

    Parameters
    ----------
    width : float
        Times 6 and 16 channels, 120 and 84 units. Half the width is about a quarter of the parameters.
    image : sequence of three int
        Channels, height and width of one input.
    outputs : int
        Classes.
    dropout : float
        Before each hidden layer.

    Examples
    --------
    >>> [sum(p.numel() for p in LeNet(width).parameters()) for width in (1.0, 0.5)]
    [61706, 15738]
    """

    def __init__(
        self,
        width: float = 1.0,
        image: Sequence[int] = (1, 28, 28),
        outputs: int = 10,
        dropout: float = 0.0,
    ) -> None:
        depth, height, size = image
        first, second, third, fourth = (round(width * units) for units in (6, 16, 120, 84))
        flat = second * ((height // 2 - 4) // 2) * ((size // 2 - 4) // 2)
        drop = [nn.Dropout(dropout)] if dropout else []
        super().__init__(
            nn.Conv2d(depth, first, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(first, second, 5),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            *drop,
            nn.Linear(flat, third),
            nn.ReLU(),
            *drop,
            nn.Linear(third, fourth),
            nn.ReLU(),
            nn.Linear(fourth, outputs),
        )
