"""Channels that are removed from a network, and the smaller network that is left."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ensdistill.student.shrink.layers import PRODUCTS, Network, Wrapped

# Numbers of a layer that follow from its channels.
SIZES = (
    "in_features",
    "out_features",
    "in_channels",
    "out_channels",
    "groups",
    "num_features",
    "normalized_shape",
    "embedding_dim",
    "embed_dim",
    "kdim",
    "vdim",
    "num_heads",
    "head_dim",
)


class Resized(Wrapped):
    """A network with other sizes of some tensors.

    Parameters
    ----------
    model : callable, or Module
        Makes the network, or is it; see :class:`ensdistill.student.shrink.layers.Wrapped`.
    shapes : mapping of str to sequence of int
        Of each tensor of the state dict that differs.
    sizes : mapping of str to mapping
        By layer the attributes, such as ``out_features``, that differ.

    Examples
    --------
    >>> small = Resized(partial(nn.Linear, 4, 3), {"weight": [2, 4], "bias": [2]}, {"": {"out_features": 2}})
    >>> small(torch.zeros(5, 4)).shape
    torch.Size([5, 2])
    """

    def __init__(
        self,
        model: Network,
        shapes: Mapping[str, Sequence[int]],
        sizes: Mapping[str, Mapping[str, Any]],
    ) -> None:
        super().__init__(model)
        for name, shape in shapes.items():
            layer, _, own = name.rpartition(".")
            holder = self.model.get_submodule(layer)
            before = getattr(holder, own)
            # The first of its numbers, so that a layer begins as its kind begins.
            flat = before.detach().flatten()
            count = torch.Size(shape).numel()
            numbers = flat.repeat(-(-count // max(1, len(flat))))[:count].view(*shape).clone()
            if isinstance(before, nn.Parameter):
                setattr(holder, own, nn.Parameter(numbers, before.requires_grad))
            else:
                setattr(holder, own, numbers)
        for name, changed in sizes.items():
            for attribute, size in changed.items():
                value = tuple(size) if isinstance(size, (list, tuple)) else size
                setattr(self.model.get_submodule(name), attribute, value)


def without_channels(
    network: nn.Module, factory: Callable[[], nn.Module], share: float, example: Any
) -> tuple[nn.Module, Callable[[], nn.Module]]:
    """The network without a share of the channels of each layer, and what makes such a one.

    Channels that depend on each other are removed together, those of least norm first. The last layer keeps
    its outputs.

    Raises
    ------
    ImportError
        torch-pruning is not installed.
    ValueError
        It can't follow the network, or the network's own code expects other shapes than those that are left.
    """
    try:
        import torch_pruning as pruning
    except ImportError as error:
        raise ImportError(
            "shrink.structured: needs torch-pruning: pip install 'ensdistill[shrink]'"
        ) from error
    name = type(network).__name__
    small = copy.deepcopy(network).eval()
    last = _last_layer(small, example)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of parameters that belong to no layer, which stay
            pruning.MagnitudePruner(
                small,
                example,
                importance=pruning.importance.MagnitudeImportance(p=2),
                pruning_ratio=share,
                ignored_layers=[last],
                num_heads={m: m.num_heads for m in small.modules() if isinstance(m, nn.MultiheadAttention)},
            ).step()
        with torch.no_grad():
            expected = _call(small, example)
    except Exception as error:  # of many kinds, from the network's own code as well
        raise _refused(name, str(error)) from error
    shapes, sizes = _differences(network, small)
    if not shapes:
        raise ValueError(
            f"shrink.structured: {share}: expected a layer of {name} with channels to remove; there is none "
            "before the last: take a larger share, or rank or prune"
        )
    made = partial(Resized, model=factory, shapes=shapes, sizes=sizes)
    built = made()
    try:
        built.model.load_state_dict(small.state_dict())
        with torch.no_grad():
            found = _call(built.eval(), example)
    except RuntimeError as error:
        raise _refused(name, str(error)) from error
    if not all(torch.allclose(a, b, atol=1e-5) for a, b in zip(found, expected, strict=True)):
        raise _refused(name, "built again it predicts otherwise")
    return built, made


def _refused(name: str, reason: str) -> ValueError:
    first = reason.strip().splitlines()[0][:200] if reason.strip() else "no reason given"
    return ValueError(
        f"shrink.structured: {name}: the shapes of its layers no longer fit without some channels ({first}): "
        "take prune, rank or quantise, which keep them, or a network whose code reads no sizes"
    )


def _last_layer(network: nn.Module, example: Any) -> nn.Module:
    """The linear layer or convolution that is called last."""
    called: list[nn.Module] = []
    layers = [layer for layer in network.modules() if isinstance(layer, PRODUCTS)]
    handles = [layer.register_forward_hook(lambda layer, *_: called.append(layer)) for layer in layers]
    try:
        with torch.no_grad():
            _call(network, example)
    finally:
        for handle in handles:
            handle.remove()
    if not called:
        raise ValueError(
            f"shrink.structured: expected a network with linear layers or convolutions; "
            f"{type(network).__name__} calls none: take prune or quantise"
        )
    return called[-1]


def _call(network: nn.Module, example: Any) -> list[Tensor]:
    found = network(**example) if isinstance(example, Mapping) else network(example)
    if isinstance(found, Tensor):
        return [found]
    values = found.values() if isinstance(found, Mapping) else found
    return [one for one in values if isinstance(one, Tensor)]


def _differences(
    before: nn.Module, after: nn.Module
) -> tuple[dict[str, list[int]], dict[str, dict[str, Any]]]:
    """The tensors of another shape, and by layer the sizes that differ."""
    old = before.state_dict()
    shapes = {
        name: list(value.shape)
        for name, value in after.state_dict().items()
        if isinstance(value, Tensor) and value.shape != old[name].shape
    }
    sizes: dict[str, dict[str, Any]] = {}
    for name, layer in after.named_modules():
        own = before.get_submodule(name)
        for attribute in SIZES:
            value = getattr(layer, attribute, None)
            if value is not None and not isinstance(value, nn.Module) and value != getattr(own, attribute):
                size = list(value) if isinstance(value, tuple) else value
                sizes.setdefault(name, {})[attribute] = size
    return shapes, sizes
