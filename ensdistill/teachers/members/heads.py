"""Networks with one head for each member of an ensemble."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ensdistill.common.describe import make_module
from ensdistill.teachers.members.logits import logits_of


class MultiHead(nn.Module):
    """A network whose last linear layer is K times as wide: one head of C outputs for each of K members.

    Called, it returns the logarithm of the heads' mean probabilities, float32 [N, C], which serve as logits;
    :meth:`heads` returns the logits of all heads.

    Parameters
    ----------
    model : Module, or callable
        Maps inputs to logits [N, C], and ends with an ``nn.Linear``. Or what makes such a module. Its last
        linear layer is replaced by a new one.
    weights : sequence of float [K]
        Of the heads in the mean: of at least 0, with a sum above 0.

    Raises
    ------
    ValueError
        The weights are none, or the model has no linear layer, or does not end with its last one.

    Examples
    --------
    >>> network = MultiHead(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)), weights=[0.5, 0.5])
    >>> network.heads(torch.zeros(5, 4)).shape, network(torch.zeros(5, 4)).shape
    (torch.Size([2, 5, 3]), torch.Size([5, 3]))
    """

    weights: Tensor

    def __init__(self, model: nn.Module | Callable[[], nn.Module], weights: Sequence[float]) -> None:
        super().__init__()
        given = np.array(weights, np.float64)
        if given.ndim != 1 or not len(given) or not np.isfinite(given).all() or (given < 0).any():
            raise ValueError(f"weights: expected a number of at least 0 for each head; got {weights!r}")
        if not given.any():
            raise ValueError(f"weights: expected a number above 0; got {weights!r}")
        self.register_buffer("weights", torch.from_numpy(given / given.sum()).float())
        self.model = widened(model if isinstance(model, nn.Module) else make_module(model), len(given))

    def heads(self, *inputs: Any, **named: Any) -> Tensor:
        """The heads' logits [K, N, C]."""
        return split_heads(logits_of(self.model(*inputs, **named)), self.weights.shape[0])

    def forward(self, *inputs: Any, **named: Any) -> Tensor:
        log_p = torch.log_softmax(self.heads(*inputs, **named).float(), -1)
        return torch.logsumexp(log_p + self.weights.log()[:, None, None], 0)


def split_heads(outputs: Tensor, count: int) -> Tensor:
    """Outputs [N, K C] as those of K heads, [K, N, C]."""
    if outputs.ndim != 2 or outputs.shape[1] % count:
        raise ValueError(
            f"model: expected {count} heads of C outputs, [N, {count} C], from its last linear layer; got "
            f"{list(outputs.shape)}: the network does not end with it"
        )
    return outputs.unflatten(1, (count, -1)).transpose(0, 1)


def widened(model: nn.Module, count: int) -> nn.Module:
    """The model with a last linear layer of ``count`` times as many outputs, newly initialised."""
    named = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, nn.Linear)]
    if not named:
        raise ValueError(
            f"model: expected a network that ends with an nn.Linear, of which there is a head for each "
            f"member; {type(model).__name__} has none"
        )
    name, last = named[-1]
    own = nn.Linear(
        last.in_features,
        count * last.out_features,
        bias=last.bias is not None,
        device=last.weight.device,
        dtype=last.weight.dtype,
    )
    if not name:
        return own
    model.set_submodule(name, own)
    return model
