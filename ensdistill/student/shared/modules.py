"""A trunk with one head, as a module that can be built again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from ensdistill.common.describe import make_module

Made = nn.Module | Callable[[], nn.Module]


class Headed(nn.Module):
    """A trunk and a head: ``head(trunk(inputs))``.

    Parameters
    ----------
    trunk, head : callable, or Module
        Make the two, or are these.

    Examples
    --------
    >>> import torch
    >>> from functools import partial
    >>> Headed(partial(nn.Linear, 4, 8), partial(nn.Linear, 8, 3))(torch.zeros(5, 4)).shape
    torch.Size([5, 3])
    """

    completes = ("trunk",)  # of its inputs, by the data; its outputs are the features

    def __init__(self, trunk: Made, head: Made) -> None:
        super().__init__()
        self.trunk = trunk if isinstance(trunk, nn.Module) else make_module(trunk)
        self.head = head if isinstance(head, nn.Module) else make_module(head)

    def forward(self, *inputs: Any, **named: Any) -> Any:
        """The head's outputs for the trunk's features."""
        return self.head(self.trunk(*inputs, **named))
