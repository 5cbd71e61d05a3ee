"""A student whose parameters, gradients and optimiser state are divided over the processes (torch's FSDP2).

``fully_shard`` changes a module in place: its parameters become DTensors of which each process holds a share,
and hooks gather them for the forward and the backward pass. It can't be undone. So the trained weights are
put into a copy of the module from before, which holds no numbers until the end.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ensdistill.common.divided import gathered
from ensdistill.common.processes import Processes
from ensdistill.student.averaging import state_of
from ensdistill.student.engine import check_backend
from ensdistill.student.module_patterns import check_patterns, chosen

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


def check_shard(given: Any) -> tuple[str, ...] | None:
    """The argument ``shard`` as the patterns of modules that are divided one by one; None where nothing
    is."""
    if given is False:
        return None
    if isinstance(given, (list, tuple)) and not given:
        raise ValueError(f"shard: expected True, False, or patterns of module names; got {given!r}")
    return () if given is True else check_patterns("shard", given)


class Sharding:
    """A student before and after it is divided over the processes.

    Parameters
    ----------
    model : Module
        With its first weights, on the CPU; those of process 0 are taken. It is divided in place.
    patterns : sequence of str
        The modules whose names match are gathered one at a time; all other parameters together.
    group : Processes

    Raises
    ------
    ValueError
        A module that can't be copied or divided; see :func:`check_shardable`.
    """

    def __init__(self, model: nn.Module, patterns: Sequence[str], group: Processes) -> None:
        from torch.distributed.device_mesh import init_device_mesh

        self.patterns = tuple(patterns)
        kind = torch.device(group.device).type
        check_backend(group, kind)
        for tensor in [*model.parameters(), *model.buffers()]:  # not all at once, which need not fit a device
            group.take_first([tensor])
        try:
            self._empty = copied(model, lambda tensor: torch.empty_like(tensor, device="meta"))
        except Exception as error:  # the copying runs the module's own code
            raise ValueError(
                f"shard: {type(model).__name__} can't be copied ({error}), and the trained weights need a "
                "copy; train with shard=False, or give the module a __deepcopy__"
            ) from error
        self._mesh: DeviceMesh = init_device_mesh(kind, (group.count,))
        self._divide(model)

    def another(self, model: nn.Module) -> nn.Module:
        """A copy of the divided model, divided in the same way."""
        made = copied(self._empty, lambda tensor: torch.zeros_like(tensor, device="cpu"))
        self._divide(made)
        with torch.no_grad():
            for tensor, value in zip(state_of(made).values(), state_of(model).values(), strict=True):
                tensor.copy_(value)
        return made

    def whole(self, model: nn.Module) -> nn.Module:
        """The weights of the divided model in a plain module on the CPU, the same in all processes, which all
        call this."""
        found = {}
        places = {id(tensor): name for name, tensor in state_of(self._empty).items()}
        now = state_of(model)
        for name in places.values():  # one after the other: a device need not have room for all
            found[name] = gathered(now[name]).cpu()
        return copied(self._empty, lambda tensor: found.pop(places[id(tensor)]))

    def _divide(self, model: nn.Module) -> None:
        from torch.distributed.fsdp import fully_shard

        # The outermost module, too, frees its gathered parameters after each forward pass: whoever looks at
        # the model between two steps finds shares.
        for module in [*chosen("shard", model, self.patterns).values(), model]:
            try:
                fully_shard(module, mesh=self._mesh, reshard_after_forward=True)
            except (ValueError, NotImplementedError) as error:
                raise ValueError(f"shard: {type(module).__name__}: {error}") from error


def copied(model: nn.Module, make: Callable[[Tensor], Tensor]) -> nn.Module:
    """A deep copy in which each parameter and buffer is what ``make`` returns for it; tensors that have
    several names stay one."""
    memo: dict[int, Any] = {}
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            made = make(tensor)
            if isinstance(tensor, nn.Parameter):
                made = nn.Parameter(made, requires_grad=tensor.requires_grad)
            made.__dict__.update(tensor.__dict__)
            memo[id(tensor)] = made
    return copy.deepcopy(model, memo)


def check_shardable(model: nn.Module, patterns: Sequence[str]) -> None:
    """Raise ValueError for a module that can't be divided: the same for any number of processes.

    A pattern that matches no module; a parameter that is a single number without a dimension; a container
    that isn't called; a parameter of two modules that are gathered at different times.
    """
    modules = chosen("shard", model, patterns)
    for name, module in modules.items():
        if isinstance(module, (nn.ModuleList, nn.ModuleDict)):
            raise ValueError(
                f"shard: {name} ({type(module).__name__}) is never called, so nothing would gather its "
                f"parameters; choose the modules in it: '{name}.*'"
            )
    unit = {id(part): name for name, module in modules.items() for part in module.modules()}
    found: dict[int, tuple[str, str]] = {}
    for name, module in model.named_modules():
        for own, parameter in module._parameters.items():
            if parameter is None:
                continue
            path, at = f"{name}.{own}" if name else own, unit.get(id(module), "")
            if parameter.ndim == 0:
                raise ValueError(
                    f"shard: the parameter {path} is a number without a dimension, which can't be divided; "
                    "make it a tensor of the shape [1]"
                )
            first, other = found.setdefault(id(parameter), (path, at))
            if other != at:
                raise ValueError(
                    f"shard: {first} and {path} are one parameter, but {other or 'the model'} and "
                    f"{at or 'the model'} are gathered at different times; choose neither, or a module that "
                    "has both"
                )
