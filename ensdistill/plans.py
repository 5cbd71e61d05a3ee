"""How the CUDA kernels would lay a problem over threads, also where there is no GPU to ask."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

import torch

from ensdistill import _native
from ensdistill.checks import Combiner, Divergence

_BYTES = {torch.float64: 8, torch.float32: 4, torch.bfloat16: 2, torch.float16: 2, torch.uint8: 1}
# csrc/problem.h, Element. Pairs of half precisions have no kernels of their own, see csrc/cuda/rows.
_ELEMENTS = (torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.uint8)
_HALVES = {torch.bfloat16, torch.float16}
_H100_SHARED = 232_448  # bytes of shared memory that a block may have, from compute capability 9.0 on


@dataclass(frozen=True)
class KernelPlan:
    """One launch of the loss's kernel.

    Attributes
    ----------
    layout : str
        ``staged``: a thread for each row, the block's rows copied flat to shared memory. ``strided``: a thread for each row, reading
        device memory. ``tile``, ``block``, ``cluster``: lanes of a warp, a block, several blocks share a row that stays on chip.
        ``reread``: a block for each row, read once more in each sweep. ``doubles``: the same in double precision.
    threads, cluster_blocks, threads_per_row, rows_per_block, vectors_per_thread : int
        Of a block; blocks that share a row; and so on.
    shared_bytes : int
        Shared memory of a block.
    bytes : float
        Through device memory, predicted: loss and gradient of all rows.
    registers : int or None
        Of a thread; None where the CUDA library isn't built.
    """

    layout: str
    threads: int
    cluster_blocks: int
    threads_per_row: int
    rows_per_block: int
    vectors_per_thread: int
    shared_bytes: int
    bytes: float
    registers: int | None

    def __str__(self) -> str:
        return (
            f"{self.layout}: {self.threads} threads a block, {self.threads_per_row} a row, {self.vectors_per_thread} vectors each; "
            f"{self.registers or '?'} registers, {self.shared_bytes:,} B shared memory; {self.bytes / 1e6:,.1f} MB through device memory"
        )


def kernel_plan(
    rows: int,
    classes: int,
    *,
    members: int = 1,
    student: torch.dtype = torch.float32,
    targets: torch.dtype | None = None,
    divergence: Divergence = "forward_kl",
    combiner: Combiner = "prob",
    entries: int = 0,
    classes_first: bool = False,
    device: torch.device | int | None = None,
) -> KernelPlan:
    """The plan for contiguous logits.

    Parameters
    ----------
    rows, classes, members : int
        N, C, K.
    student, targets : torch.dtype
        float64, float32, bfloat16, float16; targets also uint8, for codes. ``targets=None``: the student's.
    divergence, combiner : str
        As in :func:`ensdistill.distillation_loss`.
    entries : int
        k of sparse targets (`TopK`, `Counts`); 0 for dense ones.
    classes_first : bool
        [N, C, H, W] instead of [..., C].
    device : torch.device or int, optional
        Whose shared memory to plan for. Default: the current GPU; where there is none, an H100.

    Raises
    ------
    ValueError
        A number below 1, an unknown name or dtype.

    Examples
    --------
    >>> kernel_plan(8192, 10).layout, kernel_plan(8192, 1000).layout, kernel_plan(1024, 50_257).layout
    ('staged', 'tile', 'cluster')
    """
    targets = student if targets is None else targets
    for name, number, least in (("rows", rows, 1), ("classes", classes, 1), ("members", members, 1), ("entries", entries, 0)):
        if number < least:
            raise ValueError(f"{name}: expected at least {least}; got {number}")
    for name, dtype in (("student", student), ("targets", targets)):
        if dtype not in _BYTES or (name == "student" and dtype == torch.uint8):
            raise ValueError(f"{name}: expected a floating-point dtype{', or uint8' * (name == 'targets')}; got {dtype}")
    for name, value, kind in (("divergence", divergence, Divergence), ("combiner", combiner, Combiner)):
        if value not in get_args(kind):
            raise ValueError(f"{name}: expected one of {', '.join(get_args(kind))}; got {value!r}")
    shared, clusters = _H100_SHARED, True
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(device if device is not None else torch.cuda.current_device())
        shared, clusters = properties.shared_memory_per_block_optin, properties.major >= 9  # type: ignore[attr-defined]
    doubles = torch.float64 in (student, targets) or (not entries and {student, targets} == _HALVES)
    plan = _native.kernel_plan(
        rows,
        classes,
        members,
        _BYTES[student],
        0 if entries else _BYTES[targets],
        combiner != "prob" and members > 1,
        doubles,
        divergence == "reverse_kl",
        not classes_first,
        not classes_first,
        entries,
        shared,
        clusters,
    )
    kernel = (plan["layout"], _ELEMENTS.index(student), _ELEMENTS.index(targets), get_args(Divergence).index(divergence), entries > 0)
    return KernelPlan(**plan, registers=_native.kernel_registers(*kernel))
