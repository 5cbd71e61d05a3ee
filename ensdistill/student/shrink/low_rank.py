"""Linear layers and convolutions as products of two smaller ones, by the singular values of their weights."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ensdistill.student.shrink.layers import Network, Wrapped, products, replace_layer
from ensdistill.student.shrink.settings import Shrink

STEPS = 40  # of the bisection for a budget


class LowRank(Wrapped):
    """A network with some layers as products of two.

    Parameters
    ----------
    model : callable, or Module
        Makes the network, or is it; see :class:`ensdistill.student.shrink.layers.Wrapped`.
    ranks : mapping of str to int
        The rank of each layer that is a product, by its name.

    Examples
    --------
    >>> [tuple(p.shape) for p in LowRank(partial(nn.Sequential), {}).parameters()]
    []
    >>> LowRank(partial(nn.Bilinear, 2, 2, 1), {"": 1})
    Traceback (most recent call last):
        ...
    ValueError: ranks: expected names of linear layers and convolutions; got '', which is a Bilinear
    """

    def __init__(self, model: Network, ranks: Mapping[str, int]) -> None:
        super().__init__(model)
        for name, rank in ranks.items():
            layer = self.model.get_submodule(name)
            if not _divisible(layer):
                raise ValueError(
                    "ranks: expected names of linear layers and convolutions; got "
                    f"{name!r}, which is a {type(layer).__name__}"
                )
            made = Product(layer, rank)
            if name:
                replace_layer(self.model, name, made)
            else:
                self.model = made


class Product(nn.Module):
    """A layer as two: the first to ``rank`` channels, the second with the bias to the outputs.

    ``weight`` and ``bias`` are those of the layer in whose place it stands, for code that reads them.
    """

    def __init__(self, layer: nn.Module, rank: int) -> None:
        super().__init__()
        self.first: Any
        self.second: Any
        has_bias = layer.bias is not None
        if isinstance(layer, nn.Linear):
            self.first = nn.Linear(layer.in_features, rank, bias=False)
            self.second = nn.Linear(rank, layer.out_features, bias=has_bias)
        else:
            assert isinstance(layer, (nn.Conv1d, nn.Conv2d, nn.Conv3d))
            kind: Any = type(layer)
            shape = {
                name: getattr(layer, name)
                for name in ("kernel_size", "stride", "padding", "dilation", "padding_mode")
            }
            self.first = kind(layer.in_channels, rank, **shape, bias=False)
            self.second = kind(rank, layer.out_channels, 1, bias=has_bias)

    @property
    def weight(self) -> Tensor:
        first, second = self.first.weight, self.second.weight
        product: Tensor = (second.flatten(1) @ first.flatten(1)).view(len(second), *first.shape[1:])
        return product

    @property
    def bias(self) -> Any:
        return self.second.bias

    def forward(self, inputs: Tensor) -> Tensor:
        """The outputs of the two layers, one after the other."""
        outputs: Tensor = self.second(self.first(inputs))
        return outputs


def factorised(
    network: nn.Module, factory: Callable[[], nn.Module], settings: Shrink
) -> tuple[nn.Module, Callable[[], nn.Module]]:
    """The network with layers as products by ``rank``, ``energy`` or ``budget``, and what makes such a one.

    Each product is the nearest to the layer's weight (in the sum of squares) of its rank. A layer stays as it
    is where a product of that rank has as many numbers.

    Raises
    ------
    ValueError
        No layer becomes smaller.
    """
    layers = {name: layer for name, layer in products(network).items() if _divisible(layer)}
    parts = {name: _decomposed(layer) for name, layer in layers.items()}
    ranks = _ranks({name: part[1] for name, part in parts.items()}, layers, settings)
    ranks = {
        name: rank for name, rank in ranks.items() if _numbers(layers[name], rank) < _whole(layers[name])
    }
    if not ranks:
        raise ValueError(
            f"shrink: {settings}: expected a layer that becomes smaller as a product of two; the "
            f"{len(layers)} linear layers and convolutions of {type(network).__name__} do not: take a "
            "smaller share, or prune"
        )
    made = partial(LowRank, model=factory, ranks=ranks)
    small = made()
    within = nn.Module()
    within.model = copy.deepcopy(network)
    for name, rank in ranks.items():
        left, values, right = parts[name]
        product = Product(layers[name], rank)
        root = values[:rank].sqrt()
        with torch.no_grad():
            first, second = product.first.weight, product.second.weight
            first.copy_((root[:, None] * right[:rank]).view(first.shape))
            second.copy_((left[:, :rank] * root).view(second.shape))
            if product.bias is not None:
                product.bias.copy_(layers[name].bias)
        replace_layer(within, f"model.{name}" if name else "model", product)
    small.load_state_dict(within.state_dict())
    return small.eval(), made


def _divisible(layer: nn.Module) -> bool:
    """Whether a layer can be a product. The last projection of attention is read by torch's own code."""
    if isinstance(layer, nn.Linear):
        return type(layer) is nn.Linear
    return isinstance(layer, (nn.Conv1d, nn.Conv2d, nn.Conv3d)) and layer.groups == 1


def _decomposed(layer: Any) -> tuple[Tensor, Tensor, Tensor]:
    """The singular value decomposition of a weight [outputs, all others], in float64."""
    return torch.linalg.svd(layer.weight.detach().double().flatten(1), full_matrices=False)


def _whole(layer: Any) -> int:
    return int(layer.weight.numel())


def _numbers(layer: Any, rank: int) -> int:
    """Those of a product of this rank, without the bias."""
    rows, columns = layer.weight.flatten(1).shape
    return rank * (rows + columns)


def _ranks(spectra: Mapping[str, Tensor], layers: Mapping[str, Any], settings: Shrink) -> dict[str, int]:
    if settings.rank is not None:
        return {name: max(1, round(settings.rank * len(values))) for name, values in spectra.items()}
    if settings.energy is not None:
        return _by_energy(spectra, settings.energy)
    assert settings.budget is not None
    most = settings.budget * sum(map(_whole, layers.values()))
    low, high = 0.0, 1.0
    for _ in range(STEPS):
        middle = (low + high) / 2
        found = _by_energy(spectra, middle)
        fits = sum(min(_numbers(layers[n], r), _whole(layers[n])) for n, r in found.items()) <= most
        low, high = (middle, high) if fits else (low, middle)
    return _by_energy(spectra, low)


def _by_energy(spectra: Mapping[str, Tensor], energy: float) -> dict[str, int]:
    """The least ranks whose squared singular values have this share of all."""
    found = {}
    for name, values in spectra.items():
        shares = values.square().cumsum(0) / values.square().sum().clamp(min=torch.finfo(values.dtype).tiny)
        found[name] = min(len(values), 1 + int((shares < energy).sum()))
    return found
