"""What stands around a module without changing its answers: parallel wrappers, compiled modules, averaged ones."""

from __future__ import annotations

from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.optim.swa_utils import AveragedModel


def unwrapped(module: nn.Module) -> nn.Module:
    """The module within ``DataParallel``, ``DistributedDataParallel``, ``AveragedModel`` and compiled modules, nested too.

    >>> net = nn.Linear(3, 2)
    >>> unwrapped(AveragedModel(DataParallel(net))).weight.shape
    torch.Size([2, 3])
    """
    while True:
        if isinstance(module, (DataParallel, DistributedDataParallel, AveragedModel)):
            module = module.module
        elif type(module).__name__ == "OptimizedModule" and isinstance(within := module._modules.get("_orig_mod"), nn.Module):
            module = within
        else:
            return module
