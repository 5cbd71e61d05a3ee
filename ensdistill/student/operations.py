"""The number of a model's floating-point operations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry


class OperationCounter(TorchDispatchMode):
    """Counts within its context by torch's own formulas, those of ``torch.utils.flop_counter``.

    torch's ``FlopCounterMode`` imports its compiler when it is first entered, which takes each process of a
    job some three seconds. Gradients have to be enabled: without them torch fuses a transformer layer into
    one operation, for which there is no formula.

    Examples
    --------
    >>> import torch
    >>> with OperationCounter() as counter:
    ...     _ = torch.nn.Linear(3, 2)(torch.ones(4, 3))
    >>> counter.total
    48
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Whether torch imports its compiler, to keep it from compiling what is counted."""
        return False

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = dict(kwargs or {})
        out = func(*args, **given)
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            self.total += int(formula(*args, **given, out_val=out))
        return out
