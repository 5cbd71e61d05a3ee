"""The tensors of a network that are shrunk, and the wrapper that all shrunk networks share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn

from ensdistill.common.describe import make_module

Network = nn.Module | Callable[[], nn.Module]
PRODUCTS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
TABLES = (nn.Embedding, nn.EmbeddingBag)


class Wrapped(nn.Module):
    """A network within another module, which changes the network's layers.

    Parameters
    ----------
    model : callable, or Module
        Makes the network: its class, or a ``functools.partial`` of it; or the network.
    """

    def __init__(self, model: Network) -> None:
        super().__init__()
        self.model = model if isinstance(model, nn.Module) else make_module(model)

    def forward(self, *inputs: Any, **named: Any) -> Any:
        """The network's outputs."""
        return self.model(*inputs, **named)


def products(model: nn.Module) -> dict[str, nn.Module]:
    """The linear layers and convolutions by name."""
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, PRODUCTS)}


def weights(model: nn.Module) -> dict[str, tuple[nn.Module, str]]:
    """The tensors that are pruned and quantised: by name the module that has it, and its name there.

    They are the weights of linear layers, convolutions and embeddings, and the joined projections of
    attention. A tensor that several layers share has its first name.
    """
    found: dict[str, tuple[nn.Module, str]] = {}
    seen: set[int] = set()
    for name, layer, own in _candidates(model):
        value = getattr(layer, own)
        if isinstance(value, Tensor) and id(value) not in seen and value.is_floating_point():
            seen.add(id(value))
            found[f"{name}.{own}" if name else own] = layer, own
    return found


def _candidates(model: nn.Module) -> Iterator[tuple[str, nn.Module, str]]:
    for name, layer in model.named_modules():
        if isinstance(layer, PRODUCTS + TABLES):
            yield name, layer, "weight"
        elif isinstance(layer, nn.MultiheadAttention) and layer.in_proj_weight is not None:
            yield name, layer, "in_proj_weight"


def replace_layer(model: nn.Module, name: str, layer: nn.Module) -> None:
    """Put another layer in the place of the one of this name."""
    parent, _, own = name.rpartition(".")
    setattr(model.get_submodule(parent), own, layer)
