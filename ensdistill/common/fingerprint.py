"""One digest for everything a stage depends on: configs, arrays, tensors, source files.

Fingerprints decide which work is skipped, resumed or refused, so they are made of content, never of dates or
paths.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xxhash


def digest(value: Any) -> str:
    """Hex digest (xxh3, 128 bit) of a nested value.

    Parameters
    ----------
    value : dict, list, tuple, str, int, float, bool, None, bytes, Path, dataclass, NumPy array or torch
    tensor
        Mappings are hashed in sorted key order; arrays with their dtype and shape. An object with a method
        ``__fingerprint__()`` counts as its result.

    Raises
    ------
    TypeError
        For a value of any other kind: hashing its ``repr`` would tie the digest to a memory address.

    Examples
    --------
    >>> digest({"a": 1, "b": [2, 3]}) == digest({"b": [2, 3], "a": 1})
    True
    >>> digest(1) == digest("1")
    False
    """
    state = xxhash.xxh3_128()
    _update(state, value)
    return state.hexdigest()


def _update(state: xxhash.xxh3_128, value: Any) -> None:
    # Every value is preceded by its kind and length, so that ["ab"] and ["a", "b"] cannot collide.
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, (bool, int, float, str)):
        state.update(f"{type(value).__name__}:{json.dumps(value)};".encode())
    elif isinstance(value, bytes):
        state.update(f"bytes:{len(value)};".encode())
        state.update(value)
    elif isinstance(value, Path):
        _update(state, str(value))
    elif isinstance(value, np.ndarray):
        if value.dtype.hasobject:
            raise TypeError(
                "digest: an array of Python objects has no stable bytes; convert it to a numeric or string "
                "dtype"
            )
        state.update(f"array:{value.dtype.str}:{value.shape};".encode())
        state.update(np.ascontiguousarray(value).view(np.uint8).reshape(-1).data if value.size else b"")
    elif isinstance(value, Mapping):
        state.update(f"map:{len(value)};".encode())
        for key in sorted(value, key=str):
            _update(state, str(key))
            _update(state, value[key])
    elif hasattr(type(value), "__fingerprint__"):
        _update(state, value.__fingerprint__())
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        _update(state, {f.name: getattr(value, f.name) for f in dataclasses.fields(value)})
    elif isinstance(value, Sequence):
        state.update(f"list:{len(value)};".encode())
        for item in value:
            _update(state, item)
    elif hasattr(value, "detach") and hasattr(
        value, "untyped_storage"
    ):  # a torch tensor, without importing torch
        import torch

        flat = value.detach().cpu().contiguous()
        state.update(f"tensor:{flat.dtype}:{tuple(flat.shape)};".encode())
        state.update(flat.reshape(-1).view(torch.uint8).numpy().data if flat.numel() else b"")
    else:
        raise TypeError(
            "digest: expected plain data, arrays or tensors; got "
            f"{type(value).__module__}.{type(value).__qualname__}"
        )
