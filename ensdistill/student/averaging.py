"""An exponential moving average of a student's weights."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ensdistill.common.divided import own_share
from ensdistill.common.processes import Processes
from ensdistill.common.scalars import real
from ensdistill.student.batch_statistics import share_buffers


def check_decay(argument: str, decay: float) -> float:
    """The decay of an average, between 0 and 1, neither of them.

    Raises
    ------
    ValueError
        Another value; begins with ``argument``.
    """
    if not (real(decay) and 0 < float(decay) < 1):
        raise ValueError(f"{argument}: expected a decay between 0 and 1, such as 0.999; got {decay!r}")
    return float(decay)


class WeightAverage:
    """The exponential moving average of a student's parameters, in a copy of the student.

    After the n-th update (n = 1, 2, ...) the average a of a parameter w is ``d a + (1 - d) w``, with
    ``d = min(decay, n / (n + 9))``: a training of few steps would otherwise still be near its start. Buffers
    of floating-point numbers, such as running means, are averaged in the same way; others are copied.

    Parameters
    ----------
    model : Module
        On its device, with its first weights, where the average begins.
    decay : float
        Between 0 and 1.
    another : callable, optional
        Makes the copy of the model; of a model that is divided over processes, a copy divided in the same
        way.

    Attributes
    ----------
    module : Module
        The copy, in eval mode.

    Examples
    --------
    >>> model = nn.Linear(1, 1, bias=False).requires_grad_(False)
    >>> average = WeightAverage(model.apply(lambda m: m.weight.fill_(0.0)), decay=0.9)
    >>> average.update(model.apply(lambda m: m.weight.fill_(1.0)))
    >>> round(average.module.weight.item(), 3)  # 0.1 of 0 and 0.9 of 1
    0.9
    """

    def __init__(
        self, model: nn.Module, decay: float, another: Callable[[nn.Module], nn.Module] = copy.deepcopy
    ) -> None:
        self.decay = decay
        try:
            self.module = another(model).requires_grad_(False).eval()
        except Exception as error:  # the copying runs the module's own code
            raise ValueError(
                f"ema: {type(model).__name__} can't be copied ({error}), and the average needs a copy; train "
                "without ema, or give the module a __deepcopy__"
            ) from error
        self.updates = torch.zeros((), dtype=torch.int64)
        self._parameters = [[own_share(p) for p in m.parameters()] for m in (model, self.module)]
        self._buffers = any(True for _ in model.buffers())

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take the weights after a step into the average."""
        self.updates += 1
        count = int(self.updates)
        share = 1 - min(self.decay, count / (count + 9))
        self._mix(self._parameters[1], self._parameters[0], share)
        if self._buffers:  # a module may put another tensor in a buffer's place
            self._mix(list(self.module.buffers()), list(model.buffers()), share)

    @staticmethod
    def _mix(averages: Sequence[Tensor], latest: Sequence[Tensor], share: float) -> None:
        pairs = list(zip(averages, latest, strict=True))
        for dtype in dict.fromkeys(a.dtype for a in averages):
            some = [(a, w) for a, w in pairs if a.dtype == dtype]
            if dtype.is_floating_point or dtype.is_complex:
                torch._foreach_lerp_([a for a, _ in some], [w for _, w in some], share)
            else:
                for average, value in some:
                    average.copy_(value)

    def share(self, group: Processes) -> None:
        """Give all processes the same buffers; their parameters are the same anyway."""
        share_buffers(self.module, group)


def state_of(model: nn.Module) -> dict[str, Tensor]:
    """A model's parameters and buffers, including the buffers that ``state_dict()`` leaves out.

    The result is stale once the model has moved: ``to(device)`` replaces buffers by other tensors.
    """
    return {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }
