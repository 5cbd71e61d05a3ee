"""Leading dimensions and the class dimension, as the op wants them: [N, C], or [O, I, C] with N = O * I, by
views where there is one.

A feature map [N, C, H, W] becomes [N, H * W, C] with stride 1 along H * W: the op reads it as it lies, and so
it gives the gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor


def collapse(student: Tensor, dense: Tensor | None, class_dim: int, *others: Tensor | None) -> Any:
    """``student`` as [N, C] or [O, I, C], ``dense`` targets [K, ...] as [K, N, C] or [K, O, I, C], and
    ``others`` as the student.

    All share one division of the leading dimensions, the one that copies least: nothing, for every layout
    that is dense in memory with the classes first or last. A tensor that isn't a view in that division is
    copied, the others are not.

    Parameters
    ----------
    student : Tensor [..., C, ...]
    dense : Tensor [K, ..., C, ...] or None
    class_dim : int
        The student's class dimension, not negative.
    *others : Tensor [..., C, ...] or None
        Of the student's shape.
    """
    if (
        class_dim == 1
        and student.dim() == 2
        and student.stride(1) == 1
        and (dense is None or dense.stride(2) == 1)
        and all(other is None or other.stride(1) == 1 for other in others)
    ):
        return student, dense, *others
    student = student.movedim(class_dim, -1)
    dense = None if dense is None else dense.movedim(class_dim + 1, -1)
    others = tuple(None if x is None else x.movedim(class_dim, -1) for x in others)
    lead, classes = student.shape[:-1], student.shape[-1]
    strides = [(1, x.stride()) for x in (student, *others) if x is not None]
    if dense is not None:
        strides.append((len(dense), dense.stride()[1:]))
    split, least = None, None
    for candidate in (None, *range(max(len(lead), 1))):
        copied = sum(volume for volume, stride in strides if not is_view(lead, classes, stride, candidate))
        if least is None or copied < least:
            split, least = candidate, copied
    shape = (
        (product(lead), classes) if split is None else (product(lead[:split]), product(lead[split:]), classes)
    )
    return (
        ready(student.reshape(shape)),
        None if dense is None else ready(dense.reshape(len(dense), *shape)),
        *(None if x is None else ready(x.reshape(shape)) for x in others),
    )


def is_view(lead: Sequence[int], classes: int, strides: Sequence[int], split: int | None) -> bool:
    """Whether the op can read a tensor in place whose dimensions before and from ``split`` on are merged into
    one each."""
    class_last = strides[-1] == 1 or classes <= 1
    if split is None:
        return class_last and merged_stride(lead, strides[:-1]) is not None
    inner = merged_stride(lead[split:], strides[split:-1])
    if inner is None or merged_stride(lead[:split], strides[:split]) is None:
        return False
    return class_last or (inner == 1 and product(lead[split:]) > 1)


def merged_stride(sizes: Sequence[int], strides: Sequence[int]) -> int | None:
    """The stride of the one dimension that these are together; None if they aren't one."""
    merged, following = 0, None
    for size, stride in zip(reversed(sizes), reversed(strides), strict=True):
        if size == 1:
            continue
        if following is None:
            merged = stride
        elif stride != following:
            return None
        following = size * stride
    return merged


def ready(x: Tensor) -> Tensor:
    """``x`` as it is if the op can read it, else a copy."""
    first = x.dim() >= 3 and x.stride(-2) == 1 and x.shape[-2] > 1
    return x if x.stride(-1) == 1 or x.shape[-1] <= 1 or first else x.contiguous()


def product(sizes: Sequence[int]) -> int:
    total = 1
    for size in sizes:
        total *= size
    return total
