"""torch's exporter reads the source of onnxscript's 500 functions anew for every export, which takes longer than a
small module's export itself. Importing this module keeps them."""

from functools import cache
from typing import Any

from torch.onnx._internal.exporter import _registration


class Kept:
    """The module of onnxscript that torch asks, whose list of functions is made once."""

    def __init__(self, apis: Any) -> None:
        self._apis = apis
        self.get_torchlib_ops = cache(lambda: apis.get_torchlib_ops())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._apis, name)


if not isinstance(_registration.onnxscript_apis, Kept):
    _registration.onnxscript_apis = Kept(_registration.onnxscript_apis)
