"""The operation in which a torch module ends, by running it: a softmax or a sigmoid returns probabilities."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ensdistill.common.errors import is_out_of_memory

_ENDINGS = {"_softmax": "softmax", "_safe_softmax": "softmax", "sigmoid": "sigmoid", "sigmoid_": "sigmoid"}
# Operations that change only the shape, the layout or the type of values.
_PASSING = frozenset(
    {"view", "_unsafe_view", "_to_copy", "clone", "detach", "alias", "squeeze", "unsqueeze", "reshape"}
    | {"slice", "select", "expand"}
)


class _Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        # By the tensor's id. The tensor is kept alive, so that no other one gets its id.
        self.endings: dict[int, tuple[Tensor, str]] = {}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """False: torch would import its compiler, a second of every process, to keep it from tracing this."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            name = func.overloadpacket.__name__
            ending = _ENDINGS.get(name) or (self.ending_of(args[0]) if name in _PASSING else None)
            if ending == "softmax" and name in _ENDINGS and args[1] not in (-1, result.dim() - 1):
                ending = None  # not over the classes
            self.endings.pop(id(result), None)  # the tensor may have been changed in place
            if ending is not None:
                self.endings[id(result)] = result, ending
        return result

    def ending_of(self, tensor: Any) -> str | None:
        return self.endings.get(id(tensor), (None, None))[1]


def ending(forward: Callable[[Any], Tensor], inputs: Any) -> str | None:
    """``"softmax"`` or ``"sigmoid"`` if ``forward(inputs)`` is the result of one; None otherwise, and on
    errors."""
    try:
        with torch.no_grad(), _Recorder() as recorder:
            return recorder.ending_of(forward(inputs))
    except Exception as error:  # compiled and scripted modules may refuse the recorder
        if is_out_of_memory(error) and isinstance(inputs, Tensor) and len(inputs) > 1:
            return ending(forward, inputs[:1])
        return None
