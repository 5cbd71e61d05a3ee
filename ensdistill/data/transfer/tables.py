"""A base of samples as columns of numbers and of values: arrays, tensors and images by position, frames by
name."""

from __future__ import annotations

from typing import Any

from ensdistill.data import batches as b
from ensdistill.data.transfer.arrays import ArrayTable, as_array
from ensdistill.data.transfer.frames import FrameTable

Table = ArrayTable | FrameTable


def as_table(name: str, base: Any) -> Table:
    """The base as columns.

    Raises
    ------
    TypeError, ValueError
        It is neither numbers, nor a frame, nor images of one size.
    """
    kind = b.kind_of(base, name).name
    if kind == "table":
        return FrameTable(base)
    if kind in ("array", "tensor", "images"):
        return ArrayTable(*as_array(name, base))
    raise TypeError(
        f"{name}: expected an array, a frame, or images; got {kind}. For strings there are DropTokens, "
        "ReplaceTokens, NGrams and SpliceTexts"
    )
