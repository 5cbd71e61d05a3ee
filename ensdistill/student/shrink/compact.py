"""The served form of a pruned or quantised network: plain weights in memory, few bytes in the file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ensdistill.student.shrink.codes import (
    codes_of,
    groups_of,
    packed,
    packed_bits,
    scales_of,
    unpacked,
    unpacked_bits,
    weight_of,
)
from ensdistill.student.shrink.layers import Network, Wrapped, weights


class Compact(Wrapped):
    """A network whose ``state_dict()``, and so its file, holds only weights that are not zero, or codes.

    In memory the network is a plain one. For each pruned tensor the state dict has ``.mask`` (one bit for
    each weight) and ``.values``; for each quantised one ``.values`` are codes, int8 or two of four bits in a
    byte, beside scales.

    Parameters
    ----------
    model : callable, or Module
        Makes the network, or is it; see :class:`ensdistill.student.shrink.layers.Wrapped`.
    kept : mapping of str to int, optional
        Of each pruned tensor the weights that are not zero.
    bits : {8, 4}, optional
        Of the codes of all weights; None for numbers as they are.
    ranges : mapping of str to (float, int), optional
        For each layer the scale and the zero point at which its inputs are rounded to 0..255.

    Examples
    --------
    >>> module = Compact(partial(nn.Linear, 64, 8), kept={"weight": 100})
    >>> {name: tuple(value.shape) for name, value in module.state_dict().items()}
    {'model.bias': (8,), 'model.weight.mask': (64,), 'model.weight.values': (100,)}
    """

    def __init__(
        self,
        model: Network,
        kept: Mapping[str, int] | None = None,
        bits: int | None = None,
        ranges: Mapping[str, Sequence[float]] | None = None,
    ) -> None:
        super().__init__(model)
        self.kept, self.bits = dict(kept or {}), bits
        self.ranges = {name: [float(scale), int(zero)] for name, (scale, zero) in (ranges or {}).items()}
        own = weights(self.model)
        self._names = [name for name in own if bits is not None or name in self.kept]
        self.scales = nn.Module()
        with torch.no_grad():
            for name in self._names:
                weight = self._weight(name)
                count = self.kept.get(name, weight.numel())
                weight.view(-1).copy_(torch.arange(weight.numel()) < count)
                if bits is not None:
                    columns = weight.flatten(1).shape[1]
                    ones = weight.new_ones(len(weight), groups_of(columns, bits))
                    self.scales.register_buffer(_key(name), ones)
        for name, (scale, zero) in self.ranges.items():
            layer = self.model.get_submodule(name)
            layer.register_forward_pre_hook(InCodes(scale, int(zero)))

    @classmethod
    def of(
        cls,
        model: Callable[[], nn.Module],
        network: nn.Module,
        pruned: Sequence[str],
        bits: int | None,
        ranges: Mapping[str, Sequence[float]],
    ) -> Compact:
        """The served form of a network that ``model`` makes, with its weights, of which those named in
        ``pruned`` have zeros; they are rounded to codes of ``bits``."""
        state, scales, kept = dict(network.state_dict()), dict[str, Tensor](), dict[str, int]()
        for name, (layer, own) in weights(network).items():
            value = getattr(layer, own).detach()
            if bits is not None:
                scales[name] = scales_of(value, bits)
                value = weight_of(codes_of(value, scales[name], bits), scales[name], bits)
            if name in pruned:
                kept[name] = int(value.count_nonzero())
            state[name] = value
        made = cls(model, kept, bits, ranges)
        made.model.load_state_dict(state)
        for name, scale in scales.items():
            getattr(made.scales, _key(name)).copy_(scale)
        return made.to(next(iter(state.values())).device)

    def made_by(self, training: Any) -> Any:
        """What makes this network, for the ``functools.partial`` that made the one of the training."""
        own = getattr(training, "keywords", {})
        if "model" not in own:
            return training
        return partial(Compact, model=own["model"], kept=self.kept, bits=self.bits, ranges=self.ranges)

    @property
    def absent_numbers(self) -> int:
        """The weights that the file does not hold, because they are zero."""
        return sum(self._weight(name).numel() - count for name, count in self.kept.items())

    def _weight(self, name: str) -> Tensor:
        value = self.model.get_parameter(name)
        return value

    def state_dict(self, *args: Any, **options: Any) -> Any:
        """The stored tensors by name; arguments are torch's."""
        found = super().state_dict(*args, **options)
        prefix = options.get("prefix", "")
        for name in self._names:
            values = found.pop(f"{prefix}model.{name}").detach()
            flat = values.reshape(-1)
            if self.bits is not None:
                flat = codes_of(values, self._scale(name), self.bits).view(-1)
            if name in self.kept:
                mask = flat != 0
                found[f"{prefix}model.{name}.mask"] = packed_bits(mask)
                flat = flat[mask]
            found[f"{prefix}model.{name}.values"] = flat if self.bits is None else packed(flat, self.bits)
        return found

    def _scale(self, name: str) -> Tensor:
        value: Tensor = getattr(self.scales, _key(name))
        return value

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        """Put plain weights in the place of stored ones, before the network's own layers load theirs."""
        for name in self._names:
            full, weight = f"{prefix}model.{name}", self._weight(name)
            scale = state_dict.get(f"{prefix}scales.{_key(name)}", None)
            if f"{full}.values" not in state_dict or (self.bits is not None and scale is None):
                continue  # torch names what is missing
            flat, count = state_dict.pop(f"{full}.values"), weight.numel()
            if self.bits is not None:
                flat = unpacked(flat, self.kept.get(name, count), self.bits)
            if name in self.kept:
                mask = unpacked_bits(state_dict.pop(f"{full}.mask"), count)
                if int(mask.sum()) != len(flat):
                    raise ValueError(
                        f"{full}: expected as many values as the mask has places, {int(mask.sum())}; got "
                        f"{len(flat)}"
                    )
                flat = torch.zeros(count, dtype=flat.dtype, device=flat.device).masked_scatter(mask, flat)
            dense = flat.view(weight.shape)
            state_dict[full] = dense if self.bits is None else weight_of(dense, scale, self.bits)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def for_onnx(self) -> None:
        """Write codes of eight bits, and the rounding of inputs, as operators of ONNX into the forward pass:
        a runtime then computes in eight bits, and the file holds the codes. Only an exporter can run it."""
        own = weights(self.model)
        for name in self._names if self.bits == 8 else ():
            layer, tensor = own[name]
            codes = codes_of(getattr(layer, tensor), self._scale(name), 8)
            coded = Coded(codes, self._scale(name)[:, 0].clone())
            parametrize.register_parametrization(layer, tensor, coded, unsafe=True)
        for name in self.ranges:
            for hook in self.model.get_submodule(name)._forward_pre_hooks.values():
                if isinstance(hook, InCodes):
                    hook.as_operators = True

    def extra_repr(self) -> str:
        parts = [f"kept={sum(self.kept.values())}" if self.kept else "", f"bits={self.bits or 32}"]
        return ", ".join(filter(None, parts))


def has_codes(module: nn.Module) -> bool:
    """Whether a part of the module rounds the inputs of its layers."""
    return any(isinstance(part, Compact) and part.ranges for part in module.modules())


class Coded(nn.Module):
    """The weight that codes stand for, in ONNX's own operator."""

    codes: Tensor
    scale: Tensor
    zero: Tensor

    def __init__(self, codes: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.register_buffer("codes", codes)
        self.register_buffer("scale", scale)
        self.register_buffer("zero", torch.zeros(len(scale), dtype=torch.int8))

    def forward(self, weight: Tensor) -> Tensor:
        return _operator("DequantizeLinear", (self.codes, self.scale, self.zero), torch.float32, axis=0)


class InCodes:
    """A hook that rounds a layer's inputs to the numbers that codes 0..255 stand for.

    Parameters
    ----------
    scale : float
    zero : int
        The code of 0.
    """

    def __init__(self, scale: float, zero: int) -> None:
        self.scale, self.zero, self.as_operators = scale, zero, False

    def __call__(self, layer: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        x = inputs[0]
        if self.as_operators:
            scale, zero = torch.tensor(self.scale), torch.tensor(self.zero, dtype=torch.uint8)
            codes = _operator("QuantizeLinear", (x, scale, zero), torch.uint8)
            return (_operator("DequantizeLinear", (codes, scale, zero), torch.float32), *inputs[1:])
        codes = (x / self.scale).round().clamp(-self.zero, 255 - self.zero)
        return (codes * self.scale, *inputs[1:])


def _operator(kind: str, inputs: tuple[Tensor, ...], dtype: torch.dtype, **attributes: Any) -> Tensor:
    made: Tensor = torch.onnx.ops.symbolic(
        kind, inputs, attributes, dtype=dtype, shape=inputs[0].shape, version=13
    )
    return made


def _key(name: str) -> str:
    """A buffer's name, which may hold no dot."""
    return name.replace(".", "/")
