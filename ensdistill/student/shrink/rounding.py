"""The network in training: pruned weights stay zero, and weights and inputs are rounded as they will be."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ensdistill.student.shrink.codes import codes_of, scales_of, weight_of
from ensdistill.student.shrink.compact import Compact
from ensdistill.student.shrink.layers import Wrapped, products, weights

MOMENTUM = 0.01  # of a batch in the running range of a layer's inputs


class Rounding(Wrapped):
    """A network that is trained with zeros in the place of pruned weights, or with rounded numbers.

    :meth:`finished` returns the network that is served.

    Parameters
    ----------
    model : callable
        Makes the network; see :class:`ensdistill.student.shrink.layers.Wrapped`.
    pruned : sequence of str
        Names of tensors with a mask. The masks are part of the state dict; at first they leave all weights.
    bits : {8, 4}, optional
        Of the codes to which the weights are rounded.
    aware : bool
        Whether the training rounds weights, and with eight bits the inputs of layers; with False
        :meth:`finished` rounds the weights.
    """

    def __init__(
        self,
        model: Callable[[], nn.Module],
        pruned: Sequence[str] = (),
        bits: int | None = None,
        aware: bool = True,
    ) -> None:
        super().__init__(model)
        self.made_by, self.pruned, self.bits, self.aware = model, tuple(pruned), bits, aware
        for name, (layer, own) in weights(self.model).items():
            if name in self.pruned:
                parametrize.register_parametrization(layer, own, Masked(getattr(layer, own)))
            if aware and bits is not None:
                parametrize.register_parametrization(layer, own, Rounded(bits))
        self._ranged = list(products(self.model)) if aware and bits == 8 else []
        for name in self._ranged:
            layer = self.model.get_submodule(name)
            layer.add_module("input_range", Range())
            layer.register_forward_pre_hook(_within_range)

    def finished(self) -> Compact:
        """The served network, on the same device and in eval mode."""
        plain = self.made_by()
        state = dict(plain.state_dict())
        with torch.no_grad():
            for name in state:
                layer, _, own = name.rpartition(".")
                state[name] = getattr(self.model.get_submodule(layer), own)
        plain.load_state_dict(state)
        ranges = {name: self._range(name).affine() for name in self._ranged if self._range(name).seen}
        return Compact.of(self.made_by, plain, self.pruned, self.bits, ranges).eval()

    def _range(self, name: str) -> Range:
        found = self.model.get_submodule(f"{name}.input_range")
        assert isinstance(found, Range)
        return found


class Masked(nn.Module):
    """A weight of which some places are zero."""

    mask: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", torch.ones(weight.shape, dtype=torch.bool))

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.mask


class Rounded(nn.Module):
    """A weight as its codes stand for it; its gradient is that of the weight (straight through)."""

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.bits = bits

    def forward(self, weight: Tensor) -> Tensor:
        scale = scales_of(weight, self.bits)
        near = weight_of(codes_of(weight, scale, self.bits), scale, self.bits)
        return near + (weight - weight.detach())


class Range(nn.Module):
    """The running range of a layer's inputs, in 255 steps of which these are rounded.

    The range always holds 0, which padding needs. Before the first batch inputs stay as they are.
    """

    bounds: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("bounds", torch.zeros(2))

    @property
    def seen(self) -> bool:
        """Whether there was a batch with a number other than 0."""
        return bool(self.bounds[1] > self.bounds[0])

    @torch.no_grad()
    def observe(self, inputs: Tensor) -> None:
        """Take the least and the largest number of a batch into the range."""
        now = torch.stack(torch.aminmax(inputs.detach())).to(self.bounds)
        now = torch.stack([now[0].clamp(max=0), now[1].clamp(min=0)])
        share = MOMENTUM if self.seen else 1.0
        self.bounds.lerp_(now, share)

    def affine(self) -> tuple[float, int]:
        """Scale and zero point of codes 0..255."""
        low, high = self.bounds.tolist()
        scale = max((high - low) / 255, 1e-12)
        return scale, round(min(255.0, max(0.0, -low / scale)))

    def forward(self, inputs: Tensor) -> Tensor:
        if self.training:
            self.observe(inputs)
        if not self.seen:
            return inputs
        return torch.fake_quantize_per_tensor_affine(inputs, *self.affine(), 0, 255)


def _within_range(layer: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    observed = layer.get_submodule("input_range")
    return (observed(inputs[0]), *inputs[1:])
