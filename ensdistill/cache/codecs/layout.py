"""Where each field lies in a record."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from ensdistill.cache.codecs.base import Codec, Fields

INPUT_HASH = "input_hash"


@dataclass(frozen=True)
class Layout:
    """Where each field lies in a record.

    Parameters
    ----------
    fields : dict of str to (offset in bytes, dtype, shape)
    bytes : int
        Bytes of one record, a multiple of 8.
    """

    fields: dict[str, tuple[int, str, tuple[int, ...]]]
    bytes: int

    @classmethod
    def of_manifest(cls, record: dict[str, Any]) -> Layout:
        """The layout that `describe` returned; the codec's own has been compared with it before."""
        fields = {f["name"]: (f["offset"], f["dtype"], tuple(f["shape"])) for f in record["fields"]}
        return cls(fields, record["bytes"])

    def views(self, records: np.ndarray) -> Fields:
        """The fields of ``records`` (contiguous uint8 [N, bytes]) as views [N, *shape]; nothing is copied."""
        if not (n := len(records)):
            return {name: np.empty((0, *shape), dtype) for name, _, dtype, shape, _ in self._places}
        # This runs for every batch, so each view is made by one call.
        return {
            name: np.ndarray((n, *shape), dtype, records, offset, strides)
            for name, offset, dtype, shape, strides in self._places
        }

    @cached_property
    def _places(self) -> list[tuple[str, int, np.dtype[Any], tuple[int, ...], tuple[int, ...]]]:
        """Of each field: name, offset, dtype, shape in a record, and strides among records."""
        places = []
        for name, (offset, text, shape) in self.fields.items():
            dtype = np.dtype(text)
            inner = tuple(dtype.itemsize * math.prod(shape[i + 1 :]) for i in range(len(shape)))
            places.append((name, offset, dtype, shape, (self.bytes, *inner)))
        return places

    def describe(self) -> dict[str, Any]:
        """The layout as JSON, for the manifest and each shard's header."""
        fields = [
            {"name": n, "dtype": d, "offset": o, "shape": list(s)} for n, (o, d, s) in self.fields.items()
        ]
        return {"bytes": self.bytes, "fields": fields}


def record_of(codec: Codec, members: int, classes: int) -> Layout:
    """The record of ``codec`` for K members (1 for a mixture) and C classes.

    The fields lie in the order of their item sizes, the widest first, so that each is aligned.

    Raises
    ------
    ValueError
        The codec cannot hold so many classes, or describes a field that a record cannot have.

    Examples
    --------
    >>> from ensdistill.cache.codecs import codec_of
    >>> record_of(codec_of("uint8"), members=3, classes=10).bytes  # 8 + 3 * (4 + 4 + 10), padded
    64
    """
    offset = 8
    fields: dict[str, tuple[int, str, tuple[int, ...]]] = {INPUT_HASH: (0, "<u8", ())}
    described = codec.fields(members, classes)
    for name in sorted(described, key=lambda name: -_checked(codec, name, described[name], members).itemsize):
        dtype, shape = np.dtype(described[name][0]), tuple(map(int, described[name][1]))
        fields[name] = (offset, dtype.str, shape)
        offset += math.prod(shape) * dtype.itemsize
    return Layout(fields, -(-offset // 8) * 8)


def _checked(codec: Codec, name: Any, field: Any, members: int) -> np.dtype[Any]:
    try:
        dtype, shape = np.dtype(field[0]), tuple(field[1])
        sound = all(isinstance(n, int | np.integer) and n > 0 for n in shape)
    except (TypeError, ValueError, LookupError):
        sound = False
    if (
        not sound
        or not isinstance(name, str)
        or name == INPUT_HASH
        or dtype.kind not in "uif"
        or dtype.str[0] == ">"
    ):
        raise ValueError(
            f"codec: {codec.name}: field {name!r}: expected another name than {INPUT_HASH!r}, a "
            f"little-endian dtype of integers or floats, and a shape of positive integers; got {field!r}"
        )
    if not codec.mixture_only and shape[:1] != (members,):
        raise ValueError(
            f"codec: {codec.name}: field {name!r}: expected a shape that begins with {members}, the number "
            f"of members, so that members can be added and dropped; got {list(shape)} (a codec of mixtures "
            "sets mixture_only = True)"
        )
    return dtype
