"""AdamW without the import of torch's compiler."""

from __future__ import annotations

import inspect

import torch


class AdamW(torch.optim.AdamW):
    """torch's AdamW, to be called by code that is not compiled itself; the same bits.

    torch wraps these methods so that its compiler does not trace them. The first call of one imports that
    compiler, which takes a second of every process that trains. These are the methods inside.

    Examples
    --------
    >>> import torch
    >>> from ensdistill.common.adamw import AdamW
    >>> weight = torch.ones(2, requires_grad=True)
    >>> optimizer = AdamW([weight], lr=0.5, weight_decay=0.0)
    >>> weight.sum().backward()
    >>> optimizer.step()
    >>> weight
    tensor([0.5000, 0.5000], requires_grad=True)
    """

    add_param_group = inspect.unwrap(torch.optim.AdamW.add_param_group)
    zero_grad = inspect.unwrap(torch.optim.AdamW.zero_grad)
    state_dict = inspect.unwrap(torch.optim.AdamW.state_dict)
    load_state_dict = inspect.unwrap(torch.optim.AdamW.load_state_dict)
    # torch's wrapper also switches gradients off, as its argument ``differentiable`` is False.
    step = torch.no_grad()(inspect.unwrap(torch.optim.AdamW.step))
