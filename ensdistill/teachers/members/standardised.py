"""Networks that work in standardised units, and predict in the data's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ensdistill.common.describe import make_module
from ensdistill.teachers.members.logits import logits_of


class Standardised(nn.Module):
    """A regressor's network that was trained on standardised numbers, with the way back to the data's units.

    Parameters
    ----------
    model : Module, or callable
        Maps inputs to [N, D], the means in standardised units; or to [N, 2 D], the means and then the
        logarithms of the variances. Or what makes such a module.
    location, scale : sequence of float [D]
        ``location + scale * z`` are the data's units.

    Raises
    ------
    ValueError
        Location and scale have unlike lengths, or hold a number that is not finite, or a scale of 0 or less.

    Examples
    --------
    >>> model = nn.Linear(3, 2)
    >>> mean, variance = Standardised(model, location=[10.0], scale=[2.0])(torch.zeros(5, 3))
    >>> torch.allclose(mean, 10 + 2 * model.bias[:1].double()), variance.shape
    (True, torch.Size([5, 1]))
    """

    location: Tensor
    scale: Tensor

    def __init__(
        self,
        model: nn.Module | Callable[[], nn.Module],
        location: Sequence[float],
        scale: Sequence[float],
    ) -> None:
        super().__init__()
        middle, width = (np.array(values, np.float64) for values in (location, scale))
        if middle.ndim != 1 or middle.shape != width.shape or not len(middle):
            raise ValueError(
                f"location, scale: expected a number for each of D outputs; got {list(middle.shape)} and "
                f"{list(width.shape)}"
            )
        if not (np.isfinite(middle).all() and np.isfinite(width).all() and (width > 0).all()):
            raise ValueError(
                f"location, scale: expected finite numbers, and scales above 0; got {middle.tolist()} and "
                f"{width.tolist()}"
            )
        self.model = model if isinstance(model, nn.Module) else make_module(model)
        # In float64: float32 loses the digits of numbers that are far from 0 and near to each other.
        self.register_buffer("location", torch.from_numpy(middle))
        self.register_buffer("scale", torch.from_numpy(width))

    def forward(self, *inputs: Any, **named: Any) -> Tensor | tuple[Tensor, Tensor]:
        """Means, float64 [N, D], in the data's units; or a pair of means and variances."""
        outputs = logits_of(self.model(*inputs, **named)).double()
        count = self.location.shape[0]
        mean = self.location + self.scale * outputs[:, :count]
        if outputs.shape[1] == count:
            return mean
        return mean, self.scale.square() * outputs[:, count:].exp()

    def extra_repr(self) -> str:
        return f"numbers={self.location.shape[0]}"
