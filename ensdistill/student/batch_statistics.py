"""BatchNorm, and other buffers, of a model that several processes train on shares of the same batch."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

from ensdistill.common.processes import Processes

_OWN = (_BatchNorm.forward, nn.SyncBatchNorm.forward)


def split_norms(model: nn.Module) -> list[str]:
    """The names of layers that take their statistics from one process's share of a batch."""
    return [
        name or type(model).__name__
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm) and not isinstance(module, nn.SyncBatchNorm)
    ]


def synchronised_norms(
    model: nn.Module, group: Processes, sync: bool, batch_size: int
) -> AbstractContextManager[None]:
    """Return the context in which several processes train BatchNorm; warn where each takes statistics of its
    own rows."""
    if group.count == 1:
        return nullcontext()
    if sync:
        return whole_batch_norms(model)
    if group.rank == 0 and (names := split_norms(model)):
        more = f" and {len(names) - 1} more" if names[1:] else ""
        warnings.warn(
            f"BatchNorm ({names[0]}{more}): each of the {group.count} processes takes mean and variance of "
            "its own "
            f"{batch_size // group.count} rows of a batch, so the student is another one than that of one "
            "process; "
            "StudentTrainer(sync_batch_norm=True) takes them of the whole batch",
            stacklevel=5,  # the line that calls ``distill`` or ``direct``
        )
    return nullcontext()


@contextmanager
def whole_batch_norms(model: nn.Module) -> Iterator[None]:
    """In here every BatchNorm takes mean and variance of the batch of all processes, as one process would.

    ``torch.nn.SyncBatchNorm`` needs a GPU, and is another class than the model's; this works with gloo, and
    changes no class.

    Raises
    ------
    ValueError
        A BatchNorm whose class, or instance, has a forward of its own.
    """
    norms: list[tuple[str, Any]] = [
        (name, module) for name, module in model.named_modules() if isinstance(module, _BatchNorm)
    ]
    for name, norm in norms:
        if type(norm).forward not in _OWN or "forward" in vars(norm):
            raise ValueError(
                f"sync_batch_norm: {name or 'the model'} ({type(norm).__name__}) has a forward of its own, "
                "which can't be synchronised; "
                "use torch's BatchNorm there, or sync_batch_norm=False"
            )
    for _, norm in norms:
        norm.forward = MethodType(_forward, norm)
    try:
        yield
    finally:
        for _, norm in norms:
            del norm.forward


def _forward(norm: Any, inputs: Tensor) -> Tensor:
    """BatchNorm of inputs [N, C, ...] whose other rows are in the other processes."""
    if not norm.training:
        plain: Tensor = type(norm).forward(norm, inputs)
        return plain
    norm._check_input_dim(inputs)
    x = inputs.float() if inputs.dtype in (torch.float16, torch.bfloat16) else inputs
    rest = [d for d in range(x.ndim) if d != 1]
    shape = [1, -1] + [1] * (x.ndim - 2)  # of one number per channel
    sums = torch.cat([x.sum(rest), x.new_full((1,), x.numel() / x.shape[1])])
    sums = _Sum.apply(sums)
    count = sums[-1].detach()
    mean = sums[:-1] / count
    centred = x - mean.view(shape)
    # A second round: the difference of two sums of squares would lose the variance of channels with a large
    # mean.
    variance = _Sum.apply(centred.square().sum(rest)) / count
    if x.numel() <= x.shape[1] and count <= 1:
        raise ValueError(
            f"Expected more than 1 value per channel when training, got input size {list(inputs.shape)}"
        )
    if norm.track_running_stats:
        _follow(norm, mean.detach(), variance.detach() * (count / (count - 1)))
    out = centred * (variance + norm.eps).rsqrt().view(shape)
    if norm.weight is not None:
        out = out * norm.weight.view(shape)
    if norm.bias is not None:
        out = out + norm.bias.view(shape)
    return out.to(inputs.dtype)


@torch.no_grad()
def _follow(norm: Any, mean: Tensor, variance: Tensor) -> None:
    """The running statistics after a batch."""
    if norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
    share = 1.0 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
    norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), share)
    norm.running_var.lerp_(variance.to(norm.running_var.dtype), share)


class _Sum(torch.autograd.Function):
    """The sum of the processes' tensors. The gradient of each part is the sum of all processes' gradients."""

    @staticmethod
    def forward(ctx: Any, part: Tensor) -> Tensor:
        total = part.clone()
        torch.distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Tensor:
        total: Tensor = gradients[0].clone()
        torch.distributed.all_reduce(total)
        return total


@torch.no_grad()
def share_buffers(model: nn.Module, group: Processes) -> None:
    """Give all processes the same buffers: running means and variances are averaged, all others are those of
    process 0.

    Averages of running statistics are the running statistics of the averages, so it does not matter how often
    they are taken.
    """
    if group.count == 1:
        return
    norms = [module for module in model.modules() if isinstance(module, _NormBase)]
    statistics = {id(b): b for norm in norms for b in (norm.running_mean, norm.running_var) if b is not None}
    others = [buffer for buffer in model.buffers() if id(buffer) not in statistics]
    if statistics:
        # In float64 the mean of equal numbers is that number.
        means = group.mean(torch.cat([b.flatten().double() for b in statistics.values()]))
        for buffer, mean in zip(
            statistics.values(), means.split([b.numel() for b in statistics.values()]), strict=True
        ):
            buffer.copy_(mean.view(buffer.shape))
    group.take_first(others)
