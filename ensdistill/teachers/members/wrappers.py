"""Wrappers around a module that keep its outputs, and programs of torch.export, which are refused."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.optim.swa_utils import AveragedModel


def unwrapped(module: nn.Module) -> nn.Module:
    """The module within ``DataParallel``, ``AveragedModel`` and other wrappers, nested ones too.

    >>> net = nn.Linear(3, 2)
    >>> unwrapped(AveragedModel(DataParallel(net))).weight.shape
    torch.Size([2, 3])
    """
    while True:
        if isinstance(module, (DataParallel, DistributedDataParallel, AveragedModel)):
            module = module.module
        elif type(module).__name__ == "OptimizedModule" and isinstance(
            within := module._modules.get("_orig_mod"), nn.Module
        ):
            module = within
        else:
            return module


def check_not_exported(name: str, value: Any) -> None:
    """Raise TypeError for a program of ``torch.export``, whose mode and number of rows can't be changed."""
    if any(cls.__module__.startswith("torch.export") for cls in type(value).__mro__):
        raise TypeError(
            f"members: {name}: expected a module; got a program of torch.export, whose mode (training or "
            "eval) and number of rows are fixed. Pass the module that was exported, a file by "
            "torch.onnx.export, or a function that calls the program: CallableMember(function, name=..., "
            "version=...)"
        )
